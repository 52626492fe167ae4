"""Measures how the cost of training grows with the sentences, and falls with processes.

    python scripts/benchmark_scaling.py                 # prints two tables
    python scripts/benchmark_scaling.py --record        # writes docs/performance.md too
    python scripts/benchmark_scaling.py --python joeynmt=PYTHON --python opennmt=PYTHON

Lengths: batches of 4,096 random tokens on either side, all sentences of one length, for litseq and
its peers in turns, as ``benchmark.py`` measures them. Processes: the small
Transformer under Lightning's DDP on Multi30k, one thread for each process, and each with batches of
its own; gradients meet by gloo.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import benchmark
from benchmark_peers import EOS
from doc_tables import markdown

MAX_TOKENS = 4096
WARM_UP, STEPS = 2, 8
WHO = tuple(name for name in benchmark.TRAINEES if name != "trainer")


def main() -> None:
    """Measures both and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="*", default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--train", default="data/multi30k/train", help="Prefix of .en and .de.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help="Write record and documentation.")
    parser.add_argument("--machine", help="As benchmark.py has it.")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        train(args.worker, args.train)
        return
    benchmark.check_names((item.partition("=")[0] for item in args.python), WHO)
    by_length = {length: of_length(length, args) for length in args.lengths}
    by_processes = in_turns(args)
    for name, result, table in (
        ("lengths", by_length, lengths_table),
        ("processes", by_processes, processes_table),
    ):
        if not result:
            continue
        header, rows = table({str(key): value for key, value in result.items()})
        print(markdown(header, rows))
        if args.record:
            benchmark.write(name, result, header, rows, machine=args.machine)


# ---- lengths ----


def of_length(length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains on sentences of one length."""
    generator = torch.Generator().manual_seed(length)
    size = MAX_TOKENS // length, length
    ids = torch.randint(4, benchmark.VOCAB_SIZE, (2, *size), generator=generator)
    ids[..., -1] = EOS
    sizes = benchmark.sizes_of("small", longest=length)
    work = {
        "batches": {name: [(ids[0], ids[1])] for name in WHO},
        "sizes": sizes,
        "precision": "32-true",
        "threads": args.threads,
        "tokens": dict.fromkeys(WHO, ids[1].numel()),
        "positions": dict.fromkeys(WHO, ids[1].numel()),
        "flops": benchmark.flops_of(ids[0], ids[1], sizes),
    }
    asked = argparse.Namespace(
        what="train", who=WHO, python=args.python, threads=args.threads, rounds=args.rounds,
        size="small", max_tokens=MAX_TOKENS, batches=1, same_batches=True,
        batch_size=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return benchmark.measure(work, asked, Path(folder))


def lengths_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What the sentences' length costs."""
    by_length = {}
    for length, found in result.items():
        names, table = benchmark.train_table(found)
        by_length[length] = {row[0]: dict(zip(names, row, strict=True)) for row in table}
    peers = [who for who in WHO[1:] if all(who in rows for rows in by_length.values())]
    header = [
        "tokens of a sentence", "litseq, target tokens a second", "of the bound",
        *(f"{who}, times as long" for who in peers), "peak memory of litseq and torch, MB",
    ]  # fmt: skip
    rows = []
    for length, found in by_length.items():
        memory = [found[who].get("peak memory, MB", "") for who in ("litseq", "torch")]
        rows.append(
            [
                length,
                found["litseq"]["target tokens a second"],
                found["litseq"]["of the bound"],
                *(found[who]["times as long as litseq"] for who in peers),
                " and ".join(memory),
            ]
        )
    return header, rows


# ---- processes ----


def in_turns(args: argparse.Namespace) -> dict[int, list[float]]:
    """Tokens a second of each number of processes, in every round."""
    found: dict[int, list[float]] = {number: [] for number in args.processes}
    for _ in range(args.rounds):
        for number in args.processes:
            run = subprocess.run(
                [sys.executable, __file__, "--worker", str(number), "--train", args.train],
                capture_output=True, text=True, check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            if run.returncode:
                sys.exit(run.stderr)
            found[number].append(json.loads(run.stdout.splitlines()[-1])["rate"])
            print(f"{number} processes: {found[number][-1]:,.0f} tokens/s", file=sys.stderr)
    return found


def train(num_processes: int, prefix: str) -> None:
    """One run, whose rank 0 says how fast all were together."""
    import lightning.pytorch as pl

    from litseq import TransformerSeq2Seq, TranslationDataModule

    class Clock(pl.Callback):
        """Counts after the first steps, in which memory is laid out."""

        begin, tokens = 0.0, 0

        def on_train_batch_start(
            self,
            trainer: pl.Trainer,
            module: pl.LightningModule,
            batch: dict[str, torch.Tensor],
            batch_idx: int,
        ) -> None:
            if batch_idx == WARM_UP:
                self.begin = time.perf_counter()
            if batch_idx >= WARM_UP:
                self.tokens += int((batch["labels"] != -100).sum())

        def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            seconds = time.perf_counter() - self.begin
            tokens = int(trainer.strategy.reduce(torch.tensor(self.tokens), reduce_op="sum"))
            if trainer.is_global_zero:
                print(json.dumps({"rate": tokens / seconds}), flush=True)

    torch.set_num_threads(1)
    pl.seed_everything(0)
    sizes = {name: value for name, value in benchmark.SIZES["small"].items() if name != "kind"}
    layers = sizes.pop("num_layers")
    data = TranslationDataModule(
        "en", "de", train=prefix, vocab_size=benchmark.VOCAB_SIZE, max_tokens=MAX_TOKENS
    )
    pl.Trainer(
        accelerator="cpu",
        devices=num_processes,
        max_steps=WARM_UP + STEPS,
        callbacks=[Clock()],
        strategy="auto" if num_processes == 1 else "ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(TransformerSeq2Seq(num_encoder_layers=layers, num_decoder_layers=layers, **sizes), data)


def processes_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What more processes bring, in the same round."""
    header = ["processes of one thread", "target tokens a second", "times as fast as one"]
    first = next(iter(result.values()))
    rows = []
    for number, rates in result.items():
        ratios = (rate / one for rate, one in zip(rates, first, strict=True))
        rows.append(
            [
                number,
                f"{statistics.median(rates):,.0f}",
                benchmark.spread(ratios),
            ]
        )
    return header, rows


if __name__ == "__main__":
    main()
