"""One bad input: what is wrong, the command that meets it, and what must come of it."""

from __future__ import annotations

import ctypes
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from command_line import MODEL

__all__ = [
    "WORKS",
    "Case",
    "Outcome",
    "World",
    "obey_permissions",
    "run",
    "run_command",
    "small_files",
]

WORKS = ""
"""The expectation of a command that works."""


class Outcome(NamedTuple):
    """What a command did: its exit status, what it printed, and the files that are new."""

    status: int
    out: bytes
    err: str
    new: tuple[str, ...]

    @property
    def message(self) -> str:
        """The last line of what it said on standard error."""
        return next(iter(self.err.strip().splitlines()[::-1]), "")


@dataclass(frozen=True)
class World:
    """What the commands work on, made once.

    Attributes:
        home: Holds ``data.yaml``, ``model.yaml``, the texts ``corpus/{train,val,test}.{en,de}``
            and the run ``runs/tiny/version_0`` with its ``last.ckpt``.
    """

    home: Path

    @property
    def ckpt(self) -> Path:
        """The newest checkpoint of the run."""
        return self.home / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"

    def text(self, name: str) -> bytes:
        """A text of the corpus, such as ``train.en``."""
        return (self.home / "corpus" / name).read_bytes()

    @classmethod
    def make(cls, home: Path) -> World:
        """Writes a corpus and trains a model for one epoch."""
        (home / "corpus").mkdir(parents=True)
        rng = random.Random(0)
        for split, size in (("train", 300), ("val", 20), ("test", 30)):
            pairs = [rng.choices(WORDS, k=rng.randint(1, 7)) for _ in range(size)]
            for side, lang in enumerate(("en", "de")):
                lines = (" ".join(word[side] for word in pair) + "\n" for pair in pairs)
                (home / "corpus" / f"{split}.{lang}").write_text("".join(lines), encoding="utf-8")
        for lang in ("en", "de"):
            first = (home / "corpus" / f"val.{lang}").read_bytes().split(b"\n")[0]
            (home / "corpus" / f"one.{lang}").write_bytes(first + b"\n")
        (home / "data.yaml").write_text(DATA.format(home=home), encoding="utf-8")
        (home / "model.yaml").write_text(MODEL, encoding="utf-8")
        words = ["fit", "-c", str(home / "data.yaml"), "-c", str(home / "model.yaml")]
        done = run_command(words, home, stdin=b"")
        if done.status != 0:
            raise RuntimeError(f"the run that all cases need failed: {done.err}")
        return cls(home)


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: Short, unique.
        group: Which part of the table it stands in.
        wrong: What is wrong, for readers of the documentation.
        words: The command; ``{home}``, ``{ckpt}`` and ``{data}`` (the configurations of a
            training) are filled in. It runs in an empty folder.
        expect: Regular expression that the error message matches, or ``WORKS``.
        make: Writes the bad input into the folder where the command will run.
        child: Called in the command's process before it begins.
        check: Looks at what a command that works has done, in its folder; what it returns stands in
            the documentation as the outcome.
        stdin: What the command reads.
        status: Exit status; None: 2 for an error and 0 else.
        keeps: Regular expression of new files that are right even after an error.
    """

    name: str
    group: str
    wrong: str
    words: str
    expect: str
    make: Callable[[World], None] | None = None
    child: Callable[[], None] | None = None
    check: Callable[[World, Outcome], str] | None = None
    stdin: bytes = b""
    status: int | None = None
    keeps: str = ""
    env: dict[str, str] = field(default_factory=dict)

    def command(self, world: World) -> list[str]:
        """The words of the command, places filled in."""
        data = f"-c {world.home}/data.yaml -c {world.home}/model.yaml"
        text = self.words.format(home=world.home, ckpt=world.ckpt, data=data)
        return [word.replace("\\_", " ") for word in text.split()]


def run(case: Case, world: World, folder: Path) -> tuple[Outcome, str]:
    """Runs a case in an empty folder and says what came of it.

    Raises:
        AssertionError: If that is not what the case expects.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        if case.make:
            case.make(world)
        outcome = run_command(
            case.command(world), folder, stdin=case.stdin, first=case.child, env=case.env
        )
        status = case.status if case.status is not None else 2 if case.expect else 0
        assert outcome.status == status, (outcome.status, outcome.err[-2000:])
        assert "Traceback" not in outcome.err, outcome.err[-2000:]
        left = [path for path in outcome.new if re.search(r"\.(part|draft|tmp)$|draft-", path)]
        assert not left, left
        drafts = [*world.home.glob("cache/*/.draft*"), *world.home.glob("cache/*/*.draft")]
        assert not drafts, drafts
        if not case.expect:
            assert case.check is not None, "a case that works needs a check"
            return outcome, case.check(world, outcome)
        prefix = "litseq: error: "
        assert outcome.message.startswith(prefix), outcome.err[-2000:]
        message = outcome.message.removeprefix(prefix)
        assert re.search(case.expect, message), message
        *said, _ = outcome.err.strip().splitlines()
        assert not [line for line in said if "error" in line.lower()], said
        wrong = [path for path in outcome.new if not case.keeps or not re.search(case.keeps, path)]
        assert not wrong, f"left behind: {wrong}"
        return outcome, message
    finally:
        os.chdir(before)


def run_command(
    words: Sequence[str],
    folder: Path,
    *,
    stdin: bytes,
    first: Callable[[], None] | None = None,
    env: dict[str, str] | None = None,
) -> Outcome:
    """Runs the console script in a process of its own, forked off this one to save the imports."""
    for name in ("litseq.cli", "litseq.explain.command", "litseq.translate"):
        import_module(name)  # once for all children

    streams = folder.parent / f".{folder.name}-streams"
    shutil.rmtree(streams, ignore_errors=True)
    streams.mkdir()
    (streams / "in").write_bytes(stdin)
    before = _files(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_litseq(words, folder, streams, first, env or {})
    deadline = time.monotonic() + 60
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    out, err = ((streams / name).read_bytes() for name in ("out", "err"))
    shutil.rmtree(streams)
    return Outcome(
        code, out, err.decode("utf-8", "replace"), tuple(sorted(_files(folder) - before))
    )


def _be_litseq(
    words: Sequence[str],
    folder: Path,
    streams: Path,
    first: Callable[[], None] | None,
    env: dict[str, str],
) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, (name, flags) in enumerate(
            [
                ("in", os.O_RDONLY),
                ("out", os.O_WRONLY | os.O_CREAT),
                ("err", os.O_WRONLY | os.O_CREAT),
            ]
        ):
            os.dup2(os.open(streams / name, flags, 0o600), number)
        os.environ.update(env)
        sys.argv = ["litseq", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if first:
            first()
        sys.stdin, sys.stdout, sys.stderr = (
            _stream(number, mode, errors)
            for number, mode, errors in (
                (0, "r", None),
                (1, "w", None),
                (2, "w", "backslashreplace"),
            )
        )
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        try:
            litseq_main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException:
        code = code or 120
    finally:
        if sys.stderr is not None:
            sys.stderr.flush()
        os._exit(code)


def _stream(number: int, mode: str, errors: str | None) -> Any:
    """Opens a standard stream as Python does; None where it is closed."""
    try:
        os.fstat(number)
    except OSError:
        return None
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    return open(number, mode, encoding=encoding, errors=errors, closefd=False)


def litseq_main() -> None:
    """Calls the console script."""
    from litseq.cli import main

    main()


def _files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_dir() or re.fullmatch(r"version_\d+", path.name)
    }


def obey_permissions() -> None:
    """Gives up root's right to read and write whatever the permissions say."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3; this process
        data = (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.capget(header, data)
        for word in (0, 1):  # effective, permitted: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            data[word] &= ~0b110
        if libc.capset(header, data) != 0:
            raise OSError(ctypes.get_errno(), "capset")


def small_files(num_bytes: int) -> Callable[[], None]:
    """As a full disk: no file grows beyond a size, the operating system refuses to write more."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


WORDS = [
    ("one", "eins"), ("two", "zwei"), ("three", "drei"), ("four", "vier"), ("five", "fünf"),
    ("red", "rot"), ("green", "grün"), ("blue", "blau"), ("house", "haus"), ("tree", "baum"),
    ("dog", "hund"), ("cat", "katze"),
]  # fmt: skip

DATA = """
data:
  class_path: TranslationDataModule
  init_args:
    src_lang: en
    tgt_lang: de
    train: {home}/corpus/train
    val: {home}/corpus/val
    test: {home}/corpus/test
    vocab_size: 64
    max_tokens: 256
    cache_dir: {home}/cache
trainer:
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 10
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {{save_dir: runs, name: tiny}}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{monitor: val/loss, mode: min, filename: best, save_last: true}}
"""
