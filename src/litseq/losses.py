"""Losses, summed over tokens: label-smoothed cross-entropy, and R-Drop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from litseq.types import compute_dtype

__all__ = [
    "IGNORE",
    "TokenLoss",
    "check_label_smoothing",
    "r_drop_loss",
    "smoothed",
    "token_loss",
]

IGNORE = -100
"""The label of positions that count nothing, as in ``torch.nn.CrossEntropyLoss``."""


class TokenLoss(NamedTuple):
    """Sums over the labelled tokens of a batch.

    Attributes:
        loss: What training minimises, in nats; float scalar with gradient.
        nll: Negative log-likelihood without smoothing, in nats; float scalar without gradient.
        num_tokens: Number of labelled tokens; int64 scalar.
    """

    loss: Tensor
    nll: Tensor
    num_tokens: Tensor


def token_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> TokenLoss:
    """Sums the label-smoothed cross-entropy of every labelled token.

    The target distribution gives the label 1 - e and spreads e evenly over the whole vocabulary,
    the label included, as ``torch.nn.CrossEntropyLoss(label_smoothing=e)`` does. A sum, not a mean:
    whoever adds up batches, micro-batches or devices divides once, by the number of all tokens.

    Args:
        logits: float (..., V); computed in float32 at least.
        labels: int64 (...); positions equal to -100 count nothing.
        label_smoothing: e, from 0 up to, not including, 1.

    Raises:
        ValueError: If ``label_smoothing`` is out of range.

    Source: Szegedy et al. (2016), section 7, https://arxiv.org/abs/1512.00567; Vaswani et al.
    (2017), section 5.4.
    """
    check_label_smoothing(label_smoothing)
    loss, nll = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits.flatten(0, -2), labels.flatten(), label_smoothing
    )
    return TokenLoss(loss, nll, (labels != IGNORE).sum())


def r_drop_loss(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, weight: float
) -> TokenLoss:
    """Sums the loss of a batch that passed twice, with two draws of dropout.

    To the mean cross-entropy of the two predictions p and q it adds how far they disagree,
    weight / 4 * (KL(p || q) + KL(q || p)): half of what the paper adds up.

    Args:
        logits: float (2 B, ..., V), the second pass behind the first; computed in float32 at least.
        labels: int64 (B, ...); positions equal to -100 count nothing.
        label_smoothing: As in ``token_loss``.
        weight: Of the disagreement; the paper's alpha.

    Raises:
        ValueError: If ``label_smoothing`` is out of range.

    Source: Liang et al. (2021), https://arxiv.org/abs/2106.14448.
    """
    check_label_smoothing(label_smoothing)
    loss, nll = _RDrop.apply(  # type: ignore[no-untyped-call]
        logits.flatten(0, -2), labels.flatten(), label_smoothing, weight / 4
    )
    return TokenLoss(loss, nll, (labels != IGNORE).sum())


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises ``ValueError`` if the share is out of its range."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(
            f"label_smoothing must be at least 0 and below 1, got {label_smoothing}; the paper's "
            f"value is 0.1."
        )


class _CrossEntropy(torch.autograd.Function):
    """Sums label-smoothed cross-entropy a few rows at a time.

    The logits are by far the largest tensor of a training step. Autograd over logsumexp, gather and
    mean passes over them a dozen times and keeps copies; here they are read once forward and once
    backward, in pieces that stay in the processor's cache.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        logits: Tensor,
        labels: Tensor,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums of loss and of nll, from logits (N, V) and labels (N,)."""
        ctx.save_for_backward(logits, labels)
        ctx.label_smoothing = label_smoothing
        nll, uniform = [], []
        for z, y, keep in _pieces(logits, labels):
            log_probs = z.log_softmax(-1, dtype=compute_dtype(z))
            nll.append(-_sum(log_probs.gather(-1, y)[:, 0], keep))
            if label_smoothing:  # else a logit of -inf elsewhere is no matter
                uniform.append(-_sum(log_probs.mean(-1), keep))
        nll_sum = torch.stack(nll).sum()
        ctx.mark_non_differentiable(nll_sum)
        return smoothed(nll_sum, _total(uniform), label_smoothing), nll_sum

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_loss: Tensor,
        _: Tensor,
    ) -> tuple[Tensor, None, None]:
        """Returns probabilities minus the smoothed target distribution, (N, V)."""
        logits, labels = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for z, y, keep, out in _pieces(logits, labels, grad):
            probs = z.softmax(-1, dtype=compute_dtype(z))
            probs -= ctx.label_smoothing / z.size(-1)
            probs.scatter_add_(-1, y, probs.new_full((), ctx.label_smoothing - 1.0).expand_as(y))
            torch.mul(probs, (keep * grad_loss)[:, None].to(probs.dtype), out=probs)
            out.copy_(probs)
        return grad, None, None


class _RDrop(torch.autograd.Function):
    """Cross-entropy and divergence, and the gradient of both, from one pass over the two logits.

    Backward would have to compute both distributions again, and that is most of the work.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        logits: Tensor,
        labels: Tensor,
        label_smoothing: float,
        weight: float,
    ) -> tuple[Tensor, Tensor]:
        """Returns the sums of loss and of nll, from logits (2 N, V) and labels (N,).

        Keeps (p - target) / 2 + weight (p (log p/q - KL) + p - q), and the same of q.
        """
        # a gradient that no loss scale has multiplied yet is too small for float16
        kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        grads = torch.empty_like(logits, dtype=kept) if ctx.needs_input_grad[0] else None
        share, nll, uniform, divergence = label_smoothing, [], [], []
        first, second = logits.chunk(2)
        more = () if grads is None else grads.chunk(2)
        for z, y, keep, w, *out in _pieces(first, labels, second, *more):
            log_p, log_q = (x.log_softmax(-1, dtype=compute_dtype(x)) for x in (z, w))
            nll.append(-_sum((log_p.gather(-1, y) + log_q.gather(-1, y))[:, 0] / 2, keep))
            if share:
                uniform.append(-_sum((log_p.mean(-1) + log_q.mean(-1)) / 2, keep))
            log_ratio = log_p - log_q
            p, q = log_p.exp_(), log_q.exp_()
            kl_p, kl_q = torch.linalg.vecdot(p, log_ratio), -torch.linalg.vecdot(q, log_ratio)
            divergence.append(_sum(kl_p + kl_q, keep))
            if not out:
                continue
            hit = p.new_full((), (share - 1.0) / 2).expand_as(y)
            for grad, x, other, kl, sign in zip(
                out, (p, q), (q, p), (kl_p, kl_q), (1.0, -1.0), strict=True
            ):
                rest = (0.5 + weight - weight * kl)[:, None]
                slope = torch.add(rest, log_ratio, alpha=sign * weight)
                slope.mul_(x).sub_(other, alpha=weight)
                slope.sub_(share / 2 / z.size(-1)).scatter_add_(-1, y, hit)
                grad.copy_(slope)
        ctx.save_for_backward(grads, labels)
        ctx.dtype = logits.dtype
        nll_sum, kl_sum = torch.stack(nll).sum(), torch.stack(divergence).sum()
        ctx.mark_non_differentiable(nll_sum)
        return smoothed(nll_sum, _total(uniform), share) + weight * kl_sum, nll_sum

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_loss: Tensor,
        _: Tensor,
    ) -> tuple[Tensor, None, None, None]:
        """Returns the gradient that was kept, times that of the loss; zero where nothing counts."""
        grads, labels = ctx.saved_tensors
        scaled = torch.empty_like(grads, dtype=ctx.dtype)
        for grad, _, keep, out in _pieces(grads, labels.repeat(2), scaled):
            torch.mul(grad, (keep * grad_loss)[:, None], out=out)
        return scaled, None, None, None


def _pieces(logits: Tensor, labels: Tensor, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits rows into pieces of a few megabytes: logits, labels to gather, which ones count."""
    rows = max(1, _PIECE[logits.device.type == "cpu"] // logits.size(-1))
    keep = labels != IGNORE
    columns = labels.masked_fill(~keep, 0)[:, None]
    for start in range(0, max(1, len(labels)), rows):
        yield tuple(tensor[start : start + rows] for tensor in (logits, columns, keep, *more))


_PIECE = {True: 2**18, False: 2**26}
"""Elements of a piece, by whether they are on a CPU: few enough for a processor's cache; enough to
keep an accelerator busy while the next piece is on its way."""


def smoothed(nll: Tensor, uniform: Tensor | None, label_smoothing: float) -> Tensor:
    """Mixes the sum of nll with the sum for a uniform target; always a tensor of its own."""
    if uniform is None:
        return nll.clone()
    return torch.add((1.0 - label_smoothing) * nll, uniform, alpha=label_smoothing)


def _total(sums: list[Tensor]) -> Tensor | None:
    """Of all pieces; None if there are none."""
    return torch.stack(sums).sum() if sums else None


def _sum(values: Tensor, keep: Tensor) -> Tensor:
    return values.masked_fill(~keep, 0).sum()
