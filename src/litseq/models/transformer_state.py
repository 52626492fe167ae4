"""What a Transformer's decoder keeps from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from litseq.types import SharingState, stack_rows

__all__ = ["KeysValues", "TransformerState"]

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TransformerState(SharingState):
    """What each decoder layer has seen of n sources and of N targets, N / n for each source.

    Attributes:
        memory_keys_values: Per layer, keys and values of the source, each float (n, H, S, d_k);
            None for a layer that never sees it.
        memory_mask: bool (n, 1, 1, S); True = may attend.
        past: Per layer, keys and values of the target so far, each float (N, H, t, d_k).
        first: Where in ``past`` a target begins, int64 (N,); None: all at 0.
    """

    OF_SOURCE = ("memory_keys_values", "memory_mask")

    memory_keys_values: tuple[KeysValues | None, ...]
    memory_mask: Tensor
    past: tuple[KeysValues, ...]
    first: Tensor | None = None

    @property
    def length(self) -> int:
        """How long ``past`` is."""
        return self.past[0][0].size(2)

    @property
    def position(self) -> int | Tensor:
        """Number of target tokens read; int64 (N,) where targets do not all begin at 0."""
        return self.length if self.first is None else self.length - self.first

    def past_mask(self) -> Tensor | None:
        """What the next token may look at, itself included; bool (N, 1, 1, t + 1), or None: all."""
        if self.first is None:
            return None
        place = torch.arange(self.length + 1, device=self.first.device)
        return (place >= self.first[:, None])[:, None, None]

    @property
    def targets_each(self) -> int:
        """See ``SharingState``."""
        return self.past[0][0].size(0) // max(self.memory_mask.size(0), 1)

    def join(self, other: Self) -> Self:
        """Puts the rows of another state behind its own; of each source, as many targets.

        Those that have read fewer tokens begin later in ``past``. What nobody needs any more is
        left out: places before the first beginning, and source positions that all are padding.
        """
        both = self, other
        longest = max(state.length for state in both)
        first = torch.cat([state.begins() + (longest - state.length) for state in both])
        unused = int(first.min())
        past_len = longest - unused
        src_len = int(torch.stack([state.memory_mask.any(0).sum() for state in both]).max())
        return replace(
            self,
            memory_keys_values=tuple(
                None if pair[0] is None else _stack(pair, size=src_len)
                for pair in zip(self.memory_keys_values, other.memory_keys_values, strict=True)
            ),
            memory_mask=stack_rows([state.memory_mask for state in both], dim=3, size=src_len),
            past=tuple(
                _stack(pair, size=past_len, at_end=True)
                for pair in zip(self.past, other.past, strict=True)
            ),
            first=first - unused,
        )

    def begins(self) -> Tensor:
        """Where in ``past`` each target begins, int64 (N,)."""
        if self.first is not None:
            return self.first
        keys, _ = self.past[0]
        return torch.zeros(len(keys), dtype=torch.int64, device=keys.device)


def _stack(pairs: Sequence[KeysValues | None], *, size: int, at_end: bool = False) -> KeysValues:
    keys, values = zip(*(pair for pair in pairs if pair is not None), strict=True)
    return (
        stack_rows(keys, dim=2, size=size, at_end=at_end),
        stack_rows(values, dim=2, size=size, at_end=at_end),
    )
