"""What a matrix of attention weights looks like, in a few numbers per head.

Everywhere the weights are a float (..., T, S) whose rows sum to 1, as ``capture_attention`` gives
them; masks are bool with True = token, padding stands at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "confidence",
    "coverage",
    "diagonality",
    "entropy",
    "head_agreement",
    "summarize",
]


def entropy(weights: Tensor, *, normalized: bool = False, visible: Tensor | None = None) -> Tensor:
    """Says how widely each query looks: 0 at one key, log(n) at n keys alike.

    Args:
        weights: float (..., T, S).
        normalized: Divides by log(n), n being the number of keys that the query may see: 1 is
            looking everywhere alike. Of a single key it is 0.
        visible: That number, broadcasts to (..., T). None: all S keys, or where no query looks
            ahead of itself, as in a decoder's self-attention, those up to its own.

    Returns:
        float (..., T), in nats unless normalised.
    """
    nats = -torch.xlogy(weights, weights).sum(-1)
    if not normalized:
        return nats
    return nats / (_visible(weights) if visible is None else visible).clamp(min=2).log()


def confidence(weights: Tensor) -> Tensor:
    """Gives the largest weight of each query: float (..., T, S) to float (..., T)."""
    return weights.amax(-1)


def coverage(weights: Tensor, query_mask: Tensor | None = None) -> Tensor:
    """Adds up what all queries take of each key: 1 on average where T equals S.

    A source token that nobody looks at may have been left out of the translation (Tu et al. 2016,
    https://arxiv.org/abs/1601.04811).

    Args:
        weights: float (B, ..., T, S).
        query_mask: bool (B, T); queries that count. None: all.

    Returns:
        float (B, ..., S).
    """
    return (weights * _rows(weights, query_mask)[..., None]).sum(-2)


def diagonality(
    weights: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None
) -> Tensor:
    """Says how close attention stays to the diagonal: 1 on it, about 2/3 when uniform.

    One minus the mean distance between where a query stands in its sequence and where it looks in
    the other, both from 0 (first token) to 1 (last).

    Args:
        weights: float (B, ..., T, S).
        query_mask: bool (B, T). None: all are tokens.
        key_mask: bool (B, S). None: all are tokens.

    Returns:
        float (B, ...).
    """
    there = _places(weights, key_mask, weights.size(-1)).unsqueeze(-2)  # (B, ..., 1, S)
    here = _places(weights, query_mask, weights.size(-2)).unsqueeze(-1)  # (B, ..., T, 1)
    distance = (weights * (here - there).abs()).sum(-1)  # (B, ..., T)
    return 1 - _mean(distance, _rows(weights, query_mask))


def head_agreement(weights: Tensor, query_mask: Tensor | None = None) -> Tensor:
    """Compares every two heads: 1 where they look at the same, 0 where at nothing in common.

    One minus the Jensen-Shannon divergence in bits, averaged over queries. Heads that agree with
    all others do work that is done already.

    Args:
        weights: float (B, H, T, S).
        query_mask: bool (B, T); queries that count. None: all.

    Returns:
        float (B, H, H), symmetric, 1 on the diagonal.
    """
    one, other = weights[:, :, None], weights[:, None]  # (B, H, 1, T, S), (B, 1, H, T, S)
    middle = (one + other) / 2
    nats = entropy(middle) - (entropy(one) + entropy(other)) / 2  # (B, H, H, T)
    bits = nats / torch.tensor(2.0).log()
    return 1 - _mean(bits, _rows(middle, query_mask))


def summarize(
    weights: Tensor, *, query_mask: Tensor | None = None, key_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Averages over a batch, padding left out.

    Args:
        weights: float (B, H, T, S).
        query_mask: bool (B, T). None: all are tokens.
        key_mask: bool (B, S). None: all are tokens.

    Returns:
        One number per head, float (H,): ``entropy`` (normalised, over the queries that have a
        choice), ``confidence``, ``diagonality``, ``coverage`` (the share of keys of which all
        queries together take at least half of an even share), ``agreement`` (with the other head
        that is most alike; absent of a single head).
    """
    rows = _rows(weights, query_mask)  # (B, 1, T)
    keys = weights.new_ones(weights.size(0), 1, weights.size(-1))
    keys = keys if key_mask is None else key_mask.to(keys)[:, None]  # (B, 1, S)
    visible = torch.minimum(_visible(weights), keys.sum(-1, keepdim=True))  # (B, 1, T)
    even = rows.expand_as(weights[..., 0]).sum(-1) / keys.sum(-1)  # (B, H)
    covered = coverage(weights, query_mask) >= even[..., None] / 2
    found = {
        "entropy": _mean(
            entropy(weights, normalized=True, visible=visible), rows * (visible > 1), batch=True
        ),
        "confidence": _mean(confidence(weights), rows, batch=True),
        "diagonality": diagonality(weights, query_mask, key_mask).mean(0),
        "coverage": _mean(covered.to(weights), keys, batch=True),
    }
    if weights.size(1) > 1:
        others = head_agreement(weights, query_mask).mean(0)
        found["agreement"] = others.fill_diagonal_(-torch.inf).amax(-1)
    return found


def _visible(weights: Tensor) -> Tensor:
    """Number of keys that each query may see, padding aside, float (T)."""
    num_queries, num_keys = weights.shape[-2:]
    if num_queries == num_keys and not weights.triu(1).any():
        return torch.arange(1, num_keys + 1).to(weights)
    return weights.new_full((num_queries,), num_keys)


def _rows(weights: Tensor, query_mask: Tensor | None) -> Tensor:
    """The weight of each query in a mean, float (B, 1, ..., T)."""
    if query_mask is None:
        return weights.new_ones(
            weights.shape[:1] + (1,) * (weights.dim() - 3) + weights.shape[-2:-1]
        )
    shape = query_mask.shape[:1] + (1,) * (weights.dim() - 3) + query_mask.shape[1:]
    return query_mask.to(weights).view(shape)


def _places(weights: Tensor, mask: Tensor | None, size: int) -> Tensor:
    """Where each token stands in its sequence, from 0 to 1, float (B, 1, ..., size)."""
    place = torch.arange(size, device=weights.device, dtype=weights.dtype)
    if mask is None:
        lengths = torch.full((weights.size(0), 1), size, device=weights.device)
    else:
        lengths = mask.sum(1, keepdim=True).to(weights.device)
    place = (place / (lengths - 1).clamp(min=1)).clamp(max=1)  # (B, size)
    return place.view(place.shape[:1] + (1,) * (weights.dim() - 3) + place.shape[1:])


def _mean(values: Tensor, share: Tensor, *, batch: bool = False) -> Tensor:
    """The weighted mean over the last dimension, and over the first one too if ``batch``."""
    share = share.expand_as(values)
    dims = (0, -1) if batch else (-1,)
    return (values * share).sum(dims) / share.sum(dims).clamp(min=1)
