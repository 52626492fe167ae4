"""Scaled dot-product attention, fused or written out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from litseq.layers.dropout import Dropout, Kept
from litseq.layers.masks import future_mask
from litseq.layers.rows import is_trained_on_cpu
from litseq.types import AttentionKind, compute_dtype

__all__ = ["DotProductAttention", "attention_weights"]

_BLOCK = 2**22
"""Bytes of the weights, as float32, that training computes together: as many as a cache keeps."""


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Computes softmax(q k^T / sqrt(d_k)): the weights that fused attention never shows.

    The scores are divided by sqrt(d_k) because a dot product of d_k independent terms of variance 1
    has variance d_k; undivided, the softmax of a wide head saturates and passes hardly any
    gradient.

    Args:
        q: Queries, float (B, H, T, d_k).
        k: Keys, float (B, H, S, d_k).
        attn_mask: bool, broadcasts to (B, H, T, S); True = may attend. Each query needs one True.
        is_causal: Lets query t attend to keys 0 to t; excludes ``attn_mask``.
        scale: Factor of the dot products in place of 1 / sqrt(d_k).

    Returns:
        float32 (or float64) (B, H, T, S); rows sum to 1, masked positions are exactly 0.

    Source: Vaswani et al. (2017), section 3.2.1, https://arxiv.org/abs/1706.03762.
    """
    scores = (q @ k.transpose(-2, -1)).mul_(_scale(q, scale))  # (B, H, T, S)
    hidden = _hidden(q, attn_mask, is_causal=is_causal)
    if hidden is not None:
        _hide(scores, hidden)
    return _softmax(scores)


def _hidden(q: Tensor, attn_mask: Tensor | None, *, is_causal: bool) -> Tensor | None:
    """Keys that a query may not attend to."""
    if is_causal:
        return future_mask(q.size(-2), device=q.device)
    return None if attn_mask is None else ~attn_mask


def _hide(scores: Tensor, hidden: Tensor) -> None:
    """Takes the weight of keys that are hidden."""
    # finite: a query that may attend to nothing gives nonsense, and not NaN
    scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1, dtype=compute_dtype(scores))


def _scale(q: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(q.size(-1)) if scale is None else scale


class DotProductAttention(nn.Module):
    """The fused product: softmax(q k^T / sqrt(d_k)) v, whose weights do not stand in memory.

    On a CPU they do where the fused kernel is slower or has to write them out itself: where a step
    of generation has few queries (not in bfloat16), in training with dropout, and in training in
    bfloat16, whose backward pass takes several times as long there. Written out in training, it
    has no second derivative, and hooks of its dropout are not called.

    It has no parameters. It is a module so that whoever wants to see the weights finds the queries
    and keys here, from outside, and computes them anew (``litseq.attention.capture_attention``).

    Args:
        kind: Which attention of the model it is.
        dropout: Dropout on the weights in training.
        scale: Factor of the dot products in place of 1 / sqrt(d_k).
    """

    def __init__(
        self, kind: AttentionKind, *, dropout: float = 0.0, scale: float | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.dropout = Dropout(dropout)
        self.scale = scale

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        few_queries: bool = False,
    ) -> Tensor:
        """Weighs the values of each head, float (B, H, S, d_k); returns float (B, H, T, d_k).

        Each query needs a key that ``attn_mask`` lets it attend to. ``few_queries`` says that T is
        small, as in a step of generation.
        """
        if q.device.type == "cpu" and self._is_fast_written_out(q, few_queries=few_queries):
            if self._is_trained_written_out(q):
                hidden = _hidden(q, attn_mask, is_causal=is_causal)
                y: Tensor = _WrittenOut.apply(  # type: ignore[no-untyped-call]
                    q, k, v, hidden, _scale(q, self.scale), self.dropout
                )
                return y
            weights = attention_weights(
                q, k, attn_mask=attn_mask, is_causal=is_causal, scale=self.scale
            )
            dropped: Tensor = self.dropout(weights.to(v.dtype))
            return dropped @ v
        with _without_cudnn() if q.is_cuda else nullcontext():
            return F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=attn_mask,
                is_causal=is_causal,
                dropout_p=self.dropout.p if self.training else 0.0,
                scale=self.scale,
            )

    def _is_fast_written_out(self, q: Tensor, *, few_queries: bool) -> bool:
        if self.training:
            return q.dtype == torch.bfloat16 or self.dropout.p > 0
        # elsewhere scores in bfloat16 would be coarse to no purpose
        return few_queries and q.dtype != torch.bfloat16

    def _is_trained_written_out(self, q: Tensor) -> bool:
        known = self.dropout.p == 0 or self.dropout.is_fast(q)
        return self.training and known and is_trained_on_cpu(q) and not _is_cast(q)


def _is_cast(x: Tensor) -> bool:
    """Whether autocast gives products of x another dtype."""
    on = torch.is_autocast_enabled("cpu")
    return on and x.dtype not in (torch.get_autocast_dtype("cpu"), torch.float64)


def _without_cudnn() -> AbstractContextManager[None]:
    """Leaves all kernels on that are, but cuDNN's.

    It plans anew for every shape, and hardly two batches of text have the same.
    """
    cuda: Any = torch.backends.cuda
    enabled = {
        SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: cuda.math_sdp_enabled(),
    }
    kernels = [kernel for kernel, on in enabled.items() if on]
    if not kernels or not cuda.cudnn_sdp_enabled():  # somebody's choice, which stands
        return nullcontext()
    return sdpa_kernel(kernels)


class _WrittenOut(torch.autograd.Function):
    """Attention in training, some sequences after others.

    Between the products it keeps the weights, and who stays in dropout, a byte for each weight.
    Autograd keeps weights before and after dropout, and dropout's factors.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        q: Tensor,
        k: Tensor,
        v: Tensor,
        hidden: Tensor | None,
        scale: float,
        dropout: Dropout,
    ) -> Tensor:
        """Does what ``DotProductAttention`` says."""
        shape = *q.shape[:2], q.size(2), k.size(2)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        found, saved = [], []
        for q_some, k_some, v_some, hidden_some in _blocks(shape, (q, k, v), hidden):
            scores = _scaled_bmm(q_some, k_some.transpose(1, 2), scale)
            if hidden_some is not None:
                _hide(scores.view(len(scores) // shape[1], *shape[1:]), hidden_some)
            weights = _softmax(scores)
            kept = dropout.draw(weights.shape) if dropout.p > 0 else None
            found.append(torch.bmm(_dropped(weights, kept, v.dtype), v_some))
            saved += [weights, None if kept is None else kept.who]
        ctx.save_for_backward(q, k, v, *saved)
        ctx.shape, ctx.scale = shape, scale
        ctx.kept_scale = None if kept is None else kept.scale
        return _joined(found, shape)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Gives the gradients of queries, keys and values."""
        q, k, v, *saved = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        of_q, of_k, of_v = [], [], []
        blocks = _blocks(ctx.shape, (q, k, v, grad), None)
        for (q_some, k_some, v_some, grad_some, _), weights, who in zip(
            blocks, saved[::2], saved[1::2], strict=True
        ):
            kept = None if who is None else Kept(who, ctx.kept_scale)
            dropped = _dropped(weights, kept, v.dtype)
            of_v.append(torch.bmm(dropped.transpose(1, 2), grad_some))
            of_weights = _dropped(torch.bmm(grad_some, v_some.transpose(1, 2)), kept, v.dtype)
            # what is masked has no weight, and so no gradient, where a query has any key
            of_scores = torch.ops.aten._softmax_backward_data(
                of_weights.to(weights.dtype), weights, -1, weights.dtype
            ).to(q.dtype)
            of_q.append(_scaled_bmm(of_scores, k_some, ctx.scale))
            of_k.append(_scaled_bmm(of_scores.transpose(1, 2), q_some, ctx.scale))
        grads = (_joined(found, ctx.shape) for found in (of_q, of_k, of_v))
        return *grads, None, None, None


def _blocks(
    shape: tuple[int, int, int, int], tensors: Sequence[Tensor], mask: Tensor | None
) -> Iterable[tuple[Any, ...]]:
    """A few sequences of each tensor, (B H, ...), and of the mask, at least one."""
    batch, heads, queries, keys = shape
    size = max(_BLOCK // max(4 * heads * queries * keys, 1), 1)
    if size >= batch:
        return [(*tensors, mask)]
    parts = (torch.split(x, size * heads) for x in tensors)
    masks = repeat(None) if mask is None else torch.split(mask.expand(shape), size)
    return zip(*parts, masks, strict=False)


def _scaled_bmm(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(_zero(x.dtype), x, y, beta=0, alpha=scale)


@cache
def _zero(dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype, device="cpu")


def _dropped(weights: Tensor, kept: Kept | None, dtype: torch.dtype) -> Tensor:
    weights = weights.to(dtype)
    return weights if kept is None else kept.of(weights)


def _joined(parts: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.view(*shape[:2], *whole.shape[1:])
