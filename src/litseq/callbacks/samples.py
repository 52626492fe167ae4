"""The same few sentences after every validation, side by side with their references."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from litseq.callbacks.outputs import run_folder, write_lines
from litseq.evaluation import Evaluation, sentence_chrf
from litseq.textfiles import printable
from litseq.types import Translation

__all__ = ["TranslationSamples"]

_log = logging.getLogger(__name__)

_COLUMNS = ["step", "id", "source", "reference", "hypothesis", "chrF"]

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class TranslationSamples(Callback):
    """Shows how the translations of some validation sentences change while a model trains.

    The sentences are spread evenly over the validation set and stay the same. After each validation
    of ``fit`` a row for each of them (step, id, source, reference, hypothesis, chrF) joins the
    table: ``samples.tsv`` in the run's folder, W&B as a table, TensorBoard as text. The rows are
    part of the checkpoint, so a resumed run goes on with the table. In ``samples.tsv`` control
    characters and backslashes are escaped, and an apostrophe stands before a text that a
    spreadsheet would take for a formula.

    Reads the module's ``evaluation`` (``litseq.evaluation.Evaluation``), set on rank zero in
    ``on_validation_epoch_end``; a module without it trains as ever, and one line says so.

    Args:
        num_samples: Number of sentences.
        max_rows: W&B gets the whole table each time, at most so many of its newest rows;
            ``samples.tsv`` holds all.

    Raises:
        ValueError: If one of them is not positive.
    """

    key = "val/samples"

    def __init__(self, num_samples: int = 8, *, max_rows: int = 1000) -> None:
        for name, value in (("num_samples", num_samples), ("max_rows", max_rows)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.num_samples = num_samples
        self.max_rows = max_rows
        self._ids: list[int] = []
        self._rows: list[list[Any]] = []
        self._out: Path | None = None  # None: nothing to do
        self._disabled = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder; nothing is made yet."""
        self._out = None
        # mypy: the attribute is set by a part of the Trainer
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._out = run_folder(trainer)

    # Not on_validation_epoch_end: there callbacks come before the module, which has none yet.
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a row for each sample and shows the table."""
        if self._out is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        evaluation = getattr(pl_module, "evaluation", "missing")
        if evaluation is None or self._disabled:
            return
        if not isinstance(evaluation, Evaluation):
            self._disabled = True
            _log.warning(
                "TranslationSamples shows nothing: %s has no litseq.evaluation.Evaluation as "
                "`evaluation`; set it in on_validation_epoch_end.",
                type(pl_module).__name__,
            )
            return
        new = [self._row(trainer.global_step, item) for item in self._choose(evaluation)]
        self._rows += new
        lines = ("\t".join(map(_cell, row)) for row in self._rows)
        write_lines(self._out / "samples.tsv", ["\t".join(_COLUMNS), *lines])
        self._log(trainer, new)

    def _choose(self, evaluation: Evaluation) -> list[Translation]:
        by_id = {item.id: item for item in evaluation.translations}
        if not self._ids:
            ids, num = sorted(by_id), min(self.num_samples, len(by_id))
            self._ids = [ids[(2 * i + 1) * len(ids) // (2 * num)] for i in range(num)]
        return [by_id[i] for i in self._ids if i in by_id]

    def _row(self, step: int, item: Translation) -> list[Any]:
        reference = item.reference or ""
        chrf = round(sentence_chrf(item.text, reference), 2)
        return [step, item.id, item.source, reference, item.text, chrf]

    def _log(self, trainer: Trainer, new: list[list[Any]]) -> None:
        # By what a logger can do rather than by its class, so that the loggers of both Lightning
        # packages serve.
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):  # W&B
                logger.log_table(
                    self.key,
                    columns=_COLUMNS,
                    data=self._rows[-self.max_rows :],
                    step=trainer.global_step,
                )
            add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
            if add_text is not None:  # TensorBoard
                add_text(self.key, _markdown(new), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The chosen ids and all rows so far, as lists of numbers and strings."""
        return {"ids": list(self._ids), "rows": [list(row) for row in self._rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the table of the checkpoint."""
        self._ids = list(state_dict["ids"])
        self._rows = [list(row) for row in state_dict["rows"]]


def _cell(value: object) -> str:
    text = printable(str(value).translate(_ESCAPES))
    # a spreadsheet would take it for a formula, which can fetch and run things
    formula = isinstance(value, str) and text.startswith(("=", "+", "-", "@"))
    return f"'{text}" if formula else text


def _markdown(rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |"

    return "\n".join([line(_COLUMNS), line(["---"] * len(_COLUMNS)), *map(line, rows)])
