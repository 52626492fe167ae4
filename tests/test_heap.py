"""Freed memory is kept or given back where there is a way; nothing is said where there is none."""

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest

from litseq.heap import give_back, keep_freed

SETTINGS = (
    "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TOP_PAD_",
)
FREES = """
import json
import torch
from litseq.heap import give_back, keep_freed

def held():
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

{call}
before = held()
tensors = [torch.ones({size} * 2**18) for _ in range({number})]
taken = held() - before
del tensors
kept = held() - before
give_back()
print(json.dumps([taken, kept, held() - before]))
"""


@pytest.mark.parametrize("call", [give_back, keep_freed])
@pytest.mark.parametrize("error", [TypeError, OSError, AttributeError])
def test_other_systems_have_no_such_function(monkeypatch, call, error):
    asked = []

    def missing(name):
        asked.append(name)
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    call()
    assert asked[0] is None


def _held(call, *, size=16, number=20, **environ):
    """Megabytes more than before: with tensors of some size, without, and after ``give_back``."""
    command = [sys.executable, "-c", FREES.format(call=call, size=size, number=number)]
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**env, **environ}
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="tensors are not glibc's"
)
def test_what_is_freed_is_kept_until_it_is_given_back():
    for call, options, keeps in (
        ("keep_freed()", {}, True),
        ("keep_freed()", {"size": 64, "number": 5}, True),
        ("", {}, False),
        ("keep_freed()", {"MALLOC_MMAP_THRESHOLD_": "1000000"}, False),
        ("keep_freed()", {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}, False),
        ("keep_freed()", {"MALLOC_MMAP_MAX_": "65536"}, False),
        ("keep_freed()", {"MALLOC_ARENA_MAX": "2"}, True),
        ("keep_freed()", {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}, True),
    ):
        taken, kept, left = _held(call, **options)
        assert taken > 300
        assert (kept > 300) == keeps, (call, options)
        assert left < 50
