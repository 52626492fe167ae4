"""Checkpoints that are the whole model: reading them safely and checking that they fit."""

from __future__ import annotations

import inspect
import pickle
import re
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from litseq.data.tokenizer import TranslationTokenizer

__all__ = [
    "FORMAT_VERSION",
    "check_class",
    "check_fits",
    "check_tokenizer",
    "describe",
    "find_class",
    "read",
    "tokenizer_of",
]

FORMAT_VERSION = 1
"""Raised when an older litseq could no longer read what this one writes."""

Module = TypeVar("Module", bound=nn.Module)


def describe(cls: type, tokenizer: TranslationTokenizer | None) -> dict[str, Any]:
    """Returns what a checkpoint holds beside Lightning's own entries."""
    return {
        "format_version": FORMAT_VERSION,
        "class": _name(cls),
        "tokenizer": None if tokenizer is None else tokenizer.state_dict(),
    }


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint's weights and plain values; never runs code that a file brings.

    Tensors are mapped from the file, not copied.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds code, or was not written by litseq.
    """
    path = Path(path)
    if path.is_dir():
        found = ", ".join(sorted(p.name for p in path.rglob("*.ckpt"))) or "no .ckpt file"
        raise ValueError(f"{path} is a folder (with {found}); give a checkpoint file.")
    if not path.exists():
        beside = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no checkpoint at {path}; beside it: {', '.join(beside) or 'no .ckpt file'}."
        )
    # the index of the archive stands at its end, so this also finds a file that was cut short
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(
                f"{path} ({path.stat().st_size:,} bytes) is not a checkpoint, or was cut short; "
                f"use another checkpoint of the run."
            )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damage shows in a dozen kinds
        if not isinstance(error, pickle.UnpicklingError) or not _is_intact(path):
            raise ValueError(f"{path} is damaged; use another checkpoint of the run.") from error
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} holds {refused[1] if refused else 'objects'}, which is neither a tensor nor a "
            f"plain value, and is not loaded; litseq reads only files that cannot run code."
        ) from error
    _check_format(path, checkpoint)
    return cast("dict[str, Any]", checkpoint)


def _is_intact(path: Path) -> bool:
    """Compares the checksums of the archive with its contents."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # as many kinds again
        return False


def _check_format(path: Path, checkpoint: object) -> None:
    entry = checkpoint.get("litseq") if isinstance(checkpoint, dict) else None
    if not isinstance(checkpoint, dict) or not isinstance(entry, dict):
        raise ValueError(
            f"{path} was not written by litseq: it has no 'litseq' entry; give a .ckpt of a "
            f"litseq run."
        )
    version = entry.get("format_version", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this litseq reads up to {FORMAT_VERSION}; "
            f"install a newer litseq."
        )
    missing = {"format_version", "class", "tokenizer"} - entry.keys()
    missing |= {"hyper_parameters", "state_dict"} - checkpoint.keys()
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}; use the file as litseq wrote it."
        )


def find_class(checkpoint: dict[str, Any], base: type[Module]) -> type[Module]:
    """Finds the class that wrote a checkpoint among the imported subclasses of ``base``.

    Raises:
        ValueError: If the class is not imported or is not a subclass of ``base``.
    """
    name = checkpoint["litseq"]["class"]
    known = {_name(cls): cls for cls in _family(base)}
    if name not in known:
        raise ValueError(
            f"the checkpoint is a {name}, which is no imported {base.__name__}; import its module "
            f"first, on the command line by --model {name}."
        )
    return known[name]


def tokenizer_of(checkpoint: dict[str, Any]) -> TranslationTokenizer | None:
    """Restores the tokenizer that a checkpoint holds, if any."""
    state = checkpoint.get("litseq", {}).get("tokenizer")
    return None if state is None else TranslationTokenizer.from_state_dict(state)


def check_class(checkpoint: dict[str, Any], cls: type) -> None:
    """Checks that a checkpoint was written by a class.

    Raises:
        ValueError: If it was not; names both.
    """
    entry = checkpoint.get("litseq")
    if entry is None:
        raise ValueError("the checkpoint was not written by litseq: it has no 'litseq' entry.")
    if entry["class"] != _name(cls):
        raise ValueError(
            f"the checkpoint is a {entry['class'].rpartition('.')[2]}, the model is a "
            f"{cls.__name__}; choose the model of the checkpoint or another checkpoint."
        )


def check_tokenizer(
    learned_with: TranslationTokenizer | None, tokenizer: TranslationTokenizer | None
) -> None:
    """Checks that a model meets the tokenizer that it was trained with, where both are known.

    Raises:
        ValueError: If they differ, even where their sizes agree; names both.
    """
    if learned_with is None or tokenizer is None:
        return
    if learned_with.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"the checkpoint's tokenizer (sha256 {learned_with.fingerprint[:12]}, "
            f"{learned_with.tgt_vocab_size} target tokens) is not the DataModule's (sha256 "
            f"{tokenizer.fingerprint[:12]}, {tokenizer.tgt_vocab_size}); set the DataModule's "
            f"'tokenizer' to the checkpoint."
        )


def _check_options(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Compares what decides how the network computes, but shows in no weight's shape."""
    ours = getattr(module, "hparams", {})
    known = inspect.signature(type(module)).parameters
    names = known.keys() | {"pad_id", "bos_id", "eos_id"}
    for name in sorted(name for name in names if "dropout" not in name):
        # what the file does not name yet had the value that is now the default
        default = known[name].default if name in known else None
        saved = checkpoint["hyper_parameters"].get(name, default)
        if name in ours and ours[name] != saved:
            raise ValueError(
                f"the checkpoint was trained with {name} {saved}, the model has {ours[name]}; use "
                f"the value of the checkpoint."
            )


def check_fits(
    checkpoint: dict[str, Any], module: nn.Module, tokenizer: TranslationTokenizer | None
) -> None:
    """Checks that a module and a tokenizer are those of the checkpoint.

    Raises:
        ValueError: If class, tokenizer, a weight's shape or an option of the network differs; names
            both sides.
    """
    check_class(checkpoint, type(module))
    check_tokenizer(tokenizer_of(checkpoint), tokenizer)
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"the checkpoint does not fit the model: {name} is {theirs.get(name, 'absent')} in "
                f"the checkpoint and {ours.get(name, 'absent')} in the model; use the sizes that "
                f"the checkpoint was trained with."
            )
    _check_options(checkpoint, module)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _family(base: type[Module]) -> list[type[Module]]:
    return [base, *(cls for child in base.__subclasses__() for cls in _family(child))]
