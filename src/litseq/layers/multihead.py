"""Multi-head scaled dot-product attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from litseq.layers.dot_product import DotProductAttention, attention_weights
from litseq.layers.linear import Linear, linear
from litseq.layers.positions import rotate
from litseq.layers.rows import Size, join_heads, split_heads
from litseq.types import AttentionKind

__all__ = ["MultiheadAttention"]


class MultiheadAttention(nn.Module):
    """Attention by several heads at once, each in its own d_model / num_heads dimensions.

    Self-attention and cross-attention are one and the same layer; they differ in where keys and
    values come from: the sequence itself, or the encoder's output. The projections are separate
    methods so that generation can keep keys and values instead of computing them again.

    Args:
        d_model: Width of queries, keys and values.
        num_heads: Number of heads; divides d_model.
        kind: Which attention of the model it is: over the source, over the target, or across.
        dropout: Dropout on the weights. The paper's text has none; its released code has 0.1.
        scale_scores: Divides the scores by sqrt(d_k); False shows what that is good for.

    Source: Vaswani et al. (2017), section 3.2.2, https://arxiv.org/abs/1706.03762.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        kind: AttentionKind = "encoder",
        dropout: float = 0.0,
        scale_scores: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(
                f"d_model must be divisible by num_heads, got d_model={d_model}, "
                f"num_heads={num_heads}; choose num_heads among the divisors of d_model."
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"dropout on attention weights must be in [0, 1), got {dropout}; 0 switches it off."
            )
        self.d_model = d_model
        self.num_heads = num_heads
        self.head_dim = d_model // num_heads
        self.product = DotProductAttention(
            kind, dropout=dropout, scale=None if scale_scores else 1.0
        )
        # W_Q, W_K and W_V stacked, so that self-attention takes one product
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def _project(self, x: Tensor, start: int, end: int, size: Size | None) -> tuple[Tensor, ...]:
        if size is None:
            x, size = x.flatten(0, 1), (x.size(0), x.size(1))
        part = slice(start * self.d_model, end * self.d_model)
        y = linear(x, self.in_proj_weight, self.in_proj_bias, rows=part)  # (R, n D)
        return split_heads(y, size, parts=end - start, num_heads=self.num_heads)

    def queries(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Projects x, float (B, T, D), to queries, float (B, H, T, d_k).

        Here and below, x may come as rows, float (R, D), of which ``size`` is (B, T)
        (``litseq.layers.rows``).
        """
        return self._project(x, 0, 1, size)[0]

    def keys_values(self, x: Tensor, size: Size | None = None) -> tuple[Tensor, Tensor]:
        """Projects x, float (B, S, D), to keys and values, each float (B, H, S, d_k)."""
        k, v = self._project(x, 1, 3, size)
        return k, v

    def queries_keys_values(
        self, x: Tensor, rotation: Tensor | None = None, size: Size | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projects x, float (B, T, D), to all three in one product.

        A rotation, float (T, d_k), turns queries and keys by their positions
        (``litseq.layers.positions.rotate``).
        """
        q, k, v = self._project(x, 0, 3, size)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        few_queries: bool = False,
        num_rows: int | None = None,
    ) -> Tensor:
        """Weighs the values, joins the heads and projects back.

        Args:
            q: Queries, float (B, H, T, d_k).
            k: Keys, float (B, H, S, d_k).
            v: Values, float (B, H, S, d_k).
            attn_mask: bool, broadcasts to (B, H, T, S); True = may attend.
            is_causal: Lets query t attend to keys 0 to t; excludes ``attn_mask``.
            few_queries: Whether T is small, as in a step of generation.
            num_rows: R, to get the output as so many rows.

        Returns:
            float (B, T, D), or (R, D).
        """
        heads = self.product(
            q, k, v, attn_mask=attn_mask, is_causal=is_causal, few_queries=few_queries
        )
        return self._join(heads, num_rows)

    def _join(self, heads: Tensor, num_rows: int | None = None) -> Tensor:
        batch, _, length, _ = heads.shape
        rows: Tensor = self.out_proj(join_heads(heads, num_rows or batch * length))
        return rows if num_rows is not None else rows.view(batch, length, self.d_model)

    def forward(
        self,
        query: Tensor,
        key_value: Tensor,
        *,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from one sequence to another, or to itself.

        Args:
            query: float (B, T, D).
            key_value: float (B, S, D).
            attn_mask: bool, broadcasts to (B, H, T, S); True = may attend.
            need_weights: Returns the weights too, by the plain path, without dropout.

        Returns:
            float (B, T, D), and the weights, float (B, H, T, S), or None.
        """
        q, (k, v) = self.queries(query), self.keys_values(key_value)
        if not need_weights:
            return self.attend(q, k, v, attn_mask=attn_mask), None
        weights = attention_weights(q, k, attn_mask=attn_mask, scale=self.product.scale)
        return self._join(weights.to(v.dtype) @ v), weights
