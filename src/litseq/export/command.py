"""``litseq export``: a checkpoint as another program reads it, compared with the original."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from litseq.export.marian import write_marian
from litseq.export.verify import MAX_LENGTH, compare_marian, read_sentences
from litseq.task import Seq2Seq

__all__ = ["declare", "main"]

_log = logging.getLogger(__name__)


def declare(parser: ArgumentParser) -> None:
    """Declares the arguments of ``main``: the output has a short name."""
    parser.add_argument("-o", "--output", required=True, help="The folder to make.")
    parser.add_function_arguments(main, as_group=False, as_positional=False, skip={"output"})


def main(
    *, ckpt: str, output: str, to: Literal["marian"] = "marian", input: str | None = None
) -> None:
    """Exports a checkpoint to a folder that another program reads, and compares the two.

    marian is what transformers.MarianMTModel and MarianTokenizer load: a Transformer that is
    normalised after each sub-layer, with sinusoidal positions. Both models read the same sentences;
    the folder stands only if ids, logits and greedy translations agree, and report.json in it says
    how well.

    Args:
        ckpt: A litseq checkpoint.
        output: The folder to make; it must not exist.
        to: The format.
        input: Text file of sentences to compare on, one a line. Default: random ones.

    Raises:
        FileNotFoundError: If a file is missing, or there is no folder to write in.
        FileExistsError: If the output exists.
        ValueError: If the model has something that the format has not (names the option), or if
            what was written does not do what the checkpoint does, or if a package is missing that
            the format needs.
    """
    folder = Path(output)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give a folder that does not, or remove it.")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.parent} to make {folder.name} in.")
    texts = read_sentences(input)
    model = Seq2Seq.load_from_checkpoint(ckpt).eval()
    # beside its place, so that it is there whole or not at all
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as part:
        made = Path(part, folder.name)
        made.mkdir()
        try:
            write_marian(model, made)
            report = compare_marian(model, made, texts=texts)
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
        text = json.dumps({"checkpoint": Path(ckpt).name, "format": to, **report}, indent=1)
        (made / "report.json").write_text(text + "\n", encoding="utf-8")
        shutil.move(made, folder)
    _log.info(
        "%s: %d sentences; logits differ by %.1e at most; equal are %d greedy translations, and "
        "with a beam of 4 %d of %d that end within %d tokens.",
        folder,
        report["sentences"],
        report["largest_logit_gap"],
        report["equal_greedy"],
        report["equal_beam"],
        report["ended_beam"],
        MAX_LENGTH,
    )
