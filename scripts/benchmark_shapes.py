"""Trains on batches of which hardly two have the same shape, as real ones are, and watches memory.

    python scripts/benchmark_shapes.py                 # prints a table
    python scripts/benchmark_shapes.py --record        # writes docs/performance.md too

``benchmark.py`` repeats its batches, so that what is planned for a shape is planned before the
clock starts. Here each batch of an epoch comes once: oneDNN plans its products for each number of
rows, and the plans scatter the memory between them. So litseq rounds these numbers up; here it is
compared with itself without. Each way is a process of its own, one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

import benchmark
import benchmark_worker as worker
from doc_tables import markdown
from litseq.heap import COMPACT, give_back
from litseq.layers import rows as layer_rows


class Way(NamedTuple):
    """How to train: whether rows are rounded up, and what becomes of freed memory."""

    precision: str
    rounds: bool = True
    gives_back: bool = False
    compact: bool = False


WAYS = {
    "float32": Way("32-true"),
    "float32, compact": Way("32-true", compact=True),
    "float32, rows as they are": Way("32-true", rounds=False),
    "bfloat16": Way("bf16-mixed"),
    "bfloat16, compact": Way("bf16-mixed", compact=True),
    "bfloat16, rows as they are": Way("bf16-mixed", rounds=False),
    "bfloat16, freed memory given back every 10 s": Way("bf16-mixed", gives_back=True),
}
EVERY = 10.0  # seconds; Seq2Seq waits for 30


def main() -> None:
    """Lets each way train and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", default="data/multi30k/train", help="Prefix of .en and .de.")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help="Write record and documentation.")
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run(args)))
        return
    found = {}
    for way, how in WAYS.items():
        words = [sys.executable, __file__, "--way", way, "--train", args.train]
        words += ["--batches", str(args.batches), "--threads", str(args.threads)]
        environment = {**os.environ, **({"GLIBC_TUNABLES": COMPACT} if how.compact else {})}
        said = subprocess.run(
            words, stdout=subprocess.PIPE, text=True, check=True, env=environment
        ).stdout
        found[way] = json.loads(said.splitlines()[-1])
        print(f"{way}: {found[way]}", file=sys.stderr)
    result = {"batches": args.batches, "threads": args.threads, "ways": found}
    header, rows = table(result)
    print(markdown(header, rows))
    if args.record:
        benchmark.write("shapes", result, header, rows)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains the small Transformer on so many batches, each once."""
    way = WAYS[args.way]
    torch.set_num_threads(args.threads)
    asked = argparse.Namespace(
        train=args.train, size="small", max_tokens=4096, batches=args.batches, same_batches=True,
        precision=way.precision, threads=args.threads,
    )  # fmt: skip
    work = benchmark.train_work(asked, Path())
    batches = work["batches"]["litseq"]
    torch.manual_seed(0)
    if not way.rounds:
        layer_rows._round_up = lambda num_rows: num_rows
    step = worker.litseq(work | {"batches": None})
    gave_back = begin = time.perf_counter()
    for batch in batches:
        step(batches=[batch])
        if way.gives_back and time.perf_counter() - gave_back > EVERY:
            give_back()
            gave_back = time.perf_counter()
    seconds = time.perf_counter() - begin
    return {
        "rate": work["tokens"]["litseq"] / seconds,
        "shapes": len({(src.shape, tgt.shape) for src, tgt in batches}),
        "memory": worker.memory("VmRSS"),
        "peak": worker.memory("VmHWM"),
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """One row for each way."""
    header = [
        "way", "batches", "shapes among them", "target tokens a second", "memory at the end, MB",
        "at most, MB",
    ]  # fmt: skip
    return header, [
        [
            way,
            f"{result['batches']:,}",
            f"{found['shapes']:,}",
            f"{found['rate']:,.0f}",
            *("" if found[name] is None else f"{found[name] / 1e6:,.0f}"
              for name in ("memory", "peak")),
        ]
        for way, found in result["ways"].items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
