import dataclasses
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from rich.console import Console
from torch.utils.data import DataLoader

from litseq.callbacks import TranslationWriter, run_folder
from litseq.callbacks.outputs import _merge, _part, _records, _score_table, write_lines
from litseq.evaluation import CorpusScores, Evaluation, Interval, corpus_scores
from litseq.types import ScoredText, Translation

SOURCES = ["one", "two\u2028lines", "three", "four", "five", "six\nlines", "seven"]
REFERENCES = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben"]
HYPOTHESES = ["eins", "zwei", "drei", "vier\r\nvier", "fünf", "中文", "\tsieben"]
ORDER = [4, 0, 6, 2, 1, 3, 5]  # as a loader that sorts by length would yield them


def translation(i: int, n_best: int = 1) -> Translation:
    texts = (ScoredText(HYPOTHESES[i] + "!" * k, -0.5 - k, -1.0 - k, 2) for k in range(n_best))
    return Translation(i, SOURCES[i], tuple(texts), REFERENCES[i])


def evaluation(split: str) -> Evaluation:
    rows = tuple(translation(i) for i in range(len(SOURCES)))
    texts = [row.text for row in rows]
    return Evaluation(split, rows, corpus_scores(texts, REFERENCES, confidence=split == "test"))


class Plain(LightningModule):
    """A module that knows nothing of litseq; its batch is a mapping with ids."""

    def __init__(self, results: list | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.results = results  # by id, what predict_step returns

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.weight.detach(), batch_size=len(batch["id"]))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.weight.detach(), batch_size=len(batch["id"]))

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return [self.results[i] for i in batch["id"].tolist()]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Evaluating(Plain):
    """A module that keeps the contract: its evaluation stands at the end of the epoch."""

    evaluation: Evaluation | None = None
    num_validations = 0

    def on_validation_epoch_end(self):
        self.num_validations += 1
        self.evaluation = evaluation("val")

    def on_test_epoch_end(self):
        self.evaluation = evaluation("test")


def loader(ids=ORDER, *, key: str = "id", batch_size: int = 3) -> DataLoader:
    return DataLoader([{key: i} for i in ids], batch_size=batch_size)


def quiet_trainer(folder: Path, *callbacks, **options) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **options})


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


OUTPUTS = {"hypotheses.txt", "references.txt", "scores.json", "sources.txt"}


@pytest.mark.parametrize(("method", "split"), [("test", "test"), ("validate", "val")])
def test_evaluation_is_written_and_shown(tmp_path, capsys, method, split):
    trainer = quiet_trainer(tmp_path, TranslationWriter())
    getattr(trainer, method)(Evaluating(), loader(), verbose=False)

    assert files(tmp_path) == {f"{split}/{name}" for name in OUTPUTS}
    assert lines(tmp_path / split / "references.txt") == REFERENCES
    # a line stays a line, whatever stands inside it
    sources = ["one", "two lines", "three", "four", "five", "six lines", "seven"]
    assert lines(tmp_path / split / "sources.txt") == sources
    hypotheses = ["eins", "zwei", "drei", "vier vier", "fünf", "中文", "\tsieben"]
    assert lines(tmp_path / split / "hypotheses.txt") == hypotheses

    scores = json.loads((tmp_path / split / "scores.json").read_text("utf-8"))
    expected = evaluation(split).scores
    assert scores["split"] == split
    assert scores["tgt_lang"] is None
    assert scores["confidence"] == {
        name: dataclasses.asdict(interval) for name, interval in expected.confidence.items()
    }
    everything = {"bleu", "chrf", "ter", "exact_match"}
    assert set(scores["confidence"]) == (everything if split == "test" else set())
    assert scores["checkpoint"] is None
    assert scores["num_sentences"] == 7
    assert scores["signatures"] == expected.signatures
    for name in ("bleu", "chrf", "ter", "exact_match"):
        assert scores[name] == getattr(expected, name)

    shown = capsys.readouterr().out
    assert f"{split}: 7 sentences" in shown
    assert f"{expected.chrf:.2f}" in shown
    assert ("95 % interval" in shown) == (split == "test")
    for interval in expected.confidence.values():
        assert f"{interval.low:.2f} to {interval.high:.2f}" in shown
    # neither a signature nor a path is ever broken
    assert f"BLEU|{expected.signatures['bleu']}\n" in shown
    assert f"TER|{expected.signatures['ter']}\n" in shown
    assert f"{split} outputs: {tmp_path / split}\n" in shown


def test_scores_without_ter(tmp_path, capsys):
    class Quick(Plain):
        scores = corpus_scores(HYPOTHESES, REFERENCES, ter=False)
        evaluation = dataclasses.replace(evaluation("test"), scores=scores)

    quiet_trainer(tmp_path, TranslationWriter()).test(Quick(), loader(), verbose=False)
    assert json.loads((tmp_path / "test" / "scores.json").read_text("utf-8"))["ter"] is None
    shown = capsys.readouterr().out
    assert "BLEU" in shown
    assert "TER" not in shown


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_readme_shows_the_table_that_is_printed(page):
    readme = (Path(__file__).parents[2] / page).read_text("utf-8")
    block = readme.split("    test: 1000 sentences\n")[1].split("\n    ...")[0]
    values = [float(value) for value in re.findall(r"\d+\.\d\d", block.split("BLEU|")[0])]
    names = ("bleu", "chrf", "ter", "exact_match")
    confidence = {
        name: Interval((low + high) / 2, (high - low) / 2)
        for name, low, high in zip(names, values[1::3], values[2::3], strict=True)
    }
    scores = CorpusScores(*values[::3], 1000, {}, "zh", confidence)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(_score_table(Evaluation("test", (), scores)))
    shown = [f"    {line}".rstrip() for line in captured.get().rstrip().splitlines()]

    some = corpus_scores(["中"], ["中"], tgt_lang="zh", ter=False, confidence=True)
    signature = some.signatures["bleu"]
    assert f"{shown[0]}\n{block}" == "\n".join([*shown, "", f"    BLEU|{signature}"])


def test_scores_name_the_checkpoint(tmp_path):
    trainer = quiet_trainer(tmp_path, TranslationWriter())
    model = Evaluating()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    trainer.test(model, loader(), verbose=False, ckpt_path=tmp_path / "model.ckpt")
    scores = json.loads((tmp_path / "test" / "scores.json").read_text("utf-8"))
    assert scores["checkpoint"] == str(tmp_path / "model.ckpt")


def test_fit_keeps_the_latest_validation_and_sums_up(tmp_path, capsys):
    logger = CSVLogger(tmp_path)
    checkpoint = ModelCheckpoint(monitor="val/loss", filename="best")
    writer = TranslationWriter()
    trainer = quiet_trainer(
        tmp_path, writer, checkpoint, max_epochs=2, logger=logger, enable_checkpointing=True
    )
    model = Evaluating()
    trainer.fit(model, loader(), loader())
    assert model.num_validations == 3  # the sanity check, two epochs

    run = Path(logger.log_dir)
    assert {f"val/{name}" for name in OUTPUTS} < files(run)
    scores = json.loads((run / "val" / "scores.json").read_text("utf-8"))
    assert (scores["step"], scores["epoch"]) == (6, 1)

    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if "steps" in line] == [["steps", "6"]]
    assert [line.split() for line in shown.splitlines() if "epochs" in line] == [["epochs", "2"]]
    assert f"run folder: {run}\n" in shown
    assert "checkpoints/best.ckpt" in shown
    best = next(line for line in shown.splitlines() if "best val/loss" in line)
    assert f"{float(checkpoint.best_model_score):.4g}" in best
    last = next(line for line in shown.splitlines() if "last val/loss" in line)
    assert f"{float(trainer.callback_metrics['val/loss']):.4g}" in last
    assert "sentences" not in shown  # no table for each validation


def test_sanity_check_and_fast_dev_run_write_nothing(tmp_path, capsys):
    class Stop(Evaluating):
        def on_train_start(self):
            raise KeyError("after the sanity check")

    with pytest.raises(KeyError, match="after the sanity check"):
        quiet_trainer(tmp_path, TranslationWriter(), max_steps=1).fit(Stop(), loader(), loader())
    assert files(tmp_path) == set()

    model = Evaluating([translation(i) for i in range(7)])
    trainer = quiet_trainer(tmp_path, TranslationWriter(), fast_dev_run=True)
    trainer.fit(model, loader(), loader())
    trainer.test(model, loader(), verbose=False)
    trainer.predict(model, loader())
    assert files(tmp_path) == set()
    assert str(tmp_path) not in capsys.readouterr().out


def test_old_scores_never_stand_beside_new_texts(tmp_path, monkeypatch):
    write_lines(tmp_path / "test" / "scores.json", ["{}"])
    write_lines(tmp_path / "test" / "hypotheses.txt", ["old"])

    class Broken(Evaluating):
        def on_test_epoch_end(self):
            super().on_test_epoch_end()
            object.__setattr__(self.evaluation.translations[3], "hypotheses", ())

    with pytest.raises(IndexError, match="tuple index out of range"):
        quiet_trainer(tmp_path, TranslationWriter()).test(Broken(), loader(), verbose=False)
    # what could not be written whole is as it was, and no scores speak for the mixture
    assert lines(tmp_path / "test" / "hypotheses.txt") == ["old"]
    assert files(tmp_path / "test") == OUTPUTS - {"scores.json"}


def test_module_without_evaluation_is_told_once(tmp_path, caplog, capsys):
    trainer = quiet_trainer(tmp_path, TranslationWriter(), max_epochs=3)
    with caplog.at_level(logging.WARNING, logger="litseq"):
        trainer.fit(Plain(), loader(), loader())
        trainer.test(Plain(), loader(), verbose=False)
    assert [r.message for r in caplog.records if r.name.startswith("litseq")] == [
        "TranslationWriter writes no val/: Plain has no litseq.evaluation.Evaluation of split "
        "'val' as `evaluation`; set it in on_validation_epoch_end.",
        "TranslationWriter writes no test/: Plain has no litseq.evaluation.Evaluation of split "
        "'test' as `evaluation`; set it in on_test_epoch_end.",
    ]
    assert files(tmp_path) == set()
    assert f"run folder: {tmp_path}\n" in capsys.readouterr().out  # that needs no translations


def test_none_means_nothing_this_time(tmp_path, caplog):
    class Idle(Plain):
        evaluation = None

    quiet_trainer(tmp_path, TranslationWriter()).test(Idle(), loader(), verbose=False)
    assert files(tmp_path) == set()
    assert not [r for r in caplog.records if r.name.startswith("litseq")]


def test_evaluation_of_the_other_split_is_not_taken(tmp_path, caplog):
    class Stale(Plain):
        evaluation = evaluation("val")

    quiet_trainer(tmp_path, TranslationWriter()).test(Stale(), loader(), verbose=False)
    assert "Stale has no litseq.evaluation.Evaluation of split 'test'" in caplog.text
    assert files(tmp_path) == set()


@pytest.mark.parametrize("return_predictions", [True, False])
def test_predictions_are_in_input_order(tmp_path, capsys, return_predictions):
    model = Plain([translation(i, n_best=2) for i in range(7)])
    trainer = quiet_trainer(tmp_path, TranslationWriter())
    trainer.predict(model, loader(), return_predictions=return_predictions)

    assert files(tmp_path) == {"predictions.txt", "predictions.jsonl"}
    expected = ["eins", "zwei", "drei", "vier vier", "fünf", "中文", "\tsieben"]
    assert lines(tmp_path / "predictions.txt") == expected
    text = (tmp_path / "predictions.jsonl").read_text("utf-8")
    assert "中文" in text
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    assert [row["id"] for row in rows] == list(range(7))
    assert rows[3] == {
        "id": 3,
        "source": "four",
        "text": "vier\r\nvier",
        "score": -0.5,
        "log_prob": -1.0,
        "num_tokens": 2,
        "reference": "vier",
        "hypotheses": [
            {"text": "vier\r\nvier", "score": -0.5, "log_prob": -1.0, "num_tokens": 2},
            {"text": "vier\r\nvier!", "score": -1.5, "log_prob": -2.0, "num_tokens": 2},
        ],
    }
    where = f"7 predictions: {tmp_path / 'predictions.txt'} and predictions.jsonl\n"
    assert where in capsys.readouterr().out


def test_a_line_is_the_record_of_its_translation(tmp_path):
    alone = Translation(0, "a", (ScoredText("b", -0.5, -1.0, 2),))
    quiet_trainer(tmp_path, TranslationWriter()).predict(Plain([alone]), loader([0]))
    assert json.loads((tmp_path / "predictions.jsonl").read_text("utf-8")) == alone.as_dict()


def test_strings_take_their_ids_from_the_batch(tmp_path):
    quiet_trainer(tmp_path, TranslationWriter()).predict(Plain(REFERENCES), loader())
    assert lines(tmp_path / "predictions.txt") == REFERENCES
    assert json.loads(lines(tmp_path / "predictions.jsonl")[2]) == {"id": 2, "text": "drei"}


def test_strings_without_ids_keep_their_order(tmp_path):
    class Strings(Plain):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return [f"{dataloader_idx}:{i}" for i in batch["number"].tolist()]

    two = [loader(ORDER, key="number"), loader([1, 0], key="number")]
    quiet_trainer(tmp_path, TranslationWriter()).predict(Strings(), two)
    expected = [f"0:{i}" for i in ORDER] + ["1:1", "1:0"]
    assert lines(tmp_path / "predictions.txt") == expected
    ids = [json.loads(line)["id"] for line in lines(tmp_path / "predictions.jsonl")]
    assert ids == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_missing_ids_are_said(tmp_path, caplog):
    trainer = quiet_trainer(tmp_path, TranslationWriter(), limit_predict_batches=2)
    trainer.predict(Plain(REFERENCES), loader())  # ids 4 0 6 2 1 3
    assert "predictions.txt lacks 1 of the ids up to 6" in caplog.text
    assert len(lines(tmp_path / "predictions.txt")) == 6


@pytest.mark.parametrize(
    ("result", "kind"),
    [(torch.zeros(3), "Tensor"), (None, "NoneType"), ([torch.ones(1), "a"], "list of Tensor, str")],
)
def test_other_predictions_are_told_once_and_pass(tmp_path, caplog, result, kind):
    class Other(Plain):
        def predict_step(self, batch, batch_idx):
            return result

    trainer = quiet_trainer(tmp_path, TranslationWriter())
    assert len(trainer.predict(Other(), loader())) == 3
    trainer.predict(Other(), loader())
    assert [r.message for r in caplog.records if r.name.startswith("litseq")] == [
        f"TranslationWriter writes no predictions: predict_step returns a {kind}, not a list of "
        "litseq.types.Translation or of strings."
    ]
    assert files(tmp_path) == set()


def test_folder_can_be_chosen(tmp_path):
    writer = TranslationWriter(str(tmp_path / "here"))
    quiet_trainer(tmp_path / "run", writer).test(Evaluating(), loader(), verbose=False)
    assert files(tmp_path) == {f"here/test/{name}" for name in OUTPUTS}


class TwoRanks(Plain):
    """Rank zero yields one batch more than rank one."""

    def predict_dataloader(self):
        rank = self.trainer.global_rank
        return loader(ORDER[:4] if rank == 0 else ORDER[4:], batch_size=2)


class Disagreeing(TwoRanks):
    def predict_step(self, batch, batch_idx):
        texts = super().predict_step(batch, batch_idx)
        return torch.zeros(2) if self.trainer.global_rank == 1 else texts


def two_ranks(tmp_path: Path) -> Trainer:
    return quiet_trainer(
        tmp_path,
        TranslationWriter(),
        strategy="ddp_fork",
        devices=2,
        use_distributed_sampler=False,
    )


def test_ranks_are_merged_in_input_order(tmp_path):
    model = TwoRanks([translation(i) for i in range(7)])
    two_ranks(tmp_path).predict(model, return_predictions=False)
    assert files(tmp_path) == {"predictions.txt", "predictions.jsonl"}
    expected = ["eins", "zwei", "drei", "vier vier", "fünf", "中文", "\tsieben"]
    assert lines(tmp_path / "predictions.txt") == expected
    rows = [
        json.loads(x) for x in (tmp_path / "predictions.jsonl").read_text("utf-8").split("\n")[:-1]
    ]
    assert [row["source"] for row in rows] == SOURCES


def test_ranks_that_disagree_write_nothing_and_do_not_hang(tmp_path):
    two_ranks(tmp_path).predict(Disagreeing(REFERENCES), return_predictions=False)
    assert files(tmp_path) == set()


def test_missing_part_of_a_rank_is_refused(tmp_path):
    write_lines(_part(tmp_path, 0), ['[0, {"id": 0, "text": "a"}]'])
    with pytest.raises(FileNotFoundError, match="the predictions of rank 1 of 2, is not there"):
        _merge(tmp_path, 2)
    write_lines(_part(tmp_path, 1), ['[0, {"id": 0, "text": "a"}]', '[0, {"id": 1, "text": "b"}]'])
    assert _merge(tmp_path, 2) == {(0, i): {"id": i, "text": t} for i, t in enumerate("ab")}
    assert files(tmp_path) == set()


def test_strings_of_several_ranks_need_ids():
    with pytest.raises(ValueError, match="the batch has no `id` for each of them"):
        _records(["a", "b"], {"id": torch.tensor([3])}, first=None)


class Look(Evaluating):
    def on_train_end(self):
        self.folder = run_folder(self.trainer)
        self.checkpoints = Path(self.trainer.checkpoint_callback.best_model_path).parent


@pytest.mark.parametrize("options", [None, {}, {"name": None, "version": "mine"}])
def test_run_folder_is_where_the_checkpoints_are(tmp_path, options):
    logger = False if options is None else CSVLogger(tmp_path, **options)
    model = Look()
    trainer = quiet_trainer(tmp_path, max_steps=1, logger=logger, enable_checkpointing=True)
    trainer.fit(model, loader(), loader())
    assert model.checkpoints == model.folder / "checkpoints"


def test_wandb_runs_do_not_share_their_folder(tmp_path, offline_wandb):
    logger = WandbLogger(save_dir=tmp_path, project="p", version="run1")
    model = Look()
    trainer = quiet_trainer(
        tmp_path, TranslationWriter(), max_epochs=1, logger=logger, enable_checkpointing=True
    )
    trainer.fit(model, loader(), loader())
    assert model.folder == tmp_path / "p" / "run1"
    assert model.checkpoints == model.folder / "checkpoints"
    assert (model.folder / "val" / "hypotheses.txt").exists()
    assert offline_wandb().values("val/loss") == [float(trainer.callback_metrics["val/loss"])]


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_lines(path, ["a", "é"])
    assert path.read_bytes() == "a\né\n".encode()

    def broken():
        yield "b"
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="the disk is on fire"):
        write_lines(path, broken())
    assert path.read_bytes() == "a\né\n".encode()
    assert files(tmp_path) == {"new/file.txt"}
