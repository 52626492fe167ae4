"""Going on with a run by ``--ckpt_path last``: which run, which checkpoint, and the same logs."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from litseq import checkpoints

__all__ = ["NEWEST", "continue_log", "continue_run", "find_checkpoint", "rows_before"]

NEWEST = ("last", "best")
"""What ``--ckpt_path`` may be in place of a file."""

_log = logging.getLogger("litseq")

Row = dict[str, str]


def find_checkpoint(config: Namespace, which: str) -> tuple[Path, Path] | None:
    """Finds a run and the checkpoint in it that ``last`` or ``best`` means.

    The run is that of the ``config.yaml`` which was given by ``-c``, or else the newest one in the
    folder of the first logger.

    Args:
        config: The configuration of a command.
        which: ``last``: the newest intact checkpoint; ``best``: the best by the first
            ModelCheckpoint that goes by a metric.

    Returns:
        The run's folder and the file; None if there is no run.

    Raises:
        FileNotFoundError: If the run has no such checkpoint.
    """
    run = _run_of_files(config) or _newest_run(config)
    if run is None:
        return None
    folder = run / "checkpoints"
    newest = checkpoints.newest(folder)
    if newest is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint that is intact; train again.")
    if which == "last":
        return run, newest
    states = checkpoints.read_for_resuming(newest).get("callbacks", {}).values()
    names = (s["best_model_path"] for s in states if isinstance(s, dict) and s.get("monitor"))
    # by name: the folder may have been moved
    found = next((folder / Path(name).name for name in names if name), None)
    if found is None or not found.exists():
        there = ", ".join(sorted(path.name for path in folder.glob("*.ckpt")))
        raise FileNotFoundError(
            f"{run} has no best checkpoint; give one of its checkpoints by name: {there}."
        )
    return run, found


def _run_of_files(config: Namespace) -> Path | None:
    """The run whose ``config.yaml`` was given, the last of them."""
    for path in reversed(config.get("config") or []):
        folder = Path(str(path.absolute)).parent
        if (folder / "checkpoints").is_dir():
            return folder
    return None


def _newest_run(config: Namespace) -> Path | None:
    folders = _logger_folder(config).glob("*/checkpoints")
    dated = {path: file.stat().st_mtime for path in folders for file in path.glob("*.ckpt")}
    return max(dated, key=dated.__getitem__).parent if dated else None


def _logger_folder(config: Namespace) -> Path:
    """Where the first logger keeps its runs."""
    loggers = _loggers(config)
    options = loggers[0].get("init_args", {}) if loggers else {}
    root = config.get("trainer.default_root_dir") or "."
    # a W&B run has a name of its own, and lies in the folder of its project
    name = options.get("project") if "project" in options else options.get("name")
    return Path(options.get("save_dir") or root, name or "lightning_logs")


def _loggers(config: Namespace) -> list[Any]:
    loggers = config.get("trainer.logger")
    loggers = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in loggers if isinstance(logger, Namespace)]


def continue_run(config: Namespace, run: Path) -> None:
    """Makes all loggers write into a run that is there already.

    Args:
        config: The configuration of ``fit``; changed.
        run: The run's folder.
    """
    if not _loggers(config) and config.trainer.logger is not False:
        config["trainer.logger.class_path"] = f"{CSVLogger.__module__}.{CSVLogger.__qualname__}"
        config["trainer.logger.init_args.save_dir"] = str(run.parent.parent)
        config["trainer.logger.init_args.name"] = run.parent.name
    for logger in _loggers(config):
        logger.init_args.version = run.name


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
