"""How fast training goes, in the unit that does not depend on the batch: target tokens."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

__all__ = ["TokenThroughput"]

_log = logging.getLogger(__name__)


class TokenThroughput(Callback):
    """Logs target tokens per second, the share of padding, and what time and memory go into.

    Every ``log_every_n_steps``, over the steps since the last time:

    - ``train/tokens_per_second``: labels that are not -100, on all ranks together; waiting for data
      counts, validation does not. With several ranks ``train/tokens_per_second_per_device`` too.
    - ``train/src_tokens_per_second``: the same of the source, where a batch has ``attention_mask``.
    - ``train/padding``: share, 0 to 1, of padding among the positions of both sides.
    - ``train/data_wait``: share of the time, 0 to 1, that passes between one batch and the next:
      reading, collating and moving data, and what other callbacks do there. An upper bound on what
      more ``num_workers`` can win: on an accelerator, kernels may go on meanwhile.
    - ``train/peak_memory_gb``: most memory so far, of this rank: what tensors took of a GPU, or on
      a CPU the whole process.
    - ``train/mfu``: share of the device's peak that goes into the model, where the peak is known: 6
      floating-point operations per parameter and token, forward and backward, a token being the
      mean of source and target. An estimate: attention's own products are left out.

    Counts stay on the device until then, so no other step waits for them. Works for any module
    whose batch is a mapping with ``labels``; for another, one line says so.

    Args:
        peak_flops: Floating-point operations per second that a device can do at best. None: as
            Lightning knows of many GPUs, and unknown of CPUs.

    Raises:
        ValueError: If ``peak_flops`` is not positive.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and not peak_flops > 0:
            raise ValueError(f"peak_flops must be above 0, got {peak_flops}; 312e12 is an A100's.")
        self.peak_flops = peak_flops
        self._counts: Tensor | None = None  # target and source tokens, int64 (2,), on the device
        self._has_source = False
        self._num_positions = 0
        self._start = 0.0
        self._paused = 0.0
        self._waited = 0.0
        self._batch_ended = 0.0
        self._last_step = 0
        self._disabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, after the sanity check."""
        if self.peak_flops is None and pl_module.device.type == "cuda":
            known = get_available_flops(pl_module.device, _dtype(str(trainer.precision)))
            self.peak_flops = None if known is None else float(known)
        self._restart(trainer)
        self._batch_ended = self._start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the clock go on as if no time had passed."""
        pause = time.perf_counter() - self._paused
        self._start += pause
        self._batch_ended += pause

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
    ) -> None:
        """Notes how long the batch was waited for."""
        self._waited += time.perf_counter() - self._batch_ended

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
        self._batch_ended = time.perf_counter()

    def _count(self, batch: Mapping[str, Tensor]) -> None:
        num_tgt = (batch["labels"] != -100).sum()
        num_src = torch.zeros_like(num_tgt)
        self._num_positions += batch["labels"].numel()
        self._has_source = "attention_mask" in batch
        if self._has_source:
            num_src = batch["attention_mask"].sum()
            self._num_positions += batch["attention_mask"].numel()
        counts = torch.stack([num_tgt, num_src])
        self._counts = counts if self._counts is None else self._counts + counts

    def _log_rates(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._counts is not None
        num_tgt, num_src = self._counts.tolist()  # the one wait for the device
        seconds = time.perf_counter() - self._start
        several = trainer.world_size > 1
        rates = {"train/tokens_per_second": num_tgt / seconds}
        means = {
            "train/padding": 1 - (num_tgt + num_src) / self._num_positions,
            "train/data_wait": self._waited / seconds,
        }
        if self._has_source:
            rates["train/src_tokens_per_second"] = num_src / seconds
        if several:
            means["train/tokens_per_second_per_device"] = num_tgt / seconds
        if self.peak_flops is not None:
            num_tokens = (num_tgt + num_src) / 2 if self._has_source else num_tgt
            num_parameters = sum(p.numel() for p in pl_module.parameters())
            means["train/mfu"] = 6 * num_parameters * num_tokens / seconds / self.peak_flops
        pl_module.log_dict(rates, sync_dist=several, reduce_fx="sum", batch_size=1)
        pl_module.log_dict(means, sync_dist=several, batch_size=1)
        memory = _peak_memory(pl_module.device)
        if memory is not None:
            pl_module.log("train/peak_memory_gb", memory / 1e9, batch_size=1)

    def _restart(self, trainer: Trainer) -> None:
        self._counts, self._num_positions = None, 0
        self._last_step = trainer.global_step
        self._waited = 0.0
        self._start = time.perf_counter()


def _dtype(precision: str) -> torch.dtype:
    """What matrices are multiplied in."""
    kinds = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return kinds.get(precision.partition("-")[0], torch.float32)


def _peak_memory(device: torch.device) -> int | None:
    """Bytes; None where nobody counts them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, kilobytes elsewhere
