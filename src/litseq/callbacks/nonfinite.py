"""Keeps infinities and NaN out of the weights."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from litseq.callbacks.outputs import run_folder
from litseq.sharding import local

__all__ = [
    "NonFiniteError",
    "NonFiniteGuard",
    "count_by_module",
    "gradients_of",
    "loss_scale",
    "shares_by_module",
]

_log = logging.getLogger(__name__)

_FILE = "skipped.jsonl"
_Record = dict[str, Any]
Counts = dict[str, tuple[int, int]]
"""Values that are not finite, and all values, by the name of their module."""


class NonFiniteError(ValueError):
    """Step after step had a gradient that is not finite."""


class NonFiniteGuard(Callback):
    """Leaves out optimizer steps whose loss or gradient is infinite or not a number.

    Such a step never reaches the weights, nor the moments that an optimizer keeps; with several
    micro-batches or devices, one bad one is enough, and all ranks leave out the same step. It still
    counts as a step: ``max_steps``, the learning-rate schedule and the data go on, as they do where
    a gradient scaler leaves out a step (16-mixed).

    Each is a warning (with a scaler, where overflow is routine, a piece of information) and one
    line of ``skipped.jsonl`` in the run's folder: step, epoch, losses, the examples' ids and
    lengths, by rank and micro-batch, and the modules whose gradients are not finite, with the share
    of such values. ``train/skipped_steps`` counts them every ``log_every_n_steps``.

    Works for any module with automatic optimization; ids and lengths are known where a batch is
    a mapping with ``id``, ``attention_mask`` or ``labels``. What a forward pass changes by itself,
    such as the statistics of batch norm, is not guarded.

    The check is one pass over the gradients, and on an accelerator one wait for it per step, as a
    gradient scaler has too.

    Args:
        max_skips: After so many left out in a row the run stops with ``NonFiniteError``. All
            checkpoints hold weights of before.

    Raises:
        ValueError: If ``max_skips`` is below 1.
    """

    def __init__(self, max_skips: int = 10) -> None:
        if max_skips < 1:
            raise ValueError(f"max_skips must be at least 1, got {max_skips}; 1 stops at once.")
        self.max_skips = max_skips
        self.num_skipped = 0
        self._in_a_row = 0
        self._scales: list[float] = []  # of the row
        self._batches: list[tuple[int, dict[str, Tensor]]] = []  # of the step so far
        self._losses: list[Tensor] = []
        self._path: Path | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the folder."""
        if not pl_module.automatic_optimization:
            _log.warning(
                "NonFiniteGuard guards nothing: %s optimizes by hand.", type(pl_module).__name__
            )
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._path = run_folder(trainer) / _FILE

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what a run that was broken off had begun."""
        self._batches, self._losses = [], []

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
    ) -> None:
        """Remembers which examples take part."""
        if not pl_module.automatic_optimization:
            return
        known: dict[str, Tensor] = {}
        if isinstance(batch, Mapping):
            names = ("id", "attention_mask", "labels")
            known = {name: batch[name] for name in names if isinstance(batch.get(name), Tensor)}
        self._batches.append((batch_idx, known))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Remembers the loss."""
        if pl_module.automatic_optimization:
            self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Leaves the step out if it must be."""
        batches, self._batches = self._batches, []
        losses, self._losses = self._losses, []
        if not pl_module.automatic_optimization:
            return
        gradients = gradients_of(pl_module)
        bad = torch.zeros((), device=pl_module.device)
        for value in (*losses, *_size(list(gradients.values()))):
            bad += ~value.isfinite().to(bad.device)
        if trainer.world_size > 1:  # sharded gradients and losses differ from rank to rank
            bad = trainer.strategy.reduce(bad, reduce_op="sum")
        if not bad:  # the one wait for the device
            self._in_a_row, self._scales = 0, []
            return
        self._report(trainer, gradients, batches, losses)
        if loss_scale(trainer) is not None and _handles_unscaling(optimizer):
            next(iter(gradients.values())).fill_(math.inf)  # the scaler is yet to look, and skips
        else:
            optimizer.zero_grad(set_to_none=True)  # no optimizer touches what has no gradient

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - whatever training_step returns
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
    ) -> None:
        """Logs the count, and stops the run if there is no end to it.

        Raises:
            NonFiniteError: If ``max_skips`` steps in a row were left out.
        """
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            pl_module.log("train/skipped_steps", float(self.num_skipped), batch_size=1)
        if self._in_a_row < self.max_skips:
            return
        last, num_skips = trainer.global_step, self._in_a_row
        scales = ""
        if self._scales:
            scales = " with loss scales " + " ".join(f"{scale:g}" for scale in self._scales) + ","
        self._in_a_row, self._scales = 0, []  # whoever catches this and saves can go on from there
        raise NonFiniteError(
            f"losses or gradients were not finite in {num_skips} steps in a row, "
            f"{last - num_skips + 1} to {last},{scales} and the weights are still those of before; "
            f"{self._path or _FILE} names batches and modules. Lower the learning rate, "
            f"set gradient_clip_val or try another precision (it is {trainer.precision}); to wait "
            f"longer, raise max_skips."
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {
            "num_skipped": self.num_skipped,
            "in_a_row": self._in_a_row,
            "scales": list(self._scales),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the counts of the run that goes on."""
        self.num_skipped = int(state_dict["num_skipped"])
        self._in_a_row = int(state_dict["in_a_row"])
        self._scales = [float(scale) for scale in state_dict["scales"]]

    def _report(
        self,
        trainer: Trainer,
        gradients: Mapping[str, Tensor],
        batches: list[tuple[int, dict[str, Tensor]]],
        losses: list[Tensor],
    ) -> None:
        scale = loss_scale(trainer)
        self.num_skipped += 1
        self._in_a_row += 1
        if scale is not None:
            self._scales.append(scale)
        parts: list[Any] = [
            (
                _describe(batches, losses, rank=trainer.global_rank, scale=scale or 1.0),
                count_by_module(gradients),
            )
        ]
        if trainer.world_size > 1:
            every_rank: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(every_rank, parts[0])
            parts = every_rank
        if not trainer.is_global_zero:
            return
        modules = shares_by_module(*(counts for _, counts in parts))
        record: _Record = {
            "step": trainer.global_step + 1,
            "epoch": trainer.current_epoch,
            "skipped": self.num_skipped,
            "in_a_row": self._in_a_row,
            "loss_scale": scale,
            "batches": [batch for described, _ in parts for batch in described],
            "modules": modules,
        }
        where = ""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            where = f"; {self._path} names its examples"
        _log.log(
            logging.WARNING if scale is None else logging.INFO,
            "step %d is left out (%d so far, %d in a row): %s%s.",
            record["step"],
            self.num_skipped,
            self._in_a_row,
            _reason(modules, scale),
            where,
        )


def _size(gradients: Sequence[Tensor]) -> list[Tensor]:
    """A number that is finite if all gradients are, or no number where there are none."""
    if not gradients:
        return []
    if all(grad.device.type == "cpu" for grad in gradients):  # where this is several times as fast
        norm = get_total_norm(gradients)
        if norm.isfinite():
            return [norm]
    # The largest absolute value, since a sum of squares may overflow where no gradient does.
    return [get_total_norm(gradients, norm_type=math.inf)]


def gradients_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients of a module's parameters by name; of sharded ones, this rank's part, if any."""
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            grad = local(parameter.grad)
            grad = grad.coalesce().values() if grad.is_sparse else grad
            if grad.numel():
                found[name] = grad
    return found


def loss_scale(trainer: Trainer) -> float | None:
    """The factor of the loss where gradients are scaled (16-mixed); None elsewhere."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None or not scaler.is_enabled() else float(scaler.get_scale())


def count_by_module(tensors: Mapping[str, Tensor]) -> Counts:
    """Counts values that are not finite.

    Args:
        tensors: Parameters or gradients by the parameters' names.

    Returns:
        Number of infinities and NaN, and of all values, by the name of the module that owns them.
    """
    counts: Counts = {}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        bad, total = counts.get(module, (0, 0))
        counts[module] = bad + int((~tensor.isfinite()).sum()), total + tensor.numel()
    return counts


def shares_by_module(*parts: Counts) -> dict[str, float]:
    """Joins counts, such as those of several ranks.

    Returns:
        Share of infinities and NaN, above 0 and up to 1, by module; modules without any are left
        out.
    """
    bad: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for counts in parts:
        bad.update({module: some for module, (some, _) in counts.items()})
        total.update({module: count for module, (_, count) in counts.items()})
    return {module: bad[module] / total[module] for module in total if bad[module]}


def _describe(
    batches: list[tuple[int, dict[str, Tensor]]],
    losses: list[Tensor],
    *,
    rank: int,
    scale: float,
) -> list[_Record]:
    described = []
    for i, (batch_idx, known) in enumerate(batches):
        record: _Record = {"rank": rank, "batch_idx": batch_idx}
        if i < len(losses):
            loss = float(losses[i]) / scale
            record["loss"] = loss if math.isfinite(loss) else str(loss)  # JSON has no NaN
        if "id" in known:
            record["ids"] = known["id"].tolist()
        if "attention_mask" in known:
            record["src_lengths"] = known["attention_mask"].sum(-1).tolist()
        if "labels" in known:
            record["tgt_lengths"] = (known["labels"] != -100).sum(-1).tolist()
        described.append(record)
    return described


def _reason(modules: Mapping[str, float], scale: float | None) -> str:
    if not modules:
        return "the loss is not finite"
    names = ", ".join(list(modules)[:3]) + (", ..." if len(modules) > 3 else "")
    scaled = "" if scale is None else f" at a loss scale of {scale:g}"
    return f"gradients are not finite in {names}{scaled}"


def _handles_unscaling(optimizer: Optimizer) -> bool:
    # as Lightning and torch.amp.GradScaler ask; true of fused optimizers
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
