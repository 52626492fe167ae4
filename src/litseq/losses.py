"""Label-smoothed cross-entropy, summed over tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["IGNORE", "TokenLoss", "token_loss"]

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
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(
            f"label_smoothing must be at least 0 and below 1, got {label_smoothing}; the paper's "
            f"value is 0.1."
        )
    labelled = labels != IGNORE
    logits, labels = logits[labelled], labels[labelled]  # (N, V), (N,)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_normalizer = logits.logsumexp(-1)  # (N,)
    nll = (log_normalizer - logits.gather(-1, labels[:, None])[:, 0]).sum()
    loss = nll
    if label_smoothing:
        uniform = (log_normalizer - logits.mean(-1)).sum()
        loss = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    return TokenLoss(loss, nll.detach(), labelled.sum())
