"""``streaming: true`` through the DataModule and a Trainer."""

import multiprocessing

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from litseq.callbacks import MemoryCheck
from litseq.data import StreamLoader, TranslationDataModule
from tiny_tasks import tiny_trainer

NUM_PAIRS = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pairs = [(f"{i} " + "dog " * (i % 4 + 1), f"{i}. " + "Hund " * (i % 4 + 1)) for i in range(120)]
    for name, rows in {"train": pairs[:NUM_PAIRS], "validation": pairs[NUM_PAIRS:]}.items():
        (folder / f"{name}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
        lines = "".join(f'{{"translation": {{"en": "{a}", "de": "{b}"}}}}\n' for a, b in rows)
        (folder / "hub").mkdir(exist_ok=True)
        (folder / "hub" / f"{name}.jsonl").write_text(lines)
    return folder


def make(folder, **options):
    files = {"train": str(folder / "train.tsv"), "val": str(folder / "validation.tsv")}
    defaults = {} if "dataset" in options else files
    defaults |= {"vocab_size": 50, "max_tokens": 60, "cache_dir": str(folder / "cache")}
    defaults |= {"streaming": True, "shuffle_buffer": 32}
    return TranslationDataModule("en", "de", **(defaults | options))


def prepare(folder, **options):
    data = make(folder, **options)
    data.prepare_data()
    data.setup("fit")
    return data


class Recorder(L.LightningModule):
    """Writes down which examples it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen, self.validated_after = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, tuple(batch["id"].tolist())))
        return self.layer(batch["id"].float()[:, None]).mean()

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.validated_after.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder, tmp_path, *, ckpt_path=None, data=None, **options):
    defaults = {"max_epochs": 2, "num_sanity_val_steps": 0}
    defaults["enable_checkpointing"] = "callbacks" in options
    trainer = tiny_trainer(tmp_path, **(defaults | options))
    module = Recorder()
    data = data or make(folder)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    return fit(folder, tmp_path_factory.mktemp("run"))


def test_a_trainer_sees_each_pair_once_per_epoch(uninterrupted):
    epochs = [[ids for e, ids in uninterrupted.seen if e == epoch] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(i for ids in epoch for i in ids) == list(range(NUM_PAIRS))
    assert uninterrupted.validated_after == [len(epochs[0]), len(uninterrupted.seen)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("where", ["first step", "mid-epoch", "epoch edge", "second epoch"])
def test_a_trainer_resumes_with_the_very_next_batch(
    folder, tmp_path, uninterrupted, where, num_workers
):
    steps = [epoch for epoch, _ in uninterrupted.seen].count(0)
    stop = {"first step": 1, "mid-epoch": 9, "epoch edge": steps, "second epoch": steps + 2}[where]
    saver = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=stop)
    options = {"max_steps": stop, "max_epochs": -1, "callbacks": [saver]}
    before = fit(folder, tmp_path, data=make(folder, num_workers=num_workers), **options)
    after = fit(folder, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert before.seen + after.seen == uninterrupted.seen


def test_workers_end_with_the_run(folder, tmp_path):
    before = set(multiprocessing.active_children())
    fit(folder, tmp_path, data=make(folder, num_workers=2), max_steps=3, max_epochs=-1)
    assert set(multiprocessing.active_children()) <= before


def test_nothing_of_the_training_data_is_stored(folder, tmp_path):
    cache = tmp_path / "cache"
    prepare(folder, cache_dir=str(cache)).tokenizer.save(tmp_path / "tokenizer")
    heads = [path for path in (cache / "text").iterdir()]
    assert len(heads) == 2  # what the tokenizer learned from, and val
    data = prepare(folder, cache_dir=str(tmp_path / "other"), tokenizer=str(tmp_path / "tokenizer"))
    assert len(list((tmp_path / "other" / "text").iterdir())) == 1  # val alone
    assert isinstance(data.train_dataloader(), StreamLoader)
    with pytest.raises(ValueError, match="train is streamed: its texts are not kept"):
        data.texts("train", [0])
    assert len(data.texts("val", [0, 1])[0]) == 2


def test_a_dataset_of_the_hub_is_streamed_alike(folder):
    local, hub = prepare(folder), prepare(folder, dataset=str(folder / "hub"))
    assert local.tokenizer.fingerprint == hub.tokenizer.fingerprint
    first, second = ([b["id"].tolist() for b in d.train_dataloader()] for d in (local, hub))
    assert first == second
    assert local.fingerprints.keys() == hub.fingerprints.keys() == {"train", "val"}


def test_the_largest_batch_is_tried_before_training(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    data = make(folder, max_src_len=20, max_tgt_len=30)
    fit(folder, tmp_path, data=data, callbacks=[MemoryCheck()], max_steps=1)
    assert "a training step on 2 sentences of 20 source and 30 target tokens" in caplog.text


def test_max_tokens_is_chosen_for_a_stream_too(folder, tmp_path):
    data = make(folder, max_tokens="auto")
    fit(folder, tmp_path, data=data, callbacks=[MemoryCheck(2048)], max_steps=1)
    assert data.state_dict()["max_tokens"] == 2048


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": None, "val_size": 5}, "streaming reads train while one trains, but val_size"),
        ({"dataset": "demo"}, "but the demo is prepared as a whole; give train"),
        ({"drop_duplicates": True}, "drop_duplicates compares all pairs"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1, got 0"),
    ],
)
def test_what_a_stream_cannot_do(folder, options, message):
    with pytest.raises(ValueError, match=message):
        make(folder, **options)


def test_a_missing_file_shows_at_once(folder, tmp_path):
    prepare(folder).tokenizer.save(tmp_path / "tokenizer")
    data = make(folder, train=str(folder / "trian.tsv"), tokenizer=str(tmp_path / "tokenizer"))
    with pytest.raises(FileNotFoundError, match=r"trian.tsv is missing.*nearest: train.tsv"):
        data.prepare_data()
