"""Keeps where a model looked while a search goes its ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic

import torch
from torch import Tensor, nn
from typing_extensions import Self

from litseq.attention import capture_attention
from litseq.decoding.contract import MemoryT, StateT, StepModel, reorder_beams

__all__ = ["Attending", "AttendingState", "gather_attention", "last_attention"]


@dataclass(frozen=True)
class AttendingState(Generic[StateT]):
    """A state that also knows where the step to it looked.

    Attributes:
        inner: The model's own state.
        attention: Cross-attention of the last step, float32 (N, L, H, S); None before the first. A
            search reads it before it reorders the rows.
    """

    inner: StateT
    attention: Tensor | None = None

    def reorder(self, index: Tensor) -> Self:
        """Takes rows of the model's state."""
        return replace(self, inner=self.inner.reorder(index), attention=None)

    def reorder_beams(self, index: Tensor, sentences: Tensor | None) -> Self:
        """Takes rows of beams."""
        inner = reorder_beams(self.inner, index, sentences)
        return replace(self, inner=inner, attention=None)


class Attending(Generic[MemoryT, StateT]):
    """A model whose states say where each step looked; every search keeps that.

    Args:
        model: A module with cross-attention that can ``init_state`` and ``step``.

    Raises:
        ValueError: If the model has no attention.
    """

    def __init__(self, model: StepModel[MemoryT, StateT]) -> None:
        try:
            if not isinstance(model, nn.Module):
                raise ValueError("only a torch module can be watched.")
            with capture_attention(model):
                pass
        except ValueError as error:
            raise ValueError(
                f"{type(model).__name__} has no attention that a search could keep, and words "
                f"cannot be aligned; leave it out."
            ) from error
        self.model = model
        self.max_tgt_len: int | None = getattr(model, "max_tgt_len", None)

    def init_state(self, memory: MemoryT) -> AttendingState[StateT]:
        """The model's own first state."""
        return AttendingState(self.model.init_state(memory))

    def step(
        self, token: Tensor, state: AttendingState[StateT]
    ) -> tuple[Tensor, AttendingState[StateT]]:
        """The model's own step, watched."""
        assert isinstance(self.model, nn.Module)
        with capture_attention(self.model, kinds=["cross"]) as maps:
            logits, inner = self.model.step(token, state.inner)
        # the beams of a sentence may have been asked as its positions: (n, H, K, S), n K = N
        layers = [found.weights.transpose(1, 2).flatten(0, 1) for found in maps]  # each (N, H, S)
        return logits, AttendingState(inner, torch.stack(layers, 1))


def last_attention(state: object) -> Tensor | None:
    """Where the last step looked, float (N, L, H, S), if the state knows it."""
    attention: Tensor | None = getattr(state, "attention", None)
    return attention


def gather_attention(steps: Sequence[Tensor], rows: Sequence[int]) -> Tensor | None:
    """Follows one sequence through a search.

    Args:
        steps: The attention of all steps, each float (N, L, H, S), N being the rows of that step;
            empty if nobody watched.
        rows: The row of the sequence in each of the first T steps.

    Returns:
        float (L, H, T, S), or None if nobody watched.
    """
    if not steps:
        return None
    return torch.stack([step[row] for step, row in zip(steps, rows, strict=False)], 2)
