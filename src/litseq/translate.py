"""``litseq translate``: lines in, translations out; a checkpoint alone suffices."""

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO

import torch

from litseq.decoding import SearchOptions
from litseq.engines import Engine, load_exported
from litseq.heap import keep_freed
from litseq.layers.linear import Packing
from litseq.precision import Precision, check_precision
from litseq.task import Seq2Seq
from litseq.textfiles import (
    check_output,
    leave_closed_pipe,
    one_line,
    open_input,
    printable,
    read_lines,
    whole_file,
)
from litseq.types import ScoredText, Translation

__all__ = ["find_device", "main"]

_DTYPES = {
    "64": torch.float64, "32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16,
}  # fmt: skip

_CHUNK = 2048
"""Lines that are read, sorted by length and translated together."""


def main(
    *,
    ckpt: str | None = None,
    model: str | None = None,
    engine: Engine | None = None,
    input: str = "-",
    output: str = "-",
    format: Literal["text", "jsonl"] = "text",
    n_best: int = 1,
    alignment: bool = False,
    beam_size: int | None = None,
    length_penalty: float | None = None,
    length_offset: float | None = None,
    patience: float | None = None,
    max_len_a: float | None = None,
    max_len_b: int | None = None,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    max_tokens: int = 4096,
    max_src_len: int = 256,
    device: str = "auto",
    precision: Precision = "32-true",
    int8: bool = False,
) -> None:
    """Translates text, one sentence a line, with a litseq checkpoint or what was exported from it.

    As many lines come out as went in, in their order; a blank line stays blank. From a terminal,
    each line is answered as it is typed.

    Args:
        ckpt: A litseq checkpoint; it brings model and tokenizer.
        model: Instead of it, a folder that litseq export made for CTranslate2 or ONNX.
        engine: The program that runs the folder. Default: the one that it was made for.
        input: Text file in UTF-8; - is standard input.
        output: File to write, whole or not at all; - is standard output.
        format: Plain text (n_best above 1: Moses' "number ||| text ||| score"), or a JSON object a
            line with source, text, score and all hypotheses.
        n_best: Translations per sentence.
        alignment: Also says which source word each target word comes from, as attention sees it:
            "text ||| 0-0 1-2" (source-target, from 0); in JSON with the words on both sides.
        beam_size: Hypotheses kept; 1 is greedy. Default: the checkpoint's.
        length_penalty: Exponent of the length normalisation. Default: the checkpoint's.
        length_offset: Lengths are counted from it; 5 is Wu et al.'s (2016), 0 divides by the length
            itself. Default: the checkpoint's.
        patience: A beam ends when patience * beam_size hypotheses of a sentence have ended; inf:
            when nothing better can come, which takes longer than 1. Default: the checkpoint's.
        max_len_a: Longest output is max_len_a * source tokens + max_len_b. Default: the
            checkpoint's.
        max_len_b: See max_len_a.
        sample: Draw translations at random instead of searching the best.
        temperature: Divides the logits before drawing; below 1 is safer, above 1 bolder.
        top_k: Draw among the k most probable tokens; 0 is all.
        top_p: Draw among the most probable tokens that make up this probability; 1 is all.
        seed: Seed of the draws.
        max_tokens: Padded source tokens per batch.
        max_src_len: Tokens of a line that are read at most; longer ones are cut, and counted.
        device: Such as cpu or cuda:0; auto is an accelerator where there is one.
        precision: As a Trainer's; with bf16-mixed, products are in bfloat16, which many processors
            and GPUs do faster.
        int8: Multiply in 8 bits on a CPU: faster, and a little less exact, so that a translation
            may depend on the sentences that it shares a batch with.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the checkpoint or folder, an option or a line of the input is not usable, or
            if the program is not installed that runs the folder.
    """
    if max_src_len < 2:
        raise ValueError(f"max_src_len counts EOS and must be at least 2, got {max_src_len}.")
    translations, saved = _load(ckpt, model, engine, device, precision, int8=int8)
    options = SearchOptions(
        beam_size=max(n_best, saved.beam_size) if beam_size is None else beam_size,
        length_penalty=saved.length_penalty if length_penalty is None else length_penalty,
        length_offset=saved.length_offset if length_offset is None else length_offset,
        n_best=n_best,
        patience=saved.patience if patience is None else patience,
        max_len_a=saved.max_len_a if max_len_a is None else max_len_a,
        max_len_b=saved.max_len_b if max_len_b is None else max_len_b,
        sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        attention=alignment,
    )
    write = _FORMATS["moses" if format == "text" and n_best > 1 else format]
    with open_input(input) as source, _open_output(output) as target:
        show = printable if target.isatty() else str
        typed = source.isatty() and target.isatty()
        lines = read_lines(source, input)
        first = 0
        while chunk := list(islice(lines, 1 if typed else _CHUNK)):
            for translation in translations(
                chunk,
                options=options,
                max_tokens=max_tokens,
                max_src_len=max_src_len,
                first_id=first,
            ):
                target.writelines(f"{show(line)}\n" for line in write(translation))
            target.flush()
            first += len(chunk)


def _load(
    ckpt: str | None,
    model: str | None,
    engine: Engine | None,
    device: str,
    precision: Precision,
    *,
    int8: bool,
) -> tuple[Callable[..., list[Translation]], SearchOptions]:
    """Returns what translates, and how the checkpoint would search."""
    if model is None:
        if engine is not None:
            raise ValueError(
                f"--engine {engine} runs what litseq export made; give that folder by --model."
            )
        if ckpt is None:
            raise ValueError(
                "--ckpt is missing: give a checkpoint, or by --model a folder that litseq export "
                "made."
            )
        if int8 and precision != "32-true":
            raise ValueError(
                f"--int8 multiplies in 8 bits; leave it out, or --precision {precision}."
            )
        where = find_device(device)
        check_precision(precision, where, training=False, option="precision")
        number, kind = precision.split("-")
        module = Seq2Seq.load_from_checkpoint(ckpt, map_location=where)
        if kind == "true":
            module.to(_DTYPES[number])
        if where.type == "cpu":
            keep_freed()
        translator = module.eval().translator(int8=int8)
        if translator is None:
            return module.translations, module.search_options  # which says what is missing
        # packed once for all lines
        ready = replace(translator, packing=translator.packing or Packing())
        translate = partial(ready.translate, device=module.device)
        if kind == "mixed":
            translate = torch.autocast(where.type, _DTYPES[number])(translate)
        return translate, module.search_options
    if ckpt is not None:
        raise ValueError(f"{ckpt} and {model} are two models; give --ckpt or --model.")
    if int8:
        raise ValueError(
            f"{model} holds the weights as litseq export wrote them; leave --int8 out, and export "
            f"--to ctranslate2 --quantization int8."
        )
    if precision != "32-true":
        raise ValueError(
            f"{model} has the precision of its weights; leave --precision {precision} out, and see "
            f"--quantization of litseq export."
        )
    try:
        exported, options = load_exported(Path(model), engine=engine, device=device)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    return partial(exported.translate, device=torch.device("cpu")), options


def _text(translation: Translation) -> Iterable[str]:
    yield one_line(translation.text) + _alignment(translation.hypotheses[0])


def _moses(translation: Translation) -> Iterable[str]:
    for hypothesis in translation.hypotheses:
        text = one_line(hypothesis.text)
        score = f"{hypothesis.score:.4f}"
        yield f"{translation.id} ||| {text} ||| {score}{_alignment(hypothesis)}"


def _alignment(hypothesis: ScoredText) -> str:
    return "" if hypothesis.alignment is None else f" ||| {hypothesis.alignment}"


def _jsonl(translation: Translation) -> Iterable[str]:
    yield json.dumps(translation.as_dict(), ensure_ascii=False)


_FORMATS: dict[str, Callable[[Translation], Iterable[str]]] = {
    "text": _text,
    "moses": _moses,
    "jsonl": _jsonl,
}


def find_device(name: str) -> torch.device:
    """Finds the device that a command line names; ``auto`` is an accelerator where there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        torch.zeros((), device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch asserts that CUDA was compiled in
        raise ValueError(
            f"cannot compute on device {name!r}; give auto, cpu, or an accelerator that is here, "
            f"such as cuda or cuda:0."
        ) from error
    return torch.device(name)


@contextmanager
def _open_output(name: str) -> Iterator[TextIO]:
    if name == "-" and sys.stdout is None:
        raise ValueError("standard output is closed; give a file to write.")
    if name == "-":
        # a terminal of another encoding must not end the run in the middle
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        try:
            yield sys.stdout
        except BrokenPipeError:
            leave_closed_pipe()
        return
    path = Path(name)
    check_output(path)
    with whole_file(path) as file:
        yield file
