"""Learning-rate schedules, as multipliers of the optimizer's peak learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["Schedule", "check_schedule", "paper_peak_lr", "scheduler"]

Schedule = Literal["inverse_sqrt", "linear", "cosine", "constant"]


def paper_peak_lr(d_model: int, warmup_steps: int) -> float:
    """Returns the highest learning rate of the paper's formula, reached at the end of warm-up.

    The paper's rate at step n is d_model^-0.5 min(n^-0.5, n warmup_steps^-1.5), which is
    ``inverse_sqrt`` with this peak: 7.0e-4 for the base model (512, 4000).

    Source: Vaswani et al. (2017), section 5.3, equation 3, https://arxiv.org/abs/1706.03762.
    """
    return float((d_model * warmup_steps) ** -0.5)


def _inverse_sqrt(step: int, warmup: int, total: int) -> float:
    return math.sqrt(max(warmup, 1) / step)


def _linear(step: int, warmup: int, total: int) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def _cosine(step: int, warmup: int, total: int) -> float:
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _constant(step: int, warmup: int, total: int) -> float:
    return 1.0


_DECAYS: dict[str, Callable[[int, int, int], float]] = {
    "inverse_sqrt": _inverse_sqrt,
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
}


def _factor(
    finished: int, *, decay: Callable[[int, int, int], float], warmup: int, total: int
) -> float:
    step = finished + 1  # LambdaLR counts finished steps, the formulas number the coming one
    return step / warmup if step < warmup else decay(step, warmup, total)


def check_schedule(schedule: str, warmup_steps: int) -> None:
    """Raises ``ValueError`` if there is no such schedule or the warm-up is negative."""
    if schedule not in _DECAYS:
        raise ValueError(f"unknown schedule {schedule!r}; choose among {', '.join(_DECAYS)}.")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}.")


def scheduler(
    optimizer: Optimizer, schedule: Schedule, *, warmup_steps: int, total_steps: int = 0
) -> LambdaLR:
    """Makes a scheduler that is stepped once after every optimizer step.

    The rate rises in a straight line to the optimizer's own over ``warmup_steps`` steps, then
    ``inverse_sqrt`` falls with the square root of the step, ``linear`` and ``cosine`` fall to 0 at
    ``total_steps``, ``constant`` stays.

    Args:
        optimizer: Its learning rate is the peak.
        schedule: Name of the decay.
        warmup_steps: Optimizer steps until the peak; 0 starts there.
        total_steps: Optimizer steps of the whole run; ``linear`` and ``cosine`` need it.

    Raises:
        ValueError: If a name is unknown, a number is negative, or the total is missing.
    """
    check_schedule(schedule, warmup_steps)
    if schedule in ("linear", "cosine") and total_steps <= 0:
        raise ValueError(
            f"the {schedule} schedule needs the number of steps of the run; set max_steps, or "
            f"max_epochs where data are not streamed, or choose another schedule."
        )
    return LambdaLR(
        optimizer,
        partial(_factor, decay=_DECAYS[schedule], warmup=warmup_steps, total=total_steps),
    )
