"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any

__all__ = ["give_back", "keep_freed"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_NEVER = -1
_NONE = 0
_SETTINGS = ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad")


def keep_freed() -> None:
    """Keeps freed memory for what is asked for next, as torch does on GPUs; with glibc.

    Or else the system takes pages away in each step, and has to find and clear others in the next.
    It holds until the process ends, and for all of it, and does nothing where tensors have another
    allocator, such as on ARM. Where the environment says when glibc shall give memory back, that
    stands.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(
        f"glibc.malloc.{name}=" in tunables or f"MALLOC_{name.upper()}_" in os.environ
        for name in _SETTINGS
    ):
        return
    # or large tensors have pages of their own, which go back at once
    _call("mallopt", _MMAP_MAX, _NONE)
    _call("mallopt", _TRIM_THRESHOLD, _NEVER)


def give_back() -> None:
    """Returns to the system what was freed, or else it still counts as in use; on Linux."""
    _call("malloc_trim", 0)


def _call(name: str, *args: Any) -> None:  # noqa: ANN401 - as C has them
    # other C libraries have no such function, and Windows no library without a name
    with suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), name)(*args)
