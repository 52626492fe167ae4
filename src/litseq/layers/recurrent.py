"""Parts of both recurrent models: embeddings, recurrent layers, the encoder and its bridge."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from litseq.layers.linear import Linear
from litseq.layers.sizes import check_dropouts, check_sizes
from litseq.types import compute_dtype

__all__ = [
    "Bridge",
    "RecurrentEncoder",
    "RnnType",
    "make_embeddings",
    "make_linear",
    "make_output",
    "make_rnn",
    "run_rnn",
]

RnnType = Literal["gru", "lstm", "tanh"]


def make_embeddings(
    vocab_size: int,
    *,
    src_vocab_size: int | None,
    embedding_dim: int,
    pad_id: int,
    share: bool | None,
) -> tuple[nn.Embedding, nn.Embedding]:
    """Makes the source and the target embedding, drawn uniformly from [-0.1, 0.1].

    Args:
        vocab_size: Number of target ids.
        src_vocab_size: Number of source ids; None = as many as target ids.
        embedding_dim: Size of an embedding.
        pad_id: Id of the padding token, whose embedding is zero and, unless an output projection is
            tied to the table, stays so.
        share: One table for both sides; None: where ``src_vocab_size`` is None.

    Returns:
        Source and target embedding; one and the same module where they are shared.

    Raises:
        ValueError: If a size is below 1, if ``pad_id`` is outside of a vocabulary, or if two
            vocabularies of different sizes are to share a table.

    Source: the range is that of Luong et al. (2015), section 4.1, https://arxiv.org/abs/1508.04025.
    """
    share = src_vocab_size is None if share is None else share
    src_vocab_size = vocab_size if src_vocab_size is None else src_vocab_size
    check_sizes(vocab_size=vocab_size, src_vocab_size=src_vocab_size, embedding_dim=embedding_dim)
    if not 0 <= pad_id < min(vocab_size, src_vocab_size):
        raise ValueError(
            f"pad_id must be an id of both vocabularies, got pad_id={pad_id} with {src_vocab_size} "
            f"source and {vocab_size} target ids; give the tokenizer's pad_id."
        )
    if share and src_vocab_size != vocab_size:
        raise ValueError(
            f"share_embeddings needs one vocabulary for both sides, got {src_vocab_size} source "
            f"and {vocab_size} target ids; share the tokenizer or set share_embeddings to false."
        )
    tgt_embedding = nn.Embedding(vocab_size, embedding_dim, padding_idx=pad_id)
    src_embedding = tgt_embedding if share else nn.Embedding(src_vocab_size, embedding_dim, pad_id)
    for embed in (tgt_embedding, src_embedding):
        nn.init.uniform_(embed.weight, -0.1, 0.1)
        nn.init.zeros_(embed.weight[pad_id].detach())
    return src_embedding, tgt_embedding


def make_linear(in_features: int, out_features: int, *, bias: bool = True) -> Linear:
    """Makes a linear layer, its weights Xavier uniform (Glorot and Bengio, 2010), its bias zero."""
    linear = Linear(in_features, out_features, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def make_output(hidden_size: int, tgt_embedding: nn.Embedding, *, tie: bool) -> Linear:
    """Makes the projection to the target vocabulary.

    Args:
        hidden_size: Size of the vectors to project.
        tgt_embedding: The target embedding.
        tie: Use the embedding table as the projection's weight.

    Raises:
        ValueError: If the table is to be tied and an embedding is not of size ``hidden_size``.

    Source: tying is Press and Wolf (2017), https://arxiv.org/abs/1608.05859.
    """
    output = Linear(hidden_size, tgt_embedding.num_embeddings)
    nn.init.zeros_(output.bias)
    if not tie:
        nn.init.uniform_(output.weight, -0.1, 0.1)
        return output
    if tgt_embedding.embedding_dim != hidden_size:
        raise ValueError(
            f"tie_output needs embedding_dim == hidden_size, got {tgt_embedding.embedding_dim} and "
            f"{hidden_size}; make them equal or set tie_output to false."
        )
    output.weight = tgt_embedding.weight
    return output


def make_rnn(
    rnn_type: RnnType,
    input_size: int,
    *,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
) -> nn.RNNBase:
    """Makes recurrent layers, batch first.

    The recurrent matrices are orthogonal per gate (Bahdanau et al., 2015, appendix B.1), the input
    matrices Xavier uniform per gate, the biases zero, but for the forget gate of an LSTM, which
    starts open with a bias of 1 (Jozefowicz et al., 2015,
    https://proceedings.mlr.press/v37/jozefowicz15.html).

    Args:
        rnn_type: The cell: ``gru``, ``lstm`` or ``tanh``.
        input_size: Size of the input vectors.
        hidden_size: Size of the state, per direction.
        num_layers: Number of layers, one above the other.
        bidirectional: Read the sequence in both directions.
        dropout: Probability of a zero between two layers, in [0, 1).

    Raises:
        ValueError: If the cell is unknown, a size is below 1 or ``dropout`` is outside of [0, 1).
    """
    if rnn_type not in get_args(RnnType):
        known = ", ".join(get_args(RnnType))
        raise ValueError(f"rnn_type must be one of {known}, got {rnn_type!r}; choose one of them.")
    check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
    check_dropouts(dropout=dropout)
    module = {"gru": nn.GRU, "lstm": nn.LSTM, "tanh": nn.RNN}[rnn_type]
    rnn: nn.RNNBase = module(
        input_size,
        hidden_size,
        num_layers=num_layers,
        batch_first=True,
        dropout=dropout if num_layers > 1 else 0.0,  # torch warns of a dropout between no layers
        bidirectional=bidirectional,
    )
    for name, parameter in rnn.named_parameters():
        gates = torch.split(parameter.detach(), hidden_size)
        for gate in gates:
            if name.startswith("weight_hh"):
                gate.copy_(_orthogonal(gate))
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(gate)
            else:
                nn.init.zeros_(gate)
        if rnn_type == "lstm" and name.startswith("bias_ih"):
            nn.init.ones_(gates[1])  # torch orders the gates input, forget, cell, output
    return rnn


def _orthogonal(like: Tensor) -> Tensor:
    # On the CPU and in float32 at least: half precision has no QR decomposition.
    blank = torch.empty(like.shape, dtype=compute_dtype(like), device="cpu")
    return nn.init.orthogonal_(blank)


def run_rnn(
    rnn: nn.RNNBase, inputs: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs recurrent layers from a state, batch first on all sides.

    Args:
        rnn: What ``make_rnn`` made, one direction.
        inputs: Float (B, T, I).
        state: One float (B, L, H) for a GRU or tanh cell, two for an LSTM (hidden, cell).

    Returns:
        States of the last layer, float (B, T, H), and the state after the last input, as ``state``.
    """
    native = tuple(part.transpose(0, 1).contiguous() for part in state)  # (L, B, H)
    output, final = rnn(inputs, native if isinstance(rnn, nn.LSTM) else native[0])
    final = final if isinstance(final, tuple) else (final,)
    return output, tuple(part.transpose(0, 1) for part in final)


class RecurrentEncoder(nn.Module):
    """Reads embedded source sequences of different lengths, and nothing of their padding.

    A batch without padding runs as it is, any other one packed. Packing needs the lengths in main
    memory: on an accelerator that costs one wait per batch, here and nowhere else.

    Args:
        rnn_type: The cell: ``gru``, ``lstm`` or ``tanh``.
        input_size: Size of an embedding.
        hidden_size: Size of the state, per direction.
        num_layers: Number of layers.
        bidirectional: Read in both directions.
        dropout: Probability of a zero between two layers.
    """

    def __init__(
        self,
        rnn_type: RnnType,
        input_size: int,
        *,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.rnn = make_rnn(
            rnn_type,
            input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        self.output_size = 2 * hidden_size if bidirectional else hidden_size

    def forward(
        self, embedded: Tensor, key_padding_mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Reads the source, all of it at once.

        Args:
            embedded: Float (B, S, E).
            key_padding_mask: bool (B, S); True = padding, at the end of a row; each row has at
                least one token.

        Returns:
            States of the last layer, float (B, S, D), zero at padding, and the final state: one
            float (B, L, D) for a GRU or tanh cell, two for an LSTM (hidden, cell). D is H, or 2H
            for two directions (forward after the last token, then backward after the first).
        """
        max_len = embedded.size(1)
        lengths = (~key_padding_mask).sum(dim=1).cpu()
        if int(lengths.min()) == max_len:
            output, final = self.rnn(embedded)
        else:
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            packed, final = self.rnn(packed)
            output, _ = pad_packed_sequence(packed, batch_first=True, total_length=max_len)
        final = final if isinstance(final, tuple) else (final,)
        return output, tuple(self._join_directions(part) for part in final)

    def _join_directions(self, state: Tensor) -> Tensor:
        rows = state.transpose(0, 1)  # (B, L * directions, H), a layer's directions side by side
        return rows.reshape(rows.size(0), self.rnn.num_layers, self.output_size)  # (B, L, D)


class Bridge(nn.Module):
    """Turns the encoder's final state into the decoder's first one.

    From one direction the state passes as it is (Sutskever et al., 2014). From two, a linear layer
    and tanh make one state of the decoder's size, each layer, and each part of an LSTM's state,
    with its own weights (Bahdanau et al., 2015, appendix A.2.2, who read the backward direction
    alone).

    Args:
        rnn_type: The cell on both sides.
        encoder_size: Size of the encoder's state, D.
        hidden_size: Size of the decoder's state, H.
        num_layers: Number of layers on both sides.
    """

    def __init__(
        self, rnn_type: RnnType, *, encoder_size: int, hidden_size: int, num_layers: int
    ) -> None:
        super().__init__()
        num_parts = 2 if rnn_type == "lstm" else 1
        num_linears = num_parts * num_layers if encoder_size != hidden_size else 0
        self.linears = nn.ModuleList(
            make_linear(encoder_size, hidden_size) for _ in range(num_linears)
        )

    def forward(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps each part of the state, float (B, L, D), to float (B, L, H)."""
        if not self.linears:
            return state
        layers = torch.cat(state, dim=1).unbind(1)  # parts * L of (B, D)
        mapped = [
            torch.tanh(linear(layer)) for linear, layer in zip(self.linears, layers, strict=True)
        ]
        return torch.stack(mapped, dim=1).chunk(len(state), dim=1)
