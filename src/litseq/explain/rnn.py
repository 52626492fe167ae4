"""What a report shows of the recurrent model without attention: its one context vector."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from litseq.explain.arrays import Json, array, numbers, picture
from litseq.explain.forward import Forward, Method, Room
from litseq.models import Rnn

__all__ = ["RnnExplainer"]

_LENGTHS = 16
_LONGEST = 128  # tokens; leaving each of more tokens out takes minutes


class RnnExplainer:
    """Watches both recurrent halves, and what passes between them.

    Args:
        network: The model, in evaluation mode.
    """

    architecture = "rnn"

    def __init__(self, network: Rnn) -> None:
        self._network = network

    def methods(self) -> Iterable[Method]:
        """Encoder and decoder."""
        yield self._network.encoder, "forward"
        yield self._network.decoder, "forward"

    def describe(self, seen: Forward, room: Room) -> tuple[Json, Json]:
        """Describes a forward pass; it is never large."""
        network = self._network
        context = seen.memory.output[0, 0]  # (D,)
        (encoder,) = seen.calls.of(network.encoder)
        (decoder,) = seen.calls.of(network.decoder)
        tokens, eos = seen.src[0].tensor_split([-1])
        short = tokens.numel() <= _LONGEST
        influence: list[float | None] = [*self._influence(tokens, eos), None] if short else []
        lengths = []
        for end in _spread(min(tokens.numel(), _LONGEST)):
            part = self._influence(tokens[:end], eos)
            lengths.append(
                {
                    "source_tokens": end,
                    "numbers_per_token": context.numel() / end,
                    "influence": numbers([sum(part) / end])[0],
                }
            )
        states = encoder.output[0][0]  # (S, D), in the order of reading
        return {
            "context": array(context),
            "numbers_per_token": context.numel() / seen.src.size(1),
            "context_at_every_step": network.context_at_every_step,
            "reverse_source": network.reverse_source,
            "encoder_states": picture(states.flip(0) if network.reverse_source else states),
            "decoder_states": picture(decoder.output[0][0]),
            "influence": influence,
            "lengths_are": "prefixes",
            "lengths": lengths,
        }, {} if short else {"influence": True}

    def _influence(self, tokens: Tensor, eos: Tensor) -> list[float]:
        """How far the context vector moves when a token is left out, relative to its length.

        Args:
            tokens: Source ids without EOS, int64 (n,).
            eos: EOS, int64 (1,).

        Returns:
            A number for each token.
        """
        places = range(tokens.numel())
        if not places:
            return []
        (whole,) = self._contexts(torch.cat((tokens, eos))[None])
        without = [torch.cat((tokens[:i], tokens[i + 1 :], eos)) for i in places]
        moved = self._contexts(torch.stack(without)) - whole
        return numbers(moved.norm(dim=1) / whole.norm())

    def _contexts(self, src: Tensor) -> Tensor:
        """Context vectors of sources without padding, int64 (B, S); float (B, D)."""
        return self._network.encode(src, torch.zeros_like(src, dtype=torch.bool)).output[:, 0]


def _spread(total: int) -> list[int]:
    """Lengths from 1 to ``total``, at most 16, evenly spread, the last one included."""
    count = min(total, _LENGTHS)
    return [total * number // count for number in range(1, count + 1)]
