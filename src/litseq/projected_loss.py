"""Cross-entropy behind a projection to the vocabulary, whose logits never all stand in memory."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from litseq.layers.linear import Packing, is_plain, unpacked_product
from litseq.layers.rows import ROWS_STEP
from litseq.losses import (
    IGNORE,
    TokenLoss,
    check_label_smoothing,
    smoothed,
    token_loss,
)
from litseq.types import compute_dtype

__all__ = ["projected_loss"]

_PIECE = {True: 2**22, False: 2**26}
"""Probabilities of a piece, by whether they are on a CPU: there as many as stay in its cache until
they have become gradients, of rows enough for a fast product."""


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
    if dtype == torch.float16 or projection.bias is None or not is_plain(projection):
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
        rows, ignored = _rows(labels)
        y, h = labels[rows], hidden[rows].to(dtype)
        if ignored is not None:
            y, h = y.masked_fill(ignored, 0), h.masked_fill(ignored[:, None], 0)
        y = y[:, None]
        with torch.autocast(hidden.device.type, enabled=False):
            product = _Product(weight, bias, dtype)
            slopes = _Slopes(grads, product) if any(x is not None for x in grads) else None
            # the mean of all logits is the product with the mean of all rows
            mean_w, mean_b = (x.mean(0, dtype=compute_dtype(x)) for x in (weight, bias))
            target = mean_b.new_full(y.shape, label_smoothing - 1)
            found = []
            size = _piece_size(len(weight), on_cpu=ignored is None)
            pieces = [torch.split(x, size) for x in (h, y, target)]
            blank = repeat(None) if ignored is None else torch.split(ignored[:, None], size)
            for h_piece, y_piece, target_piece, blank_piece in zip(*pieces, blank, strict=False):
                z = product(h_piece)  # (n, V)
                probs = z.softmax(-1, dtype=compute_dtype(z))
                chosen = z.gather(-1, y_piece)
                found.append((chosen, z.amax(-1), probs.amax(-1)))
                if slopes is not None:
                    slope = probs.scatter_add_(-1, y_piece, target_piece)
                    if blank_piece is not None:
                        slope.masked_fill_(blank_piece, 0)
                    slopes.add(h_piece, slope.to(dtype))
            chosen, top, top_prob = (torch.cat(x) for x in zip(*found, strict=True))
            chosen = chosen.squeeze(1)
            # the normaliser, from the most probable token, whose logarithm is exact
            log_norm = top - top_prob.log()
            # of a target that is spread evenly: the normaliser less the mean logit
            even = log_norm - (h.to(mean_w.dtype) @ mean_w + mean_b)
            sums = torch.stack((log_norm - chosen, even))  # (2, N)
            if ignored is not None:
                sums.masked_fill_(ignored, 0)
            if slopes is not None:
                of_row, of_token = label_smoothing * mean_w, label_smoothing / len(weight)
                slopes.finish(h, rows, ignored, of_row, of_token)
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.save_for_backward(*grads)
        nll, even = sums.sum(1).unbind()
        nll = nll.clone()
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


def _rows(labels: Tensor) -> tuple[Tensor | slice, Tensor | None]:
    """Those with a label; where counting them would wait, all, and which to ignore."""
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        return (labels != IGNORE).nonzero()[:, 0], None
    return slice(None), labels == IGNORE


def _piece_size(vocab_size: int, *, on_cpu: bool) -> int:
    """How many rows are computed together; on a CPU, so many that few kernels are planned."""
    size = max(1, _PIECE[on_cpu] // vocab_size)
    return size - size % ROWS_STEP if on_cpu and size > ROWS_STEP else size


class _Product:
    """The projection and its transpose, by the fastest kernels of the processor."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._given = weight, bias
        self._cast = weight.to(dtype), bias.to(dtype)
        self._transposed = weight.t()
        self._packing = Packing()

    def __call__(self, h: Tensor) -> Tensor:
        """Gives logits, (n, V), of (n, D)."""
        if self._is_packed(h):
            return self._packing.product(h, *self._given)
        return F.linear(h, *self._cast)

    def back(self, slope: Tensor) -> Tensor:
        """Gives the gradient of (n, D) from that of logits, (n, V)."""
        if self._is_packed(slope):
            return unpacked_product(slope, self._transposed)
        return slope @ self._cast[0]

    def _is_packed(self, x: Tensor) -> bool:
        return x.dtype == torch.float32 and self._packing.takes(x, self._given[0])


class _Slopes:
    """Gradients that are added up piece by piece.

    Args:
        grads: Of hidden, weight and bias, each to be written into, or None.
        product: The projection.
    """

    def __init__(self, grads: list[Tensor | None], product: _Product) -> None:
        self._of_hidden, self._of_weight, self._of_bias = grads
        self._of_rows: list[Tensor] = []
        self._product = product

    def add(self, h: Tensor, slope: Tensor) -> None:
        """Adds what some rows give, float (n, D), from the gradient of their logits, (n, V)."""
        of_weight = self._of_weight
        if self._of_bias is not None:
            self._of_bias += slope.sum(0, dtype=self._of_bias.dtype)
        if self._of_hidden is not None:
            self._of_rows.append(self._product.back(slope))
        if of_weight is not None and of_weight.dtype == slope.dtype:
            of_weight.addmm_(slope.T, h)
        elif of_weight is not None:
            of_weight += slope.T @ h

    def finish(
        self,
        h: Tensor,
        rows: Tensor | slice,
        ignored: Tensor | None,
        of_row: Tensor,
        of_token: float,
    ) -> None:
        """Takes away what the share of targets gives that is spread over all tokens alike.

        Each row has ``of_row`` of it, and each logit ``of_token``.
        """
        if self._of_hidden is not None:
            of_rows = torch.cat(self._of_rows).to(of_row.dtype) - of_row
            if ignored is not None:
                of_rows.masked_fill_(ignored[:, None], 0)
            self._of_hidden[rows] = of_rows
        if self._of_weight is not None:
            self._of_weight -= of_token * h.sum(0, dtype=of_row.dtype)
        if self._of_bias is not None:
            self._of_bias -= of_token * (len(h) if ignored is None else (~ignored).sum())
