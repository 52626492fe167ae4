#!/usr/bin/env python
"""Trains the same model on the same batches in several precisions and compares the loss curves.

    python scripts/precision.py                              # the Transformer, 500 steps
    python scripts/precision.py --models transformer rnn rnn_attention

Models and data are those of ``configs/multi30k``; weights, batches and the order of everything are
the same in each run. Dropout draws other numbers in another precision, so one more run in 32-true
with other dropout shows how much of a difference means nothing.

Writes ``docs/results/precision.json``, one entry for each model, and the table in
``docs/precision.md``. A model that is there with as many steps is not run again. Fails if a run is
outside of its band.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

import litseq
from doc_tables import fill
from litseq.data import TranslationDataModule

RESULT = Path("docs/results/precision.json")
PAGE = Path("docs/precision.md")
WINDOW = 50
SEED = 1
REFERENCE = "32-true"
OTHER = "32-true, other dropout"
BANDS = {"bf16-mixed": 0.01, "bf16-true": 0.04}  # apart from 32-true, in any window and at the end
RUNS = {
    REFERENCE: "32-true",
    OTHER: "32-true",
    "bf16-mixed": "bf16-mixed",
    "bf16-true": "bf16-true",
}


class Curve(pl.Callback):
    """Keeps the loss of every step, in nats per token."""

    def __init__(self, dropout_seed: int) -> None:
        self.dropout_seed = dropout_seed
        self.nll: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Weights are drawn; what follows is dropout."""
        torch.manual_seed(self.dropout_seed)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 - the hook's
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Notes the loss before the step."""
        self.nll.append(float(trainer.callback_metrics["train/nll"]))


def train(name: str, run: str, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one model in one precision."""
    config = yaml.safe_load(Path(f"configs/multi30k/{name}.yaml").read_text(encoding="utf-8"))
    data_options = config["data"]["init_args"]
    for split, path in (("train", "train"), ("val", "val"), ("test", "test_2016_flickr")):
        data_options[split] = str(args.data / path)
    options = config["model"]["init_args"] | {
        "schedule": "inverse_sqrt",  # the same whatever the number of steps
        "warmup_steps": 100,
        "val_decode": False,
    }
    pl.seed_everything(SEED, verbose=False)
    task = getattr(litseq, config["model"]["class_path"].rpartition(".")[2])(**options)
    curve = Curve(SEED + (run == OTHER))
    trainer = pl.Trainer(
        accelerator=args.accelerator,
        devices=1,
        precision=RUNS[run],  # type: ignore[arg-type]
        max_steps=args.steps,
        gradient_clip_val=config["trainer"]["gradient_clip_val"],
        log_every_n_steps=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[curve],
    )
    data = TranslationDataModule(**data_options)
    start = time.perf_counter()
    trainer.fit(task, datamodule=data)
    seconds = time.perf_counter() - start
    trainer.limit_val_batches = 1.0
    (scores,) = trainer.validate(task, datamodule=data, verbose=False)
    return {"run": run, "seconds": round(seconds), "nll": curve.nll, "val_nll": scores["val/nll"]}


def windows(nll: list[float]) -> list[float]:
    """Means over windows of steps."""
    return [statistics.fmean(nll[i : i + WINDOW]) for i in range(0, len(nll), WINDOW)]


def distances(run: dict[str, Any], reference: dict[str, Any]) -> tuple[list[float], float]:
    """Relative differences to the reference: of the training loss in windows, of validation."""
    apart = [
        (here - there) / there
        for here, there in zip(windows(run["nll"]), windows(reference["nll"]), strict=True)
    ]
    return apart, (run["val_nll"] - reference["val_nll"]) / reference["val_nll"]


def row(name: str, run: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """One line of the table: how far a run is from the reference."""
    cells = [name, run["run"], f"{run['val_nll']:.3f}"]
    if run is reference:
        return [*cells, "", "", ""]
    apart, final = distances(run, reference)
    mean = statistics.fmean(map(abs, apart))
    return [*cells, f"{mean:.2%}", f"{max(map(abs, apart)):.2%}", f"{final:+.2%}"]


def main() -> None:
    """Runs, writes, fills."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = ["transformer", "rnn", "rnn_attention"]
    parser.add_argument("--models", nargs="+", choices=names, default=["transformer"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--data", type=Path, default=Path("data/multi30k"))
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    found: dict[str, Any] = {}
    if args.result.exists():
        found = json.loads(args.result.read_text(encoding="utf-8"))
    models: dict[str, list[dict[str, Any]]] = found.get("models", {})
    for name in args.models:
        if name in models and len(models[name][0]["nll"]) == args.steps:
            continue
        models[name] = []
        for run in RUNS:
            models[name].append(train(name, run, args))
            last = models[name][-1]
            sys.stderr.write(f"{name} {run}: {last['seconds']} s, val/nll {last['val_nll']:.4f}\n")
        result = {
            "data": "Multi30k, English to German",
            "seed": SEED,
            "window": WINDOW,
            "machine": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', '?')} threads",
            "torch": torch.__version__,
            "lightning": pl.__version__,
            "litseq": litseq.__version__,
            "models": models,
        }
        args.result.parent.mkdir(parents=True, exist_ok=True)
        args.result.write_text(json.dumps(result) + "\n", encoding="utf-8")

    if args.result == RESULT:
        header = ["model", "precision", "val/nll", "mean apart", "most apart", "val/nll apart"]
        rows = [row(name, run, runs[0]) for name, runs in models.items() for run in runs]
        fill(PAGE, "precision", header, rows)

    for name, runs in models.items():
        for run in runs:
            apart, final = distances(run, runs[0])
            band = BANDS.get(run["run"], 1.0)
            if not all(abs(value) <= band for value in (*apart, final)):  # NaN is in no band
                raise SystemExit(f"{name} in {run['run']} is outside of its band.")


if __name__ == "__main__":
    main()
