"""Cross-entropy behind a projection to the vocabulary, whose logits never all stand in memory."""

from __future__ import annotations

from collections.abc import Sequence
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

_BIAS_SUMS = 16
"""Gradients of the bias, each of a piece, that are added up together."""

_EXACT_FROM = 1e-30
"""Float32 has all its digits for probabilities above it."""


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
    labels = labels.flatten()
    counts = labels != IGNORE
    loss, nll = _ProjectedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2),
        projection.weight,
        projection.bias,
        labels,
        counts,
        label_smoothing,
        dtype,
        torch.is_grad_enabled(),
    )
    return TokenLoss(loss, nll, counts.sum())


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Product, cross-entropy, and the gradients of both in one pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        counts: Tensor,
        label_smoothing: float,
        dtype: torch.dtype,
        trains: bool,
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums of loss and of nll.

        From (N, D), (V, D), (V,), labels (N,) and which of those count, bool (N,).
        """
        needed = [trains and x for x in ctx.needs_input_grad[:3]]
        rows, ignored = _rows(counts)
        y, h = (labels, hidden) if rows is None else (labels[rows], hidden[rows])
        h = h.to(dtype)
        if ignored is not None:
            y, h = y.masked_fill(ignored, 0), h.masked_fill(ignored[:, None], 0)
        y = y[:, None]
        with torch.autocast(hidden.device.type, enabled=False):
            product = _Product(weight, bias, dtype)
            slopes = _Slopes(needed, product, weight) if any(needed) else None
            # the mean of all logits is the product with the mean of all rows
            mean_w, mean_b = (x.mean(0, dtype=compute_dtype(x)) for x in (weight, bias))
            target = mean_b.new_full(y.shape, label_smoothing - 1)
            found = []
            size = _piece_size(len(weight), on_cpu=ignored is None)
            pieces = [torch.split(x, size) for x in (h, y, target)]
            blank = repeat(None) if ignored is None else torch.split(ignored[:, None], size)
            for h_piece, y_piece, target_piece, blank_piece in zip(*pieces, blank, strict=False):
                z = product(h_piece)  # (n, V)
                z = z.to(compute_dtype(z))
                probs = z.softmax(-1)
                chosen = z.gather(-1, y_piece)
                found.append((chosen, *_likely(z, probs, chosen, probs.gather(-1, y_piece))))
                if slopes is not None:
                    slope = probs.scatter_add_(-1, y_piece, target_piece)
                    if blank_piece is not None:
                        slope.masked_fill_(blank_piece, 0)
                    slopes.add(h_piece, slope)
            chosen, likely, likely_probs = (torch.cat(x) for x in zip(*found, strict=True))
            log_norm = (likely - likely_probs.log()).squeeze(1)
            # of a target that is spread evenly: the normaliser less the mean logit
            even = log_norm - torch.addmv(mean_b, h.to(mean_w.dtype), mean_w)
            nll = log_norm - chosen.squeeze(1)
            if ignored is not None:
                nll, even = nll.masked_fill(ignored, 0), even.masked_fill(ignored, 0)
            grads: Sequence[Tensor | None] = (None, None, None)
            if slopes is not None:
                of_rows, *more = slopes.finish(h, ignored, mean_w, label_smoothing)
                if of_rows is not None and rows is not None:
                    of_rows = of_rows.new_zeros(hidden.shape).index_copy_(0, rows, of_rows)
                grads = of_rows, *more
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.save_for_backward(*grads)
        nll = nll.sum()
        ctx.mark_non_differentiable(nll)
        return smoothed(nll, even.sum() if label_smoothing else None, label_smoothing), nll

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
        return *grads, None, None, None, None, None


def _rows(counts: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Those that count, None if all; where finding them would wait, all, and which to ignore."""
    if _waits_for_nothing(counts):
        rows = counts.nonzero()[:, 0]
        return None if len(rows) == len(counts) else rows, None
    return None, ~counts


def _waits_for_nothing(x: Tensor) -> bool:
    """Whether who looks at its values has them at once."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _likely(
    z: Tensor, probs: Tensor, chosen: Tensor, chosen_probs: Tensor
) -> tuple[Tensor, Tensor]:
    """Logit and probability, (n, 1), of a token of each row whose probability has all digits.

    From all of them, (n, V), and those of the labels, which will do but for the unlikeliest.
    """
    seen = type(z) is Tensor and _waits_for_nothing(z)
    if seen and bool((chosen_probs.numpy() > _EXACT_FROM).all()):
        return chosen, chosen_probs
    return z.amax(-1, keepdim=True), probs.amax(-1, keepdim=True)


def _piece_size(vocab_size: int, *, on_cpu: bool) -> int:
    """How many rows are computed together; on a CPU, so many that few kernels are planned."""
    size = max(1, _PIECE[on_cpu] // vocab_size)
    return size - size % ROWS_STEP if on_cpu and size > ROWS_STEP else size


class _Product:
    """The projection and its transpose, by the fastest kernels of the processor."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._weight, self._bias = weight.to(dtype), bias.to(dtype)
        self._transposed = self._weight.t()
        self._packing = Packing(any_tensor=True)

    def __call__(self, h: Tensor) -> Tensor:
        """Gives logits, (n, V), of (n, D)."""
        if self._packing.takes(h, self._weight):
            return self._packing.product(h, self._weight, self._bias)
        return F.linear(h, self._weight, self._bias)

    def back(self, slope: Tensor) -> Tensor:
        """Gives the gradient of (n, D) from that of logits, (n, V)."""
        if self._packing.takes(slope, self._weight):
            return unpacked_product(slope, self._transposed)
        return slope @ self._weight


class _Slopes:
    """Gradients that are added up piece by piece.

    Args:
        needed: Which there are: of hidden vectors, of the weight, of the bias.
        product: The projection.
        weight: Its weight.
    """

    def __init__(self, needed: Sequence[bool], product: _Product, weight: Tensor) -> None:
        self._needs_rows, needs_weight, self._needs_bias = needed
        self._product, self._vocab_size = product, len(weight)
        self._of_rows: list[Tensor] = []
        self._of_weight: Tensor | None = None
        self._of_bias: list[Tensor] = []
        if needs_weight:
            self._of_weight = torch.zeros_like(weight, dtype=compute_dtype(weight))

    def add(self, h: Tensor, slope: Tensor) -> None:
        """Adds what some rows give, float (n, D), from the gradient of their logits, (n, V)."""
        of_weight = self._of_weight
        if self._needs_bias:
            self._of_bias.append(slope.sum(0))
            if len(self._of_bias) == _BIAS_SUMS:
                self._of_bias = [torch.stack(self._of_bias).sum(0)]
        slope = slope.to(h.dtype)
        if self._needs_rows:
            self._of_rows.append(self._product.back(slope))
        if of_weight is not None and of_weight.dtype == slope.dtype:
            of_weight.addmm_(slope.T, h)
        elif of_weight is not None:
            of_weight += slope.T @ h

    def finish(
        self, h: Tensor, ignored: Tensor | None, mean_w: Tensor, label_smoothing: float
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Takes away what the share of targets gives that is spread over all tokens alike.

        Of (N, D), which of them to ignore, the mean row of the weight, (D,), and that share.
        Returns the gradients of the rows that were added, of the weight and of the bias.
        """
        of_rows, of_weight, of_bias = None, self._of_weight, None
        if self._needs_rows:
            of_rows = torch.cat(self._of_rows).to(mean_w.dtype).sub_(mean_w, alpha=label_smoothing)
            if ignored is not None:
                of_rows.masked_fill_(ignored[:, None], 0)
        of_token = label_smoothing / self._vocab_size
        if of_weight is not None:
            of_weight.sub_(h.sum(0, dtype=mean_w.dtype), alpha=of_token)
        if self._needs_bias:
            of_bias = torch.stack(self._of_bias).sum(0)
            of_bias -= of_token * (len(h) if ignored is None else (~ignored).sum())
        return of_rows, of_weight, of_bias
