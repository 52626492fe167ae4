"""Exported models that are damaged, and exports that cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bad_inputs_tried.case import Case, World
from litseq import Seq2Seq
from litseq.engines import Exported, write_exported
from litseq.export.ctranslate2 import write_ctranslate2

__all__ = ["CASES"]

EXPORT = "export --ckpt {ckpt} -o x --to ctranslate2"
TRANSLATE = "translate --model bad --input in"


def made(change: Callable[[Path], object]) -> Callable[[World], None]:
    """Writes ``bad``, a model for CTranslate2 that has been changed."""

    def make(world: World) -> None:
        os.mkdir("bad")
        Path("in").write_text("one\n")
        model = Seq2Seq.load_from_checkpoint(world.ckpt)
        write_ctranslate2(model, Path("bad"))
        write_exported(Exported("ctranslate2", model.tokenizer, model.search_options), Path("bad"))
        change(Path("bad"))

    return make


def saved(change: Callable[[Path], object]) -> Callable[[World], None]:
    """Writes ``bad``, a folder of ``save_pretrained`` that has been changed."""

    def make(world: World) -> None:
        Path("in").write_text("one\n")
        Seq2Seq.load_from_checkpoint(world.ckpt).save_pretrained("bad")
        change(Path("bad"))

    return make


def half(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def two_lines(world: World) -> None:
    Path("in").write_text("one\ntwo\n")
    Path("out").write_text("eins\n")


CASES = [
    Case(
        "export-references",
        "export",
        "fewer references than sentences",
        f"{EXPORT} --input in --references out",
        r"out has 1 lines for 2 sentences of --input; give one for each\.",
        make=two_lines,
    ),
    Case(
        "export-rounded",
        "export",
        "rounded weights in a format that has none",
        "export --ckpt {ckpt} -o x --to marian --quantization int8",
        r"--quantization int8 is for CTranslate2; leave it out, or export --to ctranslate2\.",
    ),
    Case(
        "engine-none",
        "engine",
        "a folder with no exported model",
        "translate --model . --input in",
        r"\. holds no litseq\.json; give a folder that 'litseq export --to ctranslate2'",
    ),
    Case(
        "engine-other",
        "engine",
        "a folder of another program",
        f"{TRANSLATE} --engine onnx",
        r"bad was made for ctranslate2, not for onnx; leave out --engine, or export it --to onnx\.",
        make=made(lambda folder: None),
    ),
    Case(
        "engine-json",
        "engine",
        "litseq.json cut short",
        TRANSLATE,
        r"bad/litseq\.json is damaged \(.*\); export the model again\.",
        make=made(half("litseq.json")),
    ),
    Case(
        "engine-weights",
        "engine",
        "weights cut short",
        TRANSLATE,
        r"CTranslate2 cannot run bad on 'auto': ",
        make=made(half("model.bin")),
    ),
    Case(
        "engine-tokenizer",
        "engine",
        "a tokenizer cut short",
        TRANSLATE,
        r"bad is not a SentencePiece model",
        make=made(half("shared.model")),
    ),
    Case(
        "pretrained-config",
        "engine",
        "a folder of save_pretrained, config.json cut short",
        "translate --ckpt bad --input in",
        r"bad/config\.json is not JSON \(.*\); save the model again\.",
        make=saved(half("config.json")),
    ),
    Case(
        "pretrained-weights",
        "engine",
        "a folder of save_pretrained, weights cut short",
        "translate --ckpt bad --input in",
        r"bad/model\.safetensors is damaged \(.*\); save the model again\.",
        make=saved(half("model.safetensors")),
    ),
    Case(
        "engine-two",
        "engine",
        "a checkpoint and an exported model",
        f"{TRANSLATE} --ckpt {{ckpt}}",
        r"are two models; give --ckpt or --model\.",
        make=made(lambda folder: None),
    ),
]
