"""``litseq export``: a checkpoint as another program reads it, compared with the original."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from litseq.engines import Engine, Exported, load_exported, write_exported
from litseq.engines.marian import MarianTranslator
from litseq.export.ctranslate2 import Quantization, write_ctranslate2
from litseq.export.marian import write_marian
from litseq.export.onnx import write_onnx
from litseq.export.verify import (
    MAX_LENGTH,
    bleu_of_both,
    compare,
    compare_marian,
    read_references,
    read_sentences,
)
from litseq.task import Seq2Seq
from litseq.translator import TextTranslator

__all__ = ["declare", "main"]

Format = Literal["marian", "ctranslate2", "onnx", "safetensors"]

_log = logging.getLogger(__name__)


def declare(parser: ArgumentParser) -> None:
    """Declares the arguments of ``main``: the output has a short name."""
    parser.add_argument("-o", "--output", required=True, help="The folder to make.")
    parser.add_function_arguments(main, as_group=False, as_positional=False, skip={"output"})


def main(
    *,
    ckpt: str,
    output: str,
    to: Format = "marian",
    quantization: Quantization = "float32",
    input: str | None = None,
    references: str | None = None,
) -> None:
    """Exports a checkpoint to a folder that another program reads, and compares the two.

    Both models read the same sentences; the folder stands only if scores and greedy translations
    agree, and report.json in it says how well.

    marian is what transformers.MarianMTModel and MarianTokenizer load: a Transformer that is
    normalised after each sub-layer, with sinusoidal positions. ctranslate2 is any Transformer whose
    decoder layers all see the source. onnx is any model that torch can export: encoder and one step
    of the decoder, each a file. litseq translate --model runs these two. safetensors is what
    Seq2Seq.from_pretrained and --ckpt read, with a model card: a folder for the Hugging Face Hub.

    Args:
        ckpt: A litseq checkpoint.
        output: The folder to make; it must not exist.
        to: The format.
        quantization: How CTranslate2 keeps weights. Rounded ones are compared twice: before, where
            all must agree, and after, where a token's log-probability may be 0.1 off on average.
        input: Text file of sentences to compare on, one a line. Default: random ones.
        references: Text file of their translations: the report then has BLEU of both models.

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
    if to != "ctranslate2" and quantization != "float32":
        raise ValueError(
            f"--quantization {quantization} is for CTranslate2; leave it out, or export --to "
            f"ctranslate2."
        )
    texts = read_sentences(input)
    translations = None if references is None else read_references(references, texts)
    model = Seq2Seq.load_from_checkpoint(ckpt).eval()
    if model.tokenizer is None:
        raise ValueError(f"{ckpt} holds no tokenizer, and an export needs one.")
    # beside its place, so that it is there whole or not at all
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as part:
        made = Path(part, folder.name)
        try:
            report, theirs = _make(model, made, to, quantization, texts, _scores_of(Path(ckpt)))
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
        about = {"checkpoint": Path(ckpt).name, "format": to, "quantization": quantization}
        if texts is not None and translations is not None:
            report["bleu"] = bleu_of_both(model, theirs, texts=texts, references=translations)
        text = json.dumps({**about, **report}, indent=1)
        (made / "report.json").write_text(text + "\n", encoding="utf-8")
        shutil.move(made, folder)
    _tell(folder, report)


def _make(
    model: Seq2Seq,
    folder: Path,
    to: Format,
    quantization: Quantization,
    texts: Sequence[str] | None,
    scores: Path | None,
) -> tuple[dict[str, Any], TextTranslator]:
    """Writes a folder and compares it; returns the report, and what translates with the folder."""
    assert model.tokenizer is not None
    folder.mkdir()
    if to == "marian":
        write_marian(model, folder)
        report = compare_marian(model, folder, texts=texts)
        return report, MarianTranslator.load(folder, model.tokenizer)
    if to == "safetensors":
        model.save_pretrained(folder, model_card_kwargs={"scores": scores})
        read = Seq2Seq.from_pretrained(folder).translator()
        assert read is not None
        return compare(model, read, texts=texts), read
    if to == "onnx":
        write_onnx(model, folder)
    elif quantization == "float32":
        write_ctranslate2(model, folder)
    else:
        # what is wrong before it is rounded must not hide behind what rounding may do
        with tempfile.TemporaryDirectory(dir=folder.parent) as exact:
            _make(model, Path(exact, "float32"), to, "float32", texts, None)
        write_ctranslate2(model, folder, quantization=quantization)
    engine: Engine = "onnx" if to == "onnx" else "ctranslate2"
    write_exported(Exported(engine, model.tokenizer, model.search_options), folder)
    theirs, _ = load_exported(folder, device="cpu")
    return compare(model, theirs, texts=texts, exact=quantization == "float32"), theirs


def _scores_of(ckpt: Path) -> Path | None:
    """What litseq test wrote of this checkpoint beside its run, if it did since it was saved."""
    file = ckpt.resolve().parent.parent / "test" / "scores.json"
    if not file.is_file() or file.stat().st_mtime < ckpt.stat().st_mtime:
        return None
    scores = json.loads(file.read_text(encoding="utf-8"))
    return file if Path(scores.get("checkpoint", "")).name == ckpt.name else None


def _tell(folder: Path, report: dict[str, Any]) -> None:
    _log.info(
        "%s: %d sentences; scores differ by %.1e at most; equal are %d greedy translations, and "
        "with a beam of 4 %d of %d that end within %d tokens.",
        folder,
        report["sentences"],
        report["largest_gap"],
        report["equal_greedy"],
        report["equal_beam"],
        report["ended_beam"],
        MAX_LENGTH,
    )
    if "bleu" in report:
        _log.info(
            "BLEU %.2f of the checkpoint, %.2f of the export.",
            report["bleu"]["checkpoint"],
            report["bleu"]["export"],
        )
