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

from litseq import checkpoints
from litseq.checkpoint_io import DamagedCheckpointError, is_intact, load_file

__all__ = ["read"]

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
        ValueError: If a file is missing or damaged, holds code, or was not written by litseq.
    """
    index = _read_index(folder / checkpoints.SHARD_INDEX)
    weights = _find_weights(folder, index)
    _check_slices(folder, index, weights)
    checkpoint: dict[str, Any] = load_file(folder / checkpoints.SHARD_COMMON)
    checkpoint["state_dict"] = {
        name: torch.empty_like(w, device="cpu") for name, w in weights.items()
    }
    checkpoints.check_contents(folder, checkpoint)
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


def _read_index(path: Path) -> Metadata:
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


class _Unpickler(pickle.Unpickler):
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
        raise DamagedCheckpointError(folder / checkpoints.SHARD_INDEX, "is damaged") from error
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


def _check_slices(folder: Path, index: Metadata, weights: dict[str, Tensor]) -> None:
    """Compares each rank's part of each weight with its checksums."""
    for part, info in index.storage_data.items():
        if not part.fqn.startswith(_PREFIX) or part.fqn.removeprefix(_PREFIX) not in weights:
            continue
        path = folder / Path(info.relative_path).name
        if not path.is_file():
            raise DamagedCheckpointError(folder, f"lacks {path.name}")
        with path.open("rb") as file:
            file.seek(info.offset)
            if not is_intact(io.BytesIO(file.read(info.length))):
                raise DamagedCheckpointError(path, "is damaged")
    stored = sum(file.stat().st_size for file in folder.iterdir())
    if sum(weight.numel() * weight.element_size() for weight in weights.values()) > stored:
        raise DamagedCheckpointError(folder / checkpoints.SHARD_INDEX, "is damaged")
