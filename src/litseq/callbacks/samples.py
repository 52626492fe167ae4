"""The same few sentences after every validation, side by side with their references."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer

from litseq.callbacks.examples import (
    choose_examples,
    keep_batch,
    num_examples,
    savable,
    texts_of,
)
from litseq.callbacks.outputs import run_folder, write_lines
from litseq.callbacks.probes import sharding_of, unchanged
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

    What a module needs is one of these:

    - ``evaluation``, a ``litseq.evaluation.Evaluation`` that it sets on rank zero in
      ``on_validation_epoch_end``, as litseq's own do: nothing is translated twice.
    - ``predict_step`` that returns a string, or a ``litseq.types.Translation``, for each example of
      a batch. Examples are then chosen from the first validation batches, and run between two
      steps on the unchanged module, in evaluation mode. Source and reference are those of the
      ``Translation``; or the batch's own strings, ``source`` and ``reference``; or its
      ``input_ids`` and ``labels`` as a tokenizer of the module or the DataModule decodes them.
    - ``translate``, with ``texts``: it gets a list of strings and returns as many.

    Any other module trains as ever, and one line says what it lacks; so it does of a failure.

    Args:
        num_samples: Number of sentences.
        max_rows: W&B gets the whole table each time, at most so many of its newest rows;
            ``samples.tsv`` holds all.
        texts: Sentences of your own instead: source and reference each.

    Raises:
        ValueError: If one of the numbers is not positive.
    """

    key = "val/samples"

    def __init__(
        self,
        num_samples: int = 8,
        *,
        max_rows: int = 1000,
        texts: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        for name, value in (("num_samples", num_samples), ("max_rows", max_rows)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.num_samples = num_samples
        self.max_rows = max_rows
        self.texts = texts
        self._ids: list[int] = []
        self._rows: list[list[Any]] = []
        self._seen: list[Any] = []  # batches to choose from
        self._batches: list[Any] = []  # the chosen examples of them
        self._out: Path | None = None  # None: nothing to do
        self._disabled = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder; nothing is made yet."""
        self._out = None
        # mypy: the attribute is set by a part of the Trainer
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._out = run_folder(trainer)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first batches for a module that has no evaluation of its own."""
        if self._out is None or self._disabled or not trainer.is_global_zero or dataloader_idx:
            return
        if self._batches or self.texts or hasattr(pl_module, "evaluation"):
            return
        keep_batch(self._seen, batch, most=self.num_samples)

    # Not on_validation_epoch_end: there callbacks come before the module, which has none yet.
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a row for each sample and shows the table."""
        if self._out is None or self._disabled or not trainer.is_global_zero:
            return
        if self._seen:
            self._batches, self._seen = choose_examples(self._seen, self.num_samples), []
        if trainer.sanity_checking:
            return
        try:
            new = list(self._rows_now(trainer, pl_module))
        except Exception as error:  # of somebody else's code, which must not stop training
            known = isinstance(error, _MissingError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            self._disabled, self._batches = True, []
            _log.warning(
                "TranslationSamples shows nothing from here on: %s.",
                " ".join(reason.split()).rstrip("."),
            )
            return
        if not new:
            return
        self._rows += new
        lines = ("\t".join(map(_cell, row)) for row in self._rows)
        write_lines(self._out / "samples.tsv", ["\t".join(_COLUMNS), *lines])
        self._log(trainer, new)

    def _rows_now(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[list[Any]]:
        step = trainer.global_step
        evaluation = getattr(pl_module, "evaluation", None)
        if self.texts:
            translate = getattr(pl_module, "translate", None)
            if not callable(translate):
                raise _MissingError(
                    f"texts need {type(pl_module).__name__} to have translate(texts), from a list "
                    f"of strings to a list of strings; add it, or leave texts out"
                )
            sources, references = zip(*self.texts, strict=True)
            with _aside(trainer, pl_module):
                outputs = translate(list(sources))
            found = _strings(outputs, len(sources), "translate")
            yield from map(_row, [step] * len(found), range(len(found)), sources, references, found)
        elif isinstance(evaluation, Evaluation):
            for item in self._choose(evaluation):
                yield _row(step, item.id, item.source, item.reference or "", item.text)
        elif evaluation is not None:
            raise _MissingError(
                f"`evaluation` of {type(pl_module).__name__} is a {type(evaluation).__name__}, no "
                f"litseq.evaluation.Evaluation"
            )
        elif not hasattr(pl_module, "evaluation"):
            for row in self._predicted(trainer, pl_module):
                yield _row(step, *row)

    def _predicted(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> Iterator[tuple[int, str, str, str]]:
        """Runs ``predict_step`` on the chosen examples; id, source, reference and output each."""
        name = type(pl_module).__name__
        # of either Lightning package
        if type(pl_module).predict_step.__qualname__ == "LightningModule.predict_step":
            raise _MissingError(
                f"{name} has neither an `evaluation` nor a predict_step that returns strings; add "
                f"one of them, or give texts to a module that has translate(texts)"
            )
        number = 0
        for batch in self._batches:
            with _aside(trainer, pl_module):
                outputs = pl_module.predict_step(move_data_to_device(batch, pl_module.device), 0)
            if isinstance(outputs, (list, tuple)) and all(
                isinstance(item, Translation) for item in outputs
            ):
                rows = [(t.id, t.source, t.reference or "", t.text) for t in outputs]
            else:
                found = _strings(outputs, num_examples(batch) or None, "predict_step")
                sources, references = texts_of(
                    batch, len(found), pl_module, getattr(trainer, "datamodule", None)
                )
                ids = batch.get("id") if isinstance(batch, dict) else None
                numbers = range(number, number + len(found)) if ids is None else ids.tolist()
                rows = list(zip(numbers, sources, references, found, strict=True))
            yield from rows[: self.num_samples - number]
            number += len(rows)

    def _choose(self, evaluation: Evaluation) -> list[Translation]:
        by_id = {item.id: item for item in evaluation.translations}
        if not self._ids:
            ids, num = sorted(by_id), min(self.num_samples, len(by_id))
            self._ids = [ids[(2 * i + 1) * len(ids) // (2 * num)] for i in range(num)]
        return [by_id[i] for i in self._ids if i in by_id]

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
        """The chosen sentences, where a checkpoint can hold them, and all rows so far."""
        return {
            "ids": list(self._ids),
            "rows": [list(row) for row in self._rows],
            "batches": savable(self._batches),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the table of the checkpoint."""
        self._ids = list(state_dict["ids"])
        self._rows = [list(row) for row in state_dict["rows"]]
        self._batches = list(state_dict.get("batches", ()))  # none in older checkpoints


class _MissingError(Exception):
    """What a module lacks."""


@contextmanager
def _aside(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """As if nothing had run in between: modes, random numbers and logs are those of before."""
    if sharding := sharding_of(trainer):
        raise _MissingError(f"{sharding} may shard parameters, which no rank has whole")
    with unchanged(pl_module), trainer.precision_plugin.forward_context():
        yield


def _strings(outputs: Any, number: int | None, name: str) -> list[str]:  # noqa: ANN401
    """Checks what somebody else's function returned."""
    kinds = {type(item).__name__ for item in outputs} if isinstance(outputs, (list, tuple)) else ()
    if set(kinds) <= {"str"} and isinstance(outputs, (list, tuple)):
        if number in (None, len(outputs)):
            return list(outputs)
        raise _MissingError(f"{name} returned {len(outputs)} strings for {number} examples")
    what = type(outputs).__name__ + (f" of {', '.join(sorted(kinds))}" if kinds else "")
    raise _MissingError(f"{name} must return a list of strings, got a {what}")


def _row(step: int, number: int, source: str, reference: str, text: str) -> list[Any]:
    chrf = round(sentence_chrf(text, reference), 2) if reference else ""
    return [step, number, source, reference, text, chrf]


def _cell(value: object) -> str:
    text = printable(str(value).translate(_ESCAPES))
    # a spreadsheet would take it for a formula, which can fetch and run things
    formula = isinstance(value, str) and text.startswith(("=", "+", "-", "@"))
    return f"'{text}" if formula else text


def _markdown(rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |"

    return "\n".join([line(_COLUMNS), line(["---"] * len(_COLUMNS)), *map(line, rows)])
