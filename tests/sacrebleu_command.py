"""sacreBLEU's own command, and the real systems that its scores are compared on."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(os.environ.get("LITSEQ_SHARED_DATA", ""))
WMT17 = DATA / "metrics" / "wmt17-en-de"
needs_data = pytest.mark.skipif(
    not os.environ.get("LITSEQ_SHARED_DATA"), reason="LITSEQ_SHARED_DATA names no data folder"
)


def read(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().split("\n")[:-1]


def wmt17(letter: str | None = None) -> list[str]:
    """One submission to newstest2017 en-de, or its reference."""
    name = f"systems/newstest2017.online-{letter}.0.en-de.gz" if letter else "ref.de.gz"
    return read(WMT17 / name)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def run(*words: object) -> str:
    command = [sys.executable, "-m", "sacrebleu", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def command_line(
    folder: Path,
    texts: tuple[list[str], list[str]],
    *options: str,
    metrics: tuple[str, ...] = ("bleu", "chrf", "ter"),
    digits: int = 4,
) -> list[dict]:
    """The scores of one system."""
    hypotheses, references = texts
    paths = write(folder / "ref.txt", references), "-i", write(folder / "hyp.txt", hypotheses)
    return json.loads(run(*paths, "-m", *metrics, "-w", digits, *options))


def paired(folder: Path, systems: dict[str, list[str]], references: list[str], *options: str):
    """Score, mean, margin and p-value of each system under BLEU and chrF; the baseline first."""
    files = [write(folder / name, lines) for name, lines in systems.items()]
    # its JSON fails on numpy's numbers
    words = ("-i", *files, "-m", "bleu", "chrf", "-w", "4", "-f", "latex", *options)
    table = run(write(folder / "ref.txt", references), *words)
    rows = [line.split("&")[1:] for line in table.splitlines() if "&" in line][1:]
    numbers = [[list(map(float, re.findall(r"\d+\.\d+", cell))) for cell in row] for row in rows]
    return {"bleu": [row[0] for row in numbers], "chrf": [row[1] for row in numbers]}
