"""What a report shows of a model of somebody's own: the attention that can be seen, if any."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from litseq.attention import capture_attention
from litseq.attention.summaries import summarize
from litseq.explain.arrays import Json, array, as_bytes, numbers, size
from litseq.explain.forward import Forward, Method, Room
from litseq.models import Seq2SeqModel
from litseq.types import AttentionKind

__all__ = ["CustomExplainer"]


class CustomExplainer:
    """Captures the attention of any model of the contract, as ``capture_attention`` sees it.

    Args:
        network: The model, in evaluation mode.
    """

    def __init__(self, network: Seq2SeqModel) -> None:
        self._network = network
        self._kinds: set[AttentionKind] = set()

    @property
    def architecture(self) -> str:
        """What there was to see, once a sentence is described."""
        if not self._kinds:
            return "custom"
        return "custom_cross" if "cross" in self._kinds else "custom_attention"

    def methods(self) -> Iterable[Method]:
        """None."""
        return ()

    def describe(self, seen: Forward, room: Room) -> tuple[Json, Json]:
        """Describes a forward pass: heads of maps, as many as fit, the last layers first."""
        sides: dict[AttentionKind, tuple[int, int]] = {
            "encoder": (seen.src.size(1), seen.src.size(1)),
            "decoder": (seen.tgt_in.size(1), seen.tgt_in.size(1)),
            "cross": (seen.tgt_in.size(1), seen.src.size(1)),
        }
        found = {
            place: weights
            for place, weights in self._maps(seen).items()
            if weights.shape[1:] == sides[place[0]]
        }
        maps: list[Json] = []
        left_out = 0
        for (kind, layer), weights in reversed(found.items()):
            item = {
                "kind": kind,
                "layer": layer,
                "heads": list(range(len(weights))),
                "weights": array(as_bytes(weights)),
                "summary": {
                    name: numbers(values, digits=4)
                    for name, values in summarize(weights[None]).items()
                },
            }
            if size([*maps, item]) > room.limit:
                left_out += len(weights)
            else:
                maps.insert(0, item)
                self._kinds.add(kind)
        return {"attention": maps, "heads": []}, {"maps": left_out} if left_out else {}

    def _maps(self, seen: Forward) -> dict[tuple[AttentionKind, int], Tensor]:
        """Weights, float (H, T, S), by kind and layer; those of time steps are joined."""
        padding = torch.zeros_like(seen.src, dtype=torch.bool)
        try:
            with capture_attention(self._network) as maps:
                self._network.decode(seen.tgt_in, self._network.encode(seen.src, padding))
        except ValueError as error:
            if "holds no attention" not in str(error):
                raise
            return {}
        parts: dict[tuple[AttentionKind, int], list[Tensor]] = {}
        for found in maps:
            parts.setdefault((found.kind, found.layer), []).append(found.weights[0])
        return {
            place: torch.cat(weights, 1) if len({w.size(2) for w in weights}) == 1 else weights[-1]
            for place, weights in parts.items()
        }
