"""Memory, disk and speed of streamed and of prepared training data, for corpora of growing size.

    python scripts/streaming.py PREFIX [en de]  # docs/results/streaming.json and the table

``PREFIX.en[.gz]`` and ``PREFIX.de[.gz]`` are repeated, each time with another number at the end of
a line, until there are enough pairs. Each measurement is a process of its own that prepares the
data with a given tokenizer and then reads one epoch of batches, with one worker process and no
model. Memory is what the process and its children hold for themselves, without pages of files that
the system may drop, looked at every tenth of a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from doc_tables import fill

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "data.md"
RESULTS = ROOT / "docs" / "results" / "streaming.json"
SIZES = (200_000, 800_000, 3_200_000)
BUFFER = 50_000


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("prefix")
    parser.add_argument("langs", nargs="*", default=["en", "de"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Path(args.one[0]), args.langs, args.one[1] == "streamed")))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        train_tokenizer(args.prefix, args.langs, root)
        for size in SIZES:
            for lang in args.langs:
                write(f"{args.prefix}.{lang}", root / f"train.{lang}", size)
            megabytes = sum((root / f"train.{x}").stat().st_size for x in args.langs) / 1e6
            for way in ("prepared", "streamed"):
                words = [sys.executable, __file__, args.prefix, *args.langs, "--one", name, way]
                outcome = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
                found = json.loads(outcome.stdout.splitlines()[-1])
                rows.append({"pairs": size, "megabytes": megabytes, "way": way, **found})
                print(rows[-1], file=sys.stderr)
    result = {
        "shuffle_buffer": BUFFER,
        "versions": {name: version(name) for name in ("torch", "datasets", "sentencepiece")},
        "cores": len(os.sched_getaffinity(0)),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fill(PAGE, "streaming", *table(result))


def train_tokenizer(prefix: str, langs: list[str], root: Path) -> None:
    """Saves a tokenizer of 8,000 pieces in ``root / "tokenizer"``."""
    from litseq import TranslationDataModule

    data = TranslationDataModule(*langs, train=prefix, cache_dir=str(root / "first"))
    data.prepare_data()
    data.setup("fit")
    data.tokenizer.save(root / "tokenizer")


def write(source: str, path: Path, size: int) -> None:
    """Repeats the lines of a file until there are ``size``."""
    import gzip

    zipped = Path(f"{source}.gz")
    content = gzip.decompress(zipped.read_bytes()) if zipped.exists() else Path(source).read_bytes()
    lines = content.decode("utf-8").removesuffix("\n").split("\n")
    numbered = (f"{line} {turn}\n" for turn in count() for line in lines)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(islice(numbered, size))


def measure(root: Path, langs: list[str], streaming: bool) -> dict[str, float]:
    """Prepares and reads one epoch; memory and disk in MB, times in seconds."""
    from litseq import TranslationDataModule

    memory = Memory()
    memory.start()
    with tempfile.TemporaryDirectory(dir=root) as cache:
        begin = time.perf_counter()
        data = TranslationDataModule(
            *langs,
            train=str(root / "train"),
            tokenizer=str(root / "tokenizer"),
            cache_dir=cache,
            streaming=streaming,
            shuffle_buffer=BUFFER,
            num_workers=1,
        )
        data.prepare_data()
        data.setup("fit")
        batches = iter(data.train_dataloader())
        pairs = len(next(batches)["id"])
        first = time.perf_counter() - begin
        pairs += sum(len(batch["id"]) for batch in batches)
        whole = time.perf_counter() - begin
        files = [path for path in Path(cache).rglob("*") if path.is_file()]
        disk = sum(path.stat().st_size for path in files) / 1e6
    return {
        "peak_mb": memory.stop(),
        "disk_mb": disk,
        "first_batch_s": first,
        "epoch_s": whole,
        "kept": pairs,
    }


class Memory(threading.Thread):
    """Watches the private memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak = 0
        self._stopped = threading.Event()

    def run(self) -> None:
        """Looks every tenth of a second."""
        while not self._stopped.wait(0.1):
            self._peak = max(self._peak, sum(map(anonymous, family(os.getpid()))))

    def stop(self) -> float:
        """The most there was, in MB."""
        self._stopped.set()
        self.join()
        return self._peak / 1e6


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:  # it has just ended
            continue
        for child in children:
            yield from family(int(child))


def anonymous(pid: int) -> int:
    """Bytes of a process that belong to no file; shared ones in part."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has just ended
        return 0
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return 1024 * int(fields["Pss_Anon"].split()[0])


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows for the page."""
    header = ["pairs", "text", "way", "peak memory", "stored", "first batch", "whole epoch"]
    rows = [
        [
            f"{row['pairs']:,}",
            f"{row['megabytes']:.0f} MB",
            row["way"],
            f"{row['peak_mb']:,.0f} MB",
            f"{row['disk_mb']:,.0f} MB",
            f"{row['first_batch_s']:.1f} s",
            f"{row['epoch_s']:.1f} s",
        ]
        for row in result["rows"]
    ]
    return header, rows


if __name__ == "__main__":
    main()
