"""The recurrent encoder-decoder with one context vector between its halves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from litseq.layers.dropout import Dropout
from litseq.layers.recurrent import (
    Bridge,
    RecurrentEncoder,
    RnnType,
    make_embeddings,
    make_linear,
    make_output,
    make_rnn,
    run_rnn,
)
from litseq.models.base import ProjectingModel
from litseq.types import DecoderState, Memory

__all__ = ["Rnn", "RnnState", "reverse_tokens"]


@dataclass(frozen=True)
class RnnState(DecoderState):
    """What the decoder knows after the tokens it has read.

    Attributes:
        hidden: One float (B, L, H) for a GRU or tanh cell, two for an LSTM (hidden, cell).
        context: The context vector, float (B, 1, D); None where the decoder saw it only at its
            start.
    """

    hidden: tuple[Tensor, ...]
    context: Tensor | None = None

    def join(self, other: Self) -> Self:
        """Puts the rows of another state behind its own."""
        hidden = tuple(torch.cat(pair) for pair in zip(self.hidden, other.hidden, strict=True))
        context = None
        if self.context is not None and other.context is not None:
            context = torch.cat([self.context, other.context])
        return replace(self, hidden=hidden, context=context)


def reverse_tokens(src: Tensor, src_key_padding_mask: Tensor) -> Tensor:
    """Reverses the tokens of each row and leaves the padding at the end.

    Args:
        src: Token ids, int64 (B, S).
        src_key_padding_mask: bool (B, S); True = padding, at the end of each row.

    Returns:
        Token ids, int64 (B, S); row b holds its n tokens from the last to the first, then its
        padding.

    Source: Sutskever et al. (2014), section 3.3, https://arxiv.org/abs/1409.3215.
    """
    position = torch.arange(src.size(1), device=src.device)
    lengths = (~src_key_padding_mask).sum(dim=1, keepdim=True)  # (B, 1)
    mirrored = lengths - 1 - position  # (B, S), negative at padding
    return src.gather(1, torch.where(mirrored < 0, position, mirrored))


class Rnn(ProjectingModel):
    """A recurrent encoder whose final state is all that a recurrent decoder knows of the source.

    The plain model, with ``rnn_type="lstm"``, several layers and ``reverse_source``, is that of
    Sutskever et al. (2014): the decoder starts from the encoder's final state, and its own states
    are projected to the vocabulary. With ``context_at_every_step`` it is that of Cho et al. (2014):
    the context vector is also a part of each decoder input, and each output is computed from state,
    input token and context. Cho's maxout before the projection is a tanh layer here.

    Args:
        vocab_size: Number of target ids.
        src_vocab_size: Number of source ids; None = as many as target ids.
        pad_id: Id of the padding token on both sides.
        embedding_dim: Size of the token embeddings on both sides.
        hidden_size: Size of a recurrent state; of each direction in a bidirectional encoder.
        num_layers: Number of recurrent layers in encoder and in decoder.
        rnn_type: The cell: ``gru``, ``lstm`` or ``tanh``.
        bidirectional: The encoder reads in both directions; a linear layer and tanh make the
            decoder's first state of both final states.
        dropout: Probability of a zero in embeddings, between recurrent layers and before the
            projection.
        share_embeddings: One embedding table for source and target; needs one vocabulary. None:
            where there is one.
        tie_output: The target embedding is also the output projection; needs embeddings of size
            ``hidden_size``.
        context_at_every_step: The decoder sees the context vector at every step, not at its start
            alone.
        reverse_source: The encoder reads the source from its last token to its first.

    Raises:
        ValueError: If a size, the dropout or a name is not possible, or if options exclude each
            other.

    Source: Sutskever et al. (2014), https://arxiv.org/abs/1409.3215; Cho et al. (2014), appendix A,
    https://arxiv.org/abs/1406.1078.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        embedding_dim: int,
        hidden_size: int,
        src_vocab_size: int | None = None,
        pad_id: int = 0,
        num_layers: int = 1,
        rnn_type: RnnType = "gru",
        bidirectional: bool = False,
        dropout: float = 0.0,
        share_embeddings: bool | None = False,
        tie_output: bool = False,
        context_at_every_step: bool = False,
        reverse_source: bool = False,
    ) -> None:
        super().__init__()
        self.reverse_source = reverse_source
        self.context_at_every_step = context_at_every_step
        self.src_embedding, self.tgt_embedding = make_embeddings(
            vocab_size,
            src_vocab_size=src_vocab_size,
            embedding_dim=embedding_dim,
            pad_id=pad_id,
            share=share_embeddings,
        )
        self.encoder = RecurrentEncoder(
            rnn_type,
            embedding_dim,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        context_size = self.encoder.output_size if context_at_every_step else 0
        self.bridge = Bridge(
            rnn_type,
            encoder_size=self.encoder.output_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        self.decoder = make_rnn(
            rnn_type,
            embedding_dim + context_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
        )
        if context_at_every_step:
            self.readout = make_linear(hidden_size + embedding_dim + context_size, hidden_size)
        self.output = make_output(hidden_size, self.tgt_embedding, tie=tie_output)
        self.dropout = Dropout(dropout)

    def encode(self, src: Tensor, src_key_padding_mask: Tensor) -> Memory:
        """Reads the source into one context vector, the last layer's final hidden state.

        Args:
            src: Token ids, int64 (B, S), each row with at least one token.
            src_key_padding_mask: bool (B, S); True = padding.

        Returns:
            ``output`` holds the context vector, float (B, 1, D), ``state`` the final state of all
            layers, float (B, L, D); D is H, or 2H for a bidirectional encoder.
        """
        if self.reverse_source:
            src = reverse_tokens(src, src_key_padding_mask)
        embedded = self.dropout(self.src_embedding(src))  # (B, S, E)
        _, state = self.encoder(embedded, src_key_padding_mask)
        context = state[0][:, -1:]  # (B, 1, D)
        no_padding = src_key_padding_mask.new_zeros(src.size(0), 1)
        return Memory(output=context, key_padding_mask=no_padding, state=state)

    def init_state(self, memory: Memory) -> RnnState:
        """Starts the decoder from the encoder's final state."""
        context = memory.output if self.context_at_every_step else None
        return RnnState(hidden=self.bridge(memory.state), context=context)

    def decode_hidden(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """Reads a given target, int64 (B, T), up to the projection, float (B, T, H)."""
        return self._run(tgt_in, self.init_state(memory))[0]

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, RnnState]:
        """Reads one more token, int64 (B,), and scores the next; logits, float (B, V)."""
        assert isinstance(state, RnnState)
        hidden, state = self._run(token[:, None], state)
        return self.output(hidden[:, 0]), state

    def _run(self, tgt_in: Tensor, state: RnnState) -> tuple[Tensor, RnnState]:
        inputs = self.dropout(self.tgt_embedding(tgt_in))  # (B, T, E)
        if state.context is not None:
            context = state.context.expand(-1, inputs.size(1), -1)  # (B, T, D)
            inputs = torch.cat([inputs, context], dim=-1)  # (B, T, E + D)
        hidden, final = run_rnn(self.decoder, inputs, state.hidden)  # (B, T, H)
        if state.context is not None:
            # Cho et al. (2014), appendix A.1.2: s' = O_h h + O_y y + O_c c
            hidden = torch.tanh(self.readout(torch.cat([hidden, inputs], dim=-1)))
        return self.dropout(hidden), RnnState(final, state.context)
