"""What a run leaves on disk: translations, references and scores, and a table at its end."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box, get_console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from litseq.evaluation import Evaluation
from litseq.textfiles import one_line, whole_file
from litseq.types import Translation

__all__ = ["TranslationWriter", "run_folder", "write_lines"]

_log = logging.getLogger(__name__)

_Record = dict[str, Any]
"""One line of ``predictions.jsonl``."""


def run_folder(trainer: Trainer) -> Path:
    """The folder that holds everything of this run: where ModelCheckpoint puts ``checkpoints/``.

    That is the first logger's ``log_dir`` (CSV, TensorBoard), or its save_dir/name/version where it
    has none (W&B, whose ``save_dir``, and with it ``trainer.log_dir``, is common to all runs).
    Without a logger it is the run that the checkpoint in use comes from, or ``default_root_dir``.

    Args:
        trainer: A trainer that is setting up or running. Call on every rank: rank zero decides.
    """
    folder = trainer.default_root_dir
    checkpoint = Path(trainer.ckpt_path or "")
    if not trainer.loggers and checkpoint.parent.name == "checkpoints":
        folder = str(checkpoint.parent.parent)
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version
        version = version if isinstance(version, str) else f"version_{version}"
        folder = logger.log_dir or os.path.join(
            logger.save_dir or folder, str(logger.name), version
        )
    return Path(trainer.strategy.broadcast(str(folder)))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file whole or not at all; UTF-8, every line ended by a line feed.

    Args:
        path: The file, replaced where it exists; its folder is made where it does not.
        lines: Lines without their line feed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.writelines(f"{line}\n" for line in lines)


class TranslationWriter(Callback):
    """Writes translations and scores beside the run, and says at its end where they lie.

    ``test`` leaves ``test/``: ``hypotheses.txt``, ``references.txt``, ``sources.txt`` (one line for
    each example, by id) and ``scores.json``. Each validation leaves the same in ``val/``, in place
    of the one before. Both come from the module's ``evaluation``, a
    ``litseq.evaluation.Evaluation`` that is set on rank zero in ``on_test_epoch_end`` or
    ``on_validation_epoch_end``; None there means nothing this time. Confidence intervals
    are shown where its scores have them, as those of litseq's own modules have in ``test``.

    ``predict`` leaves ``predictions.txt`` and ``predictions.jsonl`` (and ``predictions.align``,
    word alignments, if every prediction has one), by id, for any module whose
    ``predict_step`` returns a list of ``litseq.types.Translation``, or of strings, whose ids are
    the batch's ``id`` or, without one, their order. With several ranks each writes its part and
    rank zero merges them. Several loaders follow one another.

    Files appear whole or not at all, ``scores.json`` after the texts that it belongs to. Sanity
    checks and ``fast_dev_run`` write nothing. Any other module runs as ever, and one line says what
    it lacks.

    Args:
        folder: Where to write; the run's folder by default (see ``run_folder``).
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._out: Path | None = None  # None: write nothing
        self._predictions: dict[tuple[int, int], _Record] = {}  # by number of the loader and id
        self._num_seen: Counter[int] = Counter()
        self._problem = ""
        self._said: set[str] = set()
        self._report: list[Table | Text] = []
        self._start = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins anew."""
        self._predictions, self._num_seen = {}, Counter()
        self._problem, self._report = "", []
        self._out = None

    # Not in setup: there the checkpoint in use is not known yet.
    def _find_folder(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._out = Path(self.folder) if self.folder else run_folder(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Shows the report, after the table that Lightning prints."""
        for part in self._report:
            # On the console of the progress bar, so that the two do not mix; a path or a signature
            # stays on one line, whatever the width, to be copied.
            get_console().print(part, soft_wrap=isinstance(part, Text))
        self._report = []

    # ---- validation and test

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the folder."""
        self._find_folder(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the folder."""
        self._find_folder(trainer)

    # Not on_*_epoch_end: there callbacks come before the module, which has no evaluation yet.
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces ``val/`` by the validation that ends."""
        if not trainer.sanity_checking:
            self._write_evaluation(trainer, pl_module, split="val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes ``test/``."""
        self._write_evaluation(trainer, pl_module, split="test")

    def _write_evaluation(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if self._out is None or not trainer.is_global_zero:
            return
        evaluation = getattr(pl_module, "evaluation", "missing")
        if evaluation is None:
            return
        if not isinstance(evaluation, Evaluation) or evaluation.split != split:
            hook = {"val": "on_validation_epoch_end", "test": "on_test_epoch_end"}[split]
            self._say_once(
                f"TranslationWriter writes no {split}/: {type(pl_module).__name__} has no "
                f"litseq.evaluation.Evaluation of split {split!r} as `evaluation`; set it in "
                f"{hook}."
            )
            return
        fitting = trainer.state.fn == "fit"
        origin = (
            {"step": trainer.global_step, "epoch": trainer.current_epoch}
            if fitting
            else {"checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None}
        )
        folder = self._out / split
        rows = evaluation.translations
        (folder / "scores.json").unlink(missing_ok=True)  # never beside texts of another time
        write_lines(folder / "sources.txt", (one_line(row.source) for row in rows))
        write_lines(folder / "references.txt", (one_line(row.reference or "") for row in rows))
        write_lines(folder / "hypotheses.txt", (one_line(row.text) for row in rows))
        scores = {"split": split, **dataclasses.asdict(evaluation.scores), **origin}
        write_lines(folder / "scores.json", [json.dumps(scores, ensure_ascii=False, indent=2)])
        if not fitting:
            names = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}
            signatures = evaluation.scores.signatures.items()
            self._report = [
                _score_table(evaluation),
                Text("\n".join(f"{names.get(key, key)}|{value}" for key, value in signatures)),
                Text(f"{split} outputs: {folder}"),
            ]

    # ---- prediction

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the folder."""
        self._find_folder(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - whatever predict_step returns
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch's translations."""
        if self._out is None or self._problem:
            return
        first = self._num_seen[dataloader_idx] if trainer.world_size == 1 else None
        try:
            records = _records(outputs, batch, first=first)
        except ValueError as error:
            self._problem = f"TranslationWriter writes no predictions: {error}"
            return
        self._num_seen[dataloader_idx] += len(records)
        for record in records:
            self._predictions.setdefault((dataloader_idx, record["id"]), record)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the predictions, after those of all ranks have come together.

        Raises:
            FileNotFoundError: If the part of another rank is not there.
        """
        if self._out is None:
            return
        # All ranks must agree on whether to wait for each other.
        if not trainer.strategy.reduce_boolean_decision(not self._problem):
            if self._problem:
                self._say_once(self._problem)
            return
        predictions, self._predictions = self._predictions, {}
        if trainer.world_size > 1:
            lines = (json.dumps([loader, row]) for (loader, _), row in predictions.items())
            write_lines(_part(self._out, trainer.global_rank), lines)
            trainer.strategy.barrier("TranslationWriter.on_predict_end")
            if not trainer.is_global_zero:
                return
            predictions = _merge(self._out, trainer.world_size)
        self._write_predictions([predictions[key] for key in sorted(predictions)], self._out)

        last: dict[int, int] = dict(sorted(predictions))  # the greatest id of each loader
        num_missing = sum(last.values()) + len(last) - len(predictions)
        if num_missing:
            _log.warning(
                "predictions.txt lacks %d of the ids up to %d, so its line numbers are not ids; "
                "predictions.jsonl names the id of each line.",
                num_missing,
                max(last.values()),
            )

    def _write_predictions(self, rows: list[_Record], folder: Path) -> None:
        write_lines(folder / "predictions.txt", (one_line(row["text"]) for row in rows))
        write_lines(
            folder / "predictions.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows)
        )
        names = ["predictions.jsonl"]
        if rows and all("alignment" in row for row in rows):
            write_lines(folder / "predictions.align", (row["alignment"] for row in rows))
            names.append("predictions.align")
        where = folder / "predictions.txt"
        self._report = [Text(f"{len(rows)} predictions: {where} and {', '.join(names)}")]

    # ---- the end of training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the folder and starts the clock."""
        self._find_folder(trainer)
        self._start = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sums up the run."""
        if self._out is not None and trainer.is_global_zero:
            seconds = time.monotonic() - self._start
            self._report = [
                _run_table(trainer, self._out, seconds=seconds),
                Text(f"run folder: {self._out}"),
            ]

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _log.warning(message)


def _records(
    outputs: Any,  # noqa: ANN401 - whatever predict_step returns
    batch: Any,  # noqa: ANN401 - whatever the loader yields
    *,
    first: int | None,
) -> list[_Record]:
    """Reads what ``predict_step`` returned; ``first`` numbers strings that come without ids."""
    if isinstance(outputs, (list, tuple)):
        if all(isinstance(item, Translation) for item in outputs):
            return [item.as_dict() for item in outputs]
        if all(isinstance(item, str) for item in outputs):
            ids = batch.get("id") if isinstance(batch, Mapping) else None
            if isinstance(ids, Tensor) and ids.numel() == len(outputs):
                rows = zip(ids.tolist(), outputs, strict=True)
                return [{"id": i, "text": t} for i, t in rows if i >= 0]  # -1: no example
            if first is not None:
                return [{"id": i, "text": t} for i, t in enumerate(outputs, start=first)]
            raise ValueError(
                "predict_step returns strings and the batch has no `id` for each of them, which "
                "several ranks need for their order; add it, or return litseq.types.Translation."
            )
    kind = type(outputs).__name__
    if isinstance(outputs, (list, tuple)):
        kind += f" of {', '.join(sorted({type(item).__name__ for item in outputs}))}"
    raise ValueError(
        f"predict_step returns a {kind}, not a list of litseq.types.Translation or of strings."
    )


def _part(folder: Path, rank: int) -> Path:
    return folder / f"predictions.rank{rank}.part"


def _merge(folder: Path, num_ranks: int) -> dict[tuple[int, int], _Record]:
    """Joins the parts of all ranks, where an id counts once, and removes them."""
    merged: dict[tuple[int, int], _Record] = {}
    for rank in range(num_ranks):
        if not _part(folder, rank).exists():
            raise FileNotFoundError(
                f"{_part(folder, rank)}, the predictions of rank {rank} of {num_ranks}, is not "
                f"there; let all ranks write to one file system."
            )
    for rank in range(num_ranks):
        with _part(folder, rank).open(encoding="utf-8") as file:
            for loader, record in map(json.loads, file):
                merged.setdefault((loader, record["id"]), record)
        _part(folder, rank).unlink()
    return merged


def _score_table(evaluation: Evaluation) -> Table:
    scores = evaluation.scores
    table = Table(
        title=f"{evaluation.split}: {scores.num_sentences} sentences",
        title_justify="left",
        box=box.SIMPLE,
        show_header=bool(scores.confidence),
    )
    table.add_column()
    table.add_column("score", justify="right")
    if scores.confidence:
        table.add_column("95 % interval", justify="right")
    for name, key, value in (
        ("BLEU", "bleu", scores.bleu),
        ("chrF2", "chrf", scores.chrf),
        ("TER (lower is better)", "ter", scores.ter),
        ("exact match, %", "exact_match", scores.exact_match),
    ):
        if value is not None:
            interval = scores.confidence.get(key)
            text = f"{interval.low:.2f} to {interval.high:.2f}" if interval else ""
            table.add_row(name, f"{value:.2f}", *([text] if scores.confidence else []))
    return table


def _run_table(trainer: Trainer, folder: Path, *, seconds: float) -> Table:
    table = Table(title="training", title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("steps", str(trainer.global_step))
    table.add_row("epochs", str(trainer.current_epoch))
    table.add_row("time", str(timedelta(seconds=round(seconds))))
    for name, value in sorted(trainer.callback_metrics.items()):
        if name.startswith("val"):
            table.add_row(f"last {name}", f"{float(value):.4g}")
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best:
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        score = getattr(trainer.checkpoint_callback, "best_model_score", None)
        if score is not None:
            table.add_row(f"best {monitor}", f"{float(score):.4g}")
        inside = Path(best).is_relative_to(folder)
        table.add_row(
            "best checkpoint" if monitor else "checkpoint",
            str(Path(best).relative_to(folder) if inside else best),
        )
    return table
