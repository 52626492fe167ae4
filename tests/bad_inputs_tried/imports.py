"""Models of other programs that are damaged, hostile, or have what litseq has not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from bad_inputs_tried.case import Case, World
from bad_inputs_tried.files import Code
from litseq import Seq2Seq
from litseq.export import write_marian

__all__ = ["CASES"]

IMPORT = "import bad -o x.ckpt"


def marian(change: Callable[[Path], object]) -> Callable[[World], None]:
    """Writes ``bad``, a model for transformers that has been changed."""

    def make(world: World) -> None:
        os.mkdir("bad")
        write_marian(Seq2Seq.load_from_checkpoint(world.ckpt), Path("bad"))
        change(Path("bad"))

    return make


def put(name: str, key: str, value: object) -> Callable[[World], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        text = json.dumps({**values, key: value}, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")

    return marian(change)


def with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.shared.weight": Code()}, folder / "pytorch_model.bin")


def case(name: str, wrong: str, make: Callable[[World], None] | None, expect: str) -> Case:
    return Case(name, "import", wrong, IMPORT, expect, make=make)


CASES = [
    case("import-none", "no folder at that name", None, r"there is no folder bad; give one with"),
    case(
        "import-json",
        "a configuration that is cut short",
        marian(lambda f: (f / "config.json").write_bytes((f / "config.json").read_bytes()[:99])),
        r"bad/config\.json is not JSON \(",
    ),
    case(
        "import-other",
        "a model of another kind",
        put("config.json", "model_type", "bart"),
        r'bad/config\.json: model_type is "bart"; litseq reads models with "marian" alone\.',
    ),
    case(
        "import-unscaled",
        "embeddings that are not scaled",
        put("config.json", "scale_embedding", False),
        r"bad/config\.json: scale_embedding is false; litseq reads models with true alone\.",
    ),
    case(
        "import-huge",
        "a million layers",
        put("config.json", "encoder_layers", 10**6),
        r"bad/model\.safetensors has 1 layers in its encoder, and encoder_layers in config\.json",
    ),
    case(
        "import-lost",
        "no vocabulary",
        marian(lambda f: (f / "vocab.json").unlink()),
        r"there is no file bad/vocab\.json; the folder holds config\.json,",
    ),
    case(
        "import-ids",
        "an id that no piece has",
        put("vocab.json", "<pad>", 10**6),
        r"bad/vocab\.json must give its \d+ pieces the ids 0 to \d+, each once\.",
    ),
    case(
        "import-cut",
        "weights that are cut short",
        marian(
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:5000]
            )
        ),
        r"bad/model\.safetensors is damaged \(",
    ),
    case(
        "import-code",
        "weights that hold code to run",
        marian(with_code),
        r"bad/pytorch_model\.bin is damaged, or holds more than tensors and plain values,",
    ),
]
