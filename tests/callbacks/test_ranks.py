import os
import re
import signal
import time

import pytest
from lightning.pytorch import Callback

from litseq.callbacks.ranks import RankMonitor
from rank_processes import Ranks
from tiny_tasks import loader, tiny_batches, tiny_task, tiny_trainer

TIMEOUT = 4.0  # a first step can take so long on a busy machine


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep():
    time.sleep(1000)


def fail():
    raise RuntimeError("no more memory")


class Fault(Callback):
    """Does harm on one rank, in one of a callback's hooks."""

    def __init__(self, rank, hook, harm):
        self.rank, self.harm = rank, harm
        setattr(self, hook, self.happen)

    def happen(self, trainer, *_):
        if trainer.global_rank == self.rank and trainer.global_step == 2:
            time.sleep(TIMEOUT / 4)  # ranks report ten times in a timeout
            self.harm()


def train(rank, folder, fault, timeout):
    callbacks = [RankMonitor(timeout), *([Fault(*fault)] if fault else [])]
    trainer = tiny_trainer(
        folder,
        strategy="ddp",
        devices=int(os.environ["WORLD_SIZE"]),
        callbacks=callbacks,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        max_epochs=2,
    )
    trainer.fit(tiny_task(), loader(tiny_batches(4)), loader(tiny_batches(2)))
    return trainer.global_step


def survivors(tmp_path, world_size, fault):
    """Messages of all ranks but the faulty one, which must all end soon and with status 75."""
    faulty = fault[0]
    start = time.monotonic()
    with Ranks(world_size, train, tmp_path, fault, TIMEOUT) as ranks:
        others = [rank for rank in range(world_size) if rank != faulty]
        for rank in others:
            ranks.processes[rank].join(60)
        assert time.monotonic() - start < 60
        assert [ranks.processes[rank].exitcode for rank in others] == [75] * len(others)
        pid = ranks.processes[faulty].pid
        for rank in others:
            *_, line = ranks.errors(rank).splitlines()
            assert line.startswith(f"litseq: error: rank {faulty} (host ")
            assert f"pid {pid};" in line
            assert "step 2" in line
            assert line.endswith(f"; rank {rank} ends.")
            yield line


@pytest.mark.parametrize(
    ("world_size", "rank", "hook", "harm", "doing", "message"),
    [
        (2, 1, "on_train_batch_start", kill, "train", "is gone"),
        (2, 0, "on_before_backward", stop, "train", r"has not answered for \d+ s"),
        (3, 1, "on_train_batch_start", sleep, "train: forward", r"no progress for \d+ s"),
    ],
)
def test_a_rank_that_dies_or_hangs_is_named(world_size, rank, hook, harm, doing, message, tmp_path):
    for line in survivors(tmp_path, world_size, (rank, hook, harm)):
        assert doing in line
        assert re.search(message, line)
        if harm is sleep:
            assert "test_ranks.py" in line
            assert " sleep)" in line


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("harm", [kill, stop, sleep, fail])
@pytest.mark.parametrize(
    "hook",
    ["on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end"],
)
def test_whoever_wherever(rank, harm, hook, tmp_path):
    for line in survivors(tmp_path, 3, (rank, hook, harm)):
        expected = {
            kill: "is gone",
            stop: "has not answered for" if rank == 0 else "has made no progress for",
            sleep: "has made no progress for",
            fail: "failed: RuntimeError: no more memory",
        }
        assert expected[harm] in line


def test_ranks_that_run_well_are_left_alone(tmp_path):
    with Ranks(2, train, tmp_path, None, 60.0) as ranks:
        assert ranks.wait() == [0, 0]
        assert [ranks.result(rank) for rank in (0, 1)] == [8, 8]
        assert "error" not in ranks.errors(0) + ranks.errors(1)


def test_one_rank_is_not_watched(tmp_path):
    monitor = RankMonitor(0.001)
    trainer = tiny_trainer(tmp_path, callbacks=[monitor])
    trainer.fit(tiny_task(), loader(tiny_batches(2)))
    assert trainer.global_step == 2
    assert monitor._watch is None


def test_refuses_a_timeout_that_is_none():
    with pytest.raises(ValueError, match=r"timeout must be positive, got 0\.0"):
        RankMonitor(0.0)
