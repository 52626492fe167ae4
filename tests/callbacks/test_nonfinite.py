import copy
import json
import logging

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from litseq.architectures import TransformerSeq2Seq
from litseq.callbacks.nonfinite import (
    NonFiniteError,
    NonFiniteGuard,
    count_by_module,
    shares_by_module,
)
from tiny_tasks import FAMILIES, loader, tiny_batches, tiny_task, tiny_trainer

NAN, INF = float("nan"), float("inf")
BAD_LOSS, BAD_GRADIENT = "loss", "gradient"


def poisoned(cls, bad, kind=BAD_LOSS, value=NAN):
    """A subclass of a task whose loss, or one gradient, is ``value`` for the batches ``bad``."""

    class Poisoned(cls):
        def training_step(self, batch, batch_idx):
            self.batch_idx = batch_idx
            loss = super().training_step(batch, batch_idx)
            return loss * value if batch_idx in bad and kind == BAD_LOSS else loss

        def on_after_backward(self):
            if self.batch_idx in bad and kind == BAD_GRADIENT:
                next(self.parameters()).grad.view(-1)[-1] = value

    return Poisoned


class Infinite(torch.autograd.Function):
    """An infinite loss whose gradient is finite."""

    @staticmethod
    def forward(ctx, loss):
        return loss * INF

    @staticmethod
    def backward(ctx, grad):
        return grad


def fit(folder, task, batches, *callbacks, **options):
    trainer = tiny_trainer(folder, callbacks=list(callbacks), **options)
    trainer.fit(task, loader(batches))
    return trainer


def states(trainer, task):
    """Copies of the weights and of the whole state of the optimizer, the step counters included."""
    optimizer = trainer.optimizers[0]
    return copy.deepcopy((task.state_dict(), optimizer.state_dict()["state"]))


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=False)


def lines(folder):
    text = (folder / "skipped.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class Unchanged(Callback):
    """Compares the state after some batches with the state before them."""

    def __init__(self, batches):
        self.batches = batches
        self.compared = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = states(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx in self.batches:
            assert_same(states(trainer, pl_module), self.before)
            self.compared.append(batch_idx)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("kind", "value"), [(BAD_LOSS, NAN), (BAD_GRADIENT, INF)])
def test_a_bad_step_changes_neither_weights_nor_optimizer(tmp_path, family, precision, kind, value):
    bad = [0, 2]
    task = tiny_task(poisoned(family, bad, kind, value), optimizer="adamw", weight_decay=0.1)
    unchanged = Unchanged(bad)
    trainer = fit(
        tmp_path,
        task,
        tiny_batches(4),
        NonFiniteGuard(),
        unchanged,
        gradient_clip_val=1.0,
        precision=precision,
    )
    assert trainer.optimizers[0].param_groups[0]["fused"]  # in every precision without a scaler
    assert unchanged.compared == bad
    assert all(p.isfinite().all() for p in task.parameters())


def test_without_the_guard_the_weights_would_be_lost(tmp_path):
    task = tiny_task(poisoned(TransformerSeq2Seq, [1]))
    fit(tmp_path, task, tiny_batches(3))
    assert not any(p.isfinite().all() for p in task.parameters())


def test_a_run_with_a_bad_batch_is_the_run_without_that_batch(tmp_path):
    batches = tiny_batches(5)
    ends = []
    for bad, data in (([1, 3], batches), ([], [batches[i] for i in (0, 2, 4)])):
        task = tiny_task(poisoned(TransformerSeq2Seq, bad), dropout=0.0)
        trainer = fit(tmp_path, task, data, NonFiniteGuard(), gradient_clip_val=1.0)
        ends.append(states(trainer, task))
    assert_same(*ends)


def test_one_bad_micro_batch_costs_the_step(tmp_path):
    batches = tiny_batches(6)
    ends = []
    for bad, data in (([3], batches), ([], [*batches[:2], *batches[4:]])):
        task = tiny_task(poisoned(TransformerSeq2Seq, bad), dropout=0.0)
        trainer = fit(tmp_path, task, data, NonFiniteGuard(), accumulate_grad_batches=2)
        ends.append(states(trainer, task))
    assert_same(*ends)
    (record,) = lines(tmp_path)
    assert record["step"] == 2
    assert [part["batch_idx"] for part in record["batches"]] == [2, 3]
    assert record["batches"][0]["loss"] > 0
    assert record["batches"][1]["loss"] == "nan"


class LossAlone(TransformerSeq2Seq):
    """The second batch has an infinite loss, whose gradient is finite."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return Infinite.apply(loss) if batch_idx == 1 else loss


def test_a_loss_alone_is_enough(tmp_path):
    unchanged = Unchanged([1])
    fit(tmp_path, tiny_task(LossAlone), tiny_batches(3), NonFiniteGuard(), unchanged)
    assert unchanged.compared == [1]
    (record,) = lines(tmp_path)
    assert record["batches"][0]["loss"] == "inf"
    assert record["modules"] == {}


def test_a_huge_gradient_is_still_a_gradient(tmp_path):
    task = tiny_task(poisoned(TransformerSeq2Seq, [0], BAD_GRADIENT, 1e30))  # its square is not
    guard = NonFiniteGuard()
    fit(tmp_path, task, tiny_batches(1), guard, gradient_clip_val=1.0)
    assert guard.num_skipped == 0


def test_the_file_names_examples_and_modules(tmp_path, caplog):
    batches = tiny_batches(2)
    task = tiny_task(poisoned(TransformerSeq2Seq, [1], BAD_GRADIENT, INF))
    name, parameter = next(iter(task.named_parameters()))
    with caplog.at_level(logging.WARNING, logger="litseq"):
        trainer = fit(tmp_path, task, batches, NonFiniteGuard(), log_every_n_steps=1)
    assert trainer.callback_metrics["train/skipped_steps"] == 1
    (record,) = lines(tmp_path)
    (described,) = record["batches"]
    assert (record["step"], record["epoch"], record["loss_scale"]) == (2, 0, None)
    assert (described["rank"], described["batch_idx"]) == (0, 1)
    assert described["ids"] == batches[1]["id"].tolist()
    assert described["src_lengths"] == batches[1]["attention_mask"].sum(1).tolist()
    assert described["tgt_lengths"] == (batches[1]["labels"] >= 0).sum(1).tolist()
    module = name.rpartition(".")[0]
    assert record["modules"] == {module: 1 / parameter.numel()}
    (message,) = [r.getMessage() for r in caplog.records if "nonfinite" in r.name]
    assert message == (
        f"step 2 is left out (1 so far, 1 in a row): gradients are not finite in {module}; "
        f"{tmp_path / 'skipped.jsonl'} names its examples."
    )


def test_shares_of_a_module_count_all_its_parameters_on_all_ranks():
    here = {
        "a.weight": torch.tensor([1.0, NAN, INF]),
        "a.bias": torch.ones(1),
        "b.w": torch.ones(2),
    }
    counts = count_by_module(here)
    assert counts == {"a": (2, 4), "b": (0, 2)}
    assert shares_by_module(counts) == {"a": 0.5}
    assert shares_by_module(counts, {"a": (0, 4), "b": (1, 2)}) == {"a": 0.25, "b": 0.25}


def test_the_run_stops_after_max_skips_in_a_row_and_its_checkpoints_are_good(tmp_path):
    task = tiny_task(poisoned(TransformerSeq2Seq, [1, 3, 4, 5]))
    guard = NonFiniteGuard(max_skips=3)
    newest = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    with pytest.raises(NonFiniteError, match=r"in 3 steps in a row, 4 to 6, .* raise max_skips"):
        fit(tmp_path, task, tiny_batches(8), guard, newest, enable_checkpointing=True)
    assert guard.num_skipped == 4
    saved = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")}
    assert sorted(saved) == [f"step={i}" for i in range(1, 6)]
    for step in (4, 5):  # as after step 3, the last good one
        assert_same(saved[f"step={step}"]["state_dict"], saved["step=3"]["state_dict"])
        then, now = (saved[f"step={i}"]["optimizer_states"][0]["state"] for i in (3, step))
        assert_same(now, then)


def test_the_schedule_and_the_steps_go_on(tmp_path):
    task = tiny_task(
        poisoned(TransformerSeq2Seq, [1]), schedule="inverse_sqrt", warmup_steps=10, lr=1.0
    )
    trainer = fit(tmp_path, task, tiny_batches(3), NonFiniteGuard())
    assert trainer.global_step == 3
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.4)
    assert {int(s["step"]) for s in trainer.optimizers[0].state_dict()["state"].values()} == {2}


def test_a_guard_that_finds_nothing_changes_nothing(tmp_path):
    ends = []
    for callbacks in ([], [NonFiniteGuard()]):
        task = tiny_task()
        trainer = fit(tmp_path, task, tiny_batches(4), *callbacks, gradient_clip_val=1.0)
        ends.append((states(trainer, task), torch.get_rng_state()))
    assert_same(*ends)
    assert not (tmp_path / "skipped.jsonl").exists()


def test_the_counts_go_on_after_a_resume(tmp_path):
    task = poisoned(TransformerSeq2Seq, [1, 2, 3])
    save = ModelCheckpoint(tmp_path, every_n_train_steps=3, filename="{step}")
    options = {"enable_checkpointing": True, "callbacks": [NonFiniteGuard(), save]}
    tiny_trainer(tmp_path, max_steps=3, **options).fit(tiny_task(task), loader(tiny_batches(6)))

    guard = NonFiniteGuard(max_skips=3)
    trainer = tiny_trainer(tmp_path, callbacks=[guard])
    with pytest.raises(NonFiniteError, match=r"3 steps in a row, 2 to 4"):
        trainer.fit(
            tiny_task(task),
            loader(tiny_batches(6)),
            ckpt_path=tmp_path / "step=3.ckpt",
            weights_only=True,
        )
    assert guard.num_skipped == 3


class Linear(LightningModule):
    """Nobody's task: SGD with momentum, batches without ids."""

    def __init__(self, losses):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.losses = losses

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        return None if self.losses[batch_idx] is None else loss * self.losses[batch_idx]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def test_any_module_with_any_batch(tmp_path):
    unchanged = Unchanged([1])
    data = [torch.ones(4, 2)] * 3
    fit(tmp_path, Linear([1.0, NAN, 1.0]), data, NonFiniteGuard(), unchanged)
    assert unchanged.compared == [1]
    (record,) = lines(tmp_path)
    assert record["batches"] == [{"rank": 0, "batch_idx": 1, "loss": "nan"}]
    assert record["modules"] == {"layer": 1.0}


def test_a_step_without_a_loss_is_no_bad_step(tmp_path):
    guard = NonFiniteGuard()
    fit(tmp_path, Linear([None, 1.0]), [torch.ones(4, 2)] * 2, guard)
    assert guard.num_skipped == 0


def test_optimization_by_hand_is_told(tmp_path, caplog):
    class ByHand(Linear):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(self.layer(batch).mean() * NAN)
            self.optimizers().step()

    with caplog.at_level(logging.WARNING, logger="litseq"):
        fit(tmp_path, ByHand([]), [torch.ones(4, 2)], NonFiniteGuard())
    assert "NonFiniteGuard guards nothing: ByHand optimizes by hand." in caplog.messages


def test_max_skips_must_be_positive():
    with pytest.raises(ValueError, match="max_skips must be at least 1, got 0"):
        NonFiniteGuard(max_skips=0)


# ---- two processes ----


class Dealt:
    """Deals batches to the ranks by turns."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(
            self.batches[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
        )


class SaveStates(Callback):
    """Leaves each rank's final state, since forked processes return nothing."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        torch.save(states(trainer, pl_module), self.folder / f"rank{trainer.global_rank}.pt")


def on_two_ranks(folder, spoil, *, bad, steps):
    """Steps of two batches each; the losses ``bad`` of rank one are spoilt."""

    class OnOneRank(TransformerSeq2Seq):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return spoil(loss) if batch_idx in bad and self.global_rank == 1 else loss

    folder.mkdir()
    batches = tiny_batches(6)
    trainer = tiny_trainer(
        folder,
        callbacks=[NonFiniteGuard(), SaveStates(folder)],
        strategy="ddp_fork",
        devices=2,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
    )
    data = [batch for step in steps for batch in batches[2 * step : 2 * step + 2]]
    trainer.fit(tiny_task(OnOneRank, dropout=0.0), Dealt(data))
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("spoil", [lambda loss: loss * NAN, Infinite.apply], ids=["all", "loss"])
def test_all_ranks_skip_where_one_has_to(tmp_path, spoil):
    left, right = on_two_ranks(tmp_path / "bad", spoil, bad=[1], steps=[0, 1, 2])
    assert_same(left, right)
    assert_same(left, on_two_ranks(tmp_path / "good", spoil, bad=[], steps=[0, 2])[0])
    (record,) = lines(tmp_path / "bad")
    assert [(b["rank"], b["batch_idx"]) for b in record["batches"]] == [(0, 1), (1, 1)]
    assert record["batches"][0]["loss"] > 0
    assert record["batches"][1]["loss"] in ("nan", "inf")
    assert record["batches"][1]["ids"] == tiny_batches(4)[3]["id"].tolist()
    # counted on both ranks, and still a share
    assert max(record["modules"].values(), default=1.0) == 1.0


# ---- float16 with a gradient scaler, on the CPU ----


def scaled(init_scale=1024.0, **options):
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, **options)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


def test_overflow_is_skipped_and_the_scale_falls(tmp_path, caplog):
    plugin = scaled()
    bad = [1, 2]
    unchanged = Unchanged(bad)
    task = tiny_task(poisoned(TransformerSeq2Seq, bad, BAD_GRADIENT, INF))
    with caplog.at_level(logging.INFO, logger="litseq"):
        fit(
            tmp_path,
            task,
            tiny_batches(5),
            NonFiniteGuard(),
            unchanged,
            plugins=[plugin],
            gradient_clip_val=1.0,
        )
    assert unchanged.compared == bad
    assert plugin.scaler.get_scale() == 1024 / 4
    records = lines(tmp_path)
    assert [r["loss_scale"] for r in records] == [1024.0, 512.0]
    assert all(0 < r["batches"][0]["loss"] < 1 for r in records)  # without the scale
    assert {r.levelname for r in caplog.records if "nonfinite" in r.name} == {"INFO"}
    assert "at a loss scale of 512" in caplog.text


def test_endless_overflow_stops_with_the_history_of_the_scale(tmp_path):
    task = tiny_task(poisoned(TransformerSeq2Seq, range(9), BAD_GRADIENT, NAN))
    with pytest.raises(NonFiniteError, match="1 to 3, with loss scales 1024 512 256, and"):
        fit(tmp_path, task, tiny_batches(9), NonFiniteGuard(max_skips=3), plugins=[scaled()])


@pytest.mark.parametrize(
    "cls",
    [
        poisoned(TransformerSeq2Seq, [1], BAD_LOSS, INF),
        poisoned(TransformerSeq2Seq, [1], BAD_GRADIENT, INF),
        LossAlone,  # only the guard knows of it, so it has to tell the scaler
    ],
)
def test_a_fused_optimizer_leaves_the_skip_to_the_scaler(tmp_path, cls):
    class Fused(cls):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), fused=True)

    unchanged = Unchanged([1])
    fit(
        tmp_path, tiny_task(Fused), tiny_batches(3), NonFiniteGuard(), unchanged, plugins=[scaled()]
    )
    assert unchanged.compared == [1]


def test_the_scaler_is_part_of_the_checkpoint(tmp_path):
    def run(ckpt_path=None, **options):
        plugin = scaled(growth_interval=2)
        task = tiny_task(poisoned(TransformerSeq2Seq, [2], BAD_GRADIENT, INF))
        trainer = tiny_trainer(tmp_path, plugins=[plugin], **options)
        trainer.fit(task, loader(tiny_batches(6)), ckpt_path=ckpt_path)
        return plugin.scaler.state_dict()

    save = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    whole = run(callbacks=[NonFiniteGuard(), save], enable_checkpointing=True)
    assert whole["scale"] == 2048  # doubled, halved, doubled
    assert run(tmp_path / "step=3.ckpt", callbacks=[NonFiniteGuard()]) == whole
