"""Trains on batches of which hardly two have the same shape, as real ones are, and watches memory.

    python scripts/benchmark_shapes.py                 # prints a table
    python scripts/benchmark_shapes.py --record        # writes docs/performance.md too

``benchmark.py`` repeats its batches, so that what is planned for a shape is planned before the
clock starts. Here each batch of an epoch comes once: oneDNN plans its products for each number of
rows, and the plans scatter the memory between them. So litseq rounds these numbers up; here it is
compared with itself without. Each way is a process of its own, one after another, in an order that
is drawn for each round; what is reported is the median.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

import benchmark
import benchmark_worker as worker
from doc_tables import markdown
from litseq.heap import give_back
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
    "bfloat16, compact, given back every 10 s": Way("bf16-mixed", gives_back=True, compact=True),
}
EVERY = 10.0  # seconds; Seq2Seq waits for 30


def main() -> None:
    """Lets each way train and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", default="data/multi30k/train", help="Prefix of .en and .de.")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help="Write record and documentation.")
    parser.add_argument("--machine", help="As benchmark.py has it.")
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run(args)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(args.rounds):
        for way in random.Random(number).sample(list(WAYS), len(WAYS)):
            found[way].append(in_a_process(way, args))
            print(f"round {number + 1}: {way}: {found[way][-1]}", file=sys.stderr)
    medians = {
        way: {name: benchmark.median(of[name] for of in rounds) for name in rounds[0]}
        for way, rounds in found.items()
    }
    result = {
        "batches": args.batches, "rounds": args.rounds, "threads": args.threads, "ways": medians,
        "every": found,
    }  # fmt: skip
    header, rows = table(result)
    print(markdown(header, rows))
    if args.record:
        benchmark.write("shapes", result, header, rows, machine=args.machine)


def in_a_process(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """What ``run`` finds there."""
    words = [sys.executable, __file__, "--way", way, "--train", args.train]
    words += ["--batches", str(args.batches), "--threads", str(args.threads)]
    said = subprocess.run(
        words, stdout=subprocess.PIPE, text=True, check=True,
        env=benchmark.environment(args.threads, compact=WAYS[way].compact),
    )  # fmt: skip
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


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
