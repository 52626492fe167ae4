"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any

__all__ = ["give_back", "keep_freed"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT = 2**31 - 1  # bytes, the most that there is an int for
_MAPPED = 2**25  # larger ones are pages of their own, which glibc returns at once; its most


def keep_freed() -> None:
    """Keeps freed memory for what is asked for next, on Linux with glibc; until the process ends.

    Or else the system takes pages away between two steps and has to find and clear others. What a
    process holds at most is the same. Where the environment says what glibc shall do, that stands.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    _call("mallopt", _MMAP_THRESHOLD, _MAPPED)
    _call("mallopt", _TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Returns to the system what was freed, or else it still counts as in use; on Linux."""
    _call("malloc_trim", 0)


def _call(name: str, *args: Any) -> None:  # noqa: ANN401 - as C has them
    # other C libraries have no such function, and Windows no library without a name
    with suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), name)(*args)
