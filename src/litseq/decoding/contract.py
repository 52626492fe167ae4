"""What a search asks of a model: a first state, one step, and a state whose rows can be taken."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor
from typing_extensions import Self

__all__ = ["MemoryT", "SearchState", "StateT", "StepModel"]


class SearchState(Protocol):
    """A decoder's state after the tokens it has read, one row per sequence."""

    def reorder(self, index: Tensor, /) -> Self:
        """Takes rows: repeats, drops or permutes them; ``index`` is int64 (N,)."""
        ...


MemoryT = TypeVar("MemoryT")
StateT = TypeVar("StateT", bound=SearchState)
_MemoryT_contra = TypeVar("_MemoryT_contra", contravariant=True)


class StepModel(Protocol[_MemoryT_contra, StateT]):
    """A model that writes token by token; every ``Seq2SeqModel`` is one.

    A search calls the model as it is: put it into evaluation mode first, or dropout takes part.
    """

    def init_state(self, memory: _MemoryT_contra, /) -> StateT:
        """The state before the first token is read, one row per sentence."""
        ...

    def step(self, token: Tensor, state: StateT, /) -> tuple[Tensor, StateT]:
        """Reads token ids, int64 (N,); gives logits, float (N, V), and the state after them."""
        ...
