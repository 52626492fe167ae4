import csv
import os
import shutil

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from command_line import error_of, litseq
from litseq import checkpoints
from litseq.checkpoint_io import SafeCheckpointIO
from litseq.cli_resume import continue_log, continue_run, find_checkpoint, rows_before


def config_of(logger, folder, **options):
    init_args = Namespace(save_dir=str(folder), name="runs", version=None)
    if logger == "WandbLogger":
        init_args = Namespace(save_dir=str(folder), name="mine", project="runs", version=None)
    loggers = {
        "none": None,
        "CSVLogger": Namespace(class_path="CSVLogger", init_args=init_args),
        "WandbLogger": Namespace(class_path="WandbLogger", init_args=init_args),
        "two": [Namespace(class_path="CSVLogger", init_args=init_args)] * 2,
    }
    trainer = Namespace(logger=loggers[logger], default_root_dir=str(folder))
    return Namespace(trainer=trainer, **options)


def make_run(folder, ckpt, *, age=0):
    """A run whose checkpoints are that many seconds old."""
    (folder / "checkpoints").mkdir(parents=True)
    path = shutil.copy(ckpt, folder / "checkpoints" / "last.ckpt")
    os.utime(path, (1_000_000 - age,) * 2)
    return path


@pytest.mark.parametrize("logger", ["none", "CSVLogger", "WandbLogger", "two"])
def test_the_newest_run_of_the_logger(logger, fitted, tmp_path):
    name = "lightning_logs" if logger == "none" else "runs"
    make_run(tmp_path / name / "a", fitted.ckpt, age=5)
    newest = make_run(tmp_path / name / "b", fitted.ckpt)
    make_run(tmp_path / name / "c", fitted.ckpt, age=9)
    (tmp_path / name / "d" / "checkpoints").mkdir(parents=True)  # began, but saved nothing
    found = find_checkpoint(config_of(logger, tmp_path), "last")
    assert found == (tmp_path / name / "b", newest)


def test_the_run_whose_configuration_is_given(fitted, elsewhere):
    run = shutil.copytree(fitted.run, elsewhere / "run")
    outcome = litseq("test", "-c", run / "config.yaml", "--ckpt_path", "best")
    assert outcome.status == 0, outcome.err
    assert f"best: {run / 'checkpoints' / 'best.ckpt'}" in outcome.err
    assert (run / "test" / "scores.json").is_file()
    assert not list(elsewhere.glob("runs"))


def test_no_run(fitted, tmp_path, elsewhere):
    assert find_checkpoint(config_of("CSVLogger", tmp_path), "last") is None
    message = error_of("test", "-c", fitted.data, "-c", fitted.model, "--ckpt_path", "best")
    assert message.startswith("--ckpt_path best: there is no run; give its configuration")


def test_no_checkpoint_that_is_intact(tmp_path):
    folder = tmp_path / "runs" / "a" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"a.checkpoints holds no checkpoint that is int"):
        find_checkpoint(config_of("CSVLogger", tmp_path), "last")


def test_the_best_is_found_by_name(fitted, tmp_path):
    run = shutil.copytree(fitted.run, tmp_path / "runs" / "moved")
    found = find_checkpoint(config_of("CSVLogger", tmp_path), "best")
    assert found == (run, run / "checkpoints" / "best.ckpt")
    (run / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no best checkpoint; .* by name: last\.ckpt"):
        find_checkpoint(config_of("CSVLogger", tmp_path), "best")


@pytest.mark.parametrize("logger", ["CSVLogger", "two"])
def test_all_loggers_go_on(logger, tmp_path):
    config = config_of(logger, tmp_path)
    continue_run(config, tmp_path / "runs" / "version_3")
    loggers = config.trainer.logger if logger == "two" else [config.trainer.logger]
    assert [one.init_args.version for one in loggers] == ["version_3"] * len(loggers)


@pytest.mark.parametrize("logger", ["CSVLogger", "two"])
def test_a_run_that_lies_elsewhere_is_written_there(logger, tmp_path):
    config = config_of(logger, tmp_path / "here")
    run = tmp_path / "there" / "experiments" / "a"
    continue_run(config, run)
    first = config.trainer.logger[0] if logger == "two" else config.trainer.logger
    assert CSVLogger(**first.init_args.as_dict()).log_dir == str(run)


def test_a_wandb_run_stays_in_the_folder_of_its_project(tmp_path):
    config = config_of("WandbLogger", tmp_path)
    continue_run(config, tmp_path / "moved" / "runs" / "abc")
    init_args = config.trainer.logger.init_args
    assert (init_args.save_dir, init_args.project) == (str(tmp_path / "moved"), "runs")
    assert (init_args.version, init_args.name) == ("abc", "mine")
    with pytest.raises(ValueError, match="is not in a folder runs, as its W&B project is called"):
        continue_run(config, tmp_path / "renamed" / "abc")


@pytest.mark.parametrize(
    ("names", "versions"),
    [
        ((), ["version_3", None, "version_3"]),
        (["version_3", "abc", "version_7"], ["version_3", "abc", "version_7"]),
        (["before it was renamed", None, None], ["version_3", None, "version_3"]),
    ],
)
def test_each_logger_goes_on_under_its_own_name(names, versions, tmp_path):
    config = config_of("CSVLogger", tmp_path)
    others = (config_of(name, tmp_path).trainer.logger for name in ("WandbLogger", "CSVLogger"))
    config.trainer.logger = [config.trainer.logger, *others]
    continue_run(config, tmp_path / "runs" / "version_3", names)
    assert [one.init_args.version for one in config.trainer.logger] == versions


def with_callbacks(config, **init_args):
    class_path = "litseq.callbacks.run_checkpoint.RunCheckpoint"
    config.trainer.callbacks = [Namespace(class_path=class_path, init_args=Namespace(**init_args))]
    return config


def test_checkpoints_in_a_folder_of_their_own(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(fitted.run.parents[2])  # where the run began
    (tmp_path / "mine").mkdir()
    checkpoint = {**checkpoints.read(fitted.ckpt), "run": {"loggers": [fitted.run.name]}}
    SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "mine" / "last.ckpt")
    config = with_callbacks(config_of("CSVLogger", tmp_path), dirpath=str(tmp_path / "mine"))
    run, path = find_checkpoint(config, "last")
    assert path == tmp_path / "mine" / "last.ckpt"
    # what the checkpoint's own logger wrote
    assert run == tmp_path / "runs" / fitted.run.name
    # the best is kept elsewhere
    assert find_checkpoint(config, "best")[1].samefile(fitted.run / "checkpoints" / "best.ckpt")
    config.trainer.callbacks = config.trainer.callbacks[0]  # one alone is no list
    assert find_checkpoint(config, "last") == (run, path)
    config.trainer.logger = None
    run, path = find_checkpoint(config, "last")
    assert run == tmp_path / "lightning_logs" / fitted.run.name
    for empty in ("none", "empty"):
        config = with_callbacks(config_of("CSVLogger", tmp_path), dirpath=str(tmp_path / empty))
        assert find_checkpoint(config, "last") is None
        (tmp_path / "empty").mkdir(exist_ok=True)


@pytest.mark.parametrize("run", [{}, {"loggers": []}, {"loggers": [None]}, {"loggers": ["../x"]}])
def test_checkpoints_of_a_run_that_nobody_knows(run, fitted, tmp_path):
    checkpoint = {**checkpoints.read(fitted.ckpt), "run": run}
    SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    config = with_callbacks(config_of("CSVLogger", tmp_path), dirpath=str(tmp_path))
    assert find_checkpoint(config, "last") == (None, tmp_path / "last.ckpt")


def test_a_run_without_a_logger(fitted, tmp_path):
    config = config_of("none", tmp_path)
    config.trainer.logger = False
    assert find_checkpoint(config, "last") is None
    shutil.copytree(fitted.run / "checkpoints", tmp_path / "checkpoints")
    found = find_checkpoint(with_callbacks(config, dirpath=None), "last")
    assert found == (tmp_path, tmp_path / "checkpoints" / "last.ckpt")
    continue_run(config, found[0])
    assert config.trainer.logger is False


def test_a_run_that_saved_nothing_is_no_other_run(fitted, tmp_path):
    make_run(tmp_path / "runs" / "older", fitted.ckpt)
    (tmp_path / "runs" / "killed").mkdir()
    killed = tmp_path / "runs" / "killed" / "config.yaml"
    shutil.copy(fitted.run / "config.yaml", killed)
    config = config_of("CSVLogger", tmp_path, config=[Namespace(absolute=str(killed))])
    assert find_checkpoint(config, "last") is None


def test_the_best_is_what_the_latest_file_says(fitted, tmp_path):
    """The newest step is saved before its validation, which then finds the best."""
    run = shutil.copytree(fitted.run, tmp_path / "runs" / "a")
    last, best = (run / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    before = checkpoints.read(last)
    for state in before["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = ""
    SafeCheckpointIO().save_checkpoint(before, last)
    os.utime(last, (1_000_000,) * 2)
    assert find_checkpoint(config_of("CSVLogger", tmp_path), "best") == (run, best)


def test_the_default_logger_goes_on(tmp_path):
    config = config_of("none", tmp_path)
    continue_run(config, tmp_path / "lightning_logs" / "version_3")
    init_args = config.trainer.logger.init_args
    assert CSVLogger(**init_args.as_dict()).log_dir == str(tmp_path / "lightning_logs/version_3")


TRAIN, VAL = "train/loss", "val/loss"


@pytest.mark.parametrize(
    ("steps", "run", "kept"),
    [
        ([(0, TRAIN), (1, TRAIN), (1, VAL), (2, TRAIN)], {"log_step": 1, "validation": True}, 1),
        # validated inside of the accumulation, before the step
        ([(0, TRAIN), (1, VAL), (1, TRAIN), (2, TRAIN)], {"log_step": 1, "validation": False}, 2),
        ([(0, TRAIN), (1, TRAIN), (1, VAL), (2, TRAIN)], {"log_step": 2, "validation": False}, 3),
        ([(0, TRAIN), (1, TRAIN)], {"log_step": 0, "validation": False}, 0),
    ],
)
def test_rows_before(steps, run, kept):
    rows = [{"step": str(step), key: "1.0"} for step, key in steps]
    assert rows_before(rows, run) == rows[:kept]


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_log_goes_on(broken_off, tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    text = "step,train/loss,val/loss\n0,3,\n1,2,\n1,,4\n2,1"  # the last line is cut
    name = "metrics.before_resuming.csv" if broken_off else "metrics.csv"
    (folder / name).write_text(text)
    if broken_off:  # while the rest was being written back
        (folder / "metrics.csv").write_text("step,train/loss")
    logger = CSVLogger(tmp_path, "runs", "a")
    continue_log(logger, {"log_step": 2, "validation": False})
    logger.log_metrics({"train/loss": torch.tensor(0.5)}, step=2)
    logger.save()
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert rows == [
        {"step": "0", "train/loss": "3"},
        {"step": "1", "train/loss": "2"},
        {"step": "1", "val/loss": "4"},
        {"step": "2", "train/loss": "0.5"},
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.csv"]


def test_a_log_that_is_not_there(tmp_path):
    logger = CSVLogger(tmp_path, "runs", "a")
    continue_log(logger, {"log_step": 2, "validation": False})
    assert not (tmp_path / "runs" / "a" / "metrics.csv").exists()
