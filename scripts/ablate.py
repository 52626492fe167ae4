#!/usr/bin/env python
"""Takes the Transformer apart, one piece at a time, and measures what each piece was good for.

    python scripts/ablate.py                  # 8 models x 3 seeds
    python scripts/ablate.py --seeds 1 --only transformer no_positions

Every run is ``litseq fit -c configs/demo.yaml`` with an overlay of ``configs/ablation/`` or another
model, and ``litseq test`` on its best checkpoint. On one core a Transformer takes four minutes, the
recurrent model nine, and the recurrent one with attention 26. Runs lie in
``lightning_logs/ablation``; what is there already is not run again, so the script can be stopped at
any time. Afterwards it writes ``docs/results/ablation.json`` and the table
``docs/results/ablation.md``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import litseq

RUNS = Path("lightning_logs/ablation")
RESULTS = Path("docs/results")

# name: (what it is, options after -c configs/demo.yaml)
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "transformer": ("Transformer, 2 + 2 layers, 4 heads of d_k = 32", []),
    "last_layer_alone": (
        "only the last decoder layer sees the encoder's output",
        ["-c", "configs/ablation/last_layer_alone.yaml"],
    ),
    "no_positions": ("no position codes", ["-c", "configs/ablation/no_positions.yaml"]),
    "unscaled": (
        "scores not divided by sqrt(d_k)",
        ["-c", "configs/ablation/unscaled.yaml"],
    ),
    "one_wide_head": (
        "one head of d_k = 128",
        ["-c", "configs/ablation/one_wide_head.yaml"],
    ),
    "one_wide_head_unscaled": (
        "one head of d_k = 128, scores not divided",
        ["-c", "configs/ablation/one_wide_head.yaml", "-c", "configs/ablation/unscaled.yaml"],
    ),
    "rnn_attention": (
        "recurrent, with attention (Bahdanau)",
        ["--model", "RnnAttentionSeq2Seq"],
    ),
    "rnn": ("recurrent, one context vector", ["--model", "RnnSeq2Seq"]),
}


def run(name: str, seed: int) -> Path:
    """Trains and tests one model, unless that was done before; returns the run's folder."""
    folder = RUNS / name / f"seed-{seed}"
    if (folder / "seconds.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped, minutes are lost
    print(f"{name}, seed {seed} ...", flush=True)
    logger = "--trainer.logger.init_args"
    common = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    start = time.perf_counter()
    _litseq(
        "fit", "-c", "configs/demo.yaml", *VARIANTS[name][1], f"--seed_everything={seed}",
        f"{logger}.save_dir={RUNS.parent}", f"{logger}.name={RUNS.name}/{name}",
        f"{logger}.version=seed-{seed}", *common,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    _litseq("test", f"--ckpt_path={folder / 'checkpoints/best.ckpt'}", *common)
    (folder / "seconds.json").write_text(json.dumps(round(seconds)))
    return folder


def _litseq(*args: str) -> None:
    done = subprocess.run([sys.executable, "-m", "litseq", *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"litseq {' '.join(args)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def read(name: str, seed: int) -> dict[str, Any] | None:
    """What came of one run; None if it was not run."""
    folder = RUNS / name / f"seed-{seed}"
    if not (folder / "seconds.json").is_file():
        return None
    scores = json.loads((folder / "test/scores.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    curve = {
        column: [[int(row["step"]), float(row[column])] for row in rows if row.get(column)]
        for column in ("val/nll", "val/bleu", "train/grad_norm")
    }
    return {
        "name": name,
        "description": VARIANTS[name][0],
        "seed": seed,
        "seconds": json.loads((folder / "seconds.json").read_text()),
        "bleu": scores["bleu"],
        "exact_match": scores["exact_match"],
        "signature": scores["signatures"]["bleu"],
        "curve": curve,
    }


def table(records: list[dict[str, Any]]) -> str:
    """One line per variant, as Markdown: mean and range over its seeds."""
    lines = [
        "| model | seeds | BLEU | exact match, % | nats per token after epoch 1 | at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (description, _) in VARIANTS.items():
        found = [record for record in records if record["name"] == name]
        if not found:
            continue

        def cell(values: list[float], digits: int) -> str:
            mean = f"{statistics.mean(values):.{digits}f}"
            if len(values) == 1:
                return mean
            return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"

        nll = [record["curve"]["val/nll"] for record in found]
        columns = [
            cell([record["bleu"] for record in found], 1),
            cell([record["exact_match"] for record in found], 1),
            cell([curve[0][1] for curve in nll], 2),
            cell([curve[-1][1] for curve in nll], 3),
        ]
        lines.append(f"| {description} | {len(found)} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what was not run yet, then writes the table of all that was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    for seed in args.seeds:
        for name in args.only:
            run(name, seed)
            write()


def write() -> None:
    """Writes the records and the table."""
    records = [
        record
        for name in VARIANTS
        for folder in sorted((RUNS / name).glob("seed-*"))
        if (record := read(name, int(folder.name.removeprefix("seed-"))))
    ]
    about = {
        "data": "the built-in demo, English to Chinese: 12,500 phrases to train, 1,000 to test",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "litseq": litseq.__version__,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (RESULTS / "ablation.json").write_text(
        f'{json.dumps(about, ensure_ascii=False)[:-1]}, "runs": [\n{lines}\n]}}\n'
    )
    (RESULTS / "ablation.md").write_text(table(records))


if __name__ == "__main__":
    main()
