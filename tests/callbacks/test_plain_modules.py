"""Every callback on modules that know nothing of litseq, under both Lightning packages."""

import csv
import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from litseq.callbacks import (
    AttentionLogger,
    BestCheckpoint,
    ExponentialAverage,
    MemoryCheck,
    NonFiniteGuard,
    PrecisionMonitor,
    RankMonitor,
    RunCheckpoint,
    TokenThroughput,
    TranslationSamples,
    TranslationWriter,
)
from litseq.callbacks.idle import RefuseIdleRun
from litseq.data import TokenBucketLoader, collate

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
B, S, T, V, NUM = 3, 7, 5, 23, 12
WORDS = [f"w{i}" for i in range(V)]


@pytest.fixture(params=PACKAGES)
def package(request):
    """Lightning, under either name: the same code, but other classes."""
    return pytest.importorskip(request.param)


# ---- a project as there are many: own module, own DataLoader, nothing of ours ----


def dict_examples():
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(4, V, (NUM, S), generator=generator)
    mask = torch.ones_like(src)
    mask[1::3, 5:] = 0
    tgt = torch.randint(4, V, (NUM, T), generator=generator)
    return [
        {"input_ids": s, "attention_mask": m, "labels": t}
        for s, m, t in zip(src, mask, tgt, strict=True)
    ]


def tuple_examples():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(NUM, 4, generator=generator)
    return list(zip(features, features.sum(1, keepdim=True), strict=True))


def make_modules(package):
    class Steps(package.LightningModule):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch))

        def test_step(self, batch, batch_idx):
            self.log("test_loss", self.loss(batch))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    class Regression(Steps):
        """Tuples in; neither attention, nor text, nor a ``predict_step``."""

        examples = staticmethod(tuple_examples)

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, batch):
            return self.layer(batch[0])

        def loss(self, batch):
            return nn.functional.mse_loss(self(batch), batch[1])

    class Translation(Steps):
        """``nn.Transformer`` over dicts; predicts text."""

        examples = staticmethod(dict_examples)

        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(V, 12)
            self.transformer = nn.Transformer(12, 3, 1, 1, 20, dropout=0.1, batch_first=True)
            self.output = nn.Linear(12, V)

        def forward(self, input_ids, attention_mask, labels):
            padding = attention_mask == 0
            tgt_in = labels.roll(1, 1).index_fill(1, labels.new_tensor(0), 2)
            hidden = self.transformer(
                self.embedding(input_ids),
                self.embedding(tgt_in),
                tgt_mask=nn.Transformer.generate_square_subsequent_mask(labels.size(1)),
                src_key_padding_mask=padding,
                memory_key_padding_mask=padding,
            )
            return self.output(hidden)

        def loss(self, batch):
            return nn.functional.cross_entropy(
                self(**batch).flatten(0, 1), batch["labels"].flatten()
            )

        def predict_step(self, batch, batch_idx):
            return [" ".join(WORDS[i] for i in row) for row in self(**batch).argmax(-1).tolist()]

    class ByHand(Regression):
        """Optimizes by hand."""

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            optimizer.step()

    return {"regression": Regression, "by hand": ByHand, "translation": Translation}


def make_trainer(package, folder, callbacks, **options):
    importlib.import_module(f"{package.__name__}.callbacks")
    loggers = importlib.import_module(f"{package.__name__}.loggers")
    return package.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        logger=loggers.CSVLogger(folder, name="run", version=0),
        # only its own package's checkpoint callbacks are a reason to allow them
        enable_checkpointing=any(
            isinstance(callback, package.callbacks.Checkpoint) for callback in callbacks
        ),
        **{"max_epochs": 2, **options},
    )


@dataclass
class Project:
    """Runs a module through everything that a Trainer does."""

    package: Any
    kind: str
    folder: Path

    def __post_init__(self):
        torch.manual_seed(0)
        self.module = make_modules(self.package)[self.kind]()

    def loader(self):
        return DataLoader(self.module.examples(), batch_size=B)

    def fit(self, *callbacks, ckpt_path=None, **options):
        torch.manual_seed(1)
        trainer = make_trainer(self.package, self.folder, list(callbacks), **options)
        trainer.fit(
            self.module, self.loader(), self.loader(), ckpt_path=ckpt_path, weights_only=True
        )
        return trainer

    def weights(self):
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def metrics(self):
        with (self.folder / "run" / "version_0" / "metrics.csv").open() as file:
            return {name for row in csv.DictReader(file) for name, value in row.items() if value}

    def files(self):
        """What a run leaves beside its metrics."""
        run = self.folder / "run" / "version_0"
        files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        return files - {"metrics.csv"}


CALLBACKS = {
    "AttentionLogger": lambda: AttentionLogger(num_samples=1),
    "BestCheckpoint": lambda: BestCheckpoint("val_loss", "min"),
    "ExponentialAverage": lambda: ExponentialAverage(decay=0.9),
    "MemoryCheck": MemoryCheck,
    "NonFiniteGuard": NonFiniteGuard,
    "PrecisionMonitor": PrecisionMonitor,
    "RankMonitor": RankMonitor,
    "RefuseIdleRun": RefuseIdleRun,
    "RunCheckpoint": RunCheckpoint,
    "TokenThroughput": TokenThroughput,
    "TranslationSamples": lambda: TranslationSamples(num_samples=2),
    "TranslationWriter": TranslationWriter,
}

# What a callback says, each one line, of a module or batch that lacks what it needs.
NO_TEXT = [
    "TranslationWriter writes no val/: {module} has no litseq.evaluation.Evaluation of split "
    "'val' as `evaluation`; set it in on_validation_epoch_end.",
    "TranslationWriter writes no test/: {module} has no litseq.evaluation.Evaluation of split "
    "'test' as `evaluation`; set it in on_test_epoch_end.",
]
SAID = {
    ("AttentionLogger", "regression"): [
        "AttentionLogger shows nothing from here on: ValueError: {module} holds no attention: "
        "looked for DotProductAttention, ScoreAttention, MultiheadAttention and models of the "
        "transformers library; name a reader for another class."
    ],
    ("MemoryCheck", None): ["MemoryCheck checks nothing: DataLoader has no largest_batches()."],
    ("NonFiniteGuard", "by hand"): ["NonFiniteGuard guards nothing: {module} optimizes by hand."],
    ("TokenThroughput", "regression"): [
        "TokenThroughput logs nothing: a batch must be a mapping with a tensor `labels`, got list."
    ],
    ("TranslationSamples", "regression"): [
        "TranslationSamples shows nothing from here on: {module} has neither an `evaluation` nor a "
        "predict_step that returns strings; add one of them, or give texts to a module that has "
        "translate(texts)."
    ],
    ("TranslationWriter", "regression"): [
        *NO_TEXT,
        "TranslationWriter writes no predictions: predict_step returns a Tensor, not a list of "
        "litseq.types.Translation or of strings.",
    ],
    ("TranslationWriter", "translation"): NO_TEXT,
}  # fmt: skip
UNKNOWN = (
    "{callback} is no checkpoint callback to a Trainer of pytorch_lightning: ckpt_path 'best' and "
    "'last' do not find its files, give their paths; enable_checkpointing=False leaves out the "
    "ModelCheckpoint that the Trainer adds."
)
FILES = {
    ("AttentionLogger", "translation"): {
        f"attention/cross.0/sample0-step{step:08}.png" for step in (4, 8)
    },
    ("BestCheckpoint", None): {"checkpoints/best.ckpt"},
    ("RunCheckpoint", None): {"checkpoints/last.ckpt", "checkpoints/previous.ckpt"},
    ("TranslationSamples", "translation"): {"samples.tsv"},
    ("TranslationWriter", "translation"): {"predictions.txt", "predictions.jsonl"},
}
METRICS = {
    ("AttentionLogger", "translation"): {
        "attention/coverage/cross.0", "attention/entropy/cross.0.2",
    },
    ("NonFiniteGuard", None): {"train/skipped_steps"},
    ("PrecisionMonitor", None): {"train/grad_norm", "train/param_norm"},
    ("TokenThroughput", "translation"): {"train/tokens_per_second", "train/padding"},
}  # fmt: skip


def expected(table, name, kind, default):
    if kind == "by hand" and (name, kind) not in table:
        kind = "regression"
    return table.get((name, kind), table.get((name, None), default))


@pytest.mark.parametrize("kind", ["regression", "by hand", "translation"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_works_or_says_what_is_missing(package, kind, name, tmp_path, caplog):
    bare = Project(package, kind, tmp_path / "bare")
    bare.fit().save_checkpoint(tmp_path / "bare.ckpt")

    project = Project(package, kind, tmp_path)
    with caplog.at_level(logging.WARNING, logger="litseq"):
        trainer = project.fit(CALLBACKS[name]())
        path = tmp_path / "saved.ckpt"
        trainer.save_checkpoint(path)
        trainer.validate(project.module, project.loader(), verbose=False)
        trainer.test(project.module, project.loader(), verbose=False)
        predictions = trainer.predict(project.module, project.loader())

    assert len(predictions) == NUM // B
    module = type(project.module).__name__
    said = [line.format(module=module) for line in expected(SAID, name, kind, [])]
    if name.endswith("Checkpoint") and package.__name__ == "pytorch_lightning":
        said.append(UNKNOWN.format(callback=name))
    ours = [record for record in caplog.records if record.name.startswith("litseq")]
    assert [record.getMessage() for record in ours] == said
    assert project.files() == expected(FILES, name, kind, set())
    assert project.metrics() >= expected(METRICS, name, kind, set())

    # nothing else has changed, to the last bit
    checkpoint = torch.load(path, weights_only=True)
    raw = checkpoint["current_model_state" if name == "ExponentialAverage" else "state_dict"]
    torch.testing.assert_close(raw, bare.weights(), rtol=0, atol=0)

    # and a run goes on from its checkpoint
    again = Project(package, kind, tmp_path / "again")
    again.fit(ckpt_path=tmp_path / "bare.ckpt", max_epochs=3)
    resumed = Project(package, kind, tmp_path / "resumed")
    trainer = resumed.fit(CALLBACKS[name](), ckpt_path=path, max_epochs=3)
    assert trainer.global_step == 3 * NUM // B
    # the one keeps another state, the other also restores the random numbers of dropout
    if name != "ExponentialAverage" and (name, kind) != ("RunCheckpoint", "translation"):
        torch.testing.assert_close(resumed.weights(), again.weights(), rtol=0, atol=0)


# ---- samples: each thing that a module may have ----


def fit_samples(project, samples, **options):
    project.fit(samples, **options)
    text = (project.folder / "run" / "version_0" / "samples.tsv").read_text("utf-8")
    header, *rows = [line.split("\t") for line in text.splitlines()]
    assert header == ["step", "id", "source", "reference", "hypothesis", "chrF"]
    return rows


def test_samples_of_a_module_that_translates_texts(package, tmp_path):
    project = Project(package, "regression", tmp_path)
    project.module.translate = lambda texts: [text.upper() for text in texts]
    samples = TranslationSamples(texts=[("a house", "A HOUSE"), ("a tree", "")])
    assert fit_samples(project, samples) == [
        [step, *rest]
        for step in ("4", "8")
        for rest in (
            ["0", "a house", "A HOUSE", "A HOUSE", "100.0"],
            ["1", "a tree", "", "A TREE", ""],
        )
    ]


class Words:
    """A tokenizer with the least that one has."""

    def decode(self, ids):
        return " ".join(WORDS[i] for i in ids)


@pytest.mark.parametrize("tokenizer", [None, Words()], ids=["ids alone", "a tokenizer"])
def test_samples_of_predictions_stay_the_same_sentences(tokenizer, package, tmp_path):
    project = Project(package, "translation", tmp_path)
    project.module.tokenizer = tokenizer
    rows = fit_samples(project, TranslationSamples(num_samples=2))
    examples = [dict_examples()[number] for number in (1, 4)]  # of the first two batches
    for row, example in zip(rows, 2 * examples, strict=True):
        words = ["", ""]
        if tokenizer is not None:
            words = [tokenizer.decode(example[name].tolist()) for name in ("input_ids", "labels")]
        assert row[2:4] == words
        assert len(row[4].split()) == T
        assert bool(row[5]) == bool(words[1])
    assert [row[:2] for row in rows] == [["4", "0"], ["4", "1"], ["8", "0"], ["8", "1"]]


def test_samples_of_a_batch_with_its_own_texts(package, tmp_path):
    project = Project(package, "regression", tmp_path)
    project.module.examples = lambda: [
        {"x": x, "y": y, "source": f"source {i}", "reference": f"target {i}", "id": 10 + i}
        for i, (x, y) in enumerate(tuple_examples())
    ]
    project.module.loss = lambda batch: nn.functional.mse_loss(
        project.module.layer(batch["x"]), batch["y"]
    )
    project.module.__class__.predict_step = lambda self, batch, batch_idx: [
        text.replace("source", "target") for text in batch["source"]
    ]
    rows = fit_samples(project, TranslationSamples(num_samples=2), max_epochs=1)
    assert rows == [
        ["4", str(10 + i), f"source {i}", f"target {i}", f"target {i}", "100.0"] for i in (1, 4)
    ]


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (torch.zeros(1), "predict_step must return a list of strings, got a Tensor"),
        ([1], "predict_step must return a list of strings, got a list of int"),
        (["one", "two"], "predict_step returned 2 strings for 1 examples"),
        (KeyError("width"), "KeyError: 'width'"),
    ],
)
def test_samples_say_what_is_wrong_and_training_goes_on(outputs, said, package, tmp_path, caplog):
    def predict_step(batch, batch_idx):
        if isinstance(outputs, Exception):
            raise outputs
        return outputs

    project = Project(package, "translation", tmp_path)
    type(project.module).predict_step = lambda self, batch, batch_idx: predict_step(batch, 0)
    trainer = project.fit(TranslationSamples(num_samples=1))
    assert trainer.global_step == 8
    assert [r.getMessage() for r in caplog.records if r.name.startswith("litseq")] == [
        f"TranslationSamples shows nothing from here on: {said}."
    ]


def test_samples_of_texts_need_translate(package, tmp_path, caplog):
    Project(package, "translation", tmp_path).fit(TranslationSamples(texts=[("a", "b")]))
    assert [r.getMessage() for r in caplog.records if r.name.startswith("litseq")] == [
        "TranslationSamples shows nothing from here on: texts need Translation to have "
        "translate(texts), from a list of strings to a list of strings; add it, or leave texts out."
    ]


def test_a_resumed_run_shows_the_same_samples(package, tmp_path):
    class Reversed(Project):
        def loader(self):
            return DataLoader(self.module.examples()[::-1], batch_size=B)

    project = Project(package, "translation", tmp_path)
    project.module.tokenizer = Words()
    trainer = project.fit(TranslationSamples(num_samples=2))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    project = Reversed(package, "translation", tmp_path / "resumed")
    project.module.tokenizer = Words()
    rows = fit_samples(
        project, TranslationSamples(num_samples=2), ckpt_path=tmp_path / "saved.ckpt", max_epochs=3
    )
    assert [row[0] for row in rows] == ["4", "4", "8", "8", "12", "12"]
    assert [row[2:4] for row in rows[:2]] == [row[2:4] for row in rows[4:]]


# ---- checkpoints ----


class Counter(Callback):
    """Has a state that is right only behind its own hooks."""

    def __init__(self):
        self.validations = 0

    def on_validation_end(self, trainer, pl_module):
        self.validations += not trainer.sanity_checking

    def state_dict(self):
        return {"validations": self.validations}


def test_checkpoints_come_behind_other_callbacks(package, tmp_path):
    callbacks = [RunCheckpoint(), BestCheckpoint("val_loss", "min"), Counter()]
    trainer = Project(package, "regression", tmp_path).fit(*callbacks, max_epochs=1)
    places = [trainer.callbacks.index(callback) for callback in callbacks]
    assert places[2] < places[1] < places[0]
    best = torch.load(callbacks[1].best_model_path, weights_only=True)
    assert best["callbacks"][callbacks[2].state_key] == {"validations": 1}
    # written last, the newest knows the best
    last = torch.load(callbacks[0].best_model_path, weights_only=True)
    assert last["callbacks"][callbacks[1].state_key]["best_model_path"].endswith("best.ckpt")


def bucket_loader(**options):
    """Our loader over anybody's examples."""
    examples = dict_examples()

    def load(numbers, epoch):
        return collate(
            [examples[i]["input_ids"].tolist() for i in numbers],
            [examples[i]["labels"].tolist() for i in numbers],
            ids=numbers,
        )

    return TokenBucketLoader(load, [S] * NUM, [T] * NUM, max_tokens=2 * S, **options)


class WithBuckets(Project):
    def __post_init__(self):
        super().__post_init__()
        loss = self.module.loss
        self.seen = []

        def recorded(batch):
            batch = dict(batch)
            if self.module.training:
                self.seen.append(batch["id"].tolist())
            batch.pop("id")
            return loss(batch)

        self.module.loss = recorded

    def loader(self):
        return bucket_loader()


def test_a_foreign_module_with_our_loader_resumes_with_the_very_next_batch(package, tmp_path):
    whole = WithBuckets(package, "translation", tmp_path / "whole")
    whole.fit(RunCheckpoint(), max_epochs=3)
    stopped = WithBuckets(package, "translation", tmp_path)
    stopped.fit(RunCheckpoint(every_n_steps=4), max_steps=10)  # 6 steps are an epoch
    resumed = WithBuckets(package, "translation", tmp_path / "resumed")
    path = tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt"
    resumed.fit(RunCheckpoint(), ckpt_path=path, max_epochs=3)
    assert stopped.seen + resumed.seen == whole.seen
    torch.testing.assert_close(resumed.weights(), whole.weights(), rtol=0, atol=0)


def test_memory_check_of_a_foreign_module_with_our_loader(package, tmp_path, caplog):
    project = WithBuckets(package, "translation", tmp_path)
    with caplog.at_level(logging.INFO, logger="litseq"):
        project.fit(MemoryCheck())
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("litseq")]
    assert line.startswith("a training step on 2 sentences of 7 source and 5 target tokens, the ")


def test_a_bad_step_is_left_out(package, tmp_path, caplog):
    project = Project(package, "regression", tmp_path)
    loss = project.module.loss
    project.module.loss = lambda batch: (
        loss(batch)
        * (float("nan") if project.module.training and project.module.global_step == 1 else 1)
    )
    project.fit(NonFiniteGuard())
    assert all(value.isfinite().all() for value in project.weights().values())
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("litseq")]
    assert line.startswith("step 2 is left out (1 so far, 1 in a row)")
