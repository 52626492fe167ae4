"""What a Transformer's decoder keeps from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from litseq.types import SharingState, stack_rows

__all__ = ["KeysValues", "Past", "TransformerState"]

KeysValues = tuple[Tensor, Tensor]


class Room:
    """Keys and values of all layers, each float (n, H, more than P, d_k), of which P are written.

    States share it: what one of them writes stands behind what the others know of. Only who knows
    all that is written may write.
    """

    def __init__(self, layers: Sequence[KeysValues], written: int) -> None:
        self.layers = tuple(layers)
        self.written = written

    @classmethod
    def of(cls, past: Sequence[KeysValues], more: int) -> Self:
        """A copy, with room for half as much again, and for eight steps of ``more`` at least."""
        written = past[0][0].size(2)
        size = written + max(8 * more, written // 2) | 1

        def copy(x: Tensor) -> Tensor:
            room = x.new_empty(*x.shape[:2], size, x.size(3))
            room[:, :, :written] = x
            return room

        return cls([(copy(k), copy(v)) for k, v in past], written)

    def has(self, past: Sequence[KeysValues], more: int = 0) -> bool:
        """Whether these stand here, nothing behind them, and there is room for more."""
        keys, (known, _) = self.layers[0][0], past[0]
        return (
            keys.data_ptr() == known.data_ptr()
            and self.written == known.size(2)
            and self.written + more <= keys.size(2)
            and keys.is_inference() == torch.is_inference_mode_enabled()
        )

    def past(self) -> tuple[KeysValues, ...]:
        """What is written."""
        return tuple((k[:, :, : self.written], v[:, :, : self.written]) for k, v in self.layers)

    def take(self, index: Tensor) -> Self:
        """Rows of it, int64 (m,)."""
        layers = [(k.index_select(0, index), v.index_select(0, index)) for k, v in self.layers]
        return type(self)(layers, self.written)


@dataclass(frozen=True)
class Past:
    """Keys and values of one layer that a step finds, each float (n, H, P, d_k).

    Attributes:
        known: Those.
        room: The same with room behind them, into which this step may write; or None.
    """

    known: KeysValues
    room: KeysValues | None

    def add(self, k: Tensor, v: Tensor) -> KeysValues:
        """Puts those of new tokens behind, each float (n, H, K, d_k)."""
        if self.room is None:
            return torch.cat((self.known[0], k), 2), torch.cat((self.known[1], v), 2)
        start = self.known[0].size(2)
        end = start + k.size(2)
        for room, new in zip(self.room, (k, v), strict=True):
            room.narrow(2, start, new.size(2)).copy_(new)
        keys, values = self.room
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)


@dataclass(frozen=True)
class TransformerState(SharingState):
    """What each decoder layer has seen of n sources and of N targets, N / n for each source.

    Keys and values of all targets of a source stand side by side, in the order in which they were
    made, and each target knows which are its own. So nothing is copied when beams change places.

    Attributes:
        memory_keys_values: Per layer, keys and values of the source, each float (n, H, S, d_k);
            None for a layer that never sees it.
        memory_mask: bool (n, 1, 1, S); True = may attend.
        past: Per layer, keys and values of the targets' tokens so far, each float (n, H, P, d_k).
        own: Which of them are a target's own, bool (N, P); None: all, of one target each.
        read: Number of tokens that have been read, or of each target, int64 (N,), where they
            differ.
        room: Where ``past`` stands, if more can be written there.
    """

    OF_SOURCE = ("memory_keys_values", "memory_mask", "past")

    memory_keys_values: tuple[KeysValues | None, ...]
    memory_mask: Tensor
    past: tuple[KeysValues, ...]
    own: Tensor | None = None
    read: int | Tensor = 0
    room: Room | None = None

    @property
    def position(self) -> int | Tensor:
        """Of the next token: how many have been read, or of each target, int64 (N,)."""
        return self.past[0][0].size(2) if self.own is None else self.read

    @property
    def targets_each(self) -> int:
        """See ``SharingState``."""
        return 1 if self.own is None else len(self.own) // max(len(self.memory_mask), 1)

    def begin_step(self) -> tuple[tuple[Past, ...], Room | None, Tensor | None]:
        """Makes room for a token of each target.

        Returns:
            What each layer adds its keys and values to; where they are written, if there is room;
            what each target may look at then, bool (N, P + N / n), or None: all.
        """
        each = self.targets_each
        room = None
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            room = self.room
            if room is None or not room.has(self.past, each):
                room = Room.of(self.past, each)
            room.written += each
        layers = room.layers if room else [None] * len(self.past)
        past = tuple(Past(*pair) for pair in zip(self.past, layers, strict=True))
        if self.own is None:
            return past, room, None
        new = torch.eye(each, dtype=torch.bool, device=self.own.device)
        return past, room, torch.cat((self.own, new.repeat(len(self.memory_mask), 1)), 1)

    def reorder_beams(self, index: Tensor, sentences: Tensor | None) -> Self:
        """Takes K targets of each source, int64 (n, K), which go on sharing it."""
        return self._told_apart()._take(index.flatten(), sentences)

    def _take(self, targets: Tensor, sources: Tensor | None) -> Self:
        if sources is None or self.room is None or not self.room.has(self.past):
            return super()._take(targets, sources)
        room = self.room.take(sources)
        rest = SharingState._take(replace(self, past=()), targets, sources)
        return replace(rest, past=room.past(), room=room)

    def join(self, other: Self) -> Self:
        """Puts the rows of another state behind its own; of each source, as many targets.

        What nobody needs any more is left out: keys and values of targets that are gone, and source
        positions that all are padding.
        """
        both = [state._told_apart()._without_unused() for state in (self, other)]
        past_len = max(state.past[0][0].size(2) for state in both)
        own = stack_rows([x.own for x in both if x.own is not None], dim=1, size=past_len)
        src_len = int(torch.stack([state.memory_mask.any(0).sum() for state in both]).max())
        one, two = both
        return replace(
            self,
            memory_keys_values=tuple(
                None if pair[0] is None else _stack(pair, size=src_len)
                for pair in zip(one.memory_keys_values, two.memory_keys_values, strict=True)
            ),
            memory_mask=stack_rows([state.memory_mask for state in both], dim=3, size=src_len),
            past=tuple(
                _stack(pair, size=past_len) for pair in zip(one.past, two.past, strict=True)
            ),
            own=own,
            read=own.sum(1),
            room=None,
        )

    def _told_apart(self) -> Self:
        """The same, each target with what is its own."""
        if self.own is not None:
            return self
        keys, _ = self.past[0]
        own = torch.ones(keys.size(0), keys.size(2), dtype=torch.bool, device=keys.device)
        return replace(self, own=own, read=keys.size(2))

    def _without_unused(self) -> Self:
        """The same, without keys and values of targets that are gone."""
        assert self.own is not None
        num_sources, each = len(self.memory_mask), self.targets_each
        used = self.own.view(num_sources, each, -1).any(1)  # (n, P)
        most = int(used.sum(1).max())
        first = used.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :most]
        places = first[:, None, :, None]

        def kept(x: Tensor) -> Tensor:
            return x.gather(2, places.expand(-1, x.size(1), -1, x.size(3)))

        return replace(
            self,
            past=tuple((kept(k), kept(v)) for k, v in self.past),
            own=self.own.gather(1, first.repeat_interleave(each, 0)),
        )


def _stack(pairs: Sequence[KeysValues | None], *, size: int) -> KeysValues:
    keys, values = zip(*(pair for pair in pairs if pair is not None), strict=True)
    return stack_rows(keys, dim=2, size=size), stack_rows(values, dim=2, size=size)
