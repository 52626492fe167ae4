"""``litseq explain``: sentences in, one page out; a checkpoint alone suffices."""

import logging
from dataclasses import replace
from json import dumps
from pathlib import Path

from jsonargparse import ArgumentParser

from litseq.explain.page import Language, render
from litseq.explain.record import explain_translations
from litseq.explain.transformer import Head
from litseq.task import Seq2Seq
from litseq.textfiles import check_output, open_input, read_lines, whole_file
from litseq.translate import find_device

__all__ = ["declare", "main"]

_log = logging.getLogger(__name__)


def declare(parser: ArgumentParser) -> None:
    """Declares the arguments of ``main``.

    A signature cannot say which of them stand alone and which may be given several times, so these
    come first; the parser takes the others from the signature.
    """
    parser.add_argument("texts", nargs="*", default=[], help="Sentences, each in quotes.")
    for name, purpose in (
        ("translation", "Explains this translation instead of searching; once per sentence."),
        ("reference", "Shown beside the translation; once per sentence."),
        (
            "head",
            "A head to show number by number: kind:layer:head, such as cross:2:4 for layer 2 and "
            "head 4 of the cross-attention; repeatable.",
        ),
    ):
        parser.add_argument(f"--{name}", action="append", help=purpose)
    parser.add_function_arguments(
        main,
        as_group=False,
        as_positional=False,
        skip={"texts", "translation", "reference", "head"},
    )


def main(
    texts: list[str],
    *,
    ckpt: str,
    out: str = "report.html",
    input: str | None = None,
    translation: list[str] | None = None,
    reference: list[str] | None = None,
    head: list[str] | None = None,
    beam_size: int | None = None,
    max_src_len: int = 256,
    language: Language = "en",
    json: str | None = None,
    device: str = "auto",
) -> None:
    """Explains translations on one page that opens in any browser, without a network.

    Each sentence is translated, and the page shows how its translation came about, with the model's
    own numbers.

    Args:
        texts: Sentences.
        ckpt: A litseq checkpoint; it brings model and tokenizer.
        out: The page to write.
        input: Text file in UTF-8 with a sentence a line, in place of sentences; - is standard
            input.
        translation: Explains these translations instead of searching, one per sentence.
        reference: Shown beside, one per sentence.
        head: Heads to show number by number, such as cross:2:4.
        beam_size: Hypotheses kept; 1 is greedy. Default: the checkpoint's.
        max_src_len: Tokens of a sentence, or of a given translation, that are read at most; longer
            ones are cut, with a warning.
        language: Language in which the page opens; its reader can switch.
        json: Writes what the page shows to this file too, as JSON.
        device: Such as cpu or cuda:0; auto is an accelerator where there is one.

    Raises:
        FileNotFoundError: If a file, or the folder of one to write, is missing.
        ValueError: If the checkpoint, a sentence or an option is not usable.
    """
    paths = [Path(name) for name in (out, json) if name is not None]
    _check_outputs(paths, inputs=[Path(name) for name in (ckpt, input) if name is not None])
    heads = [Head.parse(text) for text in head or ()]
    sentences = _sentences(texts, input)
    module = Seq2Seq.load_from_checkpoint(ckpt, map_location=find_device(device))
    options = module.search_options
    record = explain_translations(
        module,
        sentences,
        translations=translation,
        references=reference,
        options=options if beam_size is None else replace(options, beam_size=beam_size, n_best=1),
        heads=heads,
        max_src_len=max_src_len,
    )
    contents = [render(record, language=language), dumps(record, ensure_ascii=False)]
    for path, content in zip(paths, contents, strict=False):
        with whole_file(path) as file:
            file.write(content)
        _log.info("%s holds %d KB.", path, round(path.stat().st_size / 1000))


def _sentences(texts: list[str], input: str | None) -> list[str]:
    if input is None:
        if not texts:
            raise ValueError(
                "there is no sentence to explain; give one in quotes, or a file by --input."
            )
        return texts
    if texts:
        raise ValueError(
            f"sentences come from --input {input} or from the command line ({texts[0]!r}), not "
            f"from both; leave out one."
        )
    with open_input(input) as file:
        lines = list(read_lines(file, input))
    sentences = [line for line in lines if line.strip()]
    if not sentences:
        raise ValueError(f"{input} is empty; it needs a sentence a line.")
    if len(sentences) < len(lines):
        _log.warning(
            "%d of %d lines are blank and left out.", len(lines) - len(sentences), len(lines)
        )
    return sentences


def _check_outputs(paths: list[Path], *, inputs: list[Path]) -> None:
    """Finds out before the work whether its result can be written."""
    for path in paths:
        check_output(path)
        if path.resolve() in {file.resolve() for file in inputs}:
            raise ValueError(f"{path} is read itself; write to another file.")
    if len(paths) > len({path.resolve() for path in paths}):
        raise ValueError(f"{paths[0]} cannot be both page and JSON; give two files.")
