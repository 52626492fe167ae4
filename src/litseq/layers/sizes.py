"""Sizes that torch would accept, or refuse with a riddle."""

from __future__ import annotations

__all__ = ["check_sizes"]


def check_sizes(**sizes: int) -> None:
    """Raises ``ValueError`` if a size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}; give a positive number.")
