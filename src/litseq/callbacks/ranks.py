"""A rank that dies or hangs ends the others, which say who it was."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from litseq.callbacks.rank_watch import Hub, RankStatus, RankWatch, Spoke

__all__ = ["RankMonitor"]


class RankMonitor(Callback):
    """Ends a run whose ranks wait in vain: one line names the rank that died or hangs.

    Without it, a rank that stops leaves the others in a collective operation for ever, or until a
    time-out of the process group that names nobody. Here each rank tells rank zero once a second
    what it does, from a thread of its own, over a connection of its own: nothing is synchronised
    and no step waits. Rank zero tells the others. A process that is gone closes its connection,
    which shows at once; one that makes no progress for ``timeout`` seconds hangs. Batches of
    training and evaluation, the borders of a backward pass, validations and checkpoints are
    progress. Everybody who still can then writes the line and exits with status ``exit_code``.

    One rank alone is not watched.

    Args:
        timeout: Seconds without progress that are still allowed; more than the longest batch, the
            scoring of a validation, the writing of a checkpoint, or a compilation takes.
        exit_code: Exit status; 75 is the usual one for "try again".

    Raises:
        ValueError: If ``timeout`` is not positive.
    """

    def __init__(self, timeout: float = 600.0, *, exit_code: int = 75) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout must be positive, got {timeout}.")
        self.timeout = timeout
        self.exit_code = exit_code
        self._status = RankStatus(0, socket.gethostname(), os.getpid())
        self._watch: RankWatch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connects the ranks."""
        self._close()
        if trainer.world_size == 1:
            return
        self._status = RankStatus(trainer.global_rank, socket.gethostname(), os.getpid())
        hub, address = None, ("", 0, "")
        if trainer.is_global_zero:
            hub = _listen()
            # a rank's own name of its machine may mean nothing to others; this one they know
            environment = getattr(trainer.strategy, "cluster_environment", None)
            host = "127.0.0.1" if environment is None else environment.main_address
            address = (host, hub.getsockname()[1], secrets.token_hex(16))
        host, port, token = trainer.strategy.broadcast(address)
        options = (self._status, self.timeout, self.exit_code)
        if hub is not None:
            launcher = trainer.strategy.launcher
            self._watch = Hub(hub, token, trainer.world_size, launcher, *options)
        else:
            self._watch = Spoke((host, port), token, *options)
        self._watch.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes leave of the others."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tells the others; if it is because one of them died, that one is named first."""
        if self._watch is not None:
            self._watch.fail(exception)
        self._close()

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.leave()
            self._watch = None

    def _mark(self, trainer: Trainer, doing: str, *, shared: bool = True) -> None:
        if self._watch is not None:
            status = self._status
            status.doing, status.step = doing, trainer.global_step
            status.marks += shared
            status.ticks += 1

    # ---- progress

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "train")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "train: forward")

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "train: backward")

    def on_after_backward(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "train: after backward")

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "train: optimizer")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "train: next batch")

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "end of training")

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "save")

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "validate")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "validate", shared=False)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "validate", shared=False)

    def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "validate: scores")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "after validation")

    def on_test_batch_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "test", shared=False)

    def on_test_epoch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "test: scores")

    def on_predict_batch_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "predict", shared=False)

    def on_predict_epoch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        self._mark(trainer, "predict: end")


def _listen() -> socket.socket:
    """A socket that other machines can reach, at any free port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
