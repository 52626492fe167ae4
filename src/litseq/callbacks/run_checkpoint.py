"""The newest checkpoint of a run, from which it goes on as if it never stopped."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn

from litseq import checkpoints
from litseq.callbacks.best_checkpoint import SealedCheckpoint
from litseq.checkpoint_io import SafeCheckpointIO
from litseq.random_state import random_state, set_random_state

__all__ = ["RunCheckpoint", "StoppedError"]

_log = logging.getLogger(__name__)

_SIGUSR1 = getattr(signal, "SIGUSR1", None)  # Windows has none
_SIGNALS = tuple(filter(None, (signal.SIGTERM, signal.SIGINT, _SIGUSR1)))


class StoppedError(SystemExit):
    """Ends a run that a signal stopped, after it was saved; ``code`` is the exit status."""


class RunCheckpoint(SealedCheckpoint):
    """Keeps ``last.ckpt``, from which a run goes on as if it had never stopped.

    What follows after resuming equals the uninterrupted run bit for bit: losses, weights, scores,
    rows in the logs. The file therefore holds, beside what Lightning puts there, the state of all
    random number generators on every rank, the latest metrics, and whether a validation was still
    to come. It is written where nothing is half done: after an optimizer step, never inside of an
    accumulation. Any LightningModule with automatic optimization will do; its training loader must
    have ``state_dict`` and ``load_state_dict``, as litseq's has, or a resumed epoch starts anew.

    It is written before every validation, so that nothing which goes wrong there costs a step;
    every ``every_n_steps`` steps or ``every_minutes`` minutes; at the end; and when the run is told
    to stop. The one before it stays as ``previous.ckpt``. Files are written whole or not at all
    (``SafeCheckpointIO``), and a failed save ends the run with an error: the files that were there
    are as they were.

    SIGTERM, SIGUSR1 and Ctrl-C finish the step, save, and end the process: with ``exit_code``, and
    with 130 after Ctrl-C. A second Ctrl-C ends it at once. In a SLURM job with Lightning's
    ``auto_requeue``, SIGUSR1 also puts the job back into the queue. A signal during validation ends
    a single process at once, for it is saved already; several ranks finish the validation first.

    Args:
        dirpath: Folder; default: ``checkpoints`` in the folder of the first logger.
        every_n_steps: Optimizer steps between two saves; 0: time alone decides.
        every_minutes: Minutes between two saves; 0: steps alone decide.
        exit_code: Exit status after SIGTERM or SIGUSR1; some schedulers start a job again by it.

    Raises:
        MisconfigurationException: If a number is negative.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        *,
        every_n_steps: int = 0,
        every_minutes: float = 15.0,
        exit_code: int = 128 + signal.SIGTERM,
    ) -> None:
        if every_n_steps < 0 or every_minutes < 0:
            raise MisconfigurationException(
                f"every_n_steps and every_minutes must be at least 0, got {every_n_steps} and "
                f"{every_minutes}."
            )
        # no trigger of Lightning's: the hooks below decide
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_epochs=0,
            every_n_train_steps=0,
            enable_version_counter=False,
        )
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.exit_code = exit_code
        self._signal = 0  # the one that told the run to stop
        self._due = self._saving = False
        self._saved_at = 0.0
        self._saved_batch = -1  # how many batches had been trained on when last saved
        self._validation_follows = False
        self._wrote = False  # whether the file there is this process's
        self._loaded: dict[str, Any] | None = None
        self._went_on = False  # from such a file, and the epoch is not over

    # ---- when to save

    _place = 2  # behind BestCheckpoint too

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has checkpoints written whole, unless the user chose how."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        # the default of either Lightning package; not a user's
        if type(trainer.strategy.checkpoint_io).__name__ == TorchCheckpointIO.__name__:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        self._signal, self._due, self._saving, self._saved_batch = 0, False, False, -1
        self._loaded, self._went_on = None, False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens to signals."""
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to where the checkpoint was written, if there is one; listens to signals."""
        self._listen(trainer)
        self._saved_at = time.monotonic()
        if self._loaded is not None:
            self._restore(trainer, self._loaded)
            self._loaded = None
        if self._signal and trainer.world_size == 1:
            self._stop(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - whatever training_step returns
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
    ) -> None:
        """Saves, if it is time to; then ends the run, if it is to stop."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            return
        self._validation_follows = _validation_follows(trainer)
        told_to_stop, late = self._agree(trainer)
        self._due |= (
            late
            or told_to_stop
            or self._validation_follows
            or trainer.should_stop
            or trainer.global_step == trainer.max_steps
            or (self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0)
        )
        # Between the last batch of an epoch and its end there is no place to go on from, but the
        # validation: the next batch or the end of training will do.
        if self._due and (self._validation_follows or not loop._num_ready_batches_reached()):
            self._save(trainer)
            if told_to_stop:
                self._stop(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ends a run that is to stop, if all its steps are saved."""
        if self._signal and trainer.world_size == 1:
            if trainer.sanity_checking or self._saved_batch == _num_batches(trainer):
                self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves nothing, for the end of an epoch is no place to go on from."""
        if self._went_on:
            # Lightning would leave a ReduceLROnPlateau as it is, for want of the metrics
            trainer.fit_loop._restarting = self._went_on = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves nothing: it was done before."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end; where training stopped inside of an epoch, that is saved already."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set at run time
            return
        if not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            return
        epochs: Any = trainer.fit_loop.epoch_progress.current
        finished = 0 < (trainer.max_epochs or -1) <= epochs.processed
        if finished or self._saved_batch != _num_batches(trainer):
            self._validation_follows = False
            self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves nothing: where an exception came from, something is half done."""

    def _agree(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether any rank is told to stop, and whether rank zero finds that time is up."""
        minutes = (time.monotonic() - self._saved_at) / 60
        flags = (self._signal, int(0 < self.every_minutes <= minutes))
        if trainer.world_size > 1:
            both = torch.tensor(flags, device=trainer.strategy.root_device)
            flags = tuple(trainer.strategy.reduce(both, reduce_op="max").tolist())
            self._signal = int(flags[0])
        return bool(flags[0]), bool(flags[1])

    # ---- what to save

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set at run time
            return
        path = Path(self.format_checkpoint_name({}))
        if trainer.is_global_zero:
            if not self._wrote and path.exists() and checkpoints.damage_of(path):
                trainer.strategy.checkpoint_io.remove_checkpoint(path)  # previous.ckpt is better
            _keep(path, path.with_name("previous.ckpt"))
        self.best_model_path = str(path)  # part of the state, so before the file is written
        self._saving = True
        self._save_checkpoint(trainer, str(path))
        self._saving, self._due, self._wrote = False, False, True
        self._saved_at = time.monotonic()
        self._saved_batch = _num_batches(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what Lightning leaves out; called on every rank, whoever saves."""
        ranks: list[Any] = [random_state()]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, random_state())
        loop = trainer.fit_loop.epoch_loop
        metrics = trainer.callback_metrics
        checkpoint["run"] = run = {
            "random": ranks,
            "metrics": {name: value.detach().cpu() for name, value in metrics.items()},
            # of the rows that come next in the logs, and whether a validation's is among them
            "loggers": [_name(logger) for logger in trainer.loggers if trainer.is_global_zero],
            "log_step": loop._batches_that_stepped + (not trainer.training),
            "validation": False,
            "exact": self._saving,
            "validated": loop.val_loop.batch_progress.total.state_dict(),
        }
        if self._saving and _inside_batch(trainer):
            run["validation"] = self._validation_follows
            if trainer._logger_connector.should_update_logs:  # logged only after this hook
                row = trainer._logger_connector.metrics["log"]
                run["row"] = {name: float(value) for name, value in row.items()}
            _finish_batch(checkpoint["loops"]["fit_loop"], validation=self._validation_follows)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps what training will go on from; a test between two fits is none of it."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn == TrainerFn.FITTING:
            self._loaded = checkpoint.get("run")

    def _restore(self, trainer: Trainer, run: dict[str, Any]) -> None:
        self._went_on = run.get("exact") is True
        trainer.callback_metrics.update(run["metrics"])
        progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.total.load_state_dict(run["validated"])
        if "row" in run:
            for logger in trainer.loggers:
                row = {**run["row"], "epoch": trainer.current_epoch}
                logger.log_metrics(row, step=run["log_step"])
                logger.save()
        self._saved_batch = _num_batches(trainer)
        if trainer.global_rank < len(run["random"]):  # else a rank that was not there
            set_random_state(run["random"][trainer.global_rank])

    # ---- how to stop

    # Not in setup or on_fit_start: only after these does Lightning put its own handlers in place,
    # which save nothing. It also restores what was there before, in the end.
    def _listen(self, trainer: Trainer) -> None:
        def handle(number: int, _: FrameType | None) -> None:
            if number == signal.SIGINT and self._signal == signal.SIGINT:
                raise StoppedError(128 + number)
            kill = getattr(trainer.strategy.launcher, "kill", None)
            if number != signal.SIGINT and self._signal == 0 and kill is not None:
                kill(number)  # Lightning's own children; Ctrl-C reaches them by itself
            self._signal = number
            if trainer.is_global_zero:
                again = " Again to stop at once." if number == signal.SIGINT else ""
                name = signal.Signals(number).name
                # not by logging, which may be what was interrupted
                os.write(2, f"\n{name}: finishing the step, then saving.{again}\n".encode())

        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, handle)
        if trainer.received_sigterm:  # since the trainer began to listen
            trainer._signal_connector.received_sigterm = False
            self._signal = signal.SIGTERM

    def _stop(self, trainer: Trainer) -> None:
        if self._saved_batch > 0 and trainer.is_global_zero:
            _log.info("saved step %d: %s", trainer.global_step, self.best_model_path)
            environment = trainer._accelerator_connector.cluster_environment
            slurm = type(environment).__name__ == SLURMEnvironment.__name__  # of either package
            if slurm and getattr(environment, "auto_requeue", False):
                if self._signal == _SIGUSR1:
                    _requeue()
        raise StoppedError(130 if self._signal == signal.SIGINT else self.exit_code)


def _name(logger: Logger) -> str | None:
    """What a logger calls the run, as its ``version`` takes it: a folder, or an id of W&B."""
    return f"version_{logger.version}" if isinstance(logger.version, int) else logger.version


def _batches(trainer: Trainer) -> Any:  # noqa: ANN401 - Lightning's counts
    return trainer.fit_loop.epoch_loop.batch_progress.total


def _num_batches(trainer: Trainer) -> int:
    """Batches trained on, in all epochs."""
    return int(_batches(trainer).processed)


def _inside_batch(trainer: Trainer) -> bool:
    """Whether a batch is trained on, but its hooks have not all been called."""
    return bool(_batches(trainer).processed == _batches(trainer).completed + 1)


def _validation_follows(trainer: Trainer) -> bool:
    """Whether the trainer will validate after this batch, and would after resuming from it."""
    if trainer._val_check_time_interval is not None:  # type: ignore[attr-defined]
        return False  # by the clock, which starts anew
    should_stop, trainer.should_stop = trainer.should_stop, False
    try:
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
    finally:
        trainer.should_stop = should_stop


def _finish_batch(loops: dict[str, Any], *, validation: bool) -> None:
    """Turns the progress inside of ``on_train_batch_end`` into that after it.

    Lightning would take the batch for unfinished and skip the validation that follows it, and with
    it whatever goes by its result.
    """
    progress = loops["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts["completed"] = counts["processed"]
    # the pattern of a validation that was broken off, which is done again from its start; once it
    # is recognised, the right numbers come back
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    none = dict.fromkeys(begun, 0)
    val_progress = loops["epoch_loop.val_loop.batch_progress"]
    val_progress["current"].update(none)
    if validation:
        val_progress["total"].update(begun)
    else:
        val_progress["total"].update(none)
        # where no validation follows, the count goes up by the next batch alone
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1


def _keep(path: Path, previous: Path) -> None:
    """Makes ``previous`` what ``path`` is, which stays where it is."""
    if path.is_dir():  # of a sharded model; folders cannot be linked
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    elif path.exists():
        link = previous.with_name(f".{previous.name}.link")
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            shutil.copyfile(path, link)
        link.replace(previous)


def _requeue() -> None:
    """Puts this SLURM job back into the queue."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{task}"
    if not re.fullmatch(r"[0-9_]+", job):
        raise ValueError(f"the number of the SLURM job is {job!r}, which is no number.")
    outcome = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if outcome.returncode == 0:
        _log.info("SLURM job %s is in the queue again.", job)
    else:
        _log.warning("'scontrol requeue %s' failed: %s", job, " ".join(outcome.stderr.split()))
