"""The command line in a process of its own, which faults can hit."""

import faulthandler
import gc
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.callbacks import Callback

from litseq.cli import main


class Ended(NamedTuple):
    """How a process ended: exit status, negative for a signal, and what it printed."""

    status: int
    output: str


def start(*words, folder, environment=()):
    """Starts a command as a child process in a folder, where it prints to ``output.txt``.

    Forked: nothing has to be imported again, so a test can afford dozens.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(folder)
        os.environ.update(environment)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
        main([str(word) for word in words])
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        os._exit(status)  # pytest's own end is none of the child's business


def wait(child, folder):
    """Waits until a process ends."""
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), (Path(folder) / "output.txt").read_text())


def run(*words, folder, environment=()):
    """Runs a command to its end."""
    return wait(start(*words, folder=folder, environment=environment), folder)


class ForkedPython(subprocess.Popen):
    """``python FILE ...`` or ``python -m MODULE ...``, forked: nothing has to be imported again.

    To those who start and end it a process like any other; no file of ours is open there, and its
    program is the main module. What an interpreter does of its own accord when it starts or ends
    is left out. Other commands are started as they always are.
    """

    def __init__(self, command, *, env=None, pass_fds=(), **options):
        words = [command] if isinstance(command, str) else [str(word) for word in command]

        def become():
            gc.enable()  # which subprocess has turned off
            faulthandler.disable()
            null = os.open(os.devnull, os.O_RDWR)
            for number in map(int, os.listdir("/dev/fd")):
                if number > 2 and number not in (null, *pass_fds):
                    os.dup2(null, number, inheritable=False)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            status = 1
            try:
                sys.stdin = open(0, closefd=False)
                sys.stdout = open(1, "w", closefd=False)
                sys.stderr = open(2, "w", buffering=1, closefd=False)
                _run_program(*words[1:])
                status = 0
            except SystemExit as end:
                status = end.code or 0
                if isinstance(status, str):
                    print(status, file=sys.stderr)
                    status = 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)

        if words[0] == sys.executable and (words[1] == "-m" or words[1].endswith(".py")):
            command = words
            options |= {"preexec_fn": become, "restore_signals": False}
        super().__init__(command, env=env, pass_fds=pass_fds, **options)


def _run_program(name, *words):
    if name == "-m":
        module, *words = words
        sys.argv = ["-m", *words]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [name, *words]
        sys.path.insert(0, str(Path(name).parent))
        runpy.run_path(name, run_name="__main__")


class Fault(Callback):
    """Sends this process a signal at a point of its run, once.

    Args:
        hook: Name of the callback hook, or of a function of ``os``, such as ``os.fsync``.
        call: Which call of it, from 1.
        signal_name: Such as SIGKILL.
        times: How often the signal is sent, at subsequent calls.
        rank: The only rank that it hits.
    """

    def __init__(
        self,
        hook: str,
        *,
        call: int = 1,
        signal_name: str = "SIGKILL",
        times: int = 1,
        rank: int = 0,
    ):
        self._left = call
        self._times = times
        number = getattr(signal, signal_name)

        def fault(*_args, **_kwargs):
            self._left -= int(os.environ.get("LOCAL_RANK", "0")) == rank
            if self._left <= 0 and self._times > 0:
                self._times -= 1
                os.kill(os.getpid(), number)

        if hook.startswith("os."):
            inner = getattr(os, hook[3:])
            setattr(os, hook[3:], lambda *args, **kwargs: (fault(), inner(*args, **kwargs))[1])
        else:
            setattr(self, hook, fault)


class Slow(Callback):
    """Takes its time for every batch."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(self._seconds)


class FullDisk(Callback):
    """Lets no file grow beyond a kilobyte any more, from the seventh step on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
