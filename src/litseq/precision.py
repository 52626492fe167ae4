"""Which floating-point precision a device can train and decode in."""

from __future__ import annotations

from typing import Literal, get_args

import torch

__all__ = ["Precision", "check_precision", "possible_precisions"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]

_ALIASES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_KNOWN: tuple[str, ...] = get_args(Precision)


def possible_precisions(device: torch.device, *, training: bool) -> tuple[str, ...]:
    """Lists the precisions that make sense on a device.

    Weights in float16 (``16-true``) cannot be trained: Adam's second moments, squares of gradients,
    are below what float16 can hold, so the first division makes infinite weights.

    Args:
        device: Where the model is to run.
        training: Whether it is to be trained, too.

    Returns:
        Values of the Trainer's ``precision``; ``()`` for a kind of device that is not known here.
    """
    if device.type == "cpu":
        return ("32-true", "bf16-mixed", "bf16-true", "64-true")
    if device.type == "mps":
        return ("32-true", "bf16-mixed", "16-mixed")
    if device.type != "cuda":
        return ()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return tuple(
        precision
        for precision in _KNOWN
        if (bf16 or not precision.startswith("bf16")) and not (training and precision == "16-true")
    )


def check_precision(
    asked: str | int | None,
    device: torch.device,
    *,
    training: bool,
    option: str = "trainer.precision",
) -> None:
    """Refuses a precision that the device cannot do, or can but to no good end.

    Lightning itself takes another one in some cases, and fails after a while in others.

    Args:
        asked: A Trainer's ``precision``; None and kinds that need packages of their own are
            Lightning's business.
        device: Where the model is to run.
        training: Whether it is to be trained, too.
        option: Where another precision is to be asked for.

    Raises:
        ValueError: If it is not possible; the message names what is.
    """
    precision = _ALIASES.get(str(asked), str(asked))
    possible = possible_precisions(device, training=training)
    if precision not in _KNOWN or not possible or precision in possible:
        return
    name = device.type.upper()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    do = "train" if training else "run"
    raise ValueError(
        f"this device ({name}) cannot {do} in precision {asked}; set {option} to one of "
        f"{', '.join(possible)}."
    )
