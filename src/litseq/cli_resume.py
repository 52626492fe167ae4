"""Going on with a run by ``--ckpt_path last``: which run, which checkpoint, and the same logs."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from litseq import checkpoints

__all__ = [
    "NEWEST",
    "continue_log",
    "continue_run",
    "find_checkpoint",
    "logger_names",
    "rows_before",
]

NEWEST = ("last", "best")
"""What ``--ckpt_path`` may be in place of a file."""

_log = logging.getLogger("litseq")

Row = dict[str, str]


def find_checkpoint(config: Namespace, which: str) -> tuple[Path | None, Path] | None:
    """Finds a run and the checkpoint in it that ``last`` or ``best`` means.

    The run is that of the ``config.yaml`` which was given by ``-c``, or else the newest one in the
    folder of the first logger. Where ``RunCheckpoint`` has a folder of its own, the checkpoints
    there say which run it is.

    Args:
        config: The configuration of a command.
        which: ``last``: the newest intact checkpoint; ``best``: the best by the first
            ModelCheckpoint that goes by a metric.

    Returns:
        The run's folder, None if it is not known, and the file; None if there is no run.

    Raises:
        FileNotFoundError: If the run has no such checkpoint.
    """
    own = _own_folder(config)
    folder = own or _folder_of_files(config) or _newest_folder(config)
    if folder is None or not any(folder.glob("*.ckpt")):
        return None
    newest = checkpoints.newest(folder)
    if newest is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint that is intact; train again.")
    run: Path | None = folder.parent
    if own and config.trainer.logger is not False:  # which keeps the run somewhere else
        name = next(iter(logger_names(checkpoints.read_for_resuming(newest))), None)
        run = None if name is None else _logger_folder(config) / name
    if which == "last":
        return run, newest
    found = _best(folder, elsewhere=own is not None)
    if found is None:
        there = ", ".join(sorted(path.name for path in folder.glob("*.ckpt")))
        raise FileNotFoundError(
            f"{run or folder} has no best checkpoint; give one of its checkpoints by name: {there}."
        )
    return run, found


def _best(folder: Path, *, elsewhere: bool) -> Path | None:
    """The best checkpoint by the latest state; it may lie elsewhere than the newest one."""
    found, _ = checkpoints.generations(folder)
    # the newest of a step is saved before the validation that may find the best
    for one in sorted(found, key=lambda one: (one.step, not one.exact, one.time), reverse=True):
        if not one.resumable or checkpoints.damage_of(one.path):
            continue
        states = checkpoints.read_for_resuming(one.path).get("callbacks", {}).values()
        for state in states:
            if isinstance(state, dict) and state.get("monitor") and state["best_model_path"]:
                path = Path(state["best_model_path"])
                # by name: the folder may have been moved
                places = [folder / path.name, path] if elsewhere else [folder / path.name]
                return next((place for place in places if place.exists()), None)
    return None


def logger_names(checkpoint: Mapping[str, Any]) -> list[str | None]:
    """What each logger called the run; none where a former version of litseq wrote the file."""
    names = checkpoint.get("run", {}).get("loggers", ())
    return [name if name and Path(name).name == name else None for name in names]


def _own_folder(config: Namespace) -> Path | None:
    """Where ``RunCheckpoint`` was told to write."""
    for callback in _items(config.get("trainer.callbacks")):
        if callback.class_path.endswith(".RunCheckpoint"):
            folder = callback.get("init_args", {}).get("dirpath")
            return Path(folder) if folder else None
    return None


def _folder_of_files(config: Namespace) -> Path | None:
    """Where the run whose ``config.yaml`` was given, the last of them, keeps its checkpoints."""
    runs = _logger_folder(config).resolve()
    for path in reversed(config.get("config") or []):
        run = Path(str(path.absolute)).parent
        # of a run that was stopped before it saved, there is none; another run's would be wrong
        if (run / "checkpoints").is_dir() or run.resolve().parent == runs:
            return run / "checkpoints"
    return None


def _newest_folder(config: Namespace) -> Path | None:
    if config.trainer.logger is False:
        return Path(config.get("trainer.default_root_dir") or ".", "checkpoints")
    folders = _logger_folder(config).glob("*/checkpoints")
    dated = {path: file.stat().st_mtime for path in folders for file in path.glob("*.ckpt")}
    return max(dated, key=dated.__getitem__) if dated else None


def _logger_folder(config: Namespace) -> Path:
    """Where the first logger keeps its runs."""
    loggers = _loggers(config)
    options = loggers[0].get("init_args", {}) if loggers else {}
    root = config.get("trainer.default_root_dir") or "."
    # a W&B run has a name of its own, and lies in the folder of its project
    name = options.get("project") if "project" in options else options.get("name")
    return Path(options.get("save_dir") or root, name or "lightning_logs")


def _loggers(config: Namespace) -> list[Any]:
    return _items(config.get("trainer.logger"))


def _items(given: object) -> list[Any]:
    """The objects of a key that takes one or several."""
    items = given if isinstance(given, list) else [given]
    return [item for item in items if isinstance(item, Namespace)]


def continue_run(config: Namespace, run: Path, names: Sequence[str | None] = ()) -> None:
    """Makes all loggers write into a run that is there already.

    Args:
        config: The configuration of ``fit``; changed.
        run: The run's folder, to which the first logger writes.
        names: What each logger called the run (``logger_names``); where that is not known, files
            are taken to be called like the folder.

    Raises:
        ValueError: If the run lies where its first logger cannot write.
    """
    if not _loggers(config) and config.trainer.logger is not False:
        config["trainer.logger.class_path"] = f"{CSVLogger.__module__}.{CSVLogger.__qualname__}"
        config["trainer.logger.init_args.save_dir"] = str(run.parent.parent)
        config["trainer.logger.init_args.name"] = run.parent.name
        config["trainer.logger.init_args.version"] = None
    loggers = _loggers(config)
    if loggers and (_logger_folder(config) / run.name).resolve() != run.resolve():
        _move(loggers[0].init_args, run.resolve())
    known = names if len(names) == len(loggers) else [None] * len(loggers)
    for number, (logger, name) in enumerate(zip(loggers, known, strict=True)):
        if "version" in logger.init_args:
            in_files = "project" not in logger.init_args
            name = run.name if number == 0 or (name is None and in_files) else name
            logger.init_args.version = name or logger.init_args.version


def _move(options: Namespace, run: Path) -> None:
    """Lets a logger write to where its run was moved."""
    if "project" in options and options.project != run.parent.name:
        raise ValueError(
            f"{run} is not in a folder {options.project}, as its W&B project is called; move it "
            f"back."
        )
    options.save_dir = str(run.parent.parent)
    if "project" not in options:
        options.name = run.parent.name


def rows_before(rows: Iterable[Row], run: dict[str, Any]) -> list[Row]:
    """Returns the rows of a log that were there when a checkpoint was written.

    Args:
        rows: All rows, each with its ``step``.
        run: The ``run`` entry of the checkpoint, by ``RunCheckpoint``.
    """

    def before(row: Row) -> bool:
        step = int(row["step"])
        if step != run["log_step"]:
            return bool(step < run["log_step"])
        # Validated before the step that the checkpoint is of, inside of an accumulation. Whatever
        # else has this number came after the checkpoint.
        return not run["validation"] and all(not key.startswith("train/") for key in row)

    return [row for row in rows if before(row)]


def continue_log(logger: Logger, run: dict[str, Any]) -> None:
    """Lets a log go on where a checkpoint was written; what is of later steps is left out.

    That is so for CSV and TensorBoard, where points of the checkpoint's own step may stand twice,
    with the same value. W&B keeps what it has, and gets the same values again.

    Args:
        logger: Not used yet; of the same folder as before.
        run: The ``run`` entry of the checkpoint.
    """
    if isinstance(logger, CSVLogger):
        _continue_csv(logger, run)
    elif isinstance(logger, TensorBoardLogger):
        # an argument for torch's SummaryWriter, which Lightning makes when it is first needed
        logger._kwargs["purge_step"] = run["log_step"] + (not run["validation"])


def _continue_csv(logger: CSVLogger, run: dict[str, Any]) -> None:
    # Lightning would begin the file anew
    path = Path(logger.log_dir) / "metrics.csv"
    kept = path.with_name("metrics.before_resuming.csv")
    if path.exists() and not kept.exists():  # else the last resuming was broken off right here
        path.replace(kept)
    if not kept.exists():
        return
    with kept.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        # a process that is killed while it writes leaves half a line
        whole = [row for row in reader if None not in row.values() and row["step"].isdigit()]
    rows = rows_before(({k: v for k, v in row.items() if v} for row in whole), run)
    logger.experiment.metrics = rows
    logger.save()
    kept.unlink()
