"""``litseq import``: a model of another program as a checkpoint, compared with the original."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from litseq import checkpoints
from litseq.checkpoint_io import SafeCheckpointIO
from litseq.export.from_marian import import_marian
from litseq.export.verify import read_sentences
from litseq.textfiles import check_output

__all__ = ["declare", "main"]

_log = logging.getLogger(__name__)


def declare(parser: ArgumentParser) -> None:
    """Declares the arguments of ``main``: the folder stands alone, the output has a short name."""
    parser.add_argument("folder", help="The folder of the model.")
    parser.add_argument("-o", "--output", required=True, help="The checkpoint to write.")
    parser.add_function_arguments(main, as_group=False, skip={"folder", "output"})


def main(
    folder: str,
    *,
    output: str,
    format: Literal["marian"] = "marian",
    input: str | None = None,
) -> None:
    """Makes a checkpoint of a model that another program trained.

    marian is what transformers.MarianMTModel and MarianTokenizer load, such as a model of OPUS-MT:
    a folder with config.json, model.safetensors or pytorch_model.bin, source.spm, target.spm and
    vocab.json. The checkpoint translates, explains, trains on and exports again. Where transformers
    is installed, both models read the same sentences, and the checkpoint is written only if ids,
    logits and greedy translations agree.

    Args:
        folder: The folder of the model.
        output: The checkpoint to write, whole or not at all.
        format: What the folder holds.
        input: Text file of sentences to compare on, one a line. Default: random ones.

    Raises:
        FileNotFoundError: If a file is missing, or there is no folder to write in.
        ValueError: If a file is damaged, if the model has something that litseq has not (names the
            key), if the two models differ, or if a package is missing that reads the weights.
        OSError: If the output cannot be written.
    """
    target = Path(output)
    check_output(target)
    texts = read_sentences(input)
    try:
        model, report = import_marian(Path(folder), texts=texts)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    checkpoint = checkpoints.weights_alone(model, model.tokenizer)
    SafeCheckpointIO().save_checkpoint(checkpoint, target)
    _log.info(
        "%s holds a Marian model of %.1f million parameters.",
        target,
        sum(weight.numel() for weight in model.parameters()) / 1e6,
    )
    if report is not None:
        _log.info(
            "compared with transformers on %d sentences: logits differ by %.1e at most, of up to "
            "%.3g; equal are %d greedy translations, and with a beam of 4 %d of the %d that end.",
            report["sentences"],
            report["largest_gap"],
            report["largest_logit"],
            report["equal_greedy"],
            report["equal_beam"],
            report["ended_beam"],
        )
