#!/usr/bin/env python
"""Trains a recipe from data to scores, and sets what came of it beside the published figure.

    python scripts/reproduce.py multi30k-tiny
    python scripts/reproduce.py multi30k-rnn multi30k-rnn-attention --seeds 1 2 3
    python scripts/reproduce.py multi30k-tiny --label gpu -- --data.max_tokens 8192
    python scripts/reproduce.py --list

Each run is ``litseq fit``, ``litseq average`` where the recipe says so, and ``litseq test``, in
``lightning_logs/reproduce/RECIPE/seed-N``; what follows ``--`` goes to ``fit`` as it stands. A run
that was stopped goes on where it was, and what is done is not done again. At the end stands a
record, ``docs/results/recipes/RECIPE-N.json``: scores, configuration, versions, hardware, seconds
and tokens; the tables of ``docs/reproduce.md`` are made anew from all records.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from litseq.evaluation import legacy_bleu
from recipes import RECIPES, Recipe, Translated
from reproduce_pages import RECORDS, compare_runs, forget_comparisons, write_pages
from reproduce_records import circumstances, make_record, write_json

RUNS = Path("lightning_logs/reproduce")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def run(recipe: Recipe, seed: int, *, label: str, options: list[str], note: str = "") -> Path:
    """Trains, averages, tests and scores; returns the record's file.

    Args:
        recipe: What to run.
        seed: Seed of the run.
        label: Kind of machine, where there are several; a part of all names.
        options: More of the command line of ``litseq fit``.
        note: What a reader of the record should know.
    """
    if recipe.legacy:  # what it needs is missed now, not after the training
        legacy_bleu(["a"], ["a"], name=recipe.legacy, tgt_lang="en")
    name = f"seed-{seed}{label and f'-{label}'}"
    folder = RUNS / recipe.name / name
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder) as lock:
        _remember(folder, recipe, options=options, note=note)
        for text in recipe.translated:
            _translate(text, RUNS / text.recipe / name)
        if _saved(folder):
            fit = ["-c", str(folder / "config.yaml"), "--ckpt_path", "last"]
        else:
            logger = "--trainer.logger.init_args"
            fit = [
                *(part for file in recipe.configs for part in ("-c", file)),
                f"--seed_everything={seed}", f"{logger}.save_dir={RUNS.parent}",
                f"{logger}.name={RUNS.name}/{recipe.name}", f"{logger}.version={name}",
                *QUIET, *recipe.options, *options,
            ]  # fmt: skip
        _stage(folder, "fit", "fit", *fit, lock=lock)
        checkpoint = folder / "checkpoints/best.ckpt"
        if recipe.average:
            checkpoint = folder / "checkpoints/average.ckpt"
            # not those that are kept to go on from, which may be of any step
            files = (folder / "checkpoints").glob("step=*.ckpt")
            by_step = {int(file.stem[5:]): str(file) for file in files if file.stem[5:].isdigit()}
            last = [by_step[step] for step in sorted(by_step)[-recipe.average :]]
            _stage(folder, "average", "average", *last, "-o", str(checkpoint), lock=lock)
        _stage(folder, "test", "test", f"--ckpt_path={checkpoint}", *QUIET, lock=lock)
        record = make_record(recipe, folder, checkpoint=checkpoint, seed=seed, label=label)
    file = RECORDS / f"{recipe.name}-{seed}{label and f'-{label}'}.json"
    with _one_by_one():
        write_json(file, record)
        forget_comparisons(name, record)
        for baseline, system in _pairs(recipe):
            folders = [RUNS / recipe_name / name for recipe_name in (baseline, system)]
            if all((run / "test.done").exists() for run in folders):
                compare_runs(name, baseline=baseline, system=system, folders=folders)
    return file


def _pairs(recipe: Recipe) -> list[tuple[str, str]]:
    """What is compared where a recipe is one of two: names of baseline and system."""
    before = [(recipe.against, recipe.name)] if recipe.against else []
    return before + [
        (recipe.name, other.name) for other in RECIPES.values() if other.against == recipe.name
    ]


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Waits for other processes that write the same tables."""
    with (RUNS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _alone_in(folder: Path) -> Iterator[int]:
    """Keeps a second process out of a run; gives the lock, for a command that may outlive us."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"{folder} is being run by another process; wait for it.")
        yield lock.fileno()


def _remember(folder: Path, recipe: Recipe, *, options: list[str], note: str) -> None:
    """Writes down how a run began; one that goes on must be the same."""
    file = folder / "run.json"
    mine = {
        "configs": list(recipe.configs),
        "contents": [_contents(config) for config in recipe.configs],
        "options": [*recipe.options, *options],
    }
    done = (folder / "fit.done").exists()
    if done and not _saved(folder):
        sys.exit(f"{folder} is done, and its checkpoints are gone; remove it to run it again.")
    # one that ended before its first checkpoint begins anew
    if not file.exists() or not _saved(folder):
        for rest in (*folder.glob("*.seconds"), folder / "config.yaml"):
            rest.unlink(missing_ok=True)
        write_json(file, {**mine, "note": note, **circumstances()})
        return
    began = json.loads(file.read_text("utf-8"))
    for name, value in mine.items():
        if began.get(name, value) != value:
            sys.exit(
                f"{folder} began with the {name} {began[name]}, and now they are {value}; give "
                f"those, or another --label."
            )
    now = {} if done else circumstances()
    changed = [name for name, value in now.items() if began[name] != value]
    notes = [note, f"went on with other {' and '.join(changed)}" if changed else ""]
    fresh = [text for text in notes if text and text not in began["note"]]
    if fresh:
        began["note"] = "; ".join(filter(None, [began["note"], *fresh]))
        write_json(file, began)


def _saved(folder: Path) -> bool:
    """Whether a run has something to go on from; for a moment of a save there is no ``last``."""
    return any((folder / f"checkpoints/{name}.ckpt").exists() for name in ("last", "previous"))


def _contents(config: str) -> str:
    """What tells two versions of a configuration apart, but for their comments."""
    values = yaml.safe_load(Path(config).read_text("utf-8"))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _translate(text: Translated, run: Path) -> None:
    """Makes training text unless it is there."""
    if Path(text.beside).exists():
        return
    if not (run / "test.done").exists():
        sys.exit(f"{text.recipe} has to be run first, for its model translates {text.source}.")
    Path(text.output).parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(text.source) as packed, tempfile.NamedTemporaryFile() as plain:
        shutil.copyfileobj(packed, plain)
        plain.flush()
        checkpoint = run / "checkpoints/best.ckpt"
        print(f"{text.output}: {checkpoint} translates {text.source}", flush=True)
        words = ["--ckpt", str(checkpoint), "--input", plain.name, "--output", text.output]
        subprocess.run([sys.executable, "-m", "litseq", "translate", *words], check=True)
        shutil.copyfile(plain.name, f"{text.beside}.part")
        Path(f"{text.beside}.part").replace(text.beside)  # last: it says that all is done


def _stage(folder: Path, stage: str, *command: str, lock: int) -> None:
    """Runs one command of litseq unless it was done; its seconds add up over all attempts."""
    done = folder / f"{stage}.done"
    if done.exists():
        return
    attempt = len(list(folder.glob(f"{stage}-*.seconds"))) + 1
    seconds, start = folder / f"{stage}-{attempt}.seconds", time.monotonic()
    print(f"{folder}: litseq {' '.join(command)}", flush=True)
    with (folder / f"{stage}.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "litseq", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
        )
        try:
            while process.poll() is None:
                seconds.write_text(f"{time.monotonic() - start:.1f}\n")
                try:
                    process.wait(timeout=2)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.terminate()  # it saves first; one that has ended does not mind
            process.wait()
            seconds.write_text(f"{time.monotonic() - start:.1f}\n")
    if process.returncode:
        tail = (folder / f"{stage}.log").read_text("utf-8")[-2000:]
        sys.exit(f"litseq {' '.join(command)} failed ({process.returncode}):\n{tail}")
    done.touch()


def main() -> None:
    """Runs the recipes that are named, then writes the pages."""
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, options = arguments[:cut], arguments[cut + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipes", nargs="*", choices=[*RECIPES, []], metavar="RECIPE")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the recipe")
    parser.add_argument("--label", default="", help="kind of machine, where there are several")
    parser.add_argument("--note", default="", help="what a reader of the record should know")
    parser.add_argument("--list", action="store_true", help="what recipes there are")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(f"{recipe.name:30}{recipe.title}" for recipe in RECIPES.values()))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of all that has to end first
    for name in args.recipes:
        recipe = RECIPES[name]
        if recipe.needs:
            print(f"{name} has not been run by us: it needs {recipe.needs}.", flush=True)
        for seed in args.seeds or recipe.seeds:
            file = run(recipe, seed, label=args.label, options=options, note=args.note)
            print(file, flush=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    with _one_by_one():
        write_pages()


if __name__ == "__main__":
    main()
