"""Sizes, dropouts and rates that torch would accept, or refuse with a riddle."""

from __future__ import annotations

import math

__all__ = ["check_dropouts", "check_finite", "check_sizes"]

_MOST = 10_000_000  # beyond any network so far; what a slipped key or a hostile file asks for
_MOST_LAYERS = 1_000


def check_dropouts(**dropouts: float) -> None:
    """Raises ``ValueError`` if a dropout is outside of [0, 1)."""
    for name, dropout in dropouts.items():
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"{name} must be in [0, 1), got {dropout}; 0 switches it off.")


def check_sizes(**sizes: int) -> None:
    """Raises ``ValueError`` if a size is below 1, or beyond what any network has."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}; give a positive number.")
        most = _MOST_LAYERS if name.endswith("layers") else _MOST
        if size > most:
            raise ValueError(f"{name} must be at most {most:,}, got {size:,}.")


def check_finite(**values: float) -> None:
    """Raises ``ValueError`` if a value is infinite or no number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}.")
