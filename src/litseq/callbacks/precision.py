"""What floating-point numbers do in training: how large they are, and where they are none."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from litseq.callbacks.nonfinite import (
    count_by_module,
    gradients_of,
    loss_scale,
    shares_by_module,
)
from litseq.sharding import local

__all__ = ["PrecisionMonitor"]

_log = logging.getLogger(__name__)


class PrecisionMonitor(Callback):
    """Logs, every ``log_every_n_steps``, how large gradients and weights are.

    - ``train/grad_norm``: norm of all gradients before clipping, where the module does not log it
      itself, as litseq's do.
    - ``train/param_norm``: norm of all parameters after the step.
    - ``train/loss_scale``: factor of the loss, with a gradient scaler (16-mixed).
    - ``train/nonfinite_gradients`` and ``train/nonfinite_parameters``: share, 0 to 1, of infinities
      and NaN. Where it is not 0, a warning names the modules, once for the same ones.

    Between those steps it does nothing, and it changes nothing: ``NonFiniteGuard`` looks at every
    step, leaves out bad ones and counts them; place it after this callback, since gradients that it
    has thrown away are not seen here. Of sharded parameters, figures are those of rank zero's part.
    """

    def __init__(self) -> None:
        self._figures: dict[str, float] | None = None  # of the gradients; None: not logged
        self._module_logs: bool | None = None  # the norm of the gradients
        self._said: set[tuple[str, ...]] = set()

    def state_dict(self) -> dict[str, Any]:
        """Who logs the norm: a run that goes on finds it among its metrics either way."""
        return {"module_logs": self._module_logs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on as before."""
        self._module_logs = state_dict["module_logs"]

    # Not on_after_backward, where gradients are still scaled.
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at the gradients of a step that will be logged."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._figures = None
        if every and (trainer.global_step + 1) % every == 0:
            self._figures = {}
            if gradients := gradients_of(pl_module):
                norm, share = self._measure(gradients, "gradients")
                self._figures = {"grad_norm": norm, "nonfinite_gradients": share}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - whatever training_step returns
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
    ) -> None:
        """Logs."""
        figures, self._figures = self._figures, None
        if figures is None:
            return
        parameters = {name: local(p.detach()) for name, p in pl_module.named_parameters()}
        figures["param_norm"], figures["nonfinite_parameters"] = self._measure(
            {name: values for name, values in parameters.items() if values.numel()}, "parameters"
        )
        scale = loss_scale(trainer)
        if scale is not None:
            figures["loss_scale"] = scale
        if self._module_logs is None:  # later, it could be our own
            self._module_logs = "train/grad_norm" in trainer.callback_metrics
        if self._module_logs:
            figures.pop("grad_norm", None)
        pl_module.log_dict({f"train/{k}": v for k, v in figures.items()}, batch_size=1)

    def _measure(self, tensors: Mapping[str, Tensor], what: str) -> tuple[float, float]:
        """Norm of all tensors together, and their share of values that are not finite."""
        norm = float(get_total_norm(tensors.values()))  # the one wait for the device
        share = 0.0
        if not math.isfinite(norm):
            counts = count_by_module(tensors)
            self._warn(shares_by_module(counts), what)
            bad, total = map(sum, zip(*counts.values(), strict=True))
            share = bad / total
        return norm, share

    def _warn(self, modules: Mapping[str, float], what: str) -> None:
        key = (what, *modules)
        if not modules or key in self._said:
            return
        self._said.add(key)
        shares = ", ".join(f"{name} ({share:.2%})" for name, share in modules.items())
        _log.warning("%s are not finite in %s.", what, shares)
