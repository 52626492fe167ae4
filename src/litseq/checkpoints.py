"""Checkpoints that are the whole model: finding and reading them, checking that they fit."""

from __future__ import annotations

import copy
import inspect
import logging
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from litseq.checkpoint_io import (
    SHARD_COMMON,
    DamagedCheckpointError,
    find_damage,
    is_sharded,
    load_file,
)
from litseq.data.tokenizer import TranslationTokenizer
from litseq.pretrained import is_pretrained, read_pretrained

__all__ = [
    "FORMAT_VERSION",
    "Generation",
    "check_class",
    "check_contents",
    "check_fits",
    "check_resumable",
    "check_sizes",
    "check_tokenizer",
    "damage_of",
    "describe",
    "find_class",
    "generations",
    "newest",
    "read",
    "read_for_resuming",
    "tokenizer_of",
    "weights_alone",
]

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raised when an older litseq could no longer read what this one writes.

A file of a former version is read all the same: tests/fixtures keeps one of each.
"""

_ENTRY = {"format_version": int, "class": str, "tokenizer": dict | None}
_PARTS = {"hyper_parameters": dict, "state_dict": dict}

_WIDTHS = (
    "vocab_size", "src_vocab_size", "embedding_dim", "hidden_size",
    "d_model", "dim_feedforward", "num_heads",
)  # fmt: skip
_DEPTHS = ("num_layers", "num_encoder_layers", "num_decoder_layers")
_SLACK = 64
"""A network of one's own may hash a vocabulary, or cut a width into parts."""
_MAX_POSITIONS = 2**20
"""Rows of a table of positions that is computed, and so stands in no file."""

Module = TypeVar("Module", bound=nn.Module)


def describe(cls: type, tokenizer: TranslationTokenizer | None) -> dict[str, Any]:
    """Returns what a checkpoint holds beside Lightning's own entries."""
    return {
        "format_version": FORMAT_VERSION,
        "class": _name(cls),
        "tokenizer": None if tokenizer is None else tokenizer.state_dict(),
    }


def weights_alone(
    module: LightningModule, tokenizer: TranslationTokenizer | None
) -> dict[str, Any]:
    """Returns a checkpoint of a module that is not in training."""
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": version("lightning"),
        "litseq": describe(type(module), tokenizer),
    }


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint's weights and plain values; never runs code that a file brings.

    The whole file is compared with its checksums. Tensors are mapped from it, not copied.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged (names another that is not), holds code, was not written
            by litseq, or declares sizes that its weights do not have.
    """
    path = Path(path)
    if is_pretrained(path):
        checkpoint = read_pretrained(path)
        check_contents(path, checkpoint)
        return checkpoint
    if path.is_dir():
        if is_sharded(path):
            raise ValueError(
                f"{path} is a checkpoint in shards; 'litseq average {path} -o plain.ckpt' makes "
                f"one file of it."
            )
        found = ", ".join(sorted(p.name for p in path.rglob("*.ckpt"))) or "no .ckpt file"
        raise ValueError(f"{path} is a folder (with {found}); give a checkpoint file.")
    if not path.exists():
        beside = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no checkpoint at {path}; beside it: {', '.join(beside) or 'no .ckpt file'}."
        )
    try:
        checkpoint = load_file(path)
    except DamagedCheckpointError as error:
        intact, _ = _search(path.parent, "*.ckpt")
        if intact is None:
            raise
        remedy = f"use another checkpoint of the run: {intact.path.name} of step {intact.step}"
        raise DamagedCheckpointError(path, error.damage, remedy=remedy) from error
    check_contents(path, checkpoint)
    return cast("dict[str, Any]", checkpoint)


def read_for_resuming(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint as ``read`` does; of one in shards, everything but the weights.

    Raises:
        FileNotFoundError: As ``read`` does.
        ValueError: As ``read`` does.
    """
    path = Path(path)
    if not is_sharded(path):
        return read(path)
    if damage := damage_of(path):  # its index is a pickle, which torch would read as it is
        raise DamagedCheckpointError(path, damage)
    checkpoint = load_file(path / SHARD_COMMON)
    _entry(path, checkpoint)
    return cast("dict[str, Any]", checkpoint)


def newest(folder: str | PathLike[str], *, name: str = "*.ckpt") -> Path | None:
    """Finds the checkpoint to go on from: of the highest step, and intact.

    Of each file only the list of its contents is read, until one is chosen and checked whole. A
    warning names each damaged file that is passed over, and what is used instead. Files from which
    training cannot go on, such as an average or weights alone, and unfinished ones are none of
    them. A folder with a checkpoint in shards counts as a file.

    Args:
        folder: Where to look; not below.
        name: Which files, as a pattern.

    Returns:
        The file, or None. Of two of the same step, that of ``RunCheckpoint``, or else the later.
    """
    intact, passed_over = _search(Path(folder), name)
    instead = f"{intact.path.name} of step {intact.step} is used" if intact else "none is left"
    for path, problem in passed_over:
        _log.warning("%s %s and is passed over: %s.", path, problem, instead)
    return intact.path if intact else None


class Generation(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        step: Optimizer steps until then.
        exact: Whether a run goes on from it as if it had not stopped (``RunCheckpoint``).
        time: When it was written, in nanoseconds.
        path: The file.
        resumable: Whether it holds more than weights.
    """

    step: int
    exact: bool
    time: int
    path: Path
    resumable: bool


def generations(
    folder: Path, *, name: str = "*.ckpt"
) -> tuple[list[Generation], list[tuple[Path, str]]]:
    """Lists the checkpoints of a folder by what they say of themselves.

    Args:
        folder: Where to look; not below.
        name: Which files, as a pattern.

    Returns:
        Those that belong to a step, the last one first, not checked yet; and files that cannot be
        read, with what is wrong with them.
    """
    found, unreadable = [], []
    for path in sorted(folder.glob(name)):
        file = path / SHARD_COMMON if is_sharded(path) else path
        if not file.is_file() or path.suffix == ".part":
            continue
        try:
            content = load_file(file, verify=False)
            time = file.stat().st_mtime_ns
        except FileNotFoundError:  # removed meanwhile
            continue
        except DamagedCheckpointError as error:
            unreadable.append((path, error.damage))
            continue
        except ValueError:  # damage may look like an object that is refused
            unreadable.append((path, find_damage(file) or "holds more than plain values"))
            continue
        step = content.get("global_step") if isinstance(content, dict) else None
        if isinstance(step, int):
            run = content.get("run")
            exact = isinstance(run, dict) and run.get("exact") is True
            found.append(Generation(step, exact, time, path, "lr_schedulers" in content))
    return sorted(found, reverse=True), unreadable


def damage_of(path: Path) -> str | None:
    """Compares all of a checkpoint, a file or a folder with shards, with its checksums.

    Returns:
        What is wrong, to follow the path, or None.
    """
    if not path.is_dir():
        return find_damage(path)
    from litseq import shards  # torch takes a second to import what reads them

    return shards.find_damage(path)


def _search(folder: Path, name: str) -> tuple[Generation | None, list[tuple[Path, str]]]:
    found, passed_over = generations(folder, name=name)
    for generation in found:
        if not generation.resumable:
            continue
        path = generation.path
        damage = damage_of(path)
        if damage is None:
            return generation, passed_over
        passed_over.append((generation.path, damage))
    return None, passed_over


def _entry(path: Path, checkpoint: object) -> dict[str, Any]:
    """What litseq added to a checkpoint."""
    entry = checkpoint.get("litseq") if isinstance(checkpoint, dict) else None
    if not isinstance(entry, dict):
        raise ValueError(
            f"{path} was not written by litseq: it has no 'litseq' entry; give a .ckpt of a "
            f"litseq run."
        )
    return entry


def check_contents(path: Path, checkpoint: object) -> None:
    """Checks that a file has the parts of a litseq checkpoint.

    Raises:
        ValueError: If a part is missing or of another kind, if a newer litseq wrote it, or if it
            declares sizes that its weights do not have.
    """
    entry = _entry(path, checkpoint)
    assert isinstance(checkpoint, dict)
    version = entry.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this litseq reads up to {FORMAT_VERSION}; "
            f"install a newer litseq."
        )
    missing = [
        name
        for part, names in ((entry, _ENTRY), (checkpoint, _PARTS))
        for name, kind in names.items()
        if name not in part or not isinstance(part[name], kind)
    ]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}; use the file as litseq wrote it."
        )
    _check_plausible(path, checkpoint)


def _check_plausible(path: Path, checkpoint: dict[str, Any]) -> None:
    """Refuses absurd sizes, with which merely to begin to build the network would take all memory.

    ``check_sizes`` is exact, but needs the class.
    """
    weights = [w for w in checkpoint["state_dict"].values() if isinstance(w, Tensor)]
    widest = max((size for weight in weights for size in weight.shape), default=0)
    limits = dict.fromkeys(_WIDTHS, _SLACK * widest) | dict.fromkeys(_DEPTHS, len(weights))
    limits["max_positions"] = max(widest, _MAX_POSITIONS)
    for name, limit in limits.items():
        size = checkpoint["hyper_parameters"].get(name)
        if isinstance(size, int) and size > limit:
            raise ValueError(
                f"{path} declares {name}={size}, but its {len(weights)} weights are at most "
                f"{widest} wide; use the file as litseq wrote it."
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
            f"first, on the command line by --allow_import {name.rpartition('.')[0]}."
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


def check_resumable(checkpoint: dict[str, Any]) -> None:
    """Checks that training can go on from a checkpoint.

    Raises:
        ValueError: If it holds weights alone, as an average does.
    """
    if "lr_schedulers" in checkpoint:
        return
    averaged = checkpoint.get("litseq", {}).get("average")
    what = "weights alone" if averaged is None else f"the average of {len(averaged)} checkpoints"
    raise ValueError(
        f"the checkpoint holds {what} and no state of a training to resume; resume from a "
        f"checkpoint of the run, or begin anew from Seq2Seq.load_from_checkpoint."
    )


def check_sizes(checkpoint: dict[str, Any], module: LightningModule) -> None:
    """Compares the weights that a module is about to make with those of a checkpoint.

    Nothing is allocated. A network that cannot be made without memory is compared later, by
    ``check_fits``.

    Args:
        checkpoint: What ``read`` returned.
        module: The module before ``configure_model``.

    Raises:
        ValueError: If a weight's shape differs; names both.
    """
    shadow = copy.deepcopy(module)
    try:
        with torch.device("meta"):
            shadow.configure_model()
    except RuntimeError:
        return
    _check_shapes(checkpoint, shadow)


def _check_shapes(checkpoint: dict[str, Any], module: nn.Module) -> None:
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"the checkpoint does not fit the model: {name} is {theirs.get(name, 'absent')} in "
                f"the checkpoint and {ours.get(name, 'absent')} in the model; use the sizes that "
                f"the checkpoint was trained with."
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
    if "state_dict" in checkpoint:  # a strategy that reads shards has taken the weights out
        _check_shapes(checkpoint, module)
    _check_options(checkpoint, module)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _family(base: type[Module]) -> list[type[Module]]:
    return [base, *(cls for child in base.__subclasses__() for cls in _family(child))]
