"""The command line in a process of its own, which faults can hit."""

import os
import resource
import signal
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
