"""What each of the things that make litseq fast is good for: litseq without it.

    python scripts/benchmark_without.py train
    python scripts/benchmark_without.py translate --ckpt CKPT

The small Transformer, in float32, on the work of ``benchmark.py``: training on batches of 4,096
tokens, translating in a beam of 4. Each is left out alone, and then all at once. Each is a process
of its own, in turns, as there. What the operators of torch take by themselves predicts how much
longer it takes, if all that is between them stays the same.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import benchmark
from benchmark_switches import SWITCHES
from doc_tables import markdown

WORKER = Path(__file__).with_name("benchmark_switches.py")


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(SWITCHES))
    parser.add_argument("--ckpt", help="translate: a small Transformer that litseq trained.")
    parser.add_argument("--train", default="data/multi30k/train", help="Prefix of .en and .de.")
    parser.add_argument("--test", default="data/multi30k/test_2016_flickr.en", help="Sentences.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help="Write record and documentation.")
    parser.add_argument("--machine", help="As benchmark.py has it.")
    args = parser.parse_args()
    vars(args).update(
        who=["litseq", *SWITCHES[args.what]], python=[], size="small", precision="32-true",
        max_tokens=4096, batches=4, same_batches=True, references=None, sentences=320,
        batch_size=64, beam_size=4, max_len=60,
    )  # fmt: skip
    make = benchmark.train_work if args.what == "train" else benchmark.translate_work
    with tempfile.TemporaryDirectory() as folder:
        work = make(args, Path(folder))
        if args.what == "train":
            work["tokens"] |= dict.fromkeys(args.who, work["tokens"]["litseq"])
        result = benchmark.measure(work, args, Path(folder), worker=WORKER)
    header, rows = table(result)
    print(markdown(header, rows))
    if args.record:
        benchmark.write(f"without-{args.what}", result, header, rows, machine=args.machine)


def predicted(result: dict[str, Any], name: str) -> str:
    """How many times as long it takes if nothing changes but what operators take."""
    ours, theirs = (result["contestants"][who]["rounds"] for who in ("litseq", name))
    return benchmark.spread(
        1 + (without["operators"] - with_all["operators"]) / with_all["seconds"]
        for with_all, without in zip(ours, theirs, strict=True)
    )


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """One row for each thing that is left out."""
    header = ["litseq without"]
    watched = all("operators" in found for found in result["contestants"]["litseq"]["rounds"])
    header += ["times as long, predicted", "measured"] if watched else ["times as long"]
    rows = []
    for name, contestant in result["contestants"].items():
        if name == "limit":
            continue
        row = ["nothing" if name == "litseq" else name]
        row += [predicted(result, name)] if watched else []
        row += [benchmark.ratio(result, name)]
        calls, memory = (contestant["facts"].get(fact) for fact in ("calls", "memory"))
        if calls is not None:  # a step of training
            row += [f"{calls:,}", "" if memory is None else f"{memory / 1e6:,.0f}"]
        rows.append(row)
    more = ["operator calls a step", "peak memory, MB"]
    return header + more[: len(rows[0]) - len(header)], rows


if __name__ == "__main__":
    main()
