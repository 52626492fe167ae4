"""Saves checkpoints in processes that die in the middle of it: run by test_checkpoint_io.py.

``python saving_process.py FOLDER points failures memory random:COUNT:SEED`` kills one process at
every point of saving, saves where it cannot be done, measures what saving takes, and kills
processes that save without end; any of them in any order. A line of JSON tells of every process.
They are forked, so that torch is imported once.
"""

import ctypes
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from litseq.checkpoint_io import SafeCheckpointIO, load_file

KEYS = 8


def checkpoint(step):
    """What must never be mixed up with that of another step."""
    return {
        "global_step": step,
        "state_dict": {str(key): torch.full((100, key + 1), float(step)) for key in range(KEYS)},
    }


def step_of(path):
    """The step of a file that is whole: every tensor in it is of one step."""
    found = load_file(path)
    step = found["global_step"]
    assert len(found["state_dict"]) == KEYS
    assert all(torch.all(weight == step) for weight in found["state_dict"].values())
    return step


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def after(function):
    def wrapped(*args):
        function(*args)
        die()

    return wrapped


def at_size(size):
    """The system itself ends the process when a file would grow beyond this."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def patch(owner, name, replacement):
    setattr(owner, name, replacement)


POINTS = {
    "before the temporary file": lambda size: patch(Path, "open", die),
    "nothing written": lambda size: at_size(0),
    "first byte": lambda size: at_size(1),
    "a third": lambda size: at_size(size // 3),
    "two thirds": lambda size: at_size(size * 2 // 3),
    "all but one byte": lambda size: at_size(size - 1),
    "before fsync": lambda size: patch(os, "fsync", die),
    "after fsync": lambda size: patch(os, "fsync", after(os.fsync)),
    "before the replacement": lambda size: patch(os, "replace", die),
    "after the replacement": lambda size: patch(os, "replace", after(os.replace)),
}


def forked(work):
    """Runs a function in a process of its own; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def say(**facts):
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def points(folder):
    path = folder / "last.ckpt"
    plugin = SafeCheckpointIO()
    for step, (point, arm) in enumerate(POINTS.items()):
        plugin.save_checkpoint(checkpoint(2 * step), path)
        size = path.stat().st_size

        def dying(arm=arm, size=size, step=step):
            arm(size)
            plugin.save_checkpoint(checkpoint(2 * step + 1), path)

        _, status = os.waitpid(forked(dying), 0)
        say(
            point=point,
            signal=os.WTERMSIG(status),
            former=2 * step,
            found=step_of(path),
            left=sorted(p.name for p in folder.iterdir() if p != path),
        )
    plugin.save_checkpoint(checkpoint(99), path)
    say(point="afterwards", found=step_of(path), left=[p.name for p in folder.iterdir()])


def at_random(folder, count, seed):
    rng = random.Random(seed)
    path = folder / "last.ckpt"
    plugin = SafeCheckpointIO()
    for _ in range(count):
        reading, writing = os.pipe()
        first = step_of(path) + 1 if path.exists() else 0

        def saving(first=first, writing=writing):
            for step in range(first, first + 10**6):
                plugin.save_checkpoint(checkpoint(step), path)
                os.write(writing, f"{step}\n".encode())

        pid = forked(saving)
        os.close(writing)
        said = os.read(reading, 64)  # one is complete
        time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(reading, 4096):
            said += more
        os.close(reading)
        completed = int(said.split()[-1])
        left = sorted(p.name for p in folder.iterdir() if p != path)
        say(completed=completed, found=step_of(path), left=left)


def small_disk(folder):
    """Mounts 1 MiB at the folder, for this process alone; where that is forbidden, files end there.

    Returns:
        What the system says when it is full.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, recursive_private = 0x00020000, 0x4000 | 0x40000
    if (
        libc.unshare(new_mounts) == 0
        and libc.mount(b"none", b"/", None, recursive_private, None) == 0
        and libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=1m") == 0
    ):
        return "No space left on device"
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # Python ignores the signal
    return "File too large"


def full_disk(folder):
    reason = small_disk(folder)
    path = folder / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(checkpoint(1), path)
    return path, reason


def read_only(folder):
    path = folder / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(checkpoint(1), path)
    folder.chmod(0o555)
    if os.geteuid() == 0:  # permissions do not bind root
        os.setuid(65534)
    return path, "Permission denied"


def removed(folder):
    os.chdir(folder)
    folder.rmdir()
    return Path("last.ckpt"), "No such file or directory"


def folder_of_that_name(folder):
    path = folder / "last.ckpt"
    path.mkdir()
    return path, "Is a directory"


def not_a_folder(folder):
    (folder / "file").write_text("text")
    return folder / "file" / "last.ckpt", "File exists"


def failures(folder):
    large = checkpoint(2)
    large["state_dict"]["large"] = torch.zeros(2**19)  # 2 MiB
    for prepare in (full_disk, read_only, removed, folder_of_that_name, not_a_folder):
        place = folder / prepare.__name__
        place.mkdir()

        def failing(prepare=prepare, place=place):
            path, reason = prepare(place)
            try:
                SafeCheckpointIO().save_checkpoint(large, path)
            except OSError as error:
                former = step_of(path) if path.is_file() else None
                left = [p.name for p in place.glob(".*")] if place.is_dir() else []
                say(
                    case=prepare.__name__,
                    path=str(path),
                    reason=reason,
                    message=str(error),
                    former=former,
                    left=left,
                )

        os.waitpid(forked(failing), 0)


def peak():
    """The most memory that this process ever held, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def memory(folder):
    def measuring():
        tensors = {str(key): torch.ones(2**23) for key in range(4)}  # 32 MiB each
        before = peak()
        SafeCheckpointIO().save_checkpoint(tensors, folder / "large.ckpt")
        say(mebibytes=peak() - before)

    os.waitpid(forked(measuring), 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for command in sys.argv[2:]:
        name, *numbers = command.split(":")
        place = Path(sys.argv[1]) / name
        place.mkdir()
        work = {"points": points, "failures": failures, "memory": memory, "random": at_random}
        work[name](place, *map(int, numbers))
