"""The candidates of a beam search, each of which points to what it extends."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from litseq.decoding.attention import gather_attention

__all__ = ["Tree"]


class Tree:
    """Every candidate that a search has ranked, as a node that points to what it extends."""

    ROOT = -1

    def __init__(self) -> None:
        self._size = 0
        self._first: list[int] = []  # node of each step
        self._parent: list[Tensor] = []
        self._token: list[Tensor] = []
        self._log_prob: list[Tensor] = []
        self._row: list[Tensor] = []
        self._attention: list[Tensor] = []

    def grow(
        self,
        parent: Tensor,
        token: Tensor,
        log_prob: Tensor,
        *,
        row: Tensor,
        attention: Tensor | None,
    ) -> Tensor:
        """Adds one step's nodes and returns their numbers.

        Args:
            parent: Nodes that are extended, int64 (n, 2K).
            token: By which token, int64 (n, 2K).
            log_prob: The token's log-probability, float (n, 2K).
            row: The row of the model's state that this came from, int64 (n, 2K).
            attention: Where each of those rows looked, float (rows, L, H, S), if that is kept.
        """
        node = torch.arange(self._size, self._size + parent.numel(), device=parent.device)
        self._first.append(self._size)
        self._size += parent.numel()
        self._parent.append(parent.flatten())
        self._token.append(token.flatten())
        self._log_prob.append(log_prob.flatten())
        if attention is not None:
            self._row.append(row.flatten())
            self._attention.append(attention)
        return node.view_as(parent)

    def sequences(self, nodes: list[int]) -> list[tuple[list[int], list[float], Tensor | None]]:
        """The tokens from the root to each node, their log-probabilities and their attention."""
        parent = torch.cat(self._parent).tolist()
        token = torch.cat(self._token).tolist()
        log_prob = torch.cat(self._log_prob).tolist()
        row = torch.cat(self._row).tolist() if self._row else parent
        found = []
        for node in nodes:
            path = []
            while node != self.ROOT:
                path.append(node)
                node = parent[node]
            path.reverse()
            begun = bisect_right(self._first, path[0]) - 1 if path else 0
            attention = gather_attention(self._attention[begun:], [row[i] for i in path])
            found.append(([token[i] for i in path], [log_prob[i] for i in path], attention))
        return found
