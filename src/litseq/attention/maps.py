"""Attention weights with their names: which attention, which layer, which module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from litseq.types import AttentionKind

__all__ = ["AttentionMap", "AttentionMaps"]


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one attention in one forward pass.

    Attributes:
        kind: Who looks at whom.
        layer: Number among the attentions of its kind, from 0, in the order of their first call.
        weights: float32 (B, H, T, S), on the CPU: how much query t takes of key s. Rows sum to 1;
            that of a query which may see nothing is 0.
        module: Name of the module below the captured one.
    """

    kind: AttentionKind
    layer: int
    weights: Tensor
    module: str

    @property
    def name(self) -> str:
        """Kind and layer, such as ``cross.0``."""
        return f"{self.kind}.{self.layer}"


class AttentionMaps(Sequence[AttentionMap]):
    """The maps of a capture, in the order in which the model made them."""

    def __init__(self) -> None:
        self._maps: list[AttentionMap] = []

    @overload
    def __getitem__(self, index: int) -> AttentionMap: ...
    @overload
    def __getitem__(self, index: slice) -> list[AttentionMap]: ...
    def __getitem__(self, index: int | slice) -> AttentionMap | list[AttentionMap]:
        return self._maps[index]

    def __len__(self) -> int:
        return len(self._maps)

    def __repr__(self) -> str:
        shapes = (f"{m.name} {tuple(m.weights.shape)}" for m in self._maps)
        return f"AttentionMaps({', '.join(shapes)})"

    def find(self, kind: AttentionKind, layer: int = -1) -> AttentionMap:
        """Gives one layer's map, the newest where the model ran several times.

        Args:
            kind: Who looks at whom.
            layer: Number of the layer; a negative one counts from the last.

        Raises:
            ValueError: If there is none.
        """
        layers = {m.layer: m for m in self._maps if m.kind == kind}
        number = layer if layer >= 0 else sorted(layers)[layer] if -layer <= len(layers) else layer
        if number not in layers:
            known = ", ".join(dict.fromkeys(m.name for m in self._maps)) or "none at all"
            raise ValueError(f"there is no map {kind}.{layer}; there are: {known}.")
        return layers[number]
