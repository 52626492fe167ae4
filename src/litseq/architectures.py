"""The three systems of the field as LightningModules: swapping them is swapping the class."""

from __future__ import annotations

from typing import Any, Literal

from litseq.models.base import Seq2SeqModel
from litseq.models.rnn import Rnn
from litseq.models.rnn_attention import RnnAttention
from litseq.models.transformer import Transformer
from litseq.task import Seq2Seq

__all__ = ["RnnAttentionSeq2Seq", "RnnSeq2Seq", "Seq2Seq", "TransformerSeq2Seq"]


class RnnSeq2Seq(Seq2Seq):
    """The recurrent encoder-decoder with one context vector (Sutskever 2014, Cho 2014).

    Args:
        embedding_dim: Size of the token embeddings.
        hidden_size: Size of a recurrent state; of each direction in a bidirectional encoder.
        num_layers: Recurrent layers in encoder and in decoder.
        rnn_type: The cell.
        bidirectional: The encoder reads in both directions.
        context_at_every_step: The decoder sees the context vector at every step (Cho 2014).
        reverse_source: The encoder reads the source backwards (Sutskever 2014).
        dropout: Dropout on embeddings, between layers and before the output.
        share_embeddings: One embedding matrix for source and target. None: where there is one
            vocabulary.
        tie_output: The output projection is the target embedding; needs embedding_dim =
            hidden_size.
        options: Arguments of ``Seq2Seq``.
    """

    def __init__(
        self,
        *,
        embedding_dim: int = 256,
        hidden_size: int = 512,
        num_layers: int = 1,
        rnn_type: Literal["gru", "lstm", "tanh"] = "gru",
        bidirectional: bool = False,
        context_at_every_step: bool = False,
        reverse_source: bool = False,
        dropout: float = 0.2,
        share_embeddings: bool | None = None,
        tie_output: bool = False,
        **options: Any,  # noqa: ANN401 - the CLI follows it to the arguments of Seq2Seq
    ) -> None:
        super().__init__(**options)

    def build_network(self, vocab_size: int, src_vocab_size: int | None) -> Seq2SeqModel:
        """Makes an ``Rnn``."""
        h: Any = self.hparams
        return Rnn(
            vocab_size,
            src_vocab_size=src_vocab_size,
            pad_id=h.pad_id,
            embedding_dim=h.embedding_dim,
            hidden_size=h.hidden_size,
            num_layers=h.num_layers,
            rnn_type=h.rnn_type,
            bidirectional=h.bidirectional,
            context_at_every_step=h.context_at_every_step,
            reverse_source=h.reverse_source,
            dropout=h.dropout,
            share_embeddings=h.share_embeddings,
            tie_output=h.tie_output,
        )


class RnnAttentionSeq2Seq(Seq2Seq):
    """The recurrent encoder-decoder that attends to every encoder state.

    The score function chooses the paper: ``additive`` is Bahdanau et al. (2015); ``dot``,
    ``general`` and ``concat`` are Luong et al. (2015).

    Args:
        embedding_dim: Size of the token embeddings.
        hidden_size: Size of a recurrent state; of each direction in a bidirectional encoder.
        num_layers: Recurrent layers in encoder and in decoder.
        rnn_type: The cell.
        bidirectional: The encoder reads in both directions.
        score: The score function.
        input_feeding: The previous attentional vector enters the recurrence (Luong).
        dropout: Dropout on embeddings, between layers and before the output.
        share_embeddings: One embedding matrix for source and target. None: where there is one
            vocabulary.
        tie_output: The output projection is the target embedding; needs embedding_dim =
            hidden_size.
        options: Arguments of ``Seq2Seq``.
    """

    def __init__(
        self,
        *,
        embedding_dim: int = 256,
        hidden_size: int = 512,
        num_layers: int = 1,
        rnn_type: Literal["gru", "lstm", "tanh"] = "gru",
        bidirectional: bool = True,
        score: Literal["additive", "dot", "general", "concat"] = "additive",
        input_feeding: bool = False,
        dropout: float = 0.2,
        share_embeddings: bool | None = None,
        tie_output: bool = False,
        **options: Any,  # noqa: ANN401 - the CLI follows it to the arguments of Seq2Seq
    ) -> None:
        super().__init__(**options)

    def build_network(self, vocab_size: int, src_vocab_size: int | None) -> Seq2SeqModel:
        """Makes an ``RnnAttention``."""
        h: Any = self.hparams
        return RnnAttention(
            vocab_size,
            src_vocab_size=src_vocab_size,
            pad_id=h.pad_id,
            embedding_dim=h.embedding_dim,
            hidden_size=h.hidden_size,
            num_layers=h.num_layers,
            rnn_type=h.rnn_type,
            bidirectional=h.bidirectional,
            score=h.score,
            input_feeding=h.input_feeding,
            dropout=h.dropout,
            share_embeddings=h.share_embeddings,
            tie_output=h.tie_output,
        )


class TransformerSeq2Seq(Seq2Seq):
    """The Transformer of Vaswani et al. (2017); the defaults are its base model.

    Args:
        d_model: Width of the embeddings and of every layer's output.
        num_heads: Heads of each attention; divides d_model.
        num_encoder_layers: Encoder layers.
        num_decoder_layers: Decoder layers.
        dim_feedforward: Inner width of the feed-forward sub-layers, gated or not.
        dropout: Dropout on each sub-layer's output and on the embeddings.
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
            which turns the queries and keys of self-attention instead; or none.
        max_positions: Longest sequence for learned positions.
        cross_attention: Which decoder layers look at the encoder's output.
        scale_scores: Divides attention scores by sqrt(d_k).
        share_embeddings: One embedding matrix for source and target. None: where there is one
            vocabulary.
        tie_output: The output projection is the target embedding.
        options: Arguments of ``Seq2Seq``.
    """

    def __init__(
        self,
        *,
        d_model: int = 512,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        activation: Literal["relu", "gelu", "swish"] = "relu",
        gated: bool = False,
        norm_first: bool = False,
        positions: Literal["sinusoidal", "learned", "rotary", "none"] = "sinusoidal",
        max_positions: int = 1024,
        cross_attention: Literal["every_layer", "last_layer"] = "every_layer",
        scale_scores: bool = True,
        share_embeddings: bool | None = None,
        tie_output: bool = True,
        **options: Any,  # noqa: ANN401 - the CLI follows it to the arguments of Seq2Seq
    ) -> None:
        super().__init__(**options)

    def build_network(self, vocab_size: int, src_vocab_size: int | None) -> Seq2SeqModel:
        """Makes a ``Transformer``."""
        h: Any = self.hparams
        return Transformer(
            vocab_size,
            src_vocab_size=src_vocab_size,
            d_model=h.d_model,
            num_heads=h.num_heads,
            num_encoder_layers=h.num_encoder_layers,
            num_decoder_layers=h.num_decoder_layers,
            dim_feedforward=h.dim_feedforward,
            dropout=h.dropout,
            attention_dropout=h.attention_dropout,
            activation_dropout=h.activation_dropout,
            activation=h.activation,
            gated=h.gated,
            norm_first=h.norm_first,
            positions=h.positions,
            max_positions=h.max_positions,
            cross_attention=h.cross_attention,
            scale_scores=h.scale_scores,
            share_embeddings=h.share_embeddings,
            tie_output=h.tie_output,
        )
