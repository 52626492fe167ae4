"""The Transformer of Vaswani et al. (2017), https://arxiv.org/abs/1706.03762."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, cast, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from litseq.layers.dropout import Dropout
from litseq.layers.linear import Linear, is_plain, linear
from litseq.layers.masks import padding_to_attention_mask
from litseq.layers.multihead import MultiheadAttention
from litseq.layers.positions import (
    LearnedPositions,
    NoPositions,
    RotaryPositions,
    SinusoidalPositions,
)
from litseq.layers.rows import Size, from_rows, to_rows
from litseq.layers.sizes import check_dropouts, check_sizes
from litseq.models.base import ProjectingModel
from litseq.models.transformer_state import KeysValues, Past, TransformerState
from litseq.types import AttentionKind, DecoderState, Memory

__all__ = ["Transformer", "TransformerState"]

Activation = Literal["relu", "gelu", "swish"]
CrossAttention = Literal["every_layer", "last_layer"]
Positions = Literal["sinusoidal", "learned", "rotary", "none"]
Layer = TypeVar("Layer", bound=nn.Module)


class FeedForward(nn.Module):
    """Two linear maps with ReLU between them, the same at every position (section 3.3).

    In its place there may be GELU (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415) or
    swish (Ramachandran et al. 2017, https://arxiv.org/abs/1710.05941), which torch calls SiLU.

    With a gate, ``(act(x W) * (x V)) W2`` (Shazeer 2020, https://arxiv.org/abs/2002.05202; biases
    stay): ReGLU, GEGLU or SwiGLU by the activation. W and V are the halves of ``linear1``, one
    product for speed.
    """

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int,
        *,
        dropout: float = 0.0,
        activation: Activation = "relu",
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.gated = gated
        self.linear1 = Linear(d_model, 2 * dim_feedforward if gated else dim_feedforward)
        self.linear2 = Linear(dim_feedforward, d_model)
        self.dropout = Dropout(dropout)
        # W and V by themselves: the spread follows the shape of each
        for weight in (*self.linear1.weight.detach().chunk(2 if gated else 1), self.linear2.weight):
            nn.init.xavier_uniform_(weight)
        for part in (self.linear1, self.linear2):
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float (..., D) to float (..., D)."""
        y: Tensor = self.linear2(self._inner(x))
        return y

    def _inner(self, x: Tensor) -> Tensor:
        """What stands between the maps, (..., dim_feedforward)."""
        y: Tensor
        if self.gated:
            gate, value = self.linear1(x).chunk(2, dim=-1)
            y = self.dropout(self.activation(gate) * value)
        elif self.activation is not F.relu:
            y = self.dropout(self.activation(self.linear1(x)))
        elif self.training or not is_plain(self.linear1):
            y = self.dropout.after_relu(self.linear1(x))
        else:
            y = linear(x, self.linear1.weight, self.linear1.bias, relu=True)
        return y


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
}


class Residual(nn.Module):
    """Residual connection, dropout and layer norm around a sub-layer (section 3.1, 5.4).

    Post-norm, as in the paper: ``norm(x + dropout(sublayer(x)))``. Pre-norm (``norm_first``) leaves
    the residual path free: ``x + dropout(sublayer(norm(x)))``; it trains deep stacks without
    warm-up (Xiong et al. 2020, https://arxiv.org/abs/2002.04745) and needs one last norm at the end
    of the stack.
    """

    def __init__(self, d_model: int, *, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Runs the sub-layer on float (..., D)."""
        y: Tensor
        if self.norm_first:
            y = self.dropout.added_to(x, sublayer(self.norm(x)))
        else:
            y = self.norm(self.dropout.added_to(x, sublayer(x)))
        return y


class EncoderLayer(nn.Module):
    """Self-attention over the source, then feed-forward."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dim_feedforward: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        activation: Activation,
        gated: bool,
        norm_first: bool,
        scale_scores: bool,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(
            d_model,
            num_heads,
            kind="encoder",
            dropout=attention_dropout,
            scale_scores=scale_scores,
        )
        self.feed_forward = FeedForward(
            d_model, dim_feedforward, dropout=activation_dropout, activation=activation, gated=gated
        )
        self.self_attn_residual = Residual(d_model, dropout=dropout, norm_first=norm_first)
        self.feed_forward_residual = Residual(d_model, dropout=dropout, norm_first=norm_first)

    def forward(
        self, x: Tensor, attn_mask: Tensor, size: Size, rotation: Tensor | None = None
    ) -> Tensor:
        """Maps float (R, D) to float (R, D).

        Args:
            x: Positions of the sources as rows, float (R, D) (``litseq.layers.rows``).
            attn_mask: bool (B, 1, 1, S); True = may attend.
            size: (B, S).
            rotation: Rotary positions of x, float (S, d_k).
        """

        def self_attention(x: Tensor) -> Tensor:
            q, k, v = self.self_attn.queries_keys_values(x, rotation, size)
            return self.self_attn.attend(q, k, v, attn_mask=attn_mask, num_rows=len(x))

        x = self.self_attn_residual(x, self_attention)
        y: Tensor = self.feed_forward_residual(x, self.feed_forward)
        return y


class DecoderLayer(nn.Module):
    """Masked self-attention, cross-attention to the encoder's last output, then feed-forward.

    ``cross_attention=False`` leaves out the middle one: such a layer never sees the source.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dim_feedforward: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        activation: Activation,
        gated: bool,
        norm_first: bool,
        scale_scores: bool,
        cross_attention: bool,
    ) -> None:
        super().__init__()

        def attention(kind: AttentionKind) -> MultiheadAttention:
            return MultiheadAttention(
                d_model,
                num_heads,
                kind=kind,
                dropout=attention_dropout,
                scale_scores=scale_scores,
            )

        self.self_attn = attention("decoder")
        self.cross_attn = attention("cross") if cross_attention else None
        self.feed_forward = FeedForward(
            d_model, dim_feedforward, dropout=activation_dropout, activation=activation, gated=gated
        )
        self.self_attn_residual = Residual(d_model, dropout=dropout, norm_first=norm_first)
        if cross_attention:
            self.cross_attn_residual = Residual(d_model, dropout=dropout, norm_first=norm_first)
        self.feed_forward_residual = Residual(d_model, dropout=dropout, norm_first=norm_first)

    def keys_values(self, memory: Tensor, size: Size | None = None) -> KeysValues | None:
        """Projects the encoder's output for the cross-attention, if any.

        It is float (B, S, D), or (R, D) and of the size (B, S).
        """
        return None if self.cross_attn is None else self.cross_attn.keys_values(memory, size)

    def forward(
        self,
        x: Tensor,
        memory_keys_values: KeysValues | None,
        memory_mask: Tensor,
        size: Size,
        past: Past | None = None,
        rotation: Tensor | None = None,
        own: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Decodes whole targets at once, or one more token of each after ``past``.

        Then the targets of a source ask together, as if they were one target's positions.

        Args:
            x: Positions of the targets as rows, float (R, D).
            memory_keys_values: What ``keys_values`` made of the encoder's output, each float (B, H,
                S, d_k).
            memory_mask: bool (B, 1, 1, S); True = may attend.
            size: (B, T); with ``past``, sources and targets of each.
            past: Keys and values of the tokens before x, P for each source.
            rotation: Rotary positions of x, float (T, d_k) or (B, 1, T, d_k).
            own: bool (B, 1, T, P + T), which of those, and of x, belong to a target; None: all.

        Returns:
            float (R, D), and the keys and values of all tokens so far, the keys turned already.
        """
        seen: KeysValues

        def self_attention(x: Tensor) -> Tensor:
            nonlocal seen
            q, k, v = self.self_attn.queries_keys_values(x, rotation, size)
            if past is None:
                seen = k, v
                return self.self_attn.attend(q, k, v, is_causal=True, num_rows=len(x))
            # the newest token may look at everything of its target so far
            k, v = seen = past.add(k, v)
            return self.self_attn.attend(q, k, v, attn_mask=own, few_queries=True, num_rows=len(x))

        def cross_attention(x: Tensor) -> Tensor:
            assert self.cross_attn is not None
            assert memory_keys_values is not None
            k, v = memory_keys_values
            q = self.cross_attn.queries(x, size)
            return self.cross_attn.attend(
                q, k, v, attn_mask=memory_mask, few_queries=past is not None, num_rows=len(x)
            )

        x = self.self_attn_residual(x, self_attention)
        if self.cross_attn is not None:
            x = self.cross_attn_residual(x, cross_attention)
        x = self.feed_forward_residual(x, self.feed_forward)
        return x, seen


class Transformer(ProjectingModel):
    """Encoder and decoder without recurrence: attention carries everything from place to place.

    The defaults of the options are the paper's: layer norm after each residual, sinusoidal
    positions, and one matrix for source embedding, target embedding and output projection, scaled
    by sqrt(d_model) where it embeds. The encoder's last output goes to *every* decoder layer: each
    asks it its own question with its own W_Q, W_K and W_V, so a decoder layer can look at the
    source again in the light of what it has just understood of the target.

    Args:
        vocab_size: Number of target tokens; of source tokens too unless ``src_vocab_size`` is
            given.
        d_model: Width of the embeddings and of every layer's output.
        num_heads: Heads of each attention; divides d_model.
        num_encoder_layers: Encoder layers.
        num_decoder_layers: Decoder layers.
        dim_feedforward: Inner width of the feed-forward sub-layers, gated or not.
        src_vocab_size: Number of source tokens where the source has a vocabulary of its own.
        dropout: Dropout on each sub-layer's output and on the embeddings (section 5.4).
        attention_dropout: Dropout on attention weights.
        activation_dropout: Dropout after the activation of the feed-forward sub-layers, and after
            their gate.
        activation: What stands between the two linear maps of a feed-forward sub-layer.
        gated: Multiplies the activation by a second linear map of the input (Shazeer 2020,
            https://arxiv.org/abs/2002.05202): with swish SwiGLU, with gelu GEGLU, with relu ReGLU.
            Such a sub-layer has half as many weights again; for equal size, make dim_feedforward
            two thirds.
        norm_first: Layer norm before each sub-layer instead of after its residual.
        positions: Sinusoids or a learned vector per position, added to the embeddings; rotary,
            which turns the queries and keys of self-attention instead (Su et al. 2021,
            https://arxiv.org/abs/2104.09864); or none, which leaves the encoder a bag of tokens.
        max_positions: Longest sequence for learned positions.
        cross_attention: Which decoder layers look at the encoder's output: each, or the last alone,
            which shows what the others lose.
        scale_scores: Divides the scores by sqrt(d_k); without it wide heads saturate.
        share_embeddings: One embedding matrix for source and target; needs one vocabulary. None:
            where there is one vocabulary.
        tie_output: The output projection is the target embedding (Press and Wolf 2017).

    Raises:
        ValueError: If a size, a dropout or a name is not possible, or if options exclude each
            other.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        d_model: int,
        num_heads: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        dim_feedforward: int,
        src_vocab_size: int | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        activation: Activation = "relu",
        gated: bool = False,
        norm_first: bool = False,
        positions: Positions = "sinusoidal",
        max_positions: int = 1024,
        cross_attention: CrossAttention = "every_layer",
        scale_scores: bool = True,
        share_embeddings: bool | None = None,
        tie_output: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(
            vocab_size=vocab_size,
            src_vocab_size=vocab_size if src_vocab_size is None else src_vocab_size,
            d_model=d_model,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
            dim_feedforward=dim_feedforward,
            max_positions=max_positions,
        )
        check_dropouts(dropout=dropout, activation_dropout=activation_dropout)
        for name, value, known in (
            ("activation", activation, get_args(Activation)),
            ("positions", positions, get_args(Positions)),
            ("cross_attention", cross_attention, get_args(CrossAttention)),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}; choose one of them."
                )
        if share_embeddings and src_vocab_size not in (None, vocab_size):
            raise ValueError(
                f"share_embeddings needs one vocabulary for source and target, got "
                f"src_vocab_size={src_vocab_size}, vocab_size={vocab_size}; "
                f"train a shared vocabulary or set share_embeddings to false."
            )
        self.d_model = d_model
        self.tgt_embedding = _embedding(vocab_size, d_model)
        share = src_vocab_size is None if share_embeddings is None else share_embeddings
        self.src_embedding = (
            self.tgt_embedding if share else _embedding(src_vocab_size or vocab_size, d_model)
        )
        self.positions = _POSITIONS[positions](d_model, max_positions=max_positions)
        self.max_tgt_len = max_positions if positions == "learned" else None
        self.dropout = Dropout(dropout)

        def stack(
            make_layer: Callable[..., Layer], options: Iterable[dict[str, bool]]
        ) -> Sequence[Layer]:
            layers = nn.ModuleList(
                make_layer(
                    d_model,
                    num_heads,
                    dim_feedforward=dim_feedforward,
                    dropout=dropout,
                    attention_dropout=attention_dropout,
                    activation_dropout=activation_dropout,
                    activation=activation,
                    gated=gated,
                    norm_first=norm_first,
                    scale_scores=scale_scores,
                    **option,
                )
                for option in options
            )
            return cast("Sequence[Layer]", layers)  # a ModuleList does not say what it holds

        self.encoder_layers = stack(EncoderLayer, [{}] * num_encoder_layers)
        self.decoder_layers = stack(
            DecoderLayer,
            [
                {
                    "cross_attention": cross_attention == "every_layer"
                    or number == num_decoder_layers
                }
                for number in range(1, num_decoder_layers + 1)
            ],
        )
        # one table for all layers; cross-attention has no distances to speak of
        self.rotary = (
            RotaryPositions(d_model // num_heads, max_positions=max_positions)
            if positions == "rotary"
            else None
        )
        # post-norm stacks end with a norm already
        self.encoder_norm = nn.LayerNorm(d_model) if norm_first else nn.Identity()
        self.decoder_norm = nn.LayerNorm(d_model) if norm_first else nn.Identity()
        self.output = Linear(d_model, vocab_size)
        nn.init.zeros_(self.output.bias)
        if tie_output:
            self.output.weight = self.tgt_embedding.weight
        else:
            nn.init.xavier_uniform_(self.output.weight)

    def _embed(self, embedding: nn.Embedding, tokens: Tensor, *, start: int | Tensor = 0) -> Tensor:
        x = embedding(tokens) * math.sqrt(self.d_model)  # (B, T, D), section 3.4
        embedded: Tensor = self.dropout(self.positions(x, start=start))
        return embedded

    def _rotation(self, length: int, *, start: int | Tensor = 0) -> Tensor | None:
        return None if self.rotary is None else self.rotary(length, start=start)

    def encode(self, src: Tensor, src_key_padding_mask: Tensor) -> Memory:
        """Runs the encoder stack; see ``Seq2SeqModel.encode``."""
        size = src.size(0), src.size(1)
        x = to_rows(self._embed(self.src_embedding, src))
        attn_mask = padding_to_attention_mask(src_key_padding_mask)
        rotation = self._rotation(src.size(1))
        for layer in self.encoder_layers:
            x = layer(x, attn_mask, size, rotation)
        output = from_rows(self.encoder_norm(x), size)
        return Memory(output=output, key_padding_mask=src_key_padding_mask)

    def init_state(self, memory: Memory) -> TransformerState:
        """Projects the memory once for every decoder layer; see ``Seq2SeqModel.init_state``."""
        keys_values = tuple(
            # as every step reads them
            found and (found[0].contiguous(), found[1].contiguous())
            for found in (layer.keys_values(memory.output) for layer in self.decoder_layers)
        )
        # of the dtype that a step's keys and values will have, under autocast too
        assert keys_values[-1] is not None
        k, v = (x[:, :, :0] for x in keys_values[-1])
        return TransformerState(
            memory_keys_values=keys_values,
            memory_mask=padding_to_attention_mask(memory.key_padding_mask),
            past=((k, v),) * len(keys_values),
        )

    def decode_hidden(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """Runs the decoder stack over a whole target, float (B, T, D)."""
        size = tgt_in.size(0), tgt_in.size(1)
        src_size = memory.output.size(0), memory.output.size(1)
        x, source = to_rows(self._embed(self.tgt_embedding, tgt_in)), to_rows(memory.output)
        memory_mask = padding_to_attention_mask(memory.key_padding_mask)
        rotation = self._rotation(tgt_in.size(1))
        for layer in self.decoder_layers:
            keys_values = layer.keys_values(source, src_size)
            x, _ = layer(x, keys_values, memory_mask, size, rotation=rotation)
        return from_rows(self.decoder_norm(x), size)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, TransformerState]:
        """Runs the decoder stack for one token; see ``Seq2SeqModel.step``."""
        assert isinstance(state, TransformerState)
        each = state.targets_each
        size = len(token) // each, each
        start = state.position
        x = to_rows(self._embed(self.tgt_embedding, token[:, None], start=start))  # (N, D)
        rotation = self._rotation(1, start=start)
        if rotation is not None and isinstance(start, Tensor):
            rotation = rotation.view(size[0], 1, each, -1)
        before, room, own = state.begin_step()
        mask = None if own is None else own.view(size[0], 1, each, -1)
        past = []
        for layer, source, known in zip(
            self.decoder_layers, state.memory_keys_values, before, strict=True
        ):
            x, seen = layer(x, source, state.memory_mask, size, known, rotation, mask)
            past.append(seen)
        logits: Tensor = self.output(from_rows(self.decoder_norm(x), (len(token), 1))[:, 0])
        return logits, replace(state, past=tuple(past), room=room, own=own, read=start + 1)


_POSITIONS: dict[
    Positions, type[SinusoidalPositions] | type[LearnedPositions] | type[NoPositions]
] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": NoPositions,  # they come in where queries and keys are made
    "none": NoPositions,
}


def _embedding(vocab_size: int, d_model: int) -> nn.Embedding:
    embedding = nn.Embedding(vocab_size, d_model)
    # unit variance once scaled by sqrt(d_model), and small logits where the output is tied to it
    nn.init.normal_(embedding.weight, std=d_model**-0.5)
    return embedding
