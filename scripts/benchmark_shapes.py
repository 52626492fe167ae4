"""Trains on batches of which hardly two have the same shape, as real ones are, and watches memory.

    python scripts/benchmark_shapes.py                 # prints a table
    python scripts/benchmark_shapes.py --record        # writes docs/performance.md too

``benchmark.py`` repeats its batches, so that what is planned for a shape is planned before the
clock starts. Here each batch of an epoch comes once: products of oneDNN, which are those of
bfloat16, pay for a plan of each shape, and the plans scatter the memory between them. Each way is a
process of its own, one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import benchmark
import benchmark_worker as worker
from doc_tables import markdown
from litseq.heap import give_back

WAYS = {
    "float32": ("32-true", False, False),
    "float32, products by oneDNN": ("32-true", True, False),
    "bfloat16": ("bf16-mixed", False, False),
    "bfloat16, freed memory given back every 10 s": ("bf16-mixed", False, True),
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
    for way in WAYS:
        words = [sys.executable, __file__, "--way", way, "--train", args.train]
        words += ["--batches", str(args.batches), "--threads", str(args.threads)]
        said = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
        found[way] = json.loads(said.splitlines()[-1])
        print(f"{way}: {found[way]}", file=sys.stderr)
    result = {"batches": args.batches, "threads": args.threads, "ways": found}
    header, rows = table(result)
    print(markdown(header, rows))
    if args.record:
        benchmark.write("shapes", result, header, rows)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains the small Transformer on so many batches, each once."""
    precision, onednn, gives_back = WAYS[args.way]
    torch.set_num_threads(args.threads)
    asked = argparse.Namespace(
        train=args.train, size="small", max_tokens=4096, batches=args.batches, same_batches=True,
        precision=precision, threads=args.threads,
    )  # fmt: skip
    work = benchmark.train_work(asked, Path())
    batches = work["batches"]["litseq"]
    torch.manual_seed(0)
    if onednn:
        F.linear = _linear
    step = worker.litseq(work | {"batches": None})
    gave_back = begin = time.perf_counter()
    for batch in batches:
        step(batches=[batch])
        if gives_back and time.perf_counter() - gave_back > EVERY:
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


# ---- F.linear by oneDNN in float32, forward and for the input's gradient ----


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = _OneDnnLinear.apply(x, weight, bias)
    return y


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        of_weight = flat.T @ x.flatten(0, -2)  # slower by oneDNN
        return _product(grad, weight.T, None), of_weight, flat.sum(0) if ctx.has_bias else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


if __name__ == "__main__":
    main()
