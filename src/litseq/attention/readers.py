"""How to see the weights of each kind of module, from what went into it and what came out.

Fused attention never holds its weights, so they are computed anew from the same queries and keys.
What runs in training is not touched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from litseq.layers.dot_product import DotProductAttention, attention_weights
from litseq.layers.score import ScoreAttention
from litseq.types import AttentionKind, compute_dtype

__all__ = ["READERS", "Reader", "Seen", "self_attention_kind"]


class Seen(NamedTuple):
    """What one call of an attention module did.

    Attributes:
        kind: Who looked at whom.
        weights: float (B, H, T, S), or (B, T, S) of a single head.
        keys: The tensor that was looked at, where successive calls with the very same one are the
            time steps of one attention, to be joined along T; None where every call stands alone.
    """

    kind: AttentionKind
    weights: Tensor
    keys: Tensor | None = None


Reader = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Iterator[Seen]]
"""Takes a module, the positional and named arguments of a call, and its output."""


def self_attention_kind(weights: Tensor) -> AttentionKind:
    """Tells a decoder's self-attention from an encoder's: nobody looks ahead.

    Args:
        weights: float (..., T, S); the T queries are the last of S tokens.
    """
    num_queries, num_keys = weights.shape[-2:]
    ahead = weights.triu(1 + num_keys - num_queries)
    return "decoder" if num_keys > 1 and not ahead.any() else "encoder"


def _widen(x: Any) -> Any:  # noqa: ANN401 - a tensor, or None
    """Half precision becomes float32, so that a softmax is shown as it is meant."""
    if x is None or not x.is_floating_point():
        return x
    return x.to(compute_dtype(x))


def read_dot_product(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> Iterator[Seen]:
    """Reads a ``DotProductAttention``."""
    assert isinstance(module, DotProductAttention)
    call = inspect.signature(module.forward).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    weights = attention_weights(
        _widen(given["q"]),
        _widen(given["k"]),
        attn_mask=given["attn_mask"],
        is_causal=given["is_causal"],
        scale=module.scale,
    )
    # the keys of the source stay the same from step to step of a generation
    yield Seen(module.kind, weights, given["k"] if module.kind == "cross" else None)


def read_score(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Tensor]
) -> Iterator[Seen]:
    """Reads a ``ScoreAttention``, which a recurrent decoder may call step by step."""
    yield Seen("cross", output[1], args[1])


def read_multihead(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> Iterator[Seen]:
    """Reads a ``torch.nn.MultiheadAttention``, whatever ``need_weights`` says.

    Query and key are the same tensor: self-attention, the decoder's if nobody looks ahead.
    """
    assert isinstance(module, nn.MultiheadAttention)
    call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    if not {"query", "key", "value"} <= call.keys():
        raise ValueError(
            f"{type(module).__name__} is called with {', '.join(call)} instead of query, key and "
            f"value; give a reader for it."
        )
    query, key, value = (_widen(call[name]) for name in ("query", "key", "value"))
    batched = query.dim() == 3
    if module.batch_first and batched:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    separate = module.in_proj_weight is None
    # torch's own function knows every option of its module; training=False leaves out dropout
    _, weights = F.multi_head_attention_forward(
        query,
        key,
        value,
        embed_dim_to_check=module.embed_dim,
        num_heads=module.num_heads,
        in_proj_weight=_widen(module.in_proj_weight),
        in_proj_bias=_widen(module.in_proj_bias),
        bias_k=_widen(module.bias_k),
        bias_v=_widen(module.bias_v),
        add_zero_attn=module.add_zero_attn,
        dropout_p=0.0,
        out_proj_weight=_widen(module.out_proj.weight),
        out_proj_bias=_widen(module.out_proj.bias),
        training=False,
        key_padding_mask=_widen(call.get("key_padding_mask")),
        need_weights=True,
        attn_mask=_widen(call.get("attn_mask")),
        average_attn_weights=False,
        use_separate_proj_weight=separate,
        q_proj_weight=_widen(module.q_proj_weight) if separate else None,
        k_proj_weight=_widen(module.k_proj_weight) if separate else None,
        v_proj_weight=_widen(module.v_proj_weight) if separate else None,
    )
    assert weights is not None
    weights = weights.nan_to_num(0.0)  # a query that may see nothing
    if not batched:
        weights = weights.unsqueeze(0)
    kind: AttentionKind = "cross"
    if call["query"] is call["key"]:
        masked = call.get("attn_mask") is not None  # of a single token nothing else tells
        kind = "decoder" if masked and weights.size(-1) == 1 else self_attention_kind(weights)
    yield Seen(kind, weights)


READERS: Mapping[type[nn.Module], Reader] = {
    DotProductAttention: read_dot_product,
    ScoreAttention: read_score,
    nn.MultiheadAttention: read_multihead,
}
