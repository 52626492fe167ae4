"""Cross-entropy behind a projection to the vocabulary, whose logits never all stand in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from litseq.layers.linear import Linear
from litseq.losses import (
    IGNORE,
    TokenLoss,
    check_label_smoothing,
    compute_dtype,
    smoothed,
    token_loss,
)

__all__ = ["projected_loss"]

_PIECE = {True: 2**21, False: 2**26}
"""Logits of a piece, by whether they are on a CPU: as many as stay in its cache until they have
become gradients, and rows enough for a fast product."""


def projected_loss(
    hidden: Tensor, projection: nn.Linear, labels: Tensor, *, label_smoothing: float = 0.0
) -> TokenLoss:
    """Sums the loss of ``projection(hidden)`` as ``token_loss`` does, to rounding.

    A few rows are projected at a time; their gradient is computed while their logits are still in
    the cache. So memory holds gradients of hidden vectors and of the projection, and (N, V) never.
    On a CPU, rows without a label are left out. A projection that is more than ``nn.Linear``, or
    that is watched by hooks, is called as it is, and so is any in float16, where gradients that no
    loss scale has multiplied yet are too small.

    Args:
        hidden: What is projected, float (..., D).
        projection: From D to V.
        labels: int64 (...); positions equal to -100 count nothing.
        label_smoothing: As in ``token_loss``.

    Raises:
        ValueError: If ``label_smoothing`` is out of range.

    Source: Hsu et al. (2024), https://arxiv.org/abs/2410.10989, who do so on GPUs.
    """
    check_label_smoothing(label_smoothing)
    device, dtype = hidden.device.type, hidden.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype == torch.float16 or not _is_plain(projection):
        return token_loss(projection(hidden), labels, label_smoothing=label_smoothing)
    loss, nll = _ProjectedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2),
        projection.weight,
        projection.bias,
        labels.flatten(),
        label_smoothing,
        dtype,
        torch.is_grad_enabled(),
    )
    return TokenLoss(loss, nll, (labels != IGNORE).sum())


def _is_plain(projection: nn.Linear) -> bool:
    hooks = projection._forward_hooks or projection._forward_pre_hooks or projection._backward_hooks
    return type(projection) in (nn.Linear, Linear) and projection.bias is not None and not hooks


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Product, cross-entropy, and the gradients of both in one pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        label_smoothing: float,
        dtype: torch.dtype,
        trains: bool,
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums of loss and of nll, from (N, D), (V, D), (V,) and labels (N,)."""
        grads = [
            torch.zeros_like(x, dtype=compute_dtype(x)) if needed and trains else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        with torch.autocast(hidden.device.type, enabled=False):
            w, b = weight.to(dtype), bias.to(dtype)
            # the mean of all logits is the product with the mean of all rows
            mean_w, mean_b = (x.mean(0, dtype=compute_dtype(x)) for x in (weight, bias))
            sums = mean_b.new_zeros(2)
            for rows in _pieces(labels, len(weight)):
                h, y = hidden[rows].to(dtype), labels[rows]
                counts = y != IGNORE
                y = y.masked_fill(~counts, 0)[:, None]
                z = F.linear(h, w, b)  # (n, V)
                chosen = z.gather(-1, y)[:, 0]
                log_probs = z.log_softmax(-1, dtype=compute_dtype(z))
                log_prob = log_probs.gather(-1, y)[:, 0]
                # of a target that is spread evenly: the normaliser less the mean logit
                even = chosen - log_prob - (h.to(mean_w.dtype) @ mean_w + mean_b)
                sums += torch.stack((-log_prob, even)).masked_fill(~counts, 0).sum(1)
                if any(grad is not None for grad in grads):
                    slope = log_probs.exp_().sub_(label_smoothing / len(weight))
                    slope.scatter_add_(-1, y, slope.new_full(y.shape, label_smoothing - 1))
                    slope.mul_(counts[:, None])
                    _add(grads, rows, slope.to(dtype), h, w)
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.save_for_backward(*grads)
        nll, even = sums[0].clone(), sums[1]
        ctx.mark_non_differentiable(nll)
        return smoothed(nll, [even] if label_smoothing else [], label_smoothing), nll

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_loss: Tensor,
        _: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradients that were kept, times that of the loss."""
        grads = (
            None if grad is None else (grad * grad_loss).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *grads, None, None, None, None


def _pieces(labels: Tensor, vocab_size: int) -> list[Tensor | slice]:
    """Rows that are computed together: those with a label, or all where counting would wait."""
    on_cpu = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    size = max(1, _PIECE[on_cpu] // vocab_size)
    if on_cpu:
        return list(torch.split((labels != IGNORE).nonzero()[:, 0], size))
    return [slice(first, first + size) for first in range(0, len(labels), size)]


def _add(
    grads: list[Tensor | None], rows: Tensor | slice, slope: Tensor, h: Tensor, w: Tensor
) -> None:
    """Adds what some rows give, from the gradient of their logits, (n, V)."""
    of_hidden, of_weight, of_bias = grads
    if of_hidden is not None:
        of_hidden[rows] = (slope @ w).to(of_hidden.dtype)
    if of_weight is not None and of_weight.dtype == slope.dtype:
        of_weight.addmm_(slope.T, h)
    elif of_weight is not None:
        of_weight += slope.T @ h
    if of_bias is not None:
        of_bias += slope.sum(0, dtype=of_bias.dtype)
