"""A run that does nothing is an error, not a success."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

__all__ = ["RefuseIdleRun"]


class RefuseIdleRun(Callback):
    """Raises an error at the end of a run that has trained, validated, tested or predicted nothing.

    A limit of no batch, or a checkpoint that has reached ``max_epochs``, would else look like
    success to whoever, or whatever, waits for the run.
    """

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins anew."""
        self._busy = set()

    def on_train_batch_end(self, *args: Any) -> None:  # noqa: ANN401 - not looked at
        """Notes that there was a batch."""
        self._busy.add("fit")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Notes that there was a batch; a run that went on may have had this validation to do."""
        if not trainer.sanity_checking:
            self._busy.add("fit" if trainer.state.fn == TrainerFn.FITTING else "validate")

    def on_test_batch_end(self, *args: Any) -> None:  # noqa: ANN401
        """Notes that there was a batch."""
        self._busy.add("test")

    def on_predict_batch_end(self, *args: Any) -> None:  # noqa: ANN401
        """Notes that there was a batch."""
        self._busy.add("predict")

    # Called after a run that came to its end, not after an error.
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks whether there was one.

        Raises:
            ValueError: If there was none; names the limits.
        """
        # Of few examples the other ranks may have none.
        if stage in self._busy or not trainer.is_global_zero:
            return
        if stage == "fit":
            raise ValueError(
                f"nothing was trained: the run is at epoch {trainer.current_epoch} and step "
                f"{trainer.global_step}, with max_epochs={trainer.max_epochs}, "
                f"max_steps={trainer.max_steps} and limit_train_batches="
                f"{trainer.limit_train_batches}; raise the limit that is reached."
            )
        done = {"validate": ("validated", "val"), "test": ("tested", "test")}
        verb, name = done.get(stage, ("predicted", "predict"))
        limit = getattr(trainer, f"limit_{name}_batches")
        raise ValueError(
            f"nothing was {verb}: limit_{name}_batches={limit} leaves no batch; leave it out."
        )
