"""Where the time of a training step and of two searches goes: the ten largest costs of each.

The training step also without what makes it fast (``benchmark_switches.py``).

    python scripts/benchmark_profile.py --ckpt CKPT            # prints four tables
    python scripts/benchmark_profile.py --ckpt CKPT --record   # writes docs/performance.md too

One thread, so that no operator's time hides behind another's. The work is that of ``benchmark.py``:
a batch of 4,096 tokens of Multi30k for the small Transformer, and 64 of its test sentences in a
beam of 4, and of 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

import benchmark
import benchmark_worker as worker
from benchmark_switches import switch_off
from doc_tables import fill, markdown

LARGEST = 10


def main() -> None:
    """Profiles all, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="A small Transformer that litseq trained.")
    parser.add_argument("--train", default="data/multi30k/train")
    parser.add_argument("--test", default="data/multi30k/test_2016_flickr.en")
    parser.add_argument("--precision", choices=benchmark.PRECISIONS, default="32-true")
    parser.add_argument("--record", action="store_true", help="Write the documentation.")
    parser.add_argument("--machine", help="As benchmark.py has it.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shared = {"size": "small", "precision": args.precision, "threads": 1}
    train = argparse.Namespace(
        train=args.train, max_tokens=4096, batches=1, same_batches=True, **shared
    )
    work = benchmark.train_work(train, Path())
    work["batches"] = work["batches"]["litseq"]
    translate = argparse.Namespace(
        ckpt=args.ckpt, test=args.test, references=None, who=["litseq"], sentences=64,
        batch_size=64, beam_size=4, max_len=60, **shared,
    )  # fmt: skip
    search = benchmark.translate_work(translate, Path())
    show("train", worker.litseq(work), args)
    show("beam", worker.litseq_search()(search), args)
    show("greedy", worker.litseq_search()({**search, "beam_size": 1}), args)
    switch_off("train", "all of these")
    show("plain", worker.litseq(work), args)


def show(name: str, run: Callable[[], Any], args: argparse.Namespace) -> None:
    """Prints a table, and writes it onto the page."""
    header, rows = largest(run)
    print(f"{name}:\n{markdown(header, rows)}")
    if args.record:
        precision = benchmark.but_float32(args.precision)
        key = benchmark.table_key("profile", name, precision, args.machine)
        fill(benchmark.PAGE, key, header, rows)


def largest(run: Callable[[], Any]) -> tuple[list[str], list[list[str]]]:
    """Runs it three times, the last one watched."""
    run(), run()
    with profile() as watched:
        run()
    events = sorted(watched.key_averages(), key=lambda e: e.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [
        [
            f"`{event.key}`",
            f"{event.count:,}",
            f"{event.self_cpu_time_total / 1e3:,.1f}",
            f"{event.self_cpu_time_total / total:.1%}",
        ]
        for event in events[:LARGEST]
    ]
    rest = events[LARGEST:]
    seconds = sum(event.self_cpu_time_total for event in rest)
    rows.append(
        [
            "the rest", f"{sum(event.count for event in rest):,}", f"{seconds / 1e3:,.1f}",
            f"{seconds / total:.1%}",
        ]
    )  # fmt: skip
    return ["operator", "calls", "ms", "share"], rows


if __name__ == "__main__":
    main()
