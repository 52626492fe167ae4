import logging

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from litseq import RnnAttentionSeq2Seq, RnnSeq2Seq, Seq2Seq, TransformerSeq2Seq
from litseq.callbacks.averaging import ExponentialAverage
from litseq.checkpoint_io import SafeCheckpointIO, load_file
from litseq.data import TranslationDataModule
from rank_processes import run_ranks
from tiny_tasks import TINY_TRANSFORMER, loader, tiny_batches, tiny_task, tiny_trainer

DECAY = 0.5
FAMILIES = {
    RnnSeq2Seq: {"embedding_dim": 12, "hidden_size": 16},
    RnnAttentionSeq2Seq: {"embedding_dim": 12, "hidden_size": 16},
    TransformerSeq2Seq: TINY_TRANSFORMER,
}


def copied(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(one, other):
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=0)


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


class Watch(Callback):
    """Keeps the raw weights after every step, and those that validation sees."""

    def __init__(self):
        self.raw, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.raw.append(copied(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append((trainer.global_step, copied(pl_module)))


class Saving(Callback):
    """Saves at hooks, as checkpoint callbacks do, after all other callbacks."""

    def __init__(self, folder, *hooks):
        self.folder = folder
        for hook in hooks:
            setattr(self, hook, lambda trainer, *_, name=hook: self.save(trainer, name))

    def save(self, trainer, hook):
        trainer.save_checkpoint(self.folder / f"{hook}-{trainer.global_step}.ckpt")


def fit(folder, callbacks, *, task=None, ckpt_path=None, **options):
    task = task or tiny_task(dropout=0.0, lr=1e-2)
    trainer = tiny_trainer(
        folder,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **options,
    )
    trainer.fit(
        task, loader(tiny_batches(4)), loader(tiny_batches(1, first_id=100)), ckpt_path=ckpt_path
    )
    return trainer, task


def averages(raw, *, first=0, every=1):
    """The definition: after each step, the average of the weights so far."""
    average, found = None, []
    for step, weights in enumerate(raw):
        if step >= first and step % every == 0:
            average = (
                weights
                if average is None
                else {n: DECAY * average[n] + (1 - DECAY) * weights[n] for n in weights}
            )
        found.append(average or weights)
    return found


@pytest.mark.parametrize(
    ("first", "every", "parts"), [(None, 1, 1), (None, 2, 1), (3, 1, 1), (None, 1, 2)]
)
def test_it_is_the_moving_average(first, every, parts, tmp_path):
    watch = Watch()
    average = ExponentialAverage(DECAY, update_every_n_steps=every, update_starting_at_step=first)
    _, task = fit(
        tmp_path,
        [watch, average, Saving(tmp_path, "on_validation_end")],
        max_epochs=2,
        accumulate_grad_batches=parts,
    )
    raw = watch.raw[parts - 1 :: parts]
    expected = averages(raw, first=first or 0, every=every)
    for step, seen in watch.validated:
        torch.testing.assert_close(seen, expected[step - 1], rtol=0, atol=1e-7)
        saved = load_file(tmp_path / f"on_validation_end-{step}.ckpt")
        assert_equal(saved["state_dict"], seen)
        assert_equal(saved["current_model_state"], raw[step - 1])
        assert differ(saved["state_dict"], raw[step - 1]) == (step - 1 >= (first or 0) + every)
    assert [step for step, _ in watch.validated] == [4 // parts, 8 // parts]
    assert_equal(copied(task), watch.validated[-1][1])  # training ends with the average


def test_training_itself_is_unchanged(tmp_path):
    plain, with_average = Watch(), Watch()
    fit(tmp_path, [plain], max_epochs=2)
    fit(tmp_path, [with_average, ExponentialAverage(DECAY)], max_epochs=2)
    for one, other in zip(plain.raw, with_average.raw, strict=True):
        assert_equal(one, other)


def test_before_it_begins_the_average_is_the_model(tmp_path):
    # Lightning's own validates and saves the initial weights until then
    watch = Watch()
    average = ExponentialAverage(DECAY, update_starting_at_step=100)
    fit(tmp_path, [watch, average, Saving(tmp_path, "on_train_batch_end")], max_epochs=2)
    for step, seen in watch.validated:
        assert_equal(seen, watch.raw[step - 1])
    for step, raw in enumerate(watch.raw, 1):
        saved = load_file(tmp_path / f"on_train_batch_end-{step}.ckpt")
        assert_equal(saved["state_dict"], raw)
        assert_equal(saved["current_model_state"], raw)


HOOKS = (
    "on_train_batch_end",
    "on_validation_batch_end",
    "on_train_end",
    *(
        pytest.param(hook, marks=pytest.mark.slow)
        for hook in (
            "on_validation_start",
            "on_validation_epoch_start",
            "on_validation_epoch_end",
            "on_train_epoch_end",
        )
    ),
)


@pytest.mark.parametrize("hook", HOOKS)
def test_resumed_from_wherever_it_was_saved(hook, tmp_path):
    straight = Watch()
    fit(tmp_path / "a", [straight, ExponentialAverage(DECAY)], max_epochs=3)

    first = Watch()
    fit(tmp_path / "b", [first, ExponentialAverage(DECAY), Saving(tmp_path, hook)], max_epochs=1)
    saved = load_file(tmp_path / f"{hook}-4.ckpt")
    assert_equal(saved["current_model_state"], straight.raw[3])
    torch.testing.assert_close(saved["state_dict"], averages(straight.raw)[3], rtol=0, atol=1e-7)

    rest = Watch()
    fit(
        tmp_path / "b",
        [rest, ExponentialAverage(DECAY)],
        max_epochs=3,
        ckpt_path=tmp_path / f"{hook}-4.ckpt",
    )
    resumed = rest.raw[-8:]
    for one, other in zip(straight.raw[4:], resumed, strict=True):
        assert_equal(one, other)
    for (step, one), (again, other) in zip(
        straight.validated[1:], rest.validated[-2:], strict=True
    ):
        assert step == again
        assert_equal(one, other)


class Failing(TransformerSeq2Seq):
    def validation_step(self, batch, batch_idx):
        raise RuntimeError("in the middle of validation")


def test_saved_when_validation_fails(tmp_path):
    watch = Watch()
    saving = ModelCheckpoint(tmp_path, filename="failed", save_on_exception=True)
    with pytest.raises(RuntimeError, match="in the middle of validation"):
        fit(
            tmp_path,
            [watch, ExponentialAverage(DECAY), saving],
            task=tiny_task(Failing, dropout=0.0, lr=1e-2),
        )
    [path] = tmp_path.glob("*.ckpt")
    saved = load_file(path)
    assert_equal(saved["current_model_state"], watch.raw[-1])
    assert_equal(saved["state_dict"], watch.validated[-1][1])
    assert differ(saved["state_dict"], saved["current_model_state"])


def test_test_after_fit_tests_the_average(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="best")
    trainer, task = fit(tmp_path, [ExponentialAverage(DECAY), saving], max_epochs=2)
    batches = loader(tiny_batches(1, first_id=100))
    [validated] = trainer.validate(task, batches, ckpt_path="best", verbose=False)
    best = load_file(tmp_path / "best.ckpt")
    assert_equal(copied(task), best["state_dict"])
    trainer.test(task, batches, ckpt_path="best", verbose=False)
    assert_equal(copied(task), best["state_dict"])
    [again] = trainer.validate(task, batches, verbose=False)
    assert again == validated
    assert differ(best["state_dict"], best["current_model_state"])


def test_a_second_fit_begins_from_the_average(tmp_path):
    trainer, task = fit(tmp_path, [ExponentialAverage(DECAY)])
    average = copied(task)
    watch = Watch()
    trainer.callbacks.append(watch)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(task, loader(tiny_batches(4)), loader(tiny_batches(1)))
    assert differ(watch.raw[0], average)
    assert_equal(copied(task), watch.validated[-1][1])


@pytest.mark.parametrize("cls", FAMILIES)
def test_our_models(cls, data_options, tmp_path, caplog, recwarn):
    task = cls(**FAMILIES[cls], lr=1e-2, warmup_steps=5, max_len_b=5)
    watch = Watch()
    trainer = tiny_trainer(
        tmp_path,
        callbacks=[watch, ExponentialAverage(0.9), ModelCheckpoint(tmp_path, filename="best")],
        enable_checkpointing=True,
        limit_train_batches=6,
    )
    trainer.fit(task, TranslationDataModule(**data_options))
    checkpoint = load_file(tmp_path / "best.ckpt")
    assert_equal(checkpoint["state_dict"], watch.validated[-1][1])
    assert_equal(checkpoint["current_model_state"], watch.raw[-1])
    loaded = Seq2Seq.load_from_checkpoint(tmp_path / "best.ckpt")
    assert_equal(loaded.state_dict(), checkpoint["state_dict"])
    assert loaded.translate(["one dog", "two"]) == task.translate(["one dog", "two"])
    assert not [w for w in recwarn if "WeightAveraging" in str(w.message)]


def train_rank(rank, folder):
    task = tiny_task(dropout=0.0, lr=1e-2)
    watch = Watch()
    trainer = tiny_trainer(
        folder,
        callbacks=[watch, ExponentialAverage(DECAY), Saving(folder, "on_validation_end")],
        strategy="ddp",
        devices=2,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    batches = tiny_batches(8)
    trainer.fit(
        task,
        loader(batches[rank::2]),
        loader(tiny_batches(1, first_id=100)),
    )
    return watch.raw, watch.validated[-1][1], copied(task)


def test_two_ranks(tmp_path):
    one, other = run_ranks(2, train_rank, tmp_path)
    for mine, its in zip((*one[0], *one[1:]), (*other[0], *other[1:]), strict=True):
        assert_equal(mine, its)
    torch.testing.assert_close(one[1], averages(one[0])[-1], rtol=0, atol=1e-7)
    assert_equal(load_file(tmp_path / "on_validation_end-4.ckpt")["state_dict"], one[1])


def test_of_other_checkpoints(tmp_path):
    """A run without an average goes on with one, from its weights."""
    fit(tmp_path, [Saving(tmp_path, "on_train_end")])
    watch = Watch()
    fit(
        tmp_path,
        [watch, ExponentialAverage(DECAY)],
        max_epochs=2,
        ckpt_path=tmp_path / "on_train_end-4.ckpt",
    )
    torch.testing.assert_close(watch.validated[-1][1], averages(watch.raw)[-1], rtol=0, atol=1e-7)


# ---- what is refused or said ----


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5])
def test_decay(decay):
    with pytest.raises(ValueError, match=rf"decay must be at least 0 and below 1, got {decay}"):
        ExponentialAverage(decay)


def test_updates():
    with pytest.raises(ValueError, match="update_every_n_steps must be at least 1, got 0"):
        ExponentialAverage(update_every_n_steps=0)


def test_divided_weights(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.strategy.__class__ = ModelParallelStrategy  # starting one takes two processes
    with pytest.raises(ValueError, match=r"ModelParallelStrategy divides the weights among ranks"):
        ExponentialAverage().setup(trainer, tiny_task(), "fit")


def test_weights_alone(tmp_path, caplog):
    saving = ModelCheckpoint(tmp_path, save_weights_only=True)
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, [ExponentialAverage(DECAY), saving])
    assert [m for m in caplog.messages if "saves the raw weights, not their average; leave" in m]


def test_lightning_still_needs_it(tmp_path):
    """Fails once Lightning's own validates the model before averaging begins; see the class."""
    watch = Watch()
    average = EMAWeightAveraging(decay=DECAY, update_starting_at_step=100)
    task = tiny_task(dropout=0.0, lr=1e-2)
    initial = copied(task)
    fit(tmp_path, [watch, average], task=task)
    assert_equal(watch.validated[-1][1], initial)


def test_a_callback_of_a_former_run_averages_from_the_first_step(tmp_path):
    used = ExponentialAverage(DECAY)
    fit(tmp_path, [used], max_epochs=3)
    averages = [copied(fit(tmp_path, [c])[1]) for c in (used, ExponentialAverage(DECAY))]
    assert_equal(*averages)
