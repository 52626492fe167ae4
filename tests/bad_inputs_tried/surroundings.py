"""Surroundings that a command does not expect: permissions, disks, terminals, signals, streams."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs_tried.case import WORKS, Case, Outcome, World, obey_permissions, small_files

__all__ = ["CASES"]


def write(name: str, content: bytes) -> Callable[[World], None]:
    return lambda world: void(Path(name).write_bytes(content))


def void(_: object) -> None:
    """Drops a value."""


def read_only(world: World) -> None:
    os.mkdir("runs")
    os.chmod("runs", 0o555)


def no_cache(world: World) -> None:
    os.mkdir("cache")
    os.chmod("cache", 0o555)


def no_folder() -> None:
    os.rmdir(os.getcwd())


def close_stdin() -> None:
    os.close(0)


def close_stdout() -> None:
    os.close(1)


def nobody_reads() -> None:
    """Standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # Python's own setting


def full_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def when_opened(part: str, act: Callable[[], object]) -> Callable[[], None]:
    """Does something once, when the first file is opened whose name contains ``part``."""
    done = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and not done and part in str(args[0]):
            done.append(1)
            act()

    return lambda: sys.addaudithook(watch)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def trained(world: World, outcome: Outcome) -> str:
    assert [path for path in outcome.new if path.endswith("last.ckpt")]
    return "trains"


def lines(num: int) -> Callable[[World, Outcome], str]:
    def check(world: World, outcome: Outcome) -> str:
        assert outcome.out.count(b"\n") == num
        outcome.out.decode("utf-8")
        return f"{num} lines in, {num} lines out"

    return check


def nothing(world: World, outcome: Outcome) -> str:
    """It ends quietly, and leaves nothing."""
    assert not outcome.new
    assert not outcome.err
    return f"ends at once, status {outcome.status}"


def no_run(world: World, outcome: Outcome) -> str:
    """Whatever it has said, it leaves nothing."""
    assert not [path for path in outcome.new if not path.startswith("cache/")]
    return f"ends with status {outcome.status} and leaves nothing"


def kept(name: str, content: bytes) -> Callable[[World, Outcome], str]:
    def check(world: World, outcome: Outcome) -> str:
        assert Path(name).read_bytes() == content
        return "the file that was there is unchanged"

    return check


def replaced(world: World, outcome: Outcome) -> str:
    assert Path("a.txt").read_bytes().count(b"\n") == 2
    return "2 lines in, 2 lines out, in the place of the input"


TRANSLATE = "translate --ckpt {ckpt} "
MANY = b"one red dog\n" * 3000

CASES = [
    Case(
        "read-only",
        "system",
        "no right to write into the folder of runs",
        "fit {data}",
        r"runs/tiny: permission denied; get the right to it, or give another path\.",
        make=read_only,
        child=obey_permissions,
    ),
    Case(
        "read-only-cache",
        "system",
        "no right to write into the cache",
        "fit {data} --data.cache_dir cache",
        r"cache/text: permission denied; get the right to it, or give another path\.",
        make=no_cache,
        child=obey_permissions,
    ),
    Case(
        "read-only-output",
        "system",
        "no right to write the output",
        TRANSLATE + "--output runs/out.txt",
        r"runs/\.out\.txt\.\d+\.part: permission denied; get the right to it, or give",
        make=read_only,
        child=obey_permissions,
        stdin=b"one\n",
    ),
    Case(
        "full",
        "system",
        "the disk is full when the checkpoint is written",
        "fit {data}",
        "too large|full|room",
        child=small_files(20_000),
        keeps="^runs/",
    ),
    Case(
        "full-cache",
        "system",
        "the disk is full when data are prepared",
        "fit {data} --data.cache_dir cache",
        "error writing bytes to file.*make room, or write elsewhere",
        child=small_files(2_000),
    ),
    Case(
        "full-output",
        "system",
        "the disk is full when translations are written",
        TRANSLATE + "--output out.txt",
        r"file too large; make room, or write elsewhere\.",
        child=small_files(1_000),
        stdin=MANY,
        make=write("out.txt", b"old\n"),
    ),
    Case(
        "full-device",
        "system",
        "the output is a device without room",
        TRANSLATE + "--output /dev/full",
        r"no space left on device; make room, or write elsewhere\.",
        stdin=b"one\n",
    ),
    Case(
        "full-stdout",
        "system",
        "standard output goes to a full disk",
        TRANSLATE,
        r"no space left on device; make room, or write elsewhere\.",
        child=full_stdout,
        stdin=b"one\n",
    ),
    Case(
        "full-explain",
        "system",
        "the disk is full when the report is written",
        "explain one --ckpt {ckpt} --out x.html",
        r"file too large; make room, or write elsewhere\.",
        child=small_files(1_000),
    ),
    Case(
        "no-cwd",
        "system",
        "the working folder has been removed",
        "fit {data}",
        r"the working folder is no longer there; change to one that is\.",
        child=no_folder,
    ),
    Case(
        "vanishes",
        "system",
        "the folder of the run vanishes while it trains",
        "fit {data}",
        r"runs/tiny/version_0/hparams\.yaml: no such file or directory;",
        child=when_opened("hparams.yaml", lambda: shutil.rmtree("runs")),
        keeps="^runs/",
    ),
    Case(
        "output-folder",
        "system",
        "a folder in place of the output",
        TRANSLATE + "--output .",
        r"\. is a folder; give a file to write\.",
    ),
    Case(
        "output-nowhere",
        "system",
        "the folder of the output is not there",
        TRANSLATE + "--output no/where.txt",
        r"there is no folder no to write where\.txt in\.",
    ),
    Case(
        "output-is-input",
        "system",
        "the output is the input",
        TRANSLATE + "--input a.txt --output a.txt",
        WORKS,
        make=write("a.txt", b"one\ntwo\n"),
        check=replaced,
    ),
    Case(
        "same-run",
        "system",
        "a run into the folder of another one",
        "fit {data} --trainer.logger.save_dir {home}/runs --trainer.logger.version 0",
        "runs/tiny/version_0 holds a run already, which would be written over;",
    ),
    Case(
        "file-for-runs",
        "system",
        "a file where the folder of runs should be",
        "fit {data}",
        r"runs/tiny: not a directory; LITSEQ_TRACEBACK=1 says more\.",
        make=write("runs", b""),
    ),
    Case(
        "no-stdin",
        "stream",
        "standard input is closed",
        TRANSLATE,
        r"standard input is closed; give a file\.",
        child=close_stdin,
    ),
    Case(
        "no-stdout",
        "stream",
        "standard output is closed",
        TRANSLATE,
        r"standard output is closed; give a file to write\.",
        child=close_stdout,
        stdin=b"one\n",
    ),
    Case(
        "no-stdout-fit",
        "stream",
        "standard output is closed while a model trains",
        "fit {data}",
        WORKS,
        child=close_stdout,
        check=trained,
    ),
    Case(
        "head",
        "stream",
        "who reads the translations has left",
        TRANSLATE,
        WORKS,
        child=nobody_reads,
        stdin=MANY,
        status=141,
        check=nothing,
    ),
    Case(
        "help-head",
        "stream",
        "who reads the help has left",
        "fit --help",
        WORKS,
        child=nobody_reads,
        check=nothing,
    ),
    Case(
        "config-head",
        "stream",
        "who reads the printed configuration has left",
        "fit {data} --print_config",
        WORKS,
        child=nobody_reads,
        status=141,
        check=nothing,
    ),
    Case(
        "ascii",
        "stream",
        "a terminal that knows ASCII alone (LANG=C)",
        TRANSLATE,
        WORKS,
        env={"PYTHONIOENCODING": "ascii"},
        stdin=b"five green\n" * 3,
        check=lines(3),
    ),
    Case(
        "ascii-fit",
        "stream",
        "training on a terminal that knows ASCII alone",
        "fit {data}",
        WORKS,
        env={"PYTHONIOENCODING": "ascii"},
        check=trained,
    ),
    Case(
        "narrow",
        "stream",
        "a terminal of ten columns",
        "fit {data} --trainer.enable_model_summary true",
        WORKS,
        env={"COLUMNS": "10", "LINES": "2"},
        check=trained,
    ),
    Case(
        "ctrl-c-prepare",
        "signal",
        "Ctrl-C while data are read",
        "fit {data} --data.cache_dir cache",
        WORKS,
        child=when_opened("train.de", interrupt),
        status=130,
        check=no_run,
    ),
    Case(
        "ctrl-c-translate",
        "signal",
        "Ctrl-C while a file is translated",
        TRANSLATE + "--output out.txt --input {home}/corpus/train.en",
        WORKS,
        make=write("out.txt", b"old\n"),
        child=when_opened("train.en", interrupt),
        status=130,
        check=kept("out.txt", b"old\n"),
    ),
    Case(
        "ctrl-c-config",
        "signal",
        "Ctrl-C while the configuration is read",
        "fit {data}",
        WORKS,
        child=when_opened("model.yaml", interrupt),
        status=130,
        check=nothing,
    ),
]
