"""The recurrent encoder-decoder that looks back at every encoder state before each output."""

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
from litseq.layers.score import Score, ScoreAttention
from litseq.models.base import ProjectingModel
from litseq.types import DecoderState, Memory, SharingState, stack_rows

__all__ = ["RnnAttention", "RnnAttentionState"]


@dataclass(frozen=True)
class RnnAttentionState(SharingState):
    """What the decoder knows of n sources and of B targets, B / n for each source.

    Attributes:
        hidden: One float (B, L, H) for a GRU or tanh cell, two for an LSTM (hidden, cell).
        keys: Encoder states prepared for scoring, once per source, float (n, S, H).
        values: Encoder states, float (n, S, D).
        key_padding_mask: bool (n, S); True = padding.
        feed: The last attentional vector, float (B, 1, H), zero at the start; None without input
            feeding.
    """

    OF_SOURCE = ("keys", "values", "key_padding_mask")

    hidden: tuple[Tensor, ...]
    keys: Tensor
    values: Tensor
    key_padding_mask: Tensor
    feed: Tensor | None = None

    @property
    def targets_each(self) -> int:
        """See ``SharingState``."""
        return self.hidden[0].size(0) // max(self.keys.size(0), 1)

    def join(self, other: Self) -> Self:
        """Puts the rows of another state behind its own; of each source, as many targets."""
        both = self, other
        hidden = tuple(torch.cat(pair) for pair in zip(self.hidden, other.hidden, strict=True))
        size = max(state.keys.size(1) for state in both)
        feed = None
        if self.feed is not None and other.feed is not None:
            feed = torch.cat([self.feed, other.feed])
        return replace(
            self,
            hidden=hidden,
            keys=stack_rows([state.keys for state in both], dim=1, size=size),
            values=stack_rows([state.values for state in both], dim=1, size=size),
            key_padding_mask=stack_rows(
                [state.key_padding_mask for state in both], dim=1, size=size, fill=True
            ),
            feed=feed,
        )


# What some steps of the decoder give: vectors to project to the vocabulary, float (B, T, H),
# attention weights, float (B, T, S), and the state after the last step.
Steps = tuple[Tensor, Tensor, RnnAttentionState]


class RnnAttention(ProjectingModel):
    """A recurrent encoder that keeps every state, and a decoder that attends to them at each step.

    The score function chooses the paper:

    - ``additive``: Bahdanau et al. (2015). The query is the decoder's previous state, and the
      context vector enters the recurrence together with the input token: c_t = attend(s_{t-1}),
      s_t = f([y_t; c_t], s_{t-1}). The output is computed from context, state and input token;
      the paper's maxout is a tanh layer here.
    - ``dot``, ``general``, ``concat``: Luong et al. (2015), global attention. The decoder runs
      first, and its new state is the query: s_t = f(y_t, s_{t-1}), c_t = attend(s_t),
      h_t = tanh(W_c [c_t; s_t]); h_t is projected to the vocabulary. With ``input_feeding`` the
      previous h_{t-1} is a part of the decoder's input. Without it nothing of the attention enters
      the recurrence, so all steps run and attend at once: the fastest.

    Args:
        vocab_size: Number of target ids.
        src_vocab_size: Number of source ids; None = as many as target ids.
        pad_id: Id of the padding token on both sides.
        embedding_dim: Size of the token embeddings on both sides.
        hidden_size: Size of a recurrent state, of each direction in a bidirectional encoder, and of
            the layer inside of the additive and concat scores.
        num_layers: Number of recurrent layers in encoder and in decoder; the last one's state is
            the query.
        rnn_type: The cell: ``gru``, ``lstm`` or ``tanh``.
        bidirectional: The encoder reads in both directions; a linear layer and tanh make the
            decoder's first state of both final states.
        score: The score function, and with it the paper: ``additive``, ``dot``, ``general`` or
            ``concat``.
        input_feeding: Luong's option: the previous attentional vector enters the recurrence.
        dropout: Probability of a zero in embeddings, between recurrent layers and before the
            projection.
        share_embeddings: One embedding table for source and target; needs one vocabulary. None:
            where there is one.
        tie_output: The target embedding is also the output projection; needs embeddings of size
            ``hidden_size``.

    Raises:
        ValueError: If a size, the dropout or a name is not possible, or if options exclude each
            other.

    Source: Bahdanau et al. (2015), https://arxiv.org/abs/1409.0473; Luong et al. (2015), sections
    3.1 and 3.3, https://arxiv.org/abs/1508.04025.
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
        bidirectional: bool = True,
        score: Score = "additive",
        input_feeding: bool = False,
        dropout: float = 0.0,
        share_embeddings: bool | None = False,
        tie_output: bool = False,
    ) -> None:
        super().__init__()
        if score == "additive" and input_feeding:
            raise ValueError(
                "input_feeding belongs to the scores dot, general and concat, got 'additive', "
                "whose context enters the recurrence anyway; set input_feeding to false."
            )
        self.input_feeding = input_feeding
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
        memory_size = self.encoder.output_size
        self.bridge = Bridge(
            rnn_type, encoder_size=memory_size, hidden_size=hidden_size, num_layers=num_layers
        )
        self.attend = ScoreAttention(score, query_size=hidden_size, memory_size=memory_size)
        context_enters = score == "additive"
        fed_size = memory_size if context_enters else hidden_size if input_feeding else 0
        self.decoder = make_rnn(
            rnn_type,
            embedding_dim + fed_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
        )
        read_size = memory_size + hidden_size + (embedding_dim if context_enters else 0)
        self.readout = make_linear(read_size, hidden_size, bias=context_enters)
        self.output = make_output(hidden_size, self.tgt_embedding, tie=tie_output)
        self.dropout = Dropout(dropout)

    def encode(self, src: Tensor, src_key_padding_mask: Tensor) -> Memory:
        """Reads the source and keeps every state of the last layer.

        Args:
            src: Token ids, int64 (B, S), each row with at least one token.
            src_key_padding_mask: bool (B, S); True = padding.

        Returns:
            ``output`` holds the encoder states, float (B, S, D), ``state`` the final state of all
            layers, float (B, L, D); D is H, or 2H for a bidirectional encoder.
        """
        embedded = self.dropout(self.src_embedding(src))  # (B, S, E)
        output, state = self.encoder(embedded, src_key_padding_mask)
        return Memory(output=output, key_padding_mask=src_key_padding_mask, state=state)

    def init_state(self, memory: Memory) -> RnnAttentionState:
        """Starts from the encoder's final state and prepares the keys, once per source."""
        hidden = self.bridge(memory.state)
        return RnnAttentionState(
            hidden=hidden,
            keys=self.attend.project_keys(memory.output),
            values=memory.output,
            key_padding_mask=memory.key_padding_mask,
            feed=torch.zeros_like(hidden[0][:, :1]) if self.input_feeding else None,
        )

    def decode_hidden(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """Reads a given target, int64 (B, T), up to the projection, float (B, T, H)."""
        readout, _, _ = self._recur(tgt_in, self.init_state(memory))
        hidden: Tensor = self.dropout(readout)
        return hidden

    def attention(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """Gives the weights with which each output of ``decode`` looks at the source.

        Args:
            tgt_in: Token ids that begin with BOS, int64 (B, T).
            memory: What ``encode`` returned, B rows.

        Returns:
            Float (B, T, S); each row sums to 1 and is exactly 0 at padding. Row t belongs to the
            token that is predicted after ``tgt_in[:, t]``.
        """
        return self._recur(tgt_in, self.init_state(memory))[1]

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, RnnAttentionState]:
        """Reads one more token, int64 (B,), and scores the next; logits, float (B, V)."""
        assert isinstance(state, RnnAttentionState)
        readout, _, state = self._recur(token[:, None], state)
        return self.output(self.dropout(readout[:, 0])), state

    def _recur(self, tgt_in: Tensor, state: RnnAttentionState) -> Steps:
        embedded = self.dropout(self.tgt_embedding(tgt_in))  # (B, T, E)
        if self.attend.score == "additive":
            return self._bahdanau(embedded, state)
        if self.input_feeding:
            return self._input_feeding(embedded, state)
        return self._luong(embedded, state)

    def _look(self, query: Tensor, state: RnnAttentionState) -> tuple[Tensor, Tensor]:
        """Context, float (B, T, D), and weights, (B, T, S), for queries, float (B, T, H)."""
        # several targets of one source ask together, as if they were one target's positions
        asked = query
        if query.size(0) != state.keys.size(0):
            asked = query.view(state.keys.size(0), -1, query.size(-1))
        found = self.attend(asked, state.keys, state.values, state.key_padding_mask)
        context, weights = (part.view(*query.shape[:2], -1) for part in found)
        return context, weights

    def _luong(self, inputs: Tensor, state: RnnAttentionState) -> Steps:
        hidden, final = run_rnn(self.decoder, inputs, state.hidden)  # (B, T, H)
        context, weights = self._look(hidden, state)
        readout = torch.tanh(self.readout(torch.cat([context, hidden], dim=-1)))  # (B, T, H)
        return readout, weights, replace(state, hidden=final)

    def _input_feeding(self, embedded: Tensor, state: RnnAttentionState) -> Steps:
        readouts, weights = [], []
        for token in torch.split(embedded, 1, dim=1):  # (B, 1, E)
            assert state.feed is not None
            inputs = torch.cat([token, state.feed], dim=-1)  # (B, 1, E + H)
            readout, weight, state = self._luong(inputs, state)
            state = replace(state, feed=readout)
            readouts.append(readout)
            weights.append(weight)
        return torch.cat(readouts, dim=1), torch.cat(weights, dim=1), state

    def _bahdanau(self, embedded: Tensor, state: RnnAttentionState) -> Steps:
        contexts, outputs, weights = [], [], []
        hidden = state.hidden
        for token in torch.split(embedded, 1, dim=1):  # (B, 1, E)
            query = hidden[0][:, -1:]  # (B, 1, H), the previous state
            context, weight = self._look(query, state)
            output, hidden = run_rnn(self.decoder, torch.cat([token, context], dim=-1), hidden)
            contexts.append(context)  # (B, 1, D)
            outputs.append(output)  # (B, 1, H)
            weights.append(weight)  # (B, 1, S)
        # The output does not enter the recurrence, so it is computed for all steps at once.
        parts = [torch.cat(contexts, dim=1), torch.cat(outputs, dim=1), embedded]
        readout = torch.tanh(self.readout(torch.cat(parts, dim=-1)))  # (B, T, H)
        return readout, torch.cat(weights, dim=1), replace(state, hidden=hidden)
