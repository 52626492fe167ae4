#!/usr/bin/env python
"""Trains the three models on the built-in demo, and draws on one sheet what they have to tell.

    python scripts/teacher.py            # two processes of one core each
    python scripts/teacher.py --draw     # the picture alone, from runs that are there

The sheet: loss and BLEU against tokens seen, BLEU against the length of the source, and where the
decoder looked while it wrote one sentence. It lies in ``docs/assets/teacher.png`` and, in Chinese,
``teacher.zh.png``; the runs lie in ``lightning_logs/reproduce/teacher-*``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

import lesson_measures as measures
import lesson_pictures as pictures
import litseq
from litseq.fonts import choose_fonts
from recipes import LANES
from reproduce import RUNS
from reproduce_pages import RECORDS

ASSETS = Path("docs/assets")


def train(options: list[str]) -> None:
    """Trains, tests and records the three, in two lanes of one core each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("reproduce.py")
    commands = [[sys.executable, str(script), *names, "--", *options] for names in LANES]
    lanes = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        failed = [lane.wait() for lane in lanes]
    finally:
        for lane in lanes:
            lane.terminate()  # its run saves first; one that has ended does not mind
            lane.wait()
    if any(failed):
        sys.exit("a model was not trained; what is missing stands above.")


def draw() -> None:
    """Draws the sheet in both languages."""
    records: dict[str, Any] = {}
    for names in LANES:
        for name in names:
            file = RECORDS / f"{name}-1.json"
            records[name.removeprefix("teacher-").replace("-", "_")] = json.loads(
                file.read_text("utf-8")
            )
    checkpoint = RUNS / "teacher-rnn-attention/seed-1/checkpoints/best.ckpt"
    module = litseq.Seq2Seq.load_from_checkpoint(checkpoint)
    example = measures.Example.of(module, measures.SENTENCE)
    weights = measures.attention_steps(example)["weights"]
    rows, columns = example.tgt_pieces, example.src_pieces
    fonts = choose_fonts("▁ 注意力循环网络句长" + "".join(rows + columns)).families
    for language, suffix in enumerate(("", ".zh")):

        def say(*texts: str, language: int = language) -> str:
            return texts[language]

        with matplotlib.rc_context({**pictures.STYLE, "font.family": fonts}):
            sheet = pictures.story(say, records, weights=weights, rows=rows, columns=columns)
            pictures.save(sheet, ASSETS / f"teacher{suffix}.png")


def main() -> None:
    """Trains unless that was done, then draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draw", action="store_true", help="no training")
    parser.add_argument("--precision", help="such as bf16-mixed, where the processor has it")
    args = parser.parse_args()
    if not args.draw:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        train([f"--trainer.precision={args.precision}"] if args.precision else [])
    draw()


if __name__ == "__main__":
    main()
