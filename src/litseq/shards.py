"""Checkpoints in shards: a folder with a part of every weight from each rank."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from litseq.checkpoint_io import (
    SHARD_COMMON,
    SHARD_INDEX,
    DamagedCheckpointError,
    is_intact,
    is_sealed,
    load_file,
)
from litseq.checkpoint_io import find_damage as find_damage_of_file

__all__ = ["find_damage", "read"]

_PREFIX = "state_dict."

# What the index of a checkpoint in shards is made of; torch would import whatever it names.
_ALLOWED = {
    "torch": {
        "Size",
        *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)),
    },
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


def read(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint in shards as if it were one file, without the optimizer's state.

    No process group is needed, and no code that a file brings is run. All weights are in memory at
    once.

    Raises:
        ValueError: If a file is missing or damaged, or holds code.
    """
    index = _read_index(folder)
    weights = _find_weights(folder, index)
    _check_slices(folder, index, {_PREFIX + name for name in weights})
    stored = sum(file.stat().st_size for file in folder.iterdir())
    if sum(weight.numel() * weight.element_size() for weight in weights.values()) > stored:
        raise DamagedCheckpointError(folder / SHARD_INDEX, "is damaged")
    checkpoint: dict[str, Any] = load_file(folder / SHARD_COMMON)
    checkpoint["state_dict"] = {
        name: torch.empty_like(w, device="cpu") for name, w in weights.items()
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(
                {"state_dict": checkpoint["state_dict"]},
                storage_reader=_Reader(folder, index),
                no_dist=True,
            )
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise DamagedCheckpointError(folder, "is damaged") from error
    return checkpoint


def find_damage(folder: Path) -> str | None:
    """Compares all files of a checkpoint in shards with their checksums.

    Returns:
        What is wrong, to follow the folder's name, or None.
    """
    for name in (SHARD_INDEX, SHARD_COMMON):
        if not (folder / name).is_file():
            return f"was not written to its end (it lacks {name})"
    if damage := find_damage_of_file(folder / SHARD_COMMON):
        return f"is damaged ({SHARD_COMMON} {damage})"
    try:
        _check_slices(folder, _read_index(folder), None)
    except DamagedCheckpointError as error:
        return f"is damaged ({error.path.name} {error.damage})"
    return None


def _read_index(folder: Path) -> Metadata:
    path = folder / SHARD_INDEX
    if not is_sealed(folder):
        raise DamagedCheckpointError(path, "is damaged")
    try:
        with path.open("rb") as file:
            index = _Unpickler(file).load()
    except pickle.UnpicklingError as error:
        raise DamagedCheckpointError(path, f"is damaged, or no index ({error})") from error
    except Exception as error:  # damage shows in a dozen kinds
        raise DamagedCheckpointError(path, "is damaged") from error
    if not isinstance(index, Metadata):
        raise DamagedCheckpointError(path, "is damaged")
    return index


class _Unpickler(pickle._Unpickler):  # the one in C takes any memory that a damaged file asks for
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - Python's signature
        if module.startswith("pathlib"):  # where it was saved, on whatever system
            return PurePosixPath
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Reads by an index that was checked."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401 - torch's
        self._index.storage_meta = StorageMeta(load_id=self.load_id)
        return self._index


def _find_weights(folder: Path, index: Metadata) -> dict[str, Tensor]:
    """Lists the weights, without memory of their own."""
    weights = {}
    try:
        for name, entry in index.state_dict_metadata.items():
            if name.startswith(_PREFIX):
                weights[name.removeprefix(_PREFIX)] = _make_weight(entry)
    except Exception as error:  # damage shows in a dozen kinds
        raise DamagedCheckpointError(folder / SHARD_INDEX, "is damaged") from error
    return weights


def _make_weight(entry: object) -> Tensor:
    if not isinstance(entry, TensorStorageMetadata):
        raise ValueError(f"a {type(entry).__name__} is no weight")
    chunks = entry.chunks
    covered = sum(chunk.sizes.numel() for chunk in chunks)
    if covered != entry.size.numel() or len({chunk.offsets for chunk in chunks}) < len(chunks):
        raise ValueError("the ranks' parts do not make up the weight")
    for chunk in chunks:
        for start, length, size in zip(chunk.offsets, chunk.sizes, entry.size, strict=True):
            if start < 0 or start + length > size:
                raise ValueError("a rank's part lies outside of the weight")
    return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")


def _check_slices(folder: Path, index: Metadata, names: set[str] | None) -> None:
    """Compares each rank's part of what is named (None: of all) with its checksums."""
    try:
        if names is None:
            names = set(index.state_dict_metadata)
        places = [
            (folder / Path(info.relative_path).name, int(info.offset), int(info.length))
            for part, info in index.storage_data.items()
            if part.fqn in names
        ]
        if names - {part.fqn for part in index.storage_data}:
            raise ValueError("not all that is named lies somewhere")
    except Exception as error:  # damage shows in a dozen kinds
        raise DamagedCheckpointError(folder / SHARD_INDEX, "is damaged") from error
    for path, offset, length in places:
        if not path.is_file():
            raise DamagedCheckpointError(folder, f"lacks {path.name}")
        if offset < 0 or length < 0 or offset + length > path.stat().st_size:
            raise DamagedCheckpointError(path, "is damaged, or cut short")
        with path.open("rb") as file:
            file.seek(offset)
            if not is_intact(io.BytesIO(file.read(length))):
                raise DamagedCheckpointError(path, "is damaged")
