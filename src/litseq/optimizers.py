"""The optimizer of a run and what moves its learning rate, as Lightning wants them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import LRSchedulerTypeUnion, OptimizerLRScheduler
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from litseq.schedules import scheduler

__all__ = ["check_optimizer", "make_optimizer", "make_scheduler", "stepped"]

_log = logging.getLogger(__name__)

_OPTIMIZERS = {"adam": Adam, "adamw": AdamW}


def check_optimizer(name: str) -> None:
    """Raises ``ValueError`` if there is no such optimizer."""
    if name not in _OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; choose among {', '.join(_OPTIMIZERS)}.")


def make_optimizer(
    parameters: Iterable[Parameter], options: Mapping[str, Any], *, trainer: Trainer
) -> Optimizer:
    """Makes the optimizer that the options of ``Seq2Seq`` name, fused where Lightning allows it."""
    scaled = str(trainer.precision).startswith("16")
    optimizer: Any = _OPTIMIZERS[options["optimizer"]](
        parameters,
        lr=options["lr"],
        betas=tuple(options["betas"]),
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        # Lightning cannot clip gradients of a fused optimizer under a gradient scaler
        fused=not scaled or None,
    )
    if not scaled:  # without one, Lightning needs to be told that there is none
        optimizer._step_supports_amp_scaling = False
    made: Optimizer = optimizer
    return made


def make_scheduler(
    optimizer: Optimizer, options: Mapping[str, Any], *, trainer: Trainer
) -> LambdaLR:
    """Makes the schedule that the options of ``Seq2Seq`` name, as long as the run where it ends.

    Raises:
        ValueError: If the schedule needs an end, and the run has none.
    """
    schedule, warmup_steps = options["schedule"], options["warmup_steps"]
    total_steps = 0  # unknown, also where training has no end
    if schedule in ("linear", "cosine"):
        total = trainer.estimated_stepping_batches
        total_steps = int(total) if math.isfinite(total) else 0
        if 0 < total_steps <= warmup_steps:
            _log.warning(
                "the run ends after %d steps, before the warm-up of %d: the learning rate never "
                "reaches lr; lower warmup_steps.",
                total_steps,
                warmup_steps,
            )
    return scheduler(optimizer, schedule, warmup_steps=warmup_steps, total_steps=total_steps)


def stepped(
    optimizer: Optimizer, chosen: LRSchedulerTypeUnion, *, trainer: Trainer
) -> OptimizerLRScheduler:
    """Says when a scheduler is stepped: after every step of the optimizer.

    But ReduceLROnPlateau, which goes by what validation finds: after every epoch that has one.
    """
    if not isinstance(chosen, ReduceLROnPlateau):
        # step by step: Lightning's own default would step once an epoch
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": chosen, "interval": "step"},
        }
    monitor = getattr(chosen, "monitor", "val/loss")
    every = trainer.check_val_every_n_epoch if monitor.startswith("val") else 1
    return {
        "optimizer": optimizer,
        "lr_scheduler": {
            "scheduler": chosen,
            "interval": "epoch",
            "frequency": every or 1,
            "monitor": monitor,
            "strict": every is not None,  # else an epoch may have no validation
        },
    }
