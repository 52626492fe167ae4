"""The best checkpoint, wherever its run lies."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from litseq.callbacks import BestCheckpoint
from tiny_tasks import loader, tiny_batches, tiny_task, tiny_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that kept its two best, and the callback's state."""
    folder = tmp_path_factory.mktemp("run")
    callback = BestCheckpoint("val/loss", "min", save_top_k=2, dirpath=str(folder))
    batches = tiny_batches(4)
    tiny_trainer(folder, callbacks=[callback], enable_checkpointing=True, max_epochs=3).fit(
        tiny_task(lr=1e-2), loader(batches), loader(batches[:1])
    )
    return folder, callback.state_dict()


def loaded(callback, state, ckpt_path):
    """As a Trainer goes on from that file."""
    callback.on_load_checkpoint(SimpleNamespace(ckpt_path=str(ckpt_path)), None, {})
    callback.load_state_dict(state)


@pytest.mark.parametrize("move", [lambda a, b: shutil.copytree(a, b), lambda a, b: b.symlink_to(a)])
def test_a_folder_that_was_moved_or_is_spelled_otherwise(run, move, tmp_path):
    folder, state = run
    move(folder, tmp_path / "here")
    callback = BestCheckpoint("val/loss", "min", save_top_k=2)
    callback.dirpath = os.path.relpath(tmp_path / "here")  # as ``setup`` puts it together
    loaded(callback, state, Path(callback.dirpath) / "last.ckpt")
    assert len(callback.best_k_models) == 2
    assert callback.best_model_score == state["best_model_score"]
    name = Path(state["best_model_path"]).name
    assert callback.best_model_path == str(Path(callback.dirpath, name))
    worse = torch.tensor(float(callback.best_model_score) + 100)
    trainer = tiny_trainer(tmp_path)
    assert not callback.check_monitor_top_k(trainer, worse)
    assert callback.check_monitor_top_k(trainer, torch.tensor(0.0))
    assert not callback.check_monitor_top_k(trainer, torch.tensor(torch.nan))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_is_not_even_the_first_best(value, tmp_path):
    callback = BestCheckpoint("val/loss", "min")
    trainer = tiny_trainer(tmp_path)
    assert callback.check_monitor_top_k(trainer, torch.tensor(1.0))
    assert not callback.check_monitor_top_k(trainer, torch.tensor(value))
    assert not callback.check_monitor_top_k(trainer, None)


def test_another_run_begins_with_nothing(run, tmp_path, recwarn):
    folder, state = run
    callback = BestCheckpoint("val/loss", "min", save_top_k=2, dirpath=str(tmp_path))
    loaded(callback, state, folder / "last.ckpt")
    assert (callback.best_k_models, callback.best_model_path) == ({}, "")
    assert not recwarn
