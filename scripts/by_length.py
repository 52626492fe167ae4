#!/usr/bin/env python
"""Scores the tests of some runs by the length of the source sentence.

    python scripts/by_length.py RUN RUN RUN

RUN is a folder that ``litseq test`` wrote to: it holds ``test/sources.txt``, ``hypotheses.txt`` and
``references.txt``. All runs must have been tested on the same sentences.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from litseq.evaluation import corpus_scores

NUM_BINS = 5


def bins(lengths: Sequence[int], *, num_bins: int = NUM_BINS) -> list[tuple[int, int]]:
    """Cuts lengths into inclusive ranges of about equally many sentences."""
    ordered = sorted(lengths)
    edges = sorted({ordered[len(ordered) * i // num_bins] for i in range(num_bins)})
    return list(zip(edges, [*(edge - 1 for edge in edges[1:]), ordered[-1]], strict=True))


def score(folder: Path) -> dict[str, Any]:
    """BLEU of one run, by the number of words in the source.

    Returns:
        ``bins``, such as "4-5"; ``num_sentences`` and ``bleu``, one number for each of them.

    Raises:
        FileNotFoundError: If the run was not tested.
    """
    sources, hypotheses, references = read_test(folder)
    lengths = [len(source.split()) for source in sources]
    language = target_language(folder)
    found: dict[str, Any] = {"bins": [], "num_sentences": [], "bleu": []}
    for low, high in bins(lengths):
        rows = [row for row, length in enumerate(lengths) if low <= length <= high]
        scores = corpus_scores(
            [hypotheses[row] for row in rows],
            [references[row] for row in rows],
            tgt_lang=language,
            ter=False,
        )
        found["bins"].append(str(low) if low == high else f"{low}\N{EN DASH}{high}")
        found["num_sentences"].append(len(rows))
        found["bleu"].append(round(scores.bleu, 2))
    return found


def read_test(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Sources, hypotheses and references of a run's test.

    Raises:
        FileNotFoundError: If the run was not tested.
    """
    files = [folder / "test" / f"{name}.txt" for name in ("sources", "hypotheses", "references")]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"no {file}; make it: litseq test --ckpt_path {folder}/checkpoints/best.ckpt"
            )
    texts = [file.read_text("utf-8").removesuffix("\n").split("\n") for file in files]
    sources, hypotheses, references = texts
    return sources, hypotheses, references


def target_language(folder: Path) -> str:
    """The language that a run writes."""
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    language: str = config["data"]["init_args"]["tgt_lang"]
    return language


def main() -> None:
    """Prints a table, and writes all of it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    tables = {str(run): score(run) for run in args.runs}
    first = tables[str(args.runs[0])]
    for run, table in tables.items():
        if any(table[name] != first[name] for name in ("bins", "num_sentences")):
            sys.exit(f"{args.runs[0]} and {run} were tested on different sentences.")
    for heading, cells in (("words", first["bins"]), ("sentences", first["num_sentences"])):
        print("\t".join([heading, *map(str, cells)]))
    for run, table in tables.items():
        print("\t".join([run, *(f"{bleu:.1f}" for bleu in table["bleu"])]))
    if args.json:
        args.json.write_text(json.dumps(tables, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
