"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["COMPACT", "give_back", "keep_freed", "restart_compact"]

COMPACT = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""Of GLIBC_TUNABLES: whatever is freed joins the hole beside it at once.

torch wants its tensors aligned, for which glibc takes a little more than they need and gives the
rest back. Its caches of small pieces hand that to whoever asks for a few bytes, and the hole that a
tensor leaves is then too small for the next of its size.
"""

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_NEVER = -1
_NONE = 0
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
_SETTINGS = ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad")


def restart_compact() -> None:
    """Starts the program of this process anew with ``COMPACT``, which glibc reads at a start alone.

    It remains the same process, with the same words. It goes on as it is where GLIBC_TUNABLES is
    set (as it is after this), where tensors are not glibc's (other systems than Linux on x86-64,
    and GPUs), and once torch is imported.
    """
    if (
        "GLIBC_TUNABLES" in os.environ
        or "torch" in sys.modules
        or not sys.executable
        or not _has_tensors()
    ):
        return
    environment = {**os.environ, "GLIBC_TUNABLES": COMPACT}
    with suppress(OSError):  # who can't start again goes on
        os.execve(sys.executable, sys.orig_argv, environment)


def _has_tensors() -> bool:
    """Whether tensors are likely to be in memory of glibc."""
    try:
        glibc = str(os.confstr("CS_GNU_LIBC_VERSION")).startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False
    on_gpu = any(Path(driver).exists() for driver in _DRIVERS)
    return glibc and platform.machine() == "x86_64" and not on_gpu


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
