"""Tells a Trainer where a resumed epoch stands, and its user what other ranks change."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from litseq.data.buckets import TokenBucketLoader
from litseq.data.stream_loader import StreamLoader

__all__ = ["ResumedEpoch"]

_log = logging.getLogger(__name__)

_COUNTS = ("ready", "started", "processed", "completed")


class ResumedEpoch(Callback):
    """Makes a Trainer count a resumed epoch as its loader does, one of this package's.

    A Trainer counts steps. After a change of the number of ranks those that are done are other in
    number, and an epoch would be cut short, or validation left out at its end. The position itself
    it forgets where a schedule asks for the length of the training, because the loader is then made
    before the checkpoint is read.

    ``TranslationDataModule`` adds this callback by itself.
    """

    def __init__(self) -> None:
        self._parts: list[int] = []  # ranks and micro-batches of one optimizer step
        self._former: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves the loader if that was forgotten, and then the Trainer's counts."""
        loop = trainer.fit_loop
        loop._load_combined_loader_states()
        loader, progress = trainer.train_dataloader, loop.epoch_loop.batch_progress
        # between two epochs the Trainer knows by itself what to do
        if isinstance(loader, TokenBucketLoader | StreamLoader) and loop.restarting:
            if not progress.is_last_batch:
                ahead = loader.position - progress.current.ready
                for name in _COUNTS:
                    setattr(progress.current, name, getattr(progress.current, name) + ahead)
        self._parts = [trainer.world_size, trainer.accumulate_grad_batches]
        if self._former and trainer.is_global_zero:
            _compare(self._former, self._parts)

    def state_dict(self) -> dict[str, Any]:
        """How many batches make one optimizer step."""
        return {"parts": self._parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps what ``state_dict`` returned, to compare."""
        self._former = state_dict["parts"]


def _compare(former: list[int], now: list[int]) -> None:
    wanted, ranks = former[0] * former[1], now[0]
    if wanted == ranks * now[1]:
        return
    advice = f"set accumulate_grad_batches to {wanted // ranks} to keep it"
    if wanted % ranks:
        advice = f"no accumulate_grad_batches keeps it, but a number of ranks that divides {wanted}"
    _log.warning(
        "%d ranks x %d micro-batches were one optimizer step, now %d x %d; %s.",
        *former,
        *now,
        advice,
    )
