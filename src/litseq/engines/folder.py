"""What an exported folder holds beside the model: which program runs it, tokenizer and search."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from litseq.data.tokenizer import TranslationTokenizer
from litseq.decoding import SearchOptions
from litseq.engines.ctranslate2 import CTranslate2Translator
from litseq.engines.onnx import OnnxModel
from litseq.translator import Translator

__all__ = ["Engine", "Exported", "load_exported", "read_exported", "write_exported"]

Engine = Literal["ctranslate2", "onnx"]

_ABOUT = "litseq.json"
_SAVED = ("beam_size", "length_penalty", "length_offset", "patience", "max_len_a", "max_len_b")


@dataclass(frozen=True)
class Exported:
    """An exported model as far as litseq has to know it.

    Attributes:
        engine: The program that runs it.
        tokenizer: The checkpoint's.
        options: How the checkpoint searches.
    """

    engine: Engine
    tokenizer: TranslationTokenizer
    options: SearchOptions


def write_exported(exported: Exported, folder: Path) -> None:
    """Writes ``litseq.json`` and the tokenizer's files beside a model."""
    exported.tokenizer.save(folder)
    values = asdict(exported.options)
    about = {"engine": exported.engine, "search": {name: values[name] for name in _SAVED}}
    (folder / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_exported(folder: Path) -> Exported:
    """Reads what ``write_exported`` wrote.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no exported model.
        ValueError: If ``litseq.json`` is damaged.
    """
    path = folder / _ABOUT
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {_ABOUT}; give a folder that 'litseq export --to ctranslate2' or "
            f"'--to onnx' made."
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        engine, search = about["engine"], dict(about["search"])
        if engine not in ("ctranslate2", "onnx"):
            raise ValueError(f"engine {engine!r}")
        if unknown := sorted(set(search) - {field.name for field in fields(SearchOptions)}):
            raise ValueError(f"unknown {', '.join(unknown)}")
        options = SearchOptions(**search)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); export the model again.") from error
    return Exported(engine, TranslationTokenizer.load(folder), options)


def load_exported(
    folder: Path, *, engine: Engine | None = None, device: str = "auto"
) -> tuple[Translator | CTranslate2Translator, SearchOptions]:
    """Makes a translator of an exported folder.

    Args:
        folder: What ``litseq export`` made.
        engine: The program that is to run it; None: the one that it was made for.
        device: Where to compute: auto, cpu or, with CTranslate2, cuda or cuda:0.

    Returns:
        The translator, and how the checkpoint would search.

    Raises:
        FileNotFoundError: If the folder holds no exported model.
        ModuleNotFoundError: If the program that runs it is not installed.
        ValueError: If a file is damaged, the folder is another program's, or the device is not
            there.
    """
    exported = read_exported(folder)
    if engine not in (None, exported.engine):
        raise ValueError(
            f"{folder} was made for {exported.engine}, not for {engine}; leave out --engine, or "
            f"export it --to {engine}."
        )
    tokenizer = exported.tokenizer
    if exported.engine == "ctranslate2":
        return CTranslate2Translator.load(folder, tokenizer, device=device), exported.options
    if device not in ("auto", "cpu"):
        raise ValueError(
            f"an ONNX model runs on the cpu, got device {device!r}; leave out --device."
        )
    translator = Translator(
        tokenizer,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        model=OnnxModel(folder).eval(),
    )
    return translator, exported.options
