"""The Transformer in the layout of Hugging Face's Marian: weights, configuration, tokenizer.

Marian is the paper's model, normalised after each sub-layer, but for the order of a vector's
dimensions: its position codes have all sines first and all cosines behind them, ours have them by
turns, as the paper has. Nothing else in the model knows of an order, so the same permutation of
every weight along d_model turns the one into the other, and the logits stay what they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litseq.data.tokenizer import TranslationTokenizer
from litseq.models.transformer import Transformer
from litseq.task import Seq2Seq

__all__ = ["ATTENTION", "MAX_POSITIONS", "NORMS", "generation", "halves", "write_marian"]

MAX_POSITIONS = 1024
"""How long a sequence may be there; the table of position codes is as long as that."""

# our name of a part of a layer to theirs
ATTENTION = {"self_attn": "self_attn", "cross_attn": "encoder_attn"}
NORMS = {
    "self_attn_residual.norm": "self_attn_layer_norm",
    "cross_attn_residual.norm": "encoder_attn_layer_norm",
    "feed_forward_residual.norm": "final_layer_norm",
}


def _checked(model: Seq2Seq) -> tuple[Transformer, TranslationTokenizer]:
    """Returns the network and the tokenizer of a model that Marian can be.

    Raises:
        ValueError: If the model has something that Marian has not; names the option.
    """
    network, tokenizer, options = model.network, model.tokenizer, model.hparams
    if not isinstance(network, Transformer):
        raise ValueError(
            f"Marian is a Transformer, and this model is a {type(model).__name__}; train a "
            f"TransformerSeq2Seq to export it."
        )
    for name, needed in (
        ("norm_first", False),
        ("positions", "sinusoidal"),
        ("cross_attention", "every_layer"),
        ("scale_scores", True),
        ("gated", False),
    ):
        if options.get(name, needed) != needed:
            raise ValueError(
                f"Marian has no {name}={options[name]!r}, only {needed!r}; train with that to "
                f"export to it."
            )
    if tokenizer is None:
        raise ValueError("the checkpoint holds no tokenizer, and Marian cannot do without one.")
    return network, tokenizer


def write_marian(model: Seq2Seq, folder: Path) -> None:
    """Writes what ``MarianMTModel`` and ``MarianTokenizer`` read with ``from_pretrained``.

    Args:
        model: A post-norm Transformer with its tokenizer.
        folder: An empty folder.

    Raises:
        ValueError: If the model has something that Marian has not; names the option.
        ModuleNotFoundError: If safetensors is not installed.
    """
    try:
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "an export to Marian needs safetensors, which is not installed: pip install "
            "'litseq[huggingface]'.",
            name=error.name,
        ) from error
    network, tokenizer = _checked(model)
    weights = save(_weights(network), {"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)
    for name, values in {
        "config.json": _config(model, network),
        "generation_config.json": generation(model),
        **_vocabularies(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "MarianTokenizer",
            "source_lang": tokenizer.src_lang,
            "target_lang": tokenizer.tgt_lang,
            "separate_vocabs": not tokenizer.shared,
            "model_max_length": MAX_POSITIONS,
        },
    }.items():
        text = json.dumps(values, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    source, target = tokenizer.models
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)


def _weights(network: Transformer) -> dict[str, Tensor]:
    """The weights by Marian's names, those that are one in the model under one name alone."""
    found: dict[str, Tensor] = {}
    for side, layers in (("encoder", network.encoder_layers), ("decoder", network.decoder_layers)):
        for number, layer in enumerate(layers):
            prefix = f"model.{side}.layers.{number}."
            found |= {prefix + name: weight for name, weight in _layer(layer.state_dict())}
    source, target = network.src_embedding.weight, network.tgt_embedding.weight
    output = network.output.weight
    found["final_logits_bias"] = network.output.bias[None]
    if _is_one(network):
        found["model.shared.weight"] = _columns(target)
    else:
        found["model.encoder.embed_tokens.weight"] = _columns(source)
        found["model.decoder.embed_tokens.weight"] = _columns(target)
        if output is not target:
            found["lm_head.weight"] = _columns(output)
    return {name: weight.detach().contiguous() for name, weight in found.items()}


def _layer(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for kind in ("weight", "bias"):
        for ours, theirs in ATTENTION.items():
            if f"{ours}.in_proj_{kind}" not in state:  # the encoder has no cross-attention
                continue
            for letter, part in zip("qkv", state[f"{ours}.in_proj_{kind}"].chunk(3), strict=True):
                yield f"{theirs}.{letter}_proj.{kind}", _columns(part) if part.dim() > 1 else part
            yield f"{theirs}.out_proj.{kind}", _rows(state[f"{ours}.out_proj.{kind}"])
        for ours, theirs in NORMS.items():
            if f"{ours}.{kind}" in state:
                yield f"{theirs}.{kind}", _rows(state[f"{ours}.{kind}"])
        inner = state[f"feed_forward.linear1.{kind}"]
        yield f"fc1.{kind}", _columns(inner) if inner.dim() > 1 else inner
        yield f"fc2.{kind}", _rows(state[f"feed_forward.linear2.{kind}"])


def halves(d_model: int) -> Tensor:
    """Where Marian's dimensions stand with us: 0, 2, 4, ... (sines), then 1, 3, 5, ..."""
    return torch.arange(d_model).view(-1, 2).t().flatten()


def _columns(weight: Tensor) -> Tensor:
    """Of a matrix that reads vectors of d_model, or holds them as its rows."""
    return weight[:, halves(weight.size(1))]


def _rows(weight: Tensor) -> Tensor:
    """Of a matrix, bias or norm that writes vectors of d_model."""
    return weight[halves(weight.size(0))]


def _is_one(network: Transformer) -> bool:
    """Whether source embedding, target embedding and output projection are one matrix."""
    target = network.tgt_embedding.weight
    return network.src_embedding.weight is target and network.output.weight is target


def _config(model: Seq2Seq, network: Transformer) -> dict[str, Any]:
    options = model.hparams
    layer = network.encoder_layers[0]
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "vocab_size": network.src_embedding.num_embeddings,
        "decoder_vocab_size": network.tgt_embedding.num_embeddings,
        "share_encoder_decoder_embeddings": _is_one(network),
        "tie_word_embeddings": network.output.weight is network.tgt_embedding.weight,
        "d_model": network.d_model,
        "encoder_layers": len(network.encoder_layers),
        "decoder_layers": len(network.decoder_layers),
        "encoder_attention_heads": layer.self_attn.num_heads,
        "decoder_attention_heads": layer.self_attn.num_heads,
        "encoder_ffn_dim": layer.feed_forward.linear1.out_features,
        "decoder_ffn_dim": layer.feed_forward.linear1.out_features,
        "activation_function": options["activation"],
        "scale_embedding": True,
        "max_position_embeddings": MAX_POSITIONS,
        **{name: options[name] for name in ("dropout", "attention_dropout", "activation_dropout")},
        **_ids(model),
    }


def generation(model: Seq2Seq) -> dict[str, Any]:
    """How to search; the exponent means the same there where lengths are counted from 0."""
    options = model.hparams
    return {
        "num_beams": options["beam_size"],
        # with as many as the beam is wide, or before nothing better can come
        "early_stopping": True if options.get("patience") == 1 else "never",
        "length_penalty": options["length_penalty"],
        "max_length": MAX_POSITIONS,
        "bad_words_ids": [[i] for i in sorted({options["pad_id"], options["bos_id"]})],
        **_ids(model),
    }


def _ids(model: Seq2Seq) -> dict[str, Any]:
    options = model.hparams
    return {
        "pad_token_id": options["pad_id"],
        "bos_token_id": options["bos_id"],
        "eos_token_id": options["eos_id"],
        "decoder_start_token_id": options["bos_id"],
        "forced_eos_token_id": None,
    }


def _vocabularies(tokenizer: TranslationTokenizer) -> dict[str, dict[str, int]]:
    """Which id a piece has: the one that SentencePiece gives it, and no other."""
    pieces = tokenizer.source_pieces(range(tokenizer.src_vocab_size))
    found = {"vocab.json": {piece: i for i, piece in enumerate(pieces)}}
    if not tokenizer.shared:
        pieces = tokenizer.target_pieces(range(tokenizer.tgt_vocab_size))
        found["target_vocab.json"] = {piece: i for i, piece in enumerate(pieces)}
    return found
