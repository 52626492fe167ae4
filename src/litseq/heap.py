"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any

__all__ = ["give_back", "keep_freed"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of <malloc.h>
_NEVER = -1
_ANY_NUMBER = 2**16  # glibc's own
_LARGE = 12 * 2**20  # bytes
_NAMES = ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")
_SETTINGS = tuple(f"MALLOC_{name}_" for name in _NAMES)


def keep_freed(*, training: bool = False) -> None:
    """Keeps freed memory for what is asked for next, as torch does on GPUs; with glibc.

    Or else the system takes pages away in each step, and has to find and clear others in the next.
    It holds until the process ends, and for all of it, and does nothing where tensors have another
    allocator, such as on ARM. Where the environment says what glibc shall do, that stands.

    Args:
        training: Tensors of 12 MB and more have pages of their own, which go back at once, where
            there is no room for them among what was freed. Most of what a step keeps for its
            gradients is smaller, and lies so scattered that the process would grow by a tenth.
            Not for a search, which would ask for the same ones again in each step.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc." in tunables or any(name in os.environ for name in _SETTINGS):
        return
    _call("mallopt", _MMAP_THRESHOLD, _LARGE)
    _call("mallopt", _MMAP_MAX, _ANY_NUMBER if training else 0)
    _call("mallopt", _TRIM_THRESHOLD, _NEVER)


def give_back() -> None:
    """Returns to the system what was freed, or else it still counts as in use; on Linux."""
    _call("malloc_trim", 0)


def _call(name: str, *args: Any) -> None:  # noqa: ANN401 - as C has them
    # other C libraries have no such function, and Windows no library without a name
    with suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), name)(*args)
