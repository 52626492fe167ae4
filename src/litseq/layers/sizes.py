"""Sizes and dropouts that torch would accept, or refuse with a riddle."""

from __future__ import annotations

__all__ = ["check_dropouts", "check_sizes"]


def check_dropouts(**dropouts: float) -> None:
    """Raises ``ValueError`` if a dropout is outside of [0, 1)."""
    for name, dropout in dropouts.items():
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"{name} must be in [0, 1), got {dropout}; 0 switches it off.")


def check_sizes(**sizes: int) -> None:
    """Raises ``ValueError`` if a size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}; give a positive number.")
