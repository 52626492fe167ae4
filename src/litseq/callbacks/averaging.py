"""ExponentialAverage: validate and keep a moving average of the weights, and lose neither."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import AveragedModel

from litseq.callbacks.probes import sharding_of

__all__ = ["ExponentialAverage"]

_log = logging.getLogger(__name__)


class ExponentialAverage(EMAWeightAveraging):
    """Lightning's moving average of the weights, which a run can resume from to the last bit.

    Training goes on with the raw weights; validation, the checkpoints' ``state_dict``, and so test,
    predict and translate use the average. Checkpoints keep the raw weights beside it. Any module.

    Four things differ from Lightning's ``EMAWeightAveraging``: until averaging begins the average
    is the model itself, not its initial weights; a checkpoint written during validation or after
    training does not take the one for the other; ``trainer.test(ckpt_path=...)`` after ``fit``
    tests the average; and the average lies on the training device.

    Args:
        decay: Share of the average that each update keeps; 0.999 averages over some thousand
            updates.
        update_every_n_steps: Optimizer steps between two updates.
        update_starting_at_step: The first optimizer step, from 0, whose weights count; None: the
            first of all.

    Raises:
        ValueError: If decay or a number of steps is out of range.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}.")
        if update_every_n_steps < 1:
            raise ValueError(
                f"update_every_n_steps must be at least 1, got {update_every_n_steps}."
            )
        super().__init__(
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )
        self._swapped = False  # the module holds the average, and the average model the raw weights
        self._validating = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the model, once it is built.

        Raises:
            ValueError: If the strategy divides the weights among ranks.
        """
        if stage != "fit":
            return
        if sharding_of(trainer) in ("FSDPStrategy", "ModelParallelStrategy"):
            raise ValueError(
                f"{type(trainer.strategy).__name__} divides the weights among ranks, where they "
                f"cannot be averaged; leave out {type(self).__name__}, or choose strategy ddp."
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        if any(getattr(callback, "save_weights_only", False) for callback in callbacks):
            _log.warning(
                "a ModelCheckpoint with save_weights_only asks no callback and saves the raw "
                "weights, not their average; leave save_weights_only out."
            )
        self._device = trainer.strategy.root_device
        self._swapped = self._validating = False
        self._latest_update_step = 0  # of a former run, or of the checkpoint, which comes later
        # Lightning's own looks first whether its own class's hook is overridden, and refuses a
        # module of the other Lightning package
        pl_module.configure_model()
        self._average_model = AveragedModel(
            pl_module, device=self._device, use_buffers=self._use_buffers, **self._kwargs
        )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average in place, unless it is there since the end of training."""
        if self._average_model is not None and not self._swapped:
            self._follow(pl_module)
            self._swap_models(pl_module)
            self._swapped = self._validating = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the raw weights back."""
        if self._validating:
            self._swap_models(pl_module)
            self._swapped = self._validating = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module, and the raw weights to be saved beside it."""
        self._follow(pl_module)
        self._swap_models(pl_module)
        self._swapped = True

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average as ``state_dict`` and the raw weights as ``current_model_state``."""
        if self._average_model is None:
            return
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            checkpoint["state_dict"], checkpoint["current_model_state"] = (
                checkpoint["current_model_state"],
                checkpoint["state_dict"],
            )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores both for training; else the average stays in the module, where Lightning put it.

        Lightning's own would test the raw weights after a fit in the same process.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @torch.no_grad()
    def _follow(self, pl_module: LightningModule) -> None:
        """Before the first update, the average of the weights is the weights."""
        assert self._average_model is not None
        if self._average_model.n_averaged == 0 and not self._swapped:
            self._average_model.module.load_state_dict(pl_module.state_dict())
