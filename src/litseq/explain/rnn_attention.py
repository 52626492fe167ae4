"""What a report shows of a recurrent model with attention: scores, softmax, weighted sum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from litseq.attention.summaries import entropy
from litseq.explain.arrays import Json, array, as_bytes, numbers, picture, size
from litseq.explain.forward import Forward, Method, Room
from litseq.models import RnnAttention

__all__ = ["RnnAttentionExplainer"]

_DIMENSIONS = 16
"""Of the encoder states and context vectors, as many as can be read."""


class RnnAttentionExplainer:
    """Watches the attention, the encoder and the decoder.

    Args:
        network: The model, in evaluation mode.
    """

    architecture = "rnn_attention"

    def __init__(self, network: RnnAttention) -> None:
        self._network = network

    def methods(self) -> Iterable[Method]:
        """The attention with its scores, and both recurrent halves."""
        yield self._network.attend, "forward"
        yield self._network.attend, "scores"
        yield self._network.encoder, "forward"
        yield self._network.decoder, "forward"

    def describe(self, seen: Forward, room: Room) -> tuple[Json, Json]:
        """Describes a forward pass; every step's arithmetic, one step's, or none, as it fits."""
        network, attend = self._network, self._network.attend
        # in one call, or in one per time step
        calls = seen.calls.of(attend)
        scores = _joined(call.output for call in seen.calls.of(attend, "scores"))  # (T, S)
        weights = _joined(call.output[1] for call in calls)
        context = _joined(call.output[0] for call in calls)  # (T, D)
        states = _joined(call.args[0] for call in calls)  # (T, H)
        _, keys, values, _ = calls[0].args

        projected = attend.score in ("additive", "concat")
        query = attend.query_projection(states) if projected else states
        energy = attend.energy.weight[0] if projected else None
        detail: Json = {
            "score": attend.score,
            "hidden_size": states.size(1),
            "memory_size": values.size(2),
            "bidirectional": network.encoder.rnn.bidirectional,
            "input_feeding": network.input_feeding,
            "entropy": numbers(entropy(weights)),
            "encoder_states": picture(seen.calls.of(network.encoder)[0].output[0][0]),
            "decoder_states": picture(
                _joined(call.output[0] for call in seen.calls.of(network.decoder))
            ),
        }
        index = _telling_step(weights)
        step = {
            "index": index,
            "query": array(query[index]),
            "keys": array(keys[0]),
            "energy": None if energy is None else array(energy),
            "values": array(values[0, :, :_DIMENSIONS]),
            "context": array(context[index, :_DIMENSIONS]),
        }
        matrices = {"scores": array(scores), "weights": array(weights)}
        every = {"queries": array(query), "contexts": array(context[:, :_DIMENSIONS])}
        nothing = {"queries": None, "contexts": None}
        whole = {**detail, **matrices, "step": step, **every}
        if size(whole) <= room.wanted:
            return whole, {}
        one_step = {**detail, **matrices, "step": step, **nothing}
        if size(one_step) <= room.limit:
            return one_step, {"steps": weights.size(0) - 1}
        rounded = {"scores": None, "weights": array(as_bytes(weights)), "step": None, **nothing}
        return {**detail, **rounded}, {"steps": weights.size(0), "scores": True}


def _joined(parts: Iterable[Any]) -> Tensor:
    """Joins the time steps of one sentence, each (1, t, n), to (T, n)."""
    return torch.cat([part[0] for part in parts])


def _telling_step(weights: Tensor) -> int:
    """The step that looks most surely at one token, EOS on either side aside."""
    body = weights[:-1, :-1] if weights.size(0) > 1 and weights.size(1) > 1 else weights
    return int(body.amax(1).argmax())
