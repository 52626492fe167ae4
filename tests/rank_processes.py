"""Ranks as real processes on this machine, started the way torchrun would."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import tempfile
import time
import traceback
from pathlib import Path

import torch


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def environment(rank, world_size, port):
    """The variables that torchrun gives to a process, all of them on one node."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }


class Ranks:
    """Forked processes that each call ``function(rank, *args)``; use as a context.

    Forked, for an import of torch and Lightning takes seconds in each of them.
    """

    def __init__(self, world_size, function, *args):
        self.folder = Path(tempfile.mkdtemp())
        port = free_port()
        context = multiprocessing.get_context("fork")
        self.processes = [
            context.Process(
                target=_run,
                args=(self.folder, rank, environment(rank, world_size, port), function, args),
            )
            for rank in range(world_size)
        ]

    def __enter__(self):
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, timeout=60):
        """Exit codes, None where a process is still running after so many seconds."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
            if process.is_alive():
                os.kill(process.pid, signal.SIGUSR2)  # it says where it is
                process.join(1)
        return [process.exitcode for process in self.processes]

    def errors(self, rank):
        """What a rank wrote to its standard error."""
        return (self.folder / f"{rank}.err").read_text(errors="replace")

    def result(self, rank):
        return torch.load(self.folder / f"{rank}.pt", weights_only=False)


def run_ranks(world_size, function, *args, timeout=60):
    """Runs a function on all ranks and gives what each of them returned."""
    with Ranks(world_size, function, *args) as ranks:
        codes = ranks.wait(timeout)
        failed = [rank for rank, code in enumerate(codes) if code != 0]
        assert not failed, f"exit codes {codes}\n" + "\n".join(map(ranks.errors, failed))
        return [ranks.result(rank) for rank in range(world_size)]


def _run(folder, rank, variables, function, args):
    os.environ.update(variables)
    error = os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(error, 2)
    faulthandler.register(signal.SIGUSR2, file=error, chain=False)
    torch.set_num_threads(1)
    code = 1
    try:
        result = function(rank, *args)
        torch.save(result, folder / f"{rank}.pt")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        os._exit(code)  # a forked pytest has nothing to clean up
