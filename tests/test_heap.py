"""Freed memory is kept or given back where there is a way; nothing is said where there is none."""

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest

from litseq import __main__ as entry
from litseq import heap
from litseq.heap import COMPACT, give_back, keep_freed

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


RESTARTS = """
import json, os, sys
{before}
from litseq.heap import restart_compact
print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:]]), flush=True)
restart_compact()
"""


def _starts(before="", **environ):
    """What a process says each time that its program begins."""
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-X", "utf8", "-c", RESTARTS.format(before=before), "fit", "--x=a b"]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**env, **environ}
    ).stdout
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="tensors are not glibc's"
)
def test_a_program_begins_once_more_with_the_settings():
    on_gpu = any(os.path.exists(driver) for driver in heap._DRIVERS)
    first, *second = _starts()
    assert first[1:] == [None, ["fit", "--x=a b"]]
    assert second == ([] if on_gpu else [[first[0], COMPACT, ["fit", "--x=a b"]]])


@pytest.mark.parametrize(
    ("before", "environ"),
    [
        ("", {"GLIBC_TUNABLES": ""}),
        ("", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}),
        ("import sys; sys.modules['torch'] = None", {}),
        ("import sys; sys.executable = ''", {}),
        ("import platform; platform.machine = lambda: 'aarch64'", {}),
        ("import os; del os.confstr", {}),
        ("from litseq import heap; heap._DRIVERS = ('/dev/null',)", {}),
        ("import sys; sys.executable = '/nowhere/python'", {}),
    ],
)
def test_a_program_that_begins_once(before, environ):
    ((_, tunables, _),) = _starts(before, **environ)
    assert tunables == environ.get("GLIBC_TUNABLES")


@pytest.mark.parametrize(("command", "restarts"), [("fit", True), ("test", False), ("", False)])
def test_fit_begins_once_more(monkeypatch, command, restarts):
    calls = []
    monkeypatch.setattr(sys, "argv", ["litseq", *command.split()])
    monkeypatch.setattr(entry, "restart_compact", lambda: calls.append("restart"))
    monkeypatch.setattr("litseq.cli.main", lambda: calls.append("run"))
    entry.main()
    assert calls == ["restart", "run"] * restarts + ["run"] * (not restarts)
