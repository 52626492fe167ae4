"""The Transformer in the layout of CTranslate2, written on its own description of a model.

Its sub-layers are ours under other names. Position codes come along as a table, so their order is
ours too, and no weight has to be permuted.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from litseq.layers.multihead import MultiheadAttention
from litseq.layers.positions import LearnedPositions, SinusoidalPositions, sinusoids
from litseq.models.transformer import DecoderLayer, EncoderLayer, FeedForward, Residual, Transformer
from litseq.task import Seq2Seq

__all__ = ["Quantization", "write_ctranslate2"]

Quantization = Literal["float32", "bfloat16", "float16", "int16", "int8", "int8_float32"]

_MAX_POSITIONS = 1024
_ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "swish": "SWISH"}


def write_ctranslate2(
    model: Seq2Seq, folder: Path, *, quantization: Quantization = "float32"
) -> None:
    """Writes what ``ctranslate2.Translator`` reads.

    Args:
        model: A Transformer with its tokenizer: pre-norm or post-norm, tied or not, gated or not,
            with any positions.
        folder: An empty folder.
        quantization: How weights are kept; int8 with one scale for each row of a matrix.

    Raises:
        ModuleNotFoundError: If CTranslate2 is not installed.
        ValueError: If the model has something that CTranslate2 has not; names the option.
    """
    try:
        from ctranslate2.specs import TransformerSpec, transformer_spec
        from ctranslate2.specs.common_spec import Activation
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "an export to CTranslate2 needs it installed: pip install 'litseq[ctranslate2]'.",
            name=error.name,
        ) from error
    network, options, tokenizer = model.network, model.hparams, model.tokenizer
    if not isinstance(network, Transformer):
        raise ValueError(
            f"CTranslate2 has the Transformer alone, and this model is a {type(model).__name__}; "
            f"export it to onnx, or train a TransformerSeq2Seq."
        )
    if options["cross_attention"] != "every_layer":
        raise ValueError(
            f"CTranslate2 has no cross_attention={options['cross_attention']!r}, only "
            f"'every_layer'; export it to onnx, or train with that."
        )
    if tokenizer is None:
        raise ValueError("the checkpoint holds no tokenizer, and an export needs one.")
    shape = {
        "num_heads": options["num_heads"],
        "pre_norm": options["norm_first"],
        "activation": Activation[_ACTIVATIONS[options.get("activation", "relu")]],
        "ffn_glu": network.encoder_layers[0].feed_forward.gated,
        # 0 turns all dimensions of a head, by turns as we do
        "rotary_dim": 0 if network.rotary is not None else None,
    }
    encoder: Any = transformer_spec.TransformerEncoderSpec(len(network.encoder_layers), **shape)
    decoder: Any = transformer_spec.TransformerDecoderSpec(len(network.decoder_layers), **shape)
    encoder.embeddings[0].weight = _copy(network.src_embedding.weight)
    decoder.embeddings.weight = _copy(network.tgt_embedding.weight)
    if network.rotary is None:
        encoder.position_encodings.encodings = _codes(network)
        decoder.position_encodings.encodings = _codes(network)
    else:
        del encoder.position_encodings
    layers: list[EncoderLayer | DecoderLayer] = [*network.encoder_layers, *network.decoder_layers]
    for spec, layer in zip([*encoder.layer, *decoder.layer], layers, strict=True):
        _self_attention(spec.self_attention, layer.self_attn, layer.self_attn_residual)
        _feed_forward(spec.ffn, layer.feed_forward, layer.feed_forward_residual)
    for spec, layer in zip(decoder.layer, network.decoder_layers, strict=True):
        assert layer.cross_attn is not None
        _cross_attention(spec.attention, layer.cross_attn, layer.cross_attn_residual)
    if not options["scale_scores"]:
        for spec in chain(encoder.layer, decoder.layer):
            spec.self_attention.queries_scale = 1.0
        for spec in decoder.layer:
            spec.attention.queries_scale = 1.0
    if options["norm_first"]:
        _norm(encoder.layer_norm, network.encoder_norm)
        _norm(decoder.layer_norm, network.decoder_norm)
    _linear(decoder.projection, network.output.weight, network.output.bias)

    spec = TransformerSpec(encoder, decoder)
    sources = tokenizer.source_pieces(range(tokenizer.src_vocab_size))
    targets = tokenizer.target_pieces(range(tokenizer.tgt_vocab_size))
    spec.register_source_vocabulary(sources)
    spec.register_target_vocabulary(targets)
    spec.config.add_source_eos = True
    spec.config.unk_token = targets[tokenizer.unk_id]
    spec.config.eos_token = targets[tokenizer.eos_id]
    spec.config.bos_token = targets[tokenizer.bos_id]
    spec.config.decoder_start_token = targets[tokenizer.bos_id]
    spec.config.layer_norm_epsilon = nn.LayerNorm(1).eps
    spec.validate()
    spec.optimize(quantization=None if quantization == "float32" else quantization)
    spec.save(str(folder))


def _codes(network: Transformer) -> Tensor:
    """What is added to the embeddings, float (P, D)."""
    if isinstance(network.positions, SinusoidalPositions):
        return sinusoids(_MAX_POSITIONS, network.d_model)
    if isinstance(network.positions, LearnedPositions):
        return _copy(network.positions.weight)
    return torch.zeros(_MAX_POSITIONS, network.d_model)


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().clone()  # rounding writes into it


def _linear(spec: Any, weight: Tensor, bias: Tensor) -> None:  # noqa: ANN401 - untyped library
    spec.weight, spec.bias = _copy(weight), _copy(bias)


def _norm(spec: Any, norm: nn.Module) -> None:  # noqa: ANN401
    assert isinstance(norm, nn.LayerNorm)
    spec.gamma, spec.beta = _copy(norm.weight), _copy(norm.bias)


def _self_attention(spec: Any, attention: MultiheadAttention, residual: Residual) -> None:  # noqa: ANN401
    projection, output = spec.linear
    _linear(projection, attention.in_proj_weight, attention.in_proj_bias)
    _linear(output, attention.out_proj.weight, attention.out_proj.bias)
    _norm(spec.layer_norm, residual.norm)


def _cross_attention(spec: Any, attention: MultiheadAttention, residual: Residual) -> None:  # noqa: ANN401
    queries, keys_values, output = spec.linear
    size = attention.d_model
    _linear(queries, attention.in_proj_weight[:size], attention.in_proj_bias[:size])
    _linear(keys_values, attention.in_proj_weight[size:], attention.in_proj_bias[size:])
    _linear(output, attention.out_proj.weight, attention.out_proj.bias)
    _norm(spec.layer_norm, residual.norm)


def _feed_forward(spec: Any, feed_forward: FeedForward, residual: Residual) -> None:  # noqa: ANN401
    # the activation is the first half's
    halves = [spec.linear_0, spec.linear_0_noact] if feed_forward.gated else [spec.linear_0]
    weights = feed_forward.linear1.weight.chunk(len(halves))
    biases = feed_forward.linear1.bias.chunk(len(halves))
    for half, weight, bias in zip(halves, weights, biases, strict=True):
        _linear(half, weight, bias)
    _linear(spec.linear_1, feed_forward.linear2.weight, feed_forward.linear2.bias)
    _norm(spec.layer_norm, residual.norm)
