"""Many sentences in one search: who leaves when, and the last wait for those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from math import gcd
from typing import Generic, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from litseq.decoding.contract import MemoryT, StateT, join

__all__ = ["Group", "Rows", "Sources", "places_that_stay", "take_turns"]

_SHARE = 4
"""When a fourth of a batch is left, it waits."""

_SOME = 8
"""When an eighth of those that make a step have ended, they leave."""

_STEP = 8
"""Numbers of rows that are multiples of it are the best for a CPU's kernels."""


@dataclass(frozen=True)
class Sources(Generic[MemoryT]):
    """Sentences that are to be searched.

    Attributes:
        encode: Gives what the model's encoder makes of a slice of them.
        max_len: Length limit of each in tokens, EOS counted and BOS not, int64 (B,).
        room: How many are begun at once; None: all.
        ids: A number for each, to which sampling ties its random numbers; None: 0 to B - 1.
    """

    encode: Callable[[slice], MemoryT]
    max_len: Tensor
    room: int | None = None
    ids: Sequence[int] | None = None

    @classmethod
    def of(cls, memory: MemoryT, max_len: Tensor, ids: Sequence[int] | None = None) -> Self:
        """Sentences that have been encoded already."""
        return cls(lambda rows: memory, max_len, ids=ids)

    def parts(self) -> Iterator[tuple[MemoryT, Tensor, Sequence[int]]]:
        """What is begun at once, one after the other: memory, limits, ids."""
        ids = range(len(self.max_len)) if self.ids is None else self.ids
        room = self.room or len(self.max_len)
        for first in range(0, len(self.max_len), max(room, 1)):
            rows = slice(first, first + room)
            yield self.encode(rows), self.max_len[rows], ids[rows]


@dataclass(frozen=True)
class Rows:
    """Tensors with a row for each sentence."""

    def take(self, index: Tensor) -> Self:
        """Some of the rows, int64 (n,)."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def join(self, other: Self) -> Self:
        """These rows, and others behind them."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return type(self)(*map(torch.cat, pairs))


RowsT = TypeVar("RowsT", bound=Rows)


@dataclass(frozen=True)
class Group(Generic[RowsT, StateT]):
    """Sequences that make their steps together.

    Attributes:
        rows: What the search knows of them.
        token: Their last tokens, int64, a row for each of ``rows``.
        state: The model's state before these.
    """

    rows: RowsT
    token: Tensor
    state: StateT

    def join(self, other: Self) -> Self:
        """These, and others behind them."""
        token = torch.cat([self.token, other.token])
        return type(self)(self.rows.join(other.rows), token, join(self.state, other.state))


def places_that_stay(ended: Sequence[bool], *, must: bool, width: int = 1) -> list[int] | None:
    """Says which sequences make the next step; None: all.

    To leave is to copy the state of all others. So those that have ended stay, and nobody reads
    what becomes of them, until an eighth of all can leave at once; and of those as many stay as
    make the number of rows a multiple of 8, if they are an eighth of all at most.

    Args:
        ended: Whether each has ended.
        must: Whether all that have ended must leave, since one of them is as long as it may be.
        width: Rows of each.
    """
    number, num_ended = len(ended), sum(ended)
    unit = _STEP // gcd(_STEP, width)
    spare = min((num_ended - number) % unit, num_ended)
    if must or spare * _SOME > number:
        spare = 0
    leaving = num_ended - spare
    if leaving == 0 or (leaving * _SOME < number and not must):
        return None
    places = []
    for place, end in enumerate(ended):
        if not end or spare > 0:
            places.append(place)
            spare -= end
    return places


def take_turns(
    sources: Iterable[Sources[MemoryT]],
    *,
    begin: Callable[[MemoryT, Tensor], Group[RowsT, StateT] | None],
    advance: Callable[[Group[RowsT, StateT]], Group[RowsT, StateT] | None],
) -> None:
    """Searches sentences, part by part.

    The last steps of a part would be made for a few long sequences alone, and a step of few takes
    nearly as long as one of many. So they wait, until those of other parts are as many as a part,
    or nothing else is left. States that have no method ``join`` do not wait.

    Args:
        sources: In the order in which they begin; an iterator is asked when there is time.
        begin: Takes what the encoder made of some sentences and their length limits; returns what
            has not ended yet, or None.
        advance: Makes one step; returns what has not ended yet, or None.
    """
    parts = (part for some in sources for part in some.parts())
    waiting: list[Group[RowsT, StateT]] = []
    room, more = 0, True
    while more or waiting:
        if waiting and (not more or sum(len(group.token) for group in waiting) >= room):
            group: Group[RowsT, StateT] | None = _joined(waiting)
            waiting = []
        elif part := next(parts, None):
            group = begin(part[0], part[1])
        else:
            more = False
            continue
        few = 0
        if group is not None:
            room = max(room, len(group.token))
            few = len(group.token) // _SHARE if more and hasattr(group.state, "join") else 0
        while group is not None and len(group.token) > few:
            group = advance(group)
        if group is not None:
            waiting.append(group)


def _joined(groups: Sequence[Group[RowsT, StateT]]) -> Group[RowsT, StateT]:
    joined, *others = groups
    for group in others:
        joined = joined.join(group)
    return joined
