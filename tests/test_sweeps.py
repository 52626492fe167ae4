"""The sweeps of configs/sweeps, up to the command line that W&B's agent would run."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from command_line import litseq

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def command_of(sweep, choose):
    """The words that ``wandb agent`` makes of a sweep and one choice of its parameters."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    args = {name: {"value": choose(options)} for name, options in sweep["parameters"].items()}
    found = create_sweep_command_args({"args": args})
    words = []
    for word in create_sweep_command(copy.deepcopy(sweep["command"])):
        words += found[word[2:-1]] if word.startswith("${") else [word]
    return words


def first(options):
    return options["values"][0] if "values" in options else options["min"]


def last(options):
    return options["values"][-1] if "values" in options else options["max"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("choose", [first, last])
def test_the_agent_can_run_it(path, choose, monkeypatch):
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    monkeypatch.chdir(ROOT)
    sweep = load_sweep_config(str(path))
    assert sweep["metric"]["goal"] in ("maximize", "minimize")
    words = command_of(sweep, choose)
    assert words[:2] == ["litseq", "fit"]
    outcome = litseq(*words[1:], "--print_config")
    assert outcome.status == 0, outcome.err
    config = yaml.safe_load(outcome.out)
    for name, options in sweep["parameters"].items():
        value = config
        for key in name.split("."):
            value = value[key]
        assert value == choose(options), name


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_run_logs_what_the_sweep_looks_at(path, tmp_path, monkeypatch):
    from wandb_reader import read_offline_run

    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = command_of(sweep, first)
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    short = ("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")
    short += ("--trainer.limit_val_batches", "1", "--trainer.limit_train_batches", "2")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_RUN_ID": "one"}
    assert words[0] == "litseq"  # which need not be on the PATH of these tests
    command = [sys.executable, "-m", *words, *short]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=200)
    run = read_offline_run(tmp_path / "lightning_logs")
    assert run.values(sweep["metric"]["name"])
    assert run.config["provenance"]["data"].keys() == {"train", "val"}
    assert any("attention" in name for name in run.history[-1] | run.summary)
