"""Kills runs at random moments, goes on with them, and compares the ends: bit for bit.

    python scripts/faults.py                        # 20 kills of each model: about ten minutes
    python scripts/faults.py --kills 5 --models Rnn

Each model trains on the built-in demo, once undisturbed and once with faults: real processes of
``litseq fit --ckpt_path last``, hit by SIGKILL, SIGTERM, SIGUSR1 or Ctrl-C somewhere in a training
step, in a validation or in the writing of a checkpoint, and started again by the same command until
the run is at its end. Then all that is left must be equal: weights, the optimizer's state, the
schedule, random numbers, scores, translations and every row of the log. Figures go to
docs/results/faults.json, the table to docs/reliability.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml

import litseq
from doc_tables import fill
from litseq import checkpoints

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"

MODELS: dict[str, dict[str, Any]] = {
    "Rnn": {"embedding_dim": 32, "hidden_size": 48},
    "RnnAttention": {"embedding_dim": 32, "hidden_size": 48},
    "Transformer": {
        "d_model": 48,
        "num_heads": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "dim_feedforward": 96,
    },
}
STEPS = 144
SIGNALS = ["SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT"]  # half of them hard
EXIT_STATUS = {"SIGKILL": -9, "SIGTERM": 143, "SIGUSR1": 143, "SIGINT": 130}


def configuration(model: str) -> dict[str, Any]:
    """A run of 144 steps, a minute or less: two micro-batches each, validation in mid-epoch."""
    checkpoint = "lightning.pytorch.callbacks.ModelCheckpoint"
    best = {"monitor": "val/loss", "filename": "best", "enable_version_counter": False}
    return {
        "model": {
            "class_path": f"litseq.{model}Seq2Seq",
            "init_args": {
                **MODELS[model],
                "dropout": 0.2,
                "lr": 3e-3,
                "schedule": "linear",
                "warmup_steps": 20,
                "max_len_b": 5,
            },
        },
        "data": {
            "class_path": "litseq.TranslationDataModule",
            "init_args": {
                "src_lang": "en",
                "tgt_lang": "zh",
                "dataset": "demo",
                "vocab_size": 1000,
                "shared_vocab": False,
                "max_tokens": 1500,
                "num_workers": 1,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 3,
            "limit_train_batches": 96,
            "limit_val_batches": 4,
            "val_check_interval": 32,
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": ".", "name": "runs"},
            },
            "callbacks": [
                {"class_path": checkpoint, "init_args": best},
                {"class_path": "litseq.RunCheckpoint", "init_args": {"every_n_steps": 5}},
            ],
        },
    }


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Starts or goes on with the run in a folder; it prints to ``output.txt``."""
    output = (folder / "output.txt").open("wb")
    command = ["-m", "litseq", "fit", "-c", "config.yaml", "--ckpt_path", "last"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdout=output, stderr=output, env=environment
    )


def wait_for_training(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits until a process has read its data: what follows is training."""
    while process.poll() is None:
        if b"training pairs" in (folder / "output.txt").read_bytes():
            return
        time.sleep(0.01)


def newest_run(folder: Path) -> Path:
    """The run of a folder: a start that was killed before its first save began another one."""
    runs = (folder / "runs").glob("version_*")
    return max(runs, key=lambda run: int(run.name[8:]), default=folder / "none")


def last_step(folder: Path) -> int:
    """The last optimizer step that a run has logged."""
    path = newest_run(folder) / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return max((int(row["step"]) for row in csv.DictReader(file)), default=-1)
    except (FileNotFoundError, ValueError):  # not begun, or half a line
        return -1


def saved_step(folder: Path) -> int:
    """The step of the newest checkpoint, which must be there and intact after any fault."""
    path = checkpoints.newest(newest_run(folder) / "checkpoints")
    return 0 if path is None else int(torch.load(path, weights_only=True)["global_step"])


def disturb(folder: Path, *, seconds: float, rng: random.Random) -> list[dict[str, Any]]:
    """Brings a run to its end through faults; says what each of them was and did.

    Args:
        folder: Where the configuration is.
        seconds: How long the run takes undisturbed; a fault comes within a quarter of it.
        rng: Draws moments and signals.
    """
    faults: list[dict[str, Any]] = []
    while True:
        process = start(folder)
        wait_for_training(process, folder)
        time.sleep(rng.uniform(0.0, seconds / 4))
        name = rng.choice(SIGNALS)
        process.send_signal(getattr(signal, name))  # nothing, if it has ended
        status = process.wait()
        output = (folder / "output.txt").read_text()
        if status == 0 or "nothing was trained" in output:  # the run had come to its end
            return faults
        # the latter before it listens to signals, or when it is done
        if status not in (EXIT_STATUS[name], -getattr(signal, name)):
            raise SystemExit(f"{name}: status {status}\n{output}")
        reached, saved = last_step(folder) + 1, saved_step(folder)
        faults.append(
            {"signal": name, "status": status, "logged_steps": reached, "saved_steps": saved}
        )


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:  # noqa: ANN401
    """Names whatever differs between two checkpoints."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and ours.keys() == theirs.keys():
        for key in theirs:
            yield from differences(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{where}.{number}")
    elif isinstance(theirs, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield where
    elif ours != theirs:
        yield where


def compare(disturbed: Path, whole: Path) -> list[str]:
    """Names whatever differs between two runs: in their logs, translations and checkpoints."""
    ours, theirs = (newest_run(folder) for folder in (disturbed, whole))
    texts = ["metrics.csv", "val/hypotheses.txt", "val/scores.json"]
    found = [name for name in texts if (ours / name).read_bytes() != (theirs / name).read_bytes()]
    for name in ("last", "best"):
        states = (
            torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for run in (ours, theirs)
        )
        # folders have other names
        places = (place for place in differences(*states) if not re.search("path|models", place))
        found += [f"{name}.ckpt{place}" for place in places]
    return found


def measure(model: str, folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Disturbs runs of a model until there were so many faults; says how they ended."""
    rng = random.Random(seed)

    def prepare(name: str) -> Path:
        home = folder / name
        home.mkdir(parents=True)
        (home / "config.yaml").write_text(yaml.safe_dump(configuration(model)))
        return home

    whole = prepare("whole")
    process = start(whole)
    wait_for_training(process, whole)
    begin = time.perf_counter()
    if process.wait() != 0:
        raise SystemExit((whole / "output.txt").read_text())
    seconds = time.perf_counter() - begin
    runs: list[dict[str, Any]] = []
    while sum(len(run["faults"]) for run in runs) < kills:
        home = prepare(f"disturbed {len(runs)}")
        faults = disturb(home, seconds=seconds, rng=rng)
        runs.append({"faults": faults, "differences": compare(home, whole)})
    return {"model": model, "steps": STEPS, "runs": runs}


def row(record: dict[str, Any]) -> list[object]:
    """A line of the table."""
    faults = [fault for run in record["runs"] for fault in run["faults"]]
    counts = Counter(fault["signal"] for fault in faults)
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    again = max(max(0, fault["logged_steps"] - fault["saved_steps"]) for fault in faults)
    differences = [place for run in record["runs"] for place in run["differences"]]
    return [
        record["model"],
        len(record["runs"]),
        len(faults),
        kinds,
        again,
        "; ".join(differences) or "none",
    ]


def main() -> None:
    """Runs the faults and writes what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="faults per model (default: 20)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            home = Path(folder) / model
            records.append(measure(model, home, kills=options.kills, seed=options.seed))
            print(*row(records[-1]), sep=" | ", flush=True)
    figures = {
        "command": f"python scripts/faults.py --kills {options.kills} --seed {options.seed}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "litseq": litseq.__version__,
        },
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "seed": options.seed,
        "models": records,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.out == RESULTS:
        header = ["model", "runs", "faults", "which", "most steps done again", "differences"]
        fill(PAGE, "faults", header, map(row, records))
    if any(run["differences"] for record in records for run in record["runs"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
