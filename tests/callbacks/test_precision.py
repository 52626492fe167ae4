import csv
import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from test_nonfinite import BAD_GRADIENT, INF, Linear, assert_same, fit, poisoned, states

from litseq.architectures import TransformerSeq2Seq
from litseq.callbacks import RunCheckpoint
from litseq.callbacks.nonfinite import NonFiniteGuard
from litseq.callbacks.precision import PrecisionMonitor
from tiny_tasks import loader, tiny_batches, tiny_task, tiny_trainer


def rows(folder, task, batches, *callbacks, **options):
    """What was logged, by step."""
    logger = CSVLogger(folder)
    fit(folder, task, batches, *callbacks, logger=logger, **options)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        found = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in found if "train/param_norm" in row]


def test_norms_of_gradients_and_parameters(tmp_path):
    norms = []

    class Task(Linear):
        def on_before_optimizer_step(self, optimizer):
            norms.append(torch.cat([p.grad.flatten() for p in self.parameters()]).norm().item())

    task = Task([1.0, 2.0, 3.0])
    data = [torch.ones(4, 2)] * 3
    found = rows(tmp_path, task, data, PrecisionMonitor(), gradient_clip_val=0.1)
    assert [float(row["train/grad_norm"]) for row in found] == pytest.approx(norms)  # unclipped
    weights = torch.cat([p.detach().flatten() for p in task.parameters()])
    assert float(found[-1]["train/param_norm"]) == pytest.approx(weights.norm().item())
    assert {float(row["train/nonfinite_gradients"]) for row in found} == {0}
    assert {float(row["train/nonfinite_parameters"]) for row in found} == {0}


def test_a_norm_that_the_module_logs_is_left_to_it(tmp_path):
    task = tiny_task()
    with_monitor = rows(tmp_path / "a", task, tiny_batches(3), PrecisionMonitor())
    logged = []

    class Task(TransformerSeq2Seq):
        def log(self, name, value, **options):
            if name == "train/grad_norm":
                logged.append(float(value))
            super().log(name, value, **options)

    fit(tmp_path / "b", tiny_task(Task), tiny_batches(3), PrecisionMonitor())
    assert [float(row["train/grad_norm"]) for row in with_monitor] == pytest.approx(logged)
    assert len(logged) == 3


def test_only_steps_that_are_logged_are_looked_at(tmp_path):
    found = rows(
        tmp_path,
        tiny_task(),
        tiny_batches(9),
        PrecisionMonitor(),
        accumulate_grad_batches=2,
        log_every_n_steps=2,
    )
    assert len(found) == 2  # steps 2 and 4 of 5


def test_modules_with_values_that_are_not_finite_are_named_once(tmp_path, caplog):
    task = tiny_task(poisoned(TransformerSeq2Seq, [1, 2], BAD_GRADIENT, INF))
    name, parameter = next(iter(task.named_parameters()))
    with caplog.at_level(logging.WARNING, logger="litseq"):
        found = rows(tmp_path, task, tiny_batches(4), PrecisionMonitor(), NonFiniteGuard())
    total = sum(p.numel() for p in task.parameters())
    shares = [float(row["train/nonfinite_gradients"]) for row in found]
    assert shares == pytest.approx([0, 1 / total, 1 / total, 0])
    said = [r.getMessage() for r in caplog.records if r.name.endswith("callbacks.precision")]
    module = name.rpartition(".")[0]
    assert said == [f"gradients are not finite in {module} ({1 / parameter.numel():.2%})."]


def test_lost_parameters_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="litseq"):
        found = rows(tmp_path, Linear([INF]), [torch.ones(4, 2)], PrecisionMonitor())
    assert float(found[0]["train/nonfinite_parameters"]) == 1
    assert "parameters are not finite in layer (100.00%)." in caplog.messages


def test_the_scale_of_the_loss_is_logged(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    task = tiny_task(poisoned(TransformerSeq2Seq, [1], BAD_GRADIENT, INF))
    found = rows(
        tmp_path,
        task,
        tiny_batches(3),
        PrecisionMonitor(),
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
    )
    assert [float(row["train/loss_scale"]) for row in found] == [1024, 512, 512]


def test_training_is_the_same_with_and_without(tmp_path):
    ends = []
    for callbacks in ([], [PrecisionMonitor(), NonFiniteGuard()]):
        task = tiny_task()
        trainer = fit(tmp_path, task, tiny_batches(4), *callbacks, gradient_clip_val=1.0)
        ends.append((states(trainer, task), torch.get_rng_state()))
    assert_same(*ends)


def test_a_run_that_goes_on_logs_the_norm_as_before(tmp_path):
    callbacks = PrecisionMonitor(), RunCheckpoint(str(tmp_path))
    options = {"enable_checkpointing": True}
    rows(tmp_path / "a", Linear([1.0] * 2), [torch.ones(4, 2)] * 2, *callbacks, **options)
    callbacks, data = (PrecisionMonitor(), RunCheckpoint(str(tmp_path))), [torch.ones(4, 2)] * 2
    ckpt_path, task = tmp_path / "last.ckpt", Linear([1.0] * 4)
    logger = CSVLogger(tmp_path / "b")
    trainer = tiny_trainer(
        tmp_path, callbacks=[*callbacks], logger=logger, max_epochs=2, enable_checkpointing=True
    )
    trainer.fit(task, loader(data), ckpt_path=ckpt_path)
    assert "train/grad_norm" in (Path(logger.log_dir) / "metrics.csv").read_text()
