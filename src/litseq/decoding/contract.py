"""What a search asks of a model: a first state, one step, and a state whose rows can be taken."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor
from typing_extensions import Self

__all__ = ["MemoryT", "SearchState", "StateT", "StepModel", "join", "reorder_beams"]


class SearchState(Protocol):
    """A decoder's state after the tokens it has read, one row per sequence."""

    def reorder(self, index: Tensor, /) -> Self:
        """Takes rows: repeats, drops or permutes them; ``index`` is int64 (N,)."""
        ...

    # A state may also have what ``reorder_beams`` looks for, and ``join(other)``: its rows, and
    # behind them those of another, so that the last of a batch can wait for those of others.


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


def reorder_beams(state: StateT, index: Tensor, sentences: Tensor | None = None) -> StateT:
    """Takes the rows of some beams, as ``state.reorder(index.flatten())`` does.

    A state with a method ``reorder_beams(index, sentences)`` of its own is asked instead: it can
    keep once for each sentence what all its beams share, such as all that comes of the source.

    Args:
        state: Rows of n sentences, as many for each.
        index: Row numbers, int64 (m, K): K rows of each sentence.
        sentences: Which sentence each line is of, int64 (m,), ascending; None: all n.
    """
    own = getattr(state, "reorder_beams", None)
    if own is None:
        return state.reorder(index.flatten())
    taken: StateT = own(index, sentences)
    return taken


def join(state: StateT, other: StateT) -> StateT:
    """Puts the rows of another state behind those of a state that has a ``join`` of its own."""
    joined: StateT = state.join(other)  # type: ignore[attr-defined]
    return joined
