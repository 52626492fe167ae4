"""Checkpoints that are the whole model: reading them safely and checking that they fit."""

from __future__ import annotations

import pickle
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from litseq.data.tokenizer import TranslationTokenizer

__all__ = ["FORMAT_VERSION", "check_fits", "describe", "find_class", "read", "tokenizer_of"]

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
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a checkpoint, or was cut short; "
            f"use another checkpoint of the run."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds objects other than tensors and plain values and is not loaded; "
            f"litseq reads only files that cannot run code."
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "litseq" not in checkpoint:
        raise ValueError(
            f"{path} was not written by litseq: it has no 'litseq' entry; give a .ckpt of a "
            f"litseq run."
        )
    version = checkpoint["litseq"]["format_version"]
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this litseq reads up to {FORMAT_VERSION}; "
            f"install a newer litseq."
        )
    return checkpoint


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
            f"first, or load it with {name.rpartition('.')[2]}.load_from_checkpoint."
        )
    return known[name]


def tokenizer_of(checkpoint: dict[str, Any]) -> TranslationTokenizer | None:
    """Restores the tokenizer that a checkpoint holds, if any."""
    state = checkpoint.get("litseq", {}).get("tokenizer")
    return None if state is None else TranslationTokenizer.from_state_dict(state)


def check_fits(
    checkpoint: dict[str, Any], module: nn.Module, tokenizer: TranslationTokenizer | None
) -> None:
    """Checks that a module and a tokenizer are those of the checkpoint.

    Raises:
        ValueError: If class, tokenizer or a weight's shape differs; names both sides.
    """
    entry = checkpoint.get("litseq")
    if entry is None:
        raise ValueError("the checkpoint was not written by litseq: it has no 'litseq' entry.")
    if entry["class"] != _name(type(module)):
        raise ValueError(
            f"the checkpoint is a {entry['class'].rpartition('.')[2]}, the model is a "
            f"{type(module).__name__}; choose the model of the checkpoint or another checkpoint."
        )
    saved = tokenizer_of(checkpoint)
    if saved is not None and tokenizer is not None and saved.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"the checkpoint's tokenizer (sha256 {saved.fingerprint[:12]}, {saved.tgt_vocab_size} "
            f"target tokens) is not the DataModule's (sha256 {tokenizer.fingerprint[:12]}, "
            f"{tokenizer.tgt_vocab_size}); set the DataModule's 'tokenizer' to the checkpoint."
        )
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"the checkpoint does not fit the model: {name} is {theirs.get(name, 'absent')} in "
                f"the checkpoint and {ours.get(name, 'absent')} in the model; use the sizes that "
                f"the checkpoint was trained with."
            )


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _family(base: type[Module]) -> list[type[Module]]:
    return [base, *(cls for child in base.__subclasses__() for cls in _family(child))]
