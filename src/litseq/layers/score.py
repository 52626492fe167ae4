"""Attention of the recurrent models: score every source position, softmax, weighted sum."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from litseq.layers.recurrent import make_linear
from litseq.types import compute_dtype

__all__ = ["Score", "ScoreAttention"]

Score = Literal["additive", "dot", "general", "concat"]


class ScoreAttention(nn.Module):
    """Looks at the source with a decoder state: a score per source position, softmax, weighted sum.

    With s a decoder state (the query) and h an encoder state, the score is

    - ``additive``: v . tanh(W s + U h), Bahdanau et al. (2015), appendix A.1.2;
    - ``dot``: s . h, Luong et al. (2015), section 3.1;
    - ``general``: s . (W h), the same;
    - ``concat``: v . tanh(W [s; h]), the same. It is the additive score, W and U being the two
      blocks of one matrix; the two papers differ in which decoder state is the query.

    What depends on the source alone is computed by ``project_keys``, once per source.

    Args:
        score: Name of the score function.
        query_size: Size of a decoder state, H, and of the layer inside of ``additive`` and
            ``concat``.
        memory_size: Size of an encoder state, D.

    Raises:
        ValueError: If the score is unknown, or if ``dot`` is to compare vectors of different sizes.

    Source: https://arxiv.org/abs/1409.0473 and https://arxiv.org/abs/1508.04025.
    """

    def __init__(self, score: Score, *, query_size: int, memory_size: int) -> None:
        super().__init__()
        if score not in get_args(Score):
            known = ", ".join(get_args(Score))
            raise ValueError(f"score must be one of {known}, got {score!r}; choose one of them.")
        if score == "dot" and query_size != memory_size:
            raise ValueError(
                f"score 'dot' compares vectors of one size, got decoder states of {query_size} and "
                f"encoder states of {memory_size}; use 'general', or set bidirectional to false."
            )
        self.score = score
        if score != "dot":
            self.key_projection = make_linear(memory_size, query_size, bias=False)  # W or U
        if score in ("additive", "concat"):
            self.query_projection = make_linear(query_size, query_size, bias=False)  # W
            self.energy = make_linear(query_size, 1, bias=False)  # v

    def project_keys(self, memory: Tensor) -> Tensor:
        """Prepares encoder states, float (B, S, D), for scoring: keys, float (B, S, H)."""
        if self.score == "dot":
            return memory
        keys: Tensor = self.key_projection(memory)
        return keys

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores every source position for every query.

        Args:
            query: Decoder states, float (B, T, H).
            keys: What ``project_keys`` returned, float (B, S, H).

        Returns:
            Float (B, T, S), before the softmax. ``additive`` and ``concat`` compute
            (B, T, S, H) on the way, and keep it for the backward pass.
        """
        if self.score in ("dot", "general"):
            return query @ keys.transpose(1, 2)
        hidden = self.query_projection(query)[:, :, None] + keys[:, None]  # (B, T, S, H)
        energy: Tensor = self.energy(hidden.tanh_())  # in place: nobody needs the sum again
        return energy.squeeze(-1)

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, key_padding_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attends to the source.

        Args:
            query: Decoder states, float (B, T, H).
            keys: What ``project_keys`` made of ``values``, float (B, S, H).
            values: Encoder states, float (B, S, D).
            key_padding_mask: bool (B, S); True = padding; each row has at least one token.

        Returns:
            Context vectors, float (B, T, D), and the weights, float32 at least (B, T, S): each row
            sums to 1 and is exactly 0 at padding.
        """
        scores = self.scores(query, keys).masked_fill(key_padding_mask[:, None], -torch.inf)
        weights = scores.softmax(dim=-1, dtype=compute_dtype(scores))  # (B, T, S)
        return weights.to(values.dtype) @ values, weights
