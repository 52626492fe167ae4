"""What the loaders share: which rank they load for, and whether they may take over a place."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed

from litseq.data.collate import IGNORED_LABEL
from litseq.types import Batch

__all__ = ["EpochSetter", "check_place", "locate_rank", "makes_same_batches", "without_labels"]

_log = logging.getLogger(__name__)


def check_place(world_size: int | None, rank: int | None) -> tuple[int, int] | None:
    """World size and rank as they are given; None: to be looked up when first needed.

    Raises:
        ValueError: If one is given without the other.
    """
    if world_size is None and rank is None:
        return None
    if world_size is None or rank is None:
        raise ValueError(f"give both or none of world_size={world_size} and rank={rank}.")
    return world_size, rank


def locate_rank() -> tuple[int, int]:
    """World size and rank; to be read late, as loaders may be made before the process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0


def makes_same_batches(
    then: Mapping[str, Any], now: Mapping[str, Any], *, allow_other_data: bool, say: bool
) -> bool:
    """Compares the state of a loader with the one that goes on, before its place is taken over.

    Args:
        then: The saved state; holds ``epoch``, ``data``, ``seed`` and ``fingerprint``.
        now: The present state.
        allow_other_data: Whether the data may be others.
        say: Whether to warn that the epoch starts anew.

    Raises:
        ValueError: If the data are others and may not.
    """
    if then.get("data", now["data"]) != now["data"] and not allow_other_data:
        raise ValueError(
            f"the training data ({now['data']}) are not those of the checkpoint "
            f"({then['data']}): use those, or set allow_other_data to go on with these "
            f"from the start of epoch {then['epoch']}."
        )
    changes = [
        f"{name} {then[name]} -> {now[name]}"
        for name in ("seed", "fingerprint")
        if then[name] != now[name]
    ]
    if then.get("world_size", 1) > 1:  # its batches depended on that
        changes.append("written by an older litseq")
    if changes and say:
        _log.warning(
            "the batches are not those of the checkpoint (%s): epoch %d starts anew.",
            ", ".join(changes),
            then["epoch"],
        )
    return not changes


def without_labels(batch: Batch) -> Batch:
    """A model's input like any other, but nothing is learned from it."""
    if "labels" in batch:
        batch["labels"] = torch.full_like(batch["labels"], IGNORED_LABEL)
    if "id" in batch:
        batch["id"] = torch.full_like(batch["id"], -1)
    return batch


class EpochSetter:
    """Stands in for a batch sampler: the Trainer calls ``batch_sampler.sampler.set_epoch``."""

    def __init__(self, loader: Any) -> None:  # noqa: ANN401 - whatever has set_epoch
        self.sampler = loader
