"""Measures what data cost: to prepare them, to begin with them, and to be fed by them.

    python scripts/benchmark_data.py                    # prints a table
    python scripts/benchmark_data.py --record           # writes docs/performance.md too

The corpora are Multi30k as often as it takes, a number in front of each pair, so that no two are
equal. Preparing means reading, encoding with a given SentencePiece model, and keeping; encoding and
keeping alone are compared with that model's own ``encode`` on as many threads. A start is a process
that trains a small Transformer on what is in the cache, up to its first step; what a process that
only imports torch takes is taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece

from benchmark import SIZES, VOCAB_SIZE, write
from doc_tables import markdown

LANGUAGES = ("en", "de")
MAX_TOKENS = 4096
STEPS = 10

BARE = "import torch; say()"
START = """
import sys
import lightning.pytorch as pl
from litseq import TokenThroughput, TransformerSeq2Seq, TranslationDataModule

class Note(pl.Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 0:
            say()
            if steps == 0:
                os._exit(0)

steps, options, sizes = json.loads(sys.argv[1])
pl.Trainer(
    max_steps=max(steps, 1), accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=max(steps, 1),
    callbacks=[Note(), TokenThroughput()],
).fit(model := TransformerSeq2Seq(**sizes), TranslationDataModule("en", "de", **options))
print(json.dumps({"data_wait": float(model.trainer.logged_metrics["train/data_wait"])}))
"""
SAY = """
import json, os, time

def say():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    names = {"memory": "RssAnon", "mapped": "RssFile"}
    found = {name: int(status[key].split()[0]) * 1024 for name, key in names.items()}
    print(json.dumps({"at": time.time(), **found}), flush=True)
"""


def main() -> None:
    """Measures each size and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--train", default="data/multi30k/train", help="Prefix of .en and .de.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help="Write record and documentation.")
    parser.add_argument("--machine", help="As benchmark.py has it.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(args.train, Path(folder))
        found = [measure(pairs, tokenizer, args, Path(folder)) for pairs in args.pairs]
    result = {"rounds": args.rounds, "threads": args.threads, "sizes": found}
    header, rows = table(result)
    print(markdown(header, rows))
    if args.record:
        write("data", result, header, rows, machine=args.machine)


def make_tokenizer(train: str, folder: Path) -> Path:
    """A vocabulary of the corpus itself."""
    from litseq import TranslationDataModule

    data = TranslationDataModule(
        *LANGUAGES, train=train, vocab_size=VOCAB_SIZE, cache_dir=str(folder / "first")
    )
    data.prepare_data()
    data.setup("fit")
    data.tokenizer.save(folder / "tokenizer")
    return folder / "tokenizer"


def measure(
    num_pairs: int, tokenizer: Path, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Prepares a corpus, and starts with it, several times in turns."""
    from litseq import TranslationDataModule

    sides = write_corpus(args.train, num_pairs, folder / "corpus")
    cache = folder / "cache"
    options = {
        "train": str(folder / "corpus"), "tokenizer": str(tokenizer), "cache_dir": str(cache),
        "max_tokens": MAX_TOKENS, "num_proc": args.threads if num_pairs > 20_000 else None,
    }  # fmt: skip
    (model,) = tokenizer.glob("*.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def prepare() -> None:
        TranslationDataModule(*LANGUAGES, **options).prepare_data()

    def cut() -> None:
        for side in sides:
            processor.encode(side, num_threads=args.threads)

    rounds = []
    for number in range(args.rounds):
        for name in ("text", "tokens"):
            shutil.rmtree(cache / name, ignore_errors=True)
        found = {"prepare": seconds_of(prepare)}
        shutil.rmtree(cache / "tokens")
        found |= {"encode": seconds_of(prepare), "sentencepiece": seconds_of(cut)}
        found |= start(options)
        print(f"{num_pairs:,} pairs, round {number + 1}: {found}", file=sys.stderr)
        rounds.append(found)

    data = TranslationDataModule(*LANGUAGES, **options)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    next_epoch = statistics.median(
        seconds_of(lambda epoch=epoch: loader.plan(epoch)) for epoch in range(1, 4)
    )
    return {
        "pairs": num_pairs,
        "rounds": rounds,
        "plan": next_epoch,
        "efficiency": loader.efficiency(),
        "data_wait": wait(options),
    }


def write_corpus(train: str, num_pairs: int, prefix: Path) -> list[list[str]]:
    """Writes as many pairs as are wanted; returns both sides."""
    sides = []
    for lang in LANGUAGES:
        lines = Path(f"{train}.{lang}").read_text(encoding="utf-8").splitlines()
        texts = [f"{k // len(lines)} {lines[k % len(lines)]}" for k in range(num_pairs)]
        Path(f"{prefix}.{lang}").write_text("".join(f"{text}\n" for text in texts), "utf-8")
        sides.append(texts)
    return sides


def seconds_of(work: Callable[[], object]) -> float:
    """How long some work takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def start(options: dict[str, Any]) -> dict[str, float]:
    """Seconds to the first step, and bytes there, above those of a process with torch alone."""
    ours, bare = process(START, 0, options), process(BARE)
    return {name: ours[name] - bare[name] for name in ("seconds", "memory", "mapped")}


def wait(options: dict[str, Any]) -> float:
    """Share of the time that some steps wait for their batches, with no worker to load them."""
    share: float = process(START, STEPS, options)["data_wait"]
    return share


def process(code: str, *args: object) -> dict[str, Any]:
    """Runs code in a process of its own; what it says, and the seconds until it said it."""
    sizes = {name: value for name, value in SIZES["small"].items() if name != "kind"}
    layers = sizes.pop("num_layers")
    sizes |= {"num_encoder_layers": layers, "num_decoder_layers": layers, "vocab_size": VOCAB_SIZE}
    begin = time.time()
    run = subprocess.run(
        [sys.executable, "-c", f"{SAY}{code}", json.dumps([*args, sizes])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        sys.exit(run.stderr)
    found: dict[str, Any] = {}
    for line in run.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found | {"seconds": found["at"] - begin}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """One row for each size; medians."""
    header = [
        "pairs", "prepared in, s", "of SentencePiece's rate", "real tokens, source and target",
        "start, s", "memory, MB", "and files mapped, MB", "next epoch, s", "data wait",
    ]  # fmt: skip
    rows = []
    for size in result["sizes"]:
        median = {
            name: statistics.median(found[name] for found in size["rounds"])
            for name in size["rounds"][0]
        }
        share = statistics.median(
            found["sentencepiece"] / found["encode"] for found in size["rounds"]
        )
        src, tgt = size["efficiency"]
        rows.append(
            [
                f"{size['pairs']:,}",
                f"{median['prepare']:.1f}",
                f"{share:.0%}",
                f"{src:.1%}, {tgt:.1%}",
                f"{median['seconds']:.1f}",
                f"{median['memory'] / 1e6:.0f}",
                f"{median['mapped'] / 1e6:.0f}",
                f"{size['plan']:.2f}",
                f"{size['data_wait']:.2%}",
            ]
        )
    return header, rows


if __name__ == "__main__":
    main()
