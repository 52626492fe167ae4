"""A run goes on with another number of ranks, in the middle of an epoch."""

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from litseq.architectures import TransformerSeq2Seq
from litseq.data import TranslationDataModule
from rank_processes import run_ranks
from tiny_tasks import TINY_TRANSFORMER, tiny_trainer


class Ids(Callback):
    """Keeps the ids of every optimizer step, by epoch; counts validations."""

    def __init__(self):
        self.seen, self.validations = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, trainer.global_step, batch["id"].tolist()))

    def on_validation_start(self, trainer, pl_module):
        self.validations.append((trainer.current_epoch, trainer.global_step))


def fit(
    rank, folder, options, world_size, *, parts=1, max_steps=-1, resume=None, schedule="constant"
):
    torch.manual_seed(0)
    task = TransformerSeq2Seq(
        **TINY_TRANSFORMER, dropout=0.0, warmup_steps=0, schedule=schedule, val_decode=False
    )
    ids = Ids()
    last = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = tiny_trainer(
        folder,
        strategy="ddp" if world_size > 1 else "auto",
        devices=world_size,
        accumulate_grad_batches=parts,
        callbacks=[ids, last],
        enable_checkpointing=True,
        precision="64-true",
        max_epochs=2,
        max_steps=max_steps,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, TranslationDataModule(**options), ckpt_path=resume)
    batches = trainer.num_training_batches
    return ids.seen, ids.validations, task.state_dict(), trainer.global_step, batches


def chain(folder, options, segments, **more):
    """Runs one after the other, each (ranks, micro-batches, up to which step)."""
    seen, validations, resume = [], [], None
    for number, (ranks, parts, max_steps) in enumerate(segments):
        results = run_ranks(
            ranks, _fit, folder / str(number), options, ranks,
            {"parts": parts, "max_steps": max_steps, "resume": resume, **more},
        )  # fmt: skip
        seen += [step for result in results for step in result[0]]
        validations += results[0][1]
        weights, steps = results[0][2:4]
        resume = str(folder / str(number) / f"step={steps}.ckpt")
    return seen, validations, weights, steps


def _fit(rank, folder, options, world_size, more):
    return fit(rank, folder, options, world_size, **more)


def by_step(seen):
    """The ids that met in each optimizer step."""
    found = {}
    for _, step, ids in seen:
        found.setdefault(step, Counter()).update(i for i in ids if i != -1)
    return found


@pytest.fixture(scope="module", params=["prepared", "streamed"])
def options(data_options, request):
    options = {**data_options, "max_tokens": 96}
    if request.param == "streamed":
        options |= {"streaming": True, "shuffle_buffer": 128, "num_workers": 1}
    TranslationDataModule(**options).prepare_data()
    return options


def check_ids(seen, num_examples=300):
    for epoch in (0, 1):
        count = Counter(i for e, _, ids in seen if e == epoch for i in ids if i != -1)
        assert sorted(count) == list(range(num_examples)), epoch
        assert set(count.values()) == {1}, epoch


def test_two_ranks_then_one_then_two_are_one_run(options, tmp_path):
    """A step of 4 batches each time: the same ids meet, and the weights agree to rounding."""
    whole = chain(tmp_path / "whole", options, [(1, 4, -1)])
    parts = chain(tmp_path / "parts", options, [(2, 2, 2), (1, 4, 5), (2, 2, -1)])
    check_ids(whole[0])
    check_ids(parts[0])
    assert by_step(parts[0]) == by_step(whole[0])
    assert (parts[1], parts[3]) == (whole[1], whole[3])
    torch.testing.assert_close(dict(parts[2]), dict(whole[2]), rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "schedule"),
    [("prepared", "constant"), ("prepared", "linear"), ("streamed", "constant")],
    indirect=["options"],
)
@pytest.mark.parametrize(
    "segments",
    [
        [(2, 1, 3), (1, 1, 5), (3, 1, -1)],
        [(3, 1, 2), (2, 1, -1)],
        [(1, 1, 1), (3, 2, 3), (2, 1, -1)],
        [(1, 2, 9), (2, 1, -1)],
    ],
)
def test_every_example_once_an_epoch(segments, schedule, options, tmp_path):
    seen, validations, _, _ = chain(tmp_path, options, segments, schedule=schedule)
    check_ids(seen)
    assert [epoch for epoch, _ in validations] == [0, 1]


@pytest.mark.parametrize("options", ["prepared"], indirect=True)  # a stream has no length
def test_a_schedule_that_asks_for_the_length_of_training(options, tmp_path):
    """Lightning then makes the loader before it reads the checkpoint, and forgets the position."""
    more = {"schedule": "linear", "parts": 2}
    first = fit(0, tmp_path, options, 1, max_steps=3, **more)
    rest = fit(0, tmp_path, options, 1, resume=str(tmp_path / "step=3.ckpt"), **more)
    check_ids(first[0] + rest[0])


def test_the_user_is_told_what_changed(options, tmp_path, caplog):
    fit(0, tmp_path, options, 1, parts=4, max_steps=2)
    fit(0, tmp_path, options, 1, parts=2, resume=str(tmp_path / "step=2.ckpt"))
    assert (
        "1 ranks x 4 micro-batches were one optimizer step, now 1 x 2; set "
        "accumulate_grad_batches to 4 to keep it." in caplog.text
    )
