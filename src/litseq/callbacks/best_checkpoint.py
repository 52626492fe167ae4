"""The best checkpoints of a run, by a metric, and what they share with its newest."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from litseq.checkpoint_io import seal, unseal

__all__ = ["BestCheckpoint", "SealedCheckpoint"]

_log = logging.getLogger(__name__)


class SealedCheckpoint(ModelCheckpoint):
    """What the checkpoints of both kinds share, beside Lightning's own.

    A folder of shards is whole only from the moment that all ranks have written their parts; and a
    run goes on with its files where it lies now. They come behind all other callbacks, whose state
    they save, in a Trainer of either Lightning package: each knows its own ``ModelCheckpoint``
    alone.
    """

    _loaded_from: str | None = None
    _place = 1  # among callbacks, whose place is 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes its place, and says what a Trainer does not do for it."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        # a new list, for whoever calls this hook is on its way through the old one
        ordered = sorted(callbacks, key=lambda callback: getattr(callback, "_place", 0))
        trainer.callbacks = ordered  # type: ignore[attr-defined]
        if not isinstance(trainer, Trainer) and trainer.is_global_zero:
            _log.warning(
                "%s is no checkpoint callback to a Trainer of %s: ckpt_path 'best' and 'last' do "
                "not find its files, give their paths; enable_checkpointing=False leaves out the "
                "ModelCheckpoint that the Trainer adds.",
                type(self).__name__,
                type(trainer).__module__.partition(".")[0],
            )

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if trainer.is_global_zero:
            unseal(filepath)
        trainer.strategy.barrier()  # no rank writes into a folder that still counts as whole
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            seal(filepath)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes where the file lies."""
        self._loaded_from = os.path.dirname(str(trainer.ckpt_path)) if trainer.ckpt_path else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the files of a run that was moved, or whose folder is spelled otherwise.

        Lightning would forget them, and take the next one for the best. Of another run there is
        nothing to go on with.
        """
        folder, former = self.dirpath or "", state_dict.get("dirpath") or self.dirpath
        if former != self.dirpath:
            same = (os.path.realpath(path) for path in (former, self._loaded_from) if path)
            if os.path.realpath(folder) not in same:
                return

            def here(path: str) -> str:
                return path and os.path.join(folder, os.path.basename(path))

            scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
            paths = {name: here(state_dict[name]) for name in state_dict if name.endswith("_path")}
            state_dict = {**state_dict, **paths, "dirpath": folder, "best_k_models": scores}
        super().load_state_dict(state_dict)


class BestCheckpoint(SealedCheckpoint):
    """Keeps the best checkpoints by a metric of validation: Lightning's own, but for two things.

    A metric that is not a number never counts, where Lightning would take the first one for the
    best; and a file that is there from before is replaced, so that a run which is resumed leaves
    the same files as one that was not stopped.

    Args:
        monitor: The metric.
        mode: ``max`` if more is better, ``min`` if less is.
        save_top_k: How many to keep; -1: all.
        filename: Name without ``.ckpt``; default: ``best``, or ``best-{step}`` for several.
        dirpath: Folder; default: ``checkpoints`` in the folder of the first logger.
    """

    def __init__(
        self,
        monitor: str = "val/bleu",
        mode: Literal["max", "min"] = "max",
        *,
        save_top_k: int = 1,
        filename: str | None = None,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename or ("best" if save_top_k == 1 else "best-{step}"),
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            enable_version_counter=False,
        )

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a value is among the best."""
        finite = current is not None and bool(torch.isfinite(current))
        if not trainer.strategy.reduce_boolean_decision(finite):  # a rank may have one of its own
            return False
        return super().check_monitor_top_k(trainer, current)
