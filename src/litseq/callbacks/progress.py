"""How fast training goes, in the unit that does not depend on the batch: target tokens."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

__all__ = ["TokenThroughput"]

_log = logging.getLogger(__name__)


class TokenThroughput(Callback):
    """Logs target tokens per second and the share of padding in the batches.

    ``train/tokens_per_second`` counts the labels that are not -100, on all ranks together, over the
    steps since it was last logged; waiting for data counts, validation does not.
    ``train/padding`` is the share, 0 to 1, of padding among the positions of ``labels`` and, where
    the batch has it, ``attention_mask``. Both are logged every ``log_every_n_steps``. Counts stay
    on the device until then, so no other step waits for them.

    Works for any module whose batch is a mapping with ``labels``; for another, one line says so.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None  # target and all tokens, int64 (2,), on the device
        self._num_positions = 0
        self._start = 0.0
        self._paused = 0.0
        self._last_step = 0
        self._disabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, after the sanity check."""
        self._restart(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the clock go on as if no time had passed."""
        self._start += time.perf_counter() - self._paused

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - whatever training_step returns
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
    ) -> None:
        """Counts the batch; at a step that is logged, logs and starts anew."""
        if self._disabled:
            return
        if not isinstance(batch, Mapping) or not isinstance(batch.get("labels"), Tensor):
            self._disabled = True
            _log.warning(
                "TokenThroughput logs nothing: a batch must be a mapping with a tensor `labels`, "
                "got %s.",
                type(batch).__name__,
            )
            return
        self._count(batch)
        step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._last_step:
            self._log_rates(trainer, pl_module)
            self._restart(trainer)

    def _count(self, batch: Mapping[str, Tensor]) -> None:
        num_targets = (batch["labels"] != -100).sum()
        num_tokens = num_targets
        self._num_positions += batch["labels"].numel()
        if "attention_mask" in batch:
            num_tokens = num_tokens + batch["attention_mask"].sum()
            self._num_positions += batch["attention_mask"].numel()
        counts = torch.stack([num_targets, num_tokens])
        self._counts = counts if self._counts is None else self._counts + counts

    def _log_rates(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._counts is not None
        num_targets, num_tokens = self._counts.tolist()  # the one wait for the device
        seconds = time.perf_counter() - self._start
        several = trainer.world_size > 1
        pl_module.log(
            "train/tokens_per_second",
            num_targets / seconds,
            sync_dist=several,
            reduce_fx="sum",
            batch_size=1,
        )
        pl_module.log(
            "train/padding", 1 - num_tokens / self._num_positions, sync_dist=several, batch_size=1
        )

    def _restart(self, trainer: Trainer) -> None:
        self._counts, self._num_positions = None, 0
        self._last_step = trainer.global_step
        self._start = time.perf_counter()
