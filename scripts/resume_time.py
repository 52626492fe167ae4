#!/usr/bin/env python
"""Times how long a resumed epoch takes to its first batch, from a thousand pairs to a million.

    python scripts/resume_time.py            # reads data/tatoeba-en-fr; ten minutes, 1 GB of disk

The corpora are drawn, with repetition, from the English-French Tatoeba pairs. Reading and encoding
them is not timed: it happens once for the same inputs.

Writes ``docs/results/resume_time.json`` and the table in ``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import litseq
from doc_tables import fill
from litseq.data import TranslationDataModule

RESULT = Path("docs/results/resume_time.json")
PAGE = Path("docs/reliability.md")
SIZES = (1_000, 10_000, 100_000, 1_000_000)
SHARE = 0.9  # of the epoch is done when the run is stopped
SEED = 1


def read(data: Path, lang: str) -> list[str]:
    """The lines of one side of the training data."""
    with gzip.open(data / f"train.{lang}.gz", "rt", encoding="utf-8", newline="\n") as file:
        return file.read().splitlines()


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(folder: Path, tokenizer: Path, repetitions: int) -> dict[str, Any]:
    """Times for one corpus, each the median of some, one after the other in turns."""
    options: dict[str, Any] = {
        "src_lang": "en",
        "tgt_lang": "fr",
        "train": str(folder / "train"),
        "val": str(folder / "val"),
        "tokenizer": str(tokenizer),
        "cache_dir": str(folder / "cache"),
        "seed": SEED,
    }
    TranslationDataModule(**options).prepare_data()
    module = TranslationDataModule(**options)
    module.setup("fit")
    steps = len(module.train_dataloader())
    done = int(steps * SHARE)
    state: dict[str, Any] = {}

    def first_batch(state: dict[str, Any] | None) -> None:
        data = TranslationDataModule(**options)
        data.setup("fit")
        loader = data.train_dataloader()
        if state is not None:
            loader.load_state_dict(state)
        next(iter(loader))

    def read_again() -> None:
        nonlocal state
        loader = module.train_dataloader()
        for number, _ in enumerate(loader, 1):
            if number == done:
                state = loader.state_dict()
                return

    times: dict[str, list[float]] = {"start": [], "resume": [], "read_again": []}
    for _ in range(repetitions):
        times["read_again"].append(seconds(read_again))
        times["start"].append(seconds(lambda: first_batch(None)))
        times["resume"].append(seconds(lambda: first_batch(state)))
    return {
        "steps": steps,
        "done": done,
        **{name: statistics.median(values) for name, values in times.items()},
    }


def main() -> None:
    """Draws corpora, measures, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/tatoeba-en-fr"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()

    pairs = list(zip(read(args.data, "en"), read(args.data, "fr"), strict=True))
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = Path(temporary) / "tokenizer"
        trained = TranslationDataModule(
            "en", "fr", train=str(args.data / "train"), cache_dir=str(Path(temporary) / "cache")
        )
        trained.prepare_data()
        trained.setup("fit")
        trained.tokenizer.save(tokenizer)
        for size in args.sizes:
            folder = Path(temporary) / str(size)
            folder.mkdir()
            drawn = random.Random(SEED).choices(pairs, k=size)
            for split, rows in (("train", drawn), ("val", pairs[:100])):
                for lang, side in zip(("en", "fr"), zip(*rows, strict=True), strict=True):
                    text = "".join(f"{line}\n" for line in side)
                    (folder / f"{split}.{lang}").write_text(text, encoding="utf-8")
            found.append({"pairs": size, **measure(folder, tokenizer, args.repetitions)})
            sys.stderr.write(f"{found[-1]}\n")
    result = {
        "data": "Tatoeba, English to French, drawn with repetition",
        "seed": SEED,
        "repetitions": args.repetitions,
        "machine": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', '?')} threads",
        "torch": torch.__version__,
        "litseq": litseq.__version__,
        "sizes": found,
    }
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.result == RESULT:
        header = ["pairs", "steps of an epoch", "start", "resume", "reading again, for comparison"]
        rows = [
            [f"{one['pairs']:,}", f"{one['steps']:,}"]
            + [f"{one[name]:.2f} s" for name in ("start", "resume", "read_again")]
            for one in found
        ]
        fill(PAGE, "resume_time", header, rows)


if __name__ == "__main__":
    main()
