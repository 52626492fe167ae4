"""Resuming equals not stopping, wherever it is: bit for bit."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.lr_scheduler import ReduceLROnPlateau

from litseq.architectures import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq
from litseq.callbacks import RunCheckpoint, run_checkpoint
from litseq.cli_resume import rows_before
from litseq.data import TranslationDataModule
from tiny_tasks import FAMILIES, tiny_trainer


class Journal(Callback):
    """Writes down everything that can be seen of a run, by the number of the batch."""

    def __init__(self):
        self.lines = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        loss = outputs["loss"].item()
        self.lines.append((done, trainer.current_epoch, batch_idx, batch["id"].tolist(), loss, lr))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
            scores = {k: v.item() for k, v in trainer.callback_metrics.items() if k[:3] == "val"}
            self.lines.append((done, trainer.current_epoch, "validation", scores))

    def on_train_epoch_end(self, trainer, pl_module):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        self.lines.append((done, trainer.current_epoch, "epoch end"))


class Generations(Callback):
    """Keeps every checkpoint that was the newest when a batch began."""

    def __init__(self, folder):
        self.folder = folder
        self.paths = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        newest = Path(trainer.callbacks[-1].best_model_path or "none")
        if newest.exists():
            done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
            self.paths.append(shutil.copy(newest, self.folder / f"{done}.ckpt"))


def fit(
    folder,
    data_options,
    *,
    family=TransformerSeq2Seq,
    ckpt_path=None,
    more=(),
    data=None,
    schedule="constant",
    lr_scheduler=None,
    **options,
):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    options_of_task = {"schedule": schedule, "lr_scheduler": lr_scheduler, "warmup_steps": 4}
    module = family(**FAMILIES[family], dropout=0.3, max_len_b=5, lr=1e-2, **options_of_task)
    journal, generations = Journal(), Generations(folder)
    callbacks = [
        RunCheckpoint(folder.parent / "run", every_n_steps=1),  # moves behind the others by itself
        journal,
        generations,
        EarlyStopping("val/loss", patience=50, strict=False),
        ModelCheckpoint(folder.parent, "best", "val/loss", enable_version_counter=False),
        *(make() for make in more),
    ]
    logger = CSVLogger(folder, "logs")
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=logger,
        callbacks=callbacks,
        **{"max_epochs": 3, "log_every_n_steps": 2, "gradient_clip_val": 1.0, **options},
    )
    if ckpt_path is None:
        torch.manual_seed(1)  # of a run that is resumed, the checkpoint must know
    datamodule = TranslationDataModule(**{**data_options, "max_tokens": 700, **(data or {})})
    trainer.fit(module, datamodule, ckpt_path=ckpt_path)
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    state = {
        "module": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": {
            name: value
            for name, value in trainer.lr_scheduler_configs[0].scheduler.state_dict().items()
            if not isinstance(value, str)
        },
        "stopping": callbacks[3].state_dict(),
        "best": callbacks[4].best_model_score,
        "metrics": trainer.callback_metrics,
        "steps": (trainer.global_step, trainer.current_epoch),
        "random": torch.get_rng_state(),
    }
    return journal.lines, rows, state, generations.paths


def assert_same(resumed, whole, ckpt_path):
    lines, rows, state, _ = resumed
    checkpoint = torch.load(ckpt_path, weights_only=True)
    done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    # of the last batch, its own line was before the checkpoint, those of a validation after it
    after = checkpoint["run"]["validation"]
    rest = [ln for ln in whole[0] if ln[0] > done or (ln[0] == done and after and len(ln) < 6)]
    assert lines == rest
    assert rows_before(whole[1], checkpoint["run"]) + rows == whole[1]
    torch.testing.assert_close(state, whole[2], rtol=0, atol=0, equal_nan=True)


SCENES = {
    "epochs": {},
    "validation inside of epochs": {"val_check_interval": 2},
    "accumulation": {"accumulate_grad_batches": 2},
    "validation inside of accumulations": {"accumulate_grad_batches": 2, "val_check_interval": 3},
    "steps": {"max_epochs": -1, "max_steps": 11},
    "steps, validation across epochs": {
        "max_epochs": -1, "max_steps": 11, "check_val_every_n_epoch": None, "val_check_interval": 3,
    },
    "validation of every second epoch": {"check_val_every_n_epoch": 2},
    "no validation": {"limit_val_batches": 0},
    "limited epochs": {"limit_train_batches": 3},
    "a schedule that ends with the run": {"schedule": "linear", "accumulate_grad_batches": 2},
    # whatever falls is no improvement, so the rate falls by every validation
    "a rate that falls on a plateau": {
        "lr_scheduler": lambda optimizer: ReduceLROnPlateau(optimizer, "max", patience=0)
    },
    "averaged weights": {
        # a table of positions that is averaged with itself moves by a rounding error
        "more": (lambda: EMAWeightAveraging(decay=0.8, use_buffers=False),),
        "val_check_interval": 2,
    },
}  # fmt: skip


def check(folder, data_options, *, which=slice(None), **options):
    whole = fit(folder / "whole", data_options, **options)
    assert len(whole[3]) > 2
    for number, ckpt_path in list(enumerate(whole[3]))[which]:
        resumed = fit(folder / f"from {number}", data_options, ckpt_path=ckpt_path, **options)
        assert_same(resumed, whole, ckpt_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize("scene", SCENES)
def test_resuming_after_any_step_equals_not_stopping(scene, family, data_options, tmp_path):
    check(tmp_path, data_options, family=family, **SCENES[scene])


@pytest.mark.parametrize("scene", SCENES)
def test_resuming_after_some_steps(scene, data_options, tmp_path):
    which = slice(list(SCENES).index(scene) % 3, None, 3)  # other ones in each scene
    check(tmp_path, data_options, which=which, **SCENES[scene])


@pytest.mark.parametrize("family", [RnnSeq2Seq, RnnAttentionSeq2Seq], ids=lambda f: f.__name__)
def test_resuming_a_recurrent_model(family, data_options, tmp_path):
    check(tmp_path, data_options, family=family, which=slice(1, None, 5))


@pytest.mark.parametrize(
    "options",
    [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 7}, {"max_epochs": 2, "max_steps": 9}],
)
def test_more_training_after_the_end(options, data_options, tmp_path):
    """A run that came to its end, and then goes on, equals the longer run."""
    longer = {"max_epochs": 3} if "max_steps" not in options else {**options, "max_steps": 11}
    fit(tmp_path / "first", data_options, **options)
    ckpt_path = shutil.copy(tmp_path / "run" / "last.ckpt", tmp_path / "end.ckpt")
    resumed = fit(tmp_path / "rest", data_options, ckpt_path=ckpt_path, **longer)
    for path in [*(tmp_path / "run").iterdir(), tmp_path / "best.ckpt"]:
        path.unlink()
    whole = fit(tmp_path / "whole", data_options, **longer)
    assert_same(resumed, whole, ckpt_path)


def test_workers_that_read_ahead(data_options, tmp_path):
    check(tmp_path, data_options, which=slice(2, 9, 5), data={"num_workers": 2}, max_epochs=2)


class LossScaling(MixedPrecision):
    """float16 with a scaled loss, which Lightning itself does on GPUs alone."""

    def __init__(self):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=2)
        super().__init__("16-mixed", "cpu", scaler)


def test_a_scaled_loss(data_options, tmp_path):
    def scaled(folder, ckpt_path=None):
        # a plugin belongs to one trainer
        return fit(
            tmp_path / folder,
            data_options,
            ckpt_path=ckpt_path,
            plugins=[LossScaling()],
            gradient_clip_val=None,
            max_epochs=1,
        )

    whole = scaled("whole")
    states = [torch.load(path, weights_only=True)["LossScaling"] for path in whole[3]]
    assert len({state["scale"] for state in states}) > 2
    for number in (1, 4):
        assert_same(scaled(f"from {number}", whole[3][number]), whole, whole[3][number])


def test_a_test_between_two_fits_is_none_of_them(data_options, tmp_path):
    fit(tmp_path / "first", data_options)
    callback, task = (
        RunCheckpoint(tmp_path / "run"),
        TransformerSeq2Seq(**FAMILIES[TransformerSeq2Seq]),
    )
    data = TranslationDataModule(**data_options)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[callback], **quiet)
    trainer.test(task, data, ckpt_path=tmp_path / "run" / "last.ckpt", verbose=False)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    trainer.callbacks.append(seen := FirstState())
    trainer.fit(task, data)
    assert torch.equal(seen.state, state)


class FirstState(Callback):
    """Remembers the random numbers that training begins with."""

    def on_train_epoch_start(self, trainer, pl_module):  # RunCheckpoint comes last, on_train_start
        self.state = torch.get_rng_state()


@pytest.mark.parametrize(("every_minutes", "saved"), [(1.0, [0, 0, 2, 2, 4, 4]), (0.0, [0] * 6)])
def test_saves_by_time(every_minutes, saved, tmp_path, monkeypatch, data_options):
    """Batches of 40 seconds, and a minute between two checkpoints at least."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(run_checkpoint, "time", clock)
    found = []

    class Slow(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            last = Path(tmp_path, "last.ckpt")
            found.append(torch.load(last, weights_only=True)["global_step"] if last.exists() else 0)
            clock.now += 40

    callbacks = [RunCheckpoint(tmp_path, every_minutes=every_minutes), Slow()]
    options = {"max_epochs": -1, "enable_checkpointing": True, "callbacks": callbacks}
    trainer = tiny_trainer(tmp_path, max_steps=6, limit_val_batches=0, **options)
    data = TranslationDataModule(**{**data_options, "max_tokens": 200})
    trainer.fit(TransformerSeq2Seq(**FAMILIES[TransformerSeq2Seq]), data)
    assert found == saved


def test_what_was_the_newest_stays_where_files_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(run_checkpoint.os, "link", refuse)
    newest, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for content in ("one", "two"):
        newest.write_text(content)
        run_checkpoint._keep(newest, previous)
        assert (newest.read_text(), previous.read_text()) == (content, content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_training_data_that_changed_are_refused_unless_they_may(tmp_path, corpus, data_options):
    """With the tokenizer they had, so that nothing else tells them apart."""
    for lang in ("en", "de"):
        shutil.copy(corpus / f"train.{lang}", tmp_path)
    data = TranslationDataModule(**data_options)
    data.prepare_data()
    data.setup("fit")
    data.tokenizer.save(tmp_path / "tokenizer")
    own = {"train": str(tmp_path / "train"), "tokenizer": str(tmp_path / "tokenizer")}
    options = {**data_options, **own, "vocab_size": None}

    def train(steps, ckpt_path=None, **more):
        callbacks = [RunCheckpoint(tmp_path, every_n_steps=1)]
        most = {"max_epochs": -1, "max_steps": steps, "limit_val_batches": 0}
        trainer = tiny_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, **most)
        module = TransformerSeq2Seq(**FAMILIES[TransformerSeq2Seq])
        trainer.fit(module, TranslationDataModule(**options, **more), ckpt_path=ckpt_path)
        return trainer.global_step

    train(2)
    kept = shutil.copy(tmp_path / "last.ckpt", tmp_path / "kept.ckpt")
    for lang in ("en", "de"):
        with (tmp_path / f"train.{lang}").open("a") as file:
            file.write("one more\n")
    with pytest.raises(ValueError, match=r"data \(\w+\) are not those of the checkpoint"):
        train(4, ckpt_path=kept)
    assert train(4, ckpt_path=kept, allow_other_data=True) == 4
