import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch.utils.data import DataLoader

from litseq.callbacks import TranslationSamples
from litseq.evaluation import Evaluation, corpus_scores, sentence_chrf
from litseq.types import ScoredText, Translation

NUM_EXAMPLES = 10
HEADER = ["step", "id", "source", "reference", "hypothesis", "chrF"]


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Evaluating(Plain):
    """Its hypotheses name the step, so that rows of different validations differ."""

    evaluation: Evaluation | None = None

    def on_validation_epoch_end(self):
        step = self.trainer.global_step
        rows = tuple(
            Translation(
                i,
                f"source\t{i}",
                (ScoredText(f"target {i} at {step}", -0.5, -1.0, 4),),
                f"target {i}",
            )
            for i in range(NUM_EXAMPLES)
        )
        scores = corpus_scores([row.text for row in rows], [row.reference for row in rows])
        self.evaluation = Evaluation("val", rows, scores)


def expected_row(step: int, i: int) -> list[Any]:
    chrf = round(sentence_chrf(f"target {i} at {step}", f"target {i}"), 2)
    return [step, i, f"source\t{i}", f"target {i}", f"target {i} at {step}", chrf]


def loader(num: int = 3) -> DataLoader:
    return DataLoader(torch.zeros(num, 1))


def fit(folder: Path, *callbacks, model=None, ckpt_path=None, **options) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "max_epochs": 2}
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**defaults, **options},
    )
    trainer.fit(model or Evaluating(), loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def read_table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").split("\n")[:-1]]


def test_same_samples_spread_over_the_set_after_each_validation(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(tmp_path, TranslationSamples(3), logger=logger)
    table = read_table(Path(logger.log_dir) / "samples.tsv")
    # 10 examples in 3 equal parts: the middle of each; nothing of the sanity check
    expected = [expected_row(step, i) for step in (3, 6) for i in (1, 5, 8)]
    assert table == [HEADER] + [
        [str(cell).replace("\t", "\\t") for cell in row] for row in expected
    ]


def test_small_set_is_shown_whole(tmp_path):
    fit(tmp_path, TranslationSamples(99), max_epochs=1)
    ids = [int(row[1]) for row in read_table(tmp_path / "samples.tsv")[1:]]
    assert ids == list(range(NUM_EXAMPLES))


def test_cells_are_escaped_without_loss(tmp_path):
    cells = ["a\tb", "c\nd", "e\\n\r"]

    class Nasty(Plain):
        evaluation = Evaluation(
            "val",
            (Translation(0, cells[0], (ScoredText(cells[2], -0.5, -1.0, 2),), cells[1]),),
            corpus_scores([cells[2]], [cells[1]]),
        )

    fit(tmp_path, TranslationSamples(), model=Nasty(), max_epochs=1)
    row = read_table(tmp_path / "samples.tsv")[1]
    assert row[2:5] == ["a\\tb", "c\\nd", "e\\\\n\\r"]
    assert [cell.encode().decode("unicode_escape") for cell in row[2:5]] == cells


def test_wandb_holds_the_growing_table(tmp_path, offline_wandb):
    logger = WandbLogger(save_dir=tmp_path, project="p", version="run1")
    fit(tmp_path, TranslationSamples(2, max_rows=5), logger=logger, max_epochs=3)
    run = offline_wandb()
    rows = [expected_row(step, i) for step in (3, 6, 9) for i in (2, 7)]
    assert run.columns["val/samples"] == HEADER
    assert run.tables["val/samples"] == [rows[:2], rows[:4], rows[1:6]]
    steps = [row["trainer/global_step"] for row in run.history if "val/samples/path" in row]
    assert steps == [3, 6, 9]
    assert len(read_table(tmp_path / "p" / "run1" / "samples.tsv")) == 1 + 6


class TextLogger(Logger):
    """A logger with the one method of TensorBoard's writer that the callback needs."""

    def __init__(self):
        super().__init__()
        self.texts: list[tuple[str, str, int]] = []

    name = "text"
    version = "0"

    @property
    def experiment(self):
        return self

    def add_text(self, tag, text_string, global_step):
        self.texts.append((tag, text_string, global_step))

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_tensorboard_gets_text(tmp_path):
    logger = TextLogger()
    fit(tmp_path, TranslationSamples(1), logger=logger)
    assert [(tag, step) for tag, _, step in logger.texts] == [
        ("val/samples", 3),
        ("val/samples", 6),
    ]
    chrf = expected_row(6, 5)[-1]
    assert logger.texts[1][1].splitlines() == [
        "| step | id | source | reference | hypothesis | chrF |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| 6 | 5 | source 5 | target 5 | target 5 at 6 | {chrf} |",
    ]


def test_tensorboard_itself_accepts_the_text(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, TranslationSamples(1), logger=logger, max_epochs=1)
    assert list(Path(logger.log_dir).glob("events.*"))


def test_resumed_run_goes_on_with_the_table(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, TranslationSamples(2), max_epochs=3)

    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit(parts, TranslationSamples(2), checkpoint, max_epochs=1, enable_checkpointing=True)
    # loads with weights_only=True, so the state holds numbers and strings alone
    fit(parts, TranslationSamples(2), max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    table = read_table(parts / "samples.tsv")
    assert [int(row[0]) for row in table[1:]] == [3, 3, 6, 6, 9, 9]
    assert table == read_table(whole / "samples.tsv")


def test_module_without_evaluation_is_told_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="litseq"):
        fit(tmp_path, TranslationSamples(), model=Plain(), max_epochs=3)
    assert [r.message for r in caplog.records if r.name.startswith("litseq")] == [
        "TranslationSamples shows nothing from here on: Plain has neither an `evaluation` nor a "
        "predict_step that returns strings; add one of them, or give texts to a module that has "
        "translate(texts)."
    ]
    assert not (tmp_path / "samples.tsv").exists()


def test_evaluation_of_another_kind_is_told(tmp_path, caplog):
    model = Plain()
    model.evaluation = {"bleu": 1.0}
    fit(tmp_path, TranslationSamples(), model=model)
    assert [r.message for r in caplog.records if r.name.startswith("litseq")] == [
        "TranslationSamples shows nothing from here on: `evaluation` of Plain is a dict, no "
        "litseq.evaluation.Evaluation."
    ]


def test_nothing_is_written_outside_training(tmp_path):
    fit(tmp_path, TranslationSamples(), fast_dev_run=True)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[TranslationSamples()],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.validate(Evaluating(), loader(), verbose=False)
    assert not (tmp_path / "samples.tsv").exists()


@pytest.mark.parametrize("name", ["num_samples", "max_rows"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TranslationSamples(**{name: 0})
