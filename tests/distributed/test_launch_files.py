"""The launch files of scripts/cluster/, with processes for machines: lost, joining, out of time."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from test_nodes import family

from rank_processes import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(data_options, tmp_path):
    """A run of about a minute; what depends on time alone is kept out of its log."""
    content = {
        "model": {
            "class_path": "litseq.TransformerSeq2Seq",
            "init_args": {
                "d_model": 12,
                "num_heads": 3,
                "num_encoder_layers": 1,
                "num_decoder_layers": 1,
                "dim_feedforward": 20,
                "dropout": 0.0,
                "warmup_steps": 0,
                "schedule": "constant",
            },
        },
        "data": {
            "class_path": "litseq.TranslationDataModule",
            "init_args": {**data_options, "max_tokens": 48, "predict": None},
        },
        "trainer": {
            "accelerator": "cpu",
            "strategy": "ddp",
            "devices": 1,
            "precision": "64-true",
            "accumulate_grad_batches": 2,
            "max_epochs": 2,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs", "name": "tiny"},
            },
            "callbacks": [
                {"class_path": "litseq.RunCheckpoint", "init_args": {"every_n_steps": 1}},
                {"class_path": "litseq.RankMonitor", "init_args": {"timeout": 60}},
                {"class_path": "processes.Slow", "init_args": {"seconds": 0.2}},
            ],
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def environment():
    """As after ``source .venv/bin/activate``."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "tests"),
        "OMP_NUM_THREADS": "1",
    }


def fit(config, folder, environment):
    """The run that nothing stops."""
    folder.mkdir()
    words = ["fit", "-c", config, "--allow_import", "processes"]
    command = [sys.executable, "-m", "litseq", *map(str, words)]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "runs" / "tiny" / "version_0"


def step_of(folder):
    try:
        with (folder / "runs" / "tiny" / "version_0" / "metrics.csv").open(newline="") as file:
            return int(list(csv.DictReader(file))[-1]["step"])
    except (OSError, IndexError, ValueError):  # not there yet
        return -1


def wait_for_step(folder, step, process, limit=120):
    end = time.monotonic() + limit
    while step_of(folder) < step:
        assert process is None or process.poll() is None, "it ended"
        assert time.monotonic() < end, f"step {step_of(folder)}"
        time.sleep(0.1)


def assert_same_end(run, other):
    last, expected = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (run, other)
    )
    assert last["global_step"] == expected["global_step"] > 30
    torch.testing.assert_close(last["state_dict"], expected["state_dict"], rtol=1e-7, atol=1e-9)


def test_machines_join_and_are_lost(config, environment, tmp_path):
    expected = fit(config, tmp_path / "whole", environment)
    folder = tmp_path / "elastic"
    folder.mkdir()
    options = {
        "NODES": "1:2",
        "RENDEZVOUS": f"127.0.0.1:{free_port()}",
        "DEVICES": "1",
        "BATCHES_PER_STEP": "2",
    }
    words = [ROOT / "scripts/cluster/elastic.sh", "fit", "-c", config]
    words += ["--allow_import", "processes", "--ckpt_path", "last"]

    def start(name):
        return subprocess.Popen(
            list(map(str, words)),
            cwd=folder,
            env={**environment, **options},
            stdout=(folder / f"{name}.txt").open("w"),
            stderr=subprocess.STDOUT,
        )

    first = start("first")
    try:
        wait_for_step(folder, 5, first)
        second = start("second")
        wait_for_step(folder, 15, first)
        for pid in family(second.pid):
            os.kill(pid, signal.SIGKILL)
        assert first.wait(180) == 0, (folder / "first.txt").read_text()[-3000:]
    finally:
        first.kill()
    said = (folder / "first.txt").read_text()
    members = [line.split("MEMBER: ")[1] for line in said.splitlines() if "MEMBER: " in line]
    assert members == ["1/1", "1/2", "1/1"]
    assert "rank 1 (host" in said
    assert_same_end(folder / "runs" / "tiny" / "version_0", expected)


@pytest.mark.parametrize("command", ["scancel --signal=USR1 {}", "scontrol requeue {}"])
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs a SLURM of two nodes")
def test_slurm_puts_a_job_back_into_the_queue(command, config, environment, tmp_path):
    """The end of the time, of which SLURM tells by SIGUSR1, and a preemption."""
    expected = fit(config, tmp_path / "whole", environment)
    folder = tmp_path / "slurm"
    folder.mkdir()
    words = ["sbatch", "--parsable", "--gpus-per-node=0", "--ntasks-per-node=1"]
    words += ["--cpus-per-task=1", ROOT / "scripts/cluster/slurm.sh", "fit", "-c", config]
    words += ["--allow_import", "processes", "--trainer.accumulate_grad_batches", "1"]

    def call(*words):
        done = subprocess.run(
            list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    job = call(*words)
    wait_for_step(folder, 10, None)
    call(*command.format(job).split())
    end = time.monotonic() + 300
    while state := call("squeue", "--noheader", "--format=%T %r", "--jobs", job):
        assert time.monotonic() < end, state
        if "BeginTime" in state:  # SLURM waits for two minutes by itself
            call("scontrol", "update", f"jobid={job}", "starttime=now")
        time.sleep(1)
    said = (folder / f"slurm-{job}.out").read_text()
    assert "saved step" in said
    assert said.count("training pairs") == 2
    assert_same_end(folder / "runs" / "tiny" / "version_0", expected)
