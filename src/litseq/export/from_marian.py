"""Hugging Face's Marian as a Transformer of litseq: the way back of ``write_marian``.

What Marian has and litseq has not is refused, by the key of the configuration that says so. Ids
stay what they are: Marian begins a target with its padding, so ``bos_id`` is ``pad_id`` here.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litseq.architectures import TransformerSeq2Seq
from litseq.data.piece_ids import PieceIds
from litseq.data.tokenizer import TranslationTokenizer, load_processor
from litseq.export.marian import ATTENTION, NORMS, generation, halves
from litseq.export.marian_folder import JsonFile, Weights, show
from litseq.export.verify import MAX_LENGTH, compare_marian
from litseq.layers.positions import sinusoids
from litseq.models.transformer import Transformer

__all__ = ["import_marian", "read_marian"]

_log = logging.getLogger(__name__)

_MOST = 2**20
"""Of anything that is counted; far more than a model has."""
_NEVER = -1000.0
"""A logit whose probability is 0 in float32 beside any other that a model gives."""

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}
_FILES = (
    "config.json", "tokenizer_config.json", "vocab.json", "target_vocab.json", "source.spm",
    "target.spm",
)  # fmt: skip

# Key, what it is where it is missing, and the one value that litseq has. Some say how the original
# program had trained a model; transformers cannot compute those otherwise either.
_ONLY: tuple[tuple[str, object, object], ...] = (
    ("model_type", None, "marian"),
    ("is_encoder_decoder", True, True),
    ("scale_embedding", False, True),
    ("static_position_embeddings", True, True),
    ("normalize_before", False, False),
    ("normalize_embedding", False, False),
    ("add_final_layer_norm", False, False),
    ("add_bias_logits", False, False),
    ("encoder_layerdrop", 0.0, 0.0),
    ("decoder_layerdrop", 0.0, 0.0),
    ("tie_encoder_decoder", False, False),
    ("quantization_config", None, None),
)
# Options of a search that litseq has not, and the values with which they do nothing.
_IDLE: dict[str, tuple[object, ...]] = {
    "do_sample": (False,),
    "num_return_sequences": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "forced_bos_token_id": (),
    "forced_decoder_ids": (),
    "force_words_ids": (),
    "constraints": (),
    "sequence_bias": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "stop_strings": (),
}


@dataclass(frozen=True)
class _Sizes:
    d_model: int
    dim_feedforward: int
    layers: dict[str, int]
    vocab_size: int
    decoder_vocab_size: int
    max_positions: int
    share: bool
    tie: bool


def read_marian(folder: str | Path) -> TransformerSeq2Seq:
    """Reads what ``MarianMTModel`` and ``MarianTokenizer`` read with ``from_pretrained``.

    Ids, logits and attention are those of transformers. ``num_beams`` and ``length_penalty`` of
    its generation become ``beam_size`` and ``length_penalty``; ``early_stopping`` is always
    "never" here, no end is forced at the limit of length, and that is ``max_len_a`` and
    ``max_len_b``. With ``renormalize_logits``, the padding, which is never chosen, gets a bias that
    gives it no probability. transformers does not train the vector of the padding, with which a
    target begins; litseq does.

    Args:
        folder: Holds config.json, model.safetensors or pytorch_model.bin, source.spm, target.spm,
            vocab.json and, where there are two vocabularies, target_vocab.json;
            tokenizer_config.json and generation_config.json where there is more to say.

    Returns:
        The model with its tokenizer, in evaluation mode. Its other options, such as ``lr``, are the
        defaults.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, if two do not belong together, or if the model has
            something that litseq has not; names the file, the key and its value.
        ModuleNotFoundError: If safetensors is needed and not installed.
    """
    model, _, options = _read(Path(folder))
    _renormalize(model, options)
    return model


def import_marian(
    folder: Path, *, texts: Sequence[str] | None = None
) -> tuple[TransformerSeq2Seq, dict[str, Any] | None]:
    """Reads a folder and compares the model with what transformers makes of the folder.

    Args:
        folder: As ``read_marian`` takes it.
        texts: Sentences to compare on; None: random ones.

    Returns:
        The model, and what ``compare_marian`` found: None where transformers is not installed or
        the model's sentences are too short for the comparison.

    Raises:
        FileNotFoundError: As ``read_marian`` does.
        ValueError: As ``read_marian`` does, and if ids, logits or greedy translations differ.
        ModuleNotFoundError: As ``read_marian`` does.
    """
    model, config, options = _read(folder)
    report = None
    if _positions(config) <= MAX_LENGTH:
        _log.warning(
            "nothing was compared: max_position_embeddings in %s is not above %d.",
            config.path,
            MAX_LENGTH,
        )
    else:
        try:
            report = _compare(model, folder, texts)
        except ModuleNotFoundError:
            _log.warning(
                "nothing was compared, as transformers is not installed: pip install "
                "'litseq[huggingface]'."
            )
    _renormalize(model, options)
    return model, report


def _compare(
    model: TransformerSeq2Seq, folder: Path, texts: Sequence[str] | None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as part:
        for name in (*_FILES, Weights.find(folder).name):
            if (folder / name).exists():
                Path(part, name).symlink_to((folder / name).resolve())
        # the search that litseq has too; what the model sums up to does not depend on it
        text = json.dumps(generation(model))
        Path(part, "generation_config.json").write_text(text, encoding="utf-8")
        try:
            return compare_marian(model, Path(part), texts=texts)
        except ValueError as error:
            raise ValueError(
                f"{folder} does not do in transformers what it does here: {error}"
            ) from error


def _read(folder: Path) -> tuple[TransformerSeq2Seq, JsonFile, JsonFile]:
    """The model, its configuration, and the file that says how to search."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; give one with config.json, weights, source.spm, "
            f"target.spm and vocab.json."
        )
    config = JsonFile.read(folder / "config.json")
    options, sizes = _options(config)
    tokenizer = _tokenizer(folder, config, sizes)
    generates = _generation(folder, config)
    search = _search(generates, tokenizer)
    state = _state(Weights(folder), sizes)
    model = TransformerSeq2Seq(**options, **search)
    model._adopt(tokenizer)
    model.configure_model()
    assert model.network is not None
    model.network.load_state_dict(state)
    return model.eval(), config, generates


# ---- the network ----


def _options(config: JsonFile) -> tuple[dict[str, Any], _Sizes]:
    """Options of the Transformer, and the sizes that the weights must have."""
    for key, default, needed in _ONLY:
        if config.values.get(key, default) != needed:
            config.values.setdefault(key, default)
            config.refuse(key, f"litseq reads models with {show(needed)} alone")
    both = {}
    for key in ("attention_heads", "ffn_dim"):
        sides = [config.whole(f"{s}_{key}", least=1, most=_MOST) for s in ("encoder", "decoder")]
        if sides[0] != sides[1]:
            config.refuse(f"decoder_{key}", f"litseq needs that of the encoder, {sides[0]}")
        both[key] = sides[0]
    activation = config.text("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        config.refuse("activation_function", f"litseq has {', '.join(_ACTIVATIONS)}")
    d_model = config.whole("d_model", least=2, most=_MOST)
    if d_model % 2 or d_model % both["attention_heads"]:
        config.refuse("d_model", f"it must be even and a multiple of {both['attention_heads']}")
    vocab_size = config.whole("vocab_size", least=1, most=_MOST)
    sizes = _Sizes(
        d_model=d_model,
        dim_feedforward=both["ffn_dim"],
        layers={
            side: config.whole(f"{side}_layers", least=1, most=_MOST)
            for side in ("encoder", "decoder")
        },
        vocab_size=vocab_size,
        decoder_vocab_size=config.whole("decoder_vocab_size", vocab_size, least=1, most=_MOST),
        max_positions=_positions(config),
        share=config.truth("share_encoder_decoder_embeddings", True),
        tie=config.truth("tie_word_embeddings", True),
    )
    return {
        "d_model": d_model,
        "num_heads": both["attention_heads"],
        "num_encoder_layers": sizes.layers["encoder"],
        "num_decoder_layers": sizes.layers["decoder"],
        "dim_feedforward": both["ffn_dim"],
        "activation": _ACTIVATIONS[activation],
        "share_embeddings": sizes.share,
        "tie_output": sizes.tie,
        "dropout": config.number("dropout", 0.1, below=1),
        "attention_dropout": config.number("attention_dropout", 0.0, below=1),
        "activation_dropout": config.number("activation_dropout", 0.0, below=1),
    }, sizes


def _positions(config: JsonFile) -> int:
    return config.whole("max_position_embeddings", 1024, least=1, most=2**14)


def _state(weights: Weights, sizes: _Sizes) -> dict[str, Tensor]:
    """The state of our network, from weights of which none is left over."""
    d_model = sizes.d_model
    state: dict[str, Tensor] = {}
    for side, count in sizes.layers.items():
        prefix = f"model.{side}.layers."
        there = {name.removeprefix(prefix).partition(".")[0] for name in weights.names()
                 if name.startswith(prefix)}  # fmt: skip
        if len(there) != count:
            raise ValueError(
                f"{weights.path} has {len(there)} layers in its {side}, and {side}_layers in "
                f"config.json is {count}; the two do not belong together."
            )
        _check_sinusoids(weights, f"model.{side}.embed_positions.weight", sizes)
        for number in range(count):
            state |= {
                f"{side}_layers.{number}.{name}": weight
                for name, weight in _layer(weights, f"{prefix}{number}.", side, sizes).items()
            }
    embeddings = {side: f"model.{side}.embed_tokens.weight" for side in sizes.layers}
    output = ["lm_head.weight"] if sizes.tie else []
    if sizes.share:
        names = ["model.shared.weight", *embeddings.values(), *output]
        source = target = weights.take_one(names, sizes.vocab_size, d_model)
    else:
        source = weights.take(embeddings["encoder"], sizes.vocab_size, d_model)
        names = [embeddings["decoder"], *output]
        target = weights.take_one(names, sizes.decoder_vocab_size, d_model)
    last = target
    if not sizes.tie:
        last = weights.take("lm_head.weight", sizes.decoder_vocab_size, d_model)
    bias = torch.zeros(1, sizes.decoder_vocab_size)
    if "final_logits_bias" in weights:  # transformers does without it too
        bias = weights.take("final_logits_bias", *bias.shape)
    if left := weights.names():
        raise ValueError(
            f"{weights.path} holds {left[0]}, which a Marian model of its config.json has not."
        )
    return state | {
        "src_embedding.weight": _columns(source),
        "tgt_embedding.weight": _columns(target),
        "output.weight": _columns(last),
        "output.bias": bias[0],
    }


def _check_sinusoids(weights: Weights, name: str, sizes: _Sizes) -> None:
    """Older files hold the table of positions, which could also be another."""
    if name not in weights:
        return
    table = weights.take(name, sizes.max_positions, sizes.d_model)
    codes = sinusoids(sizes.max_positions, sizes.d_model)[:, halves(sizes.d_model)]
    if not torch.allclose(table, codes, rtol=0, atol=1e-3):  # float16 has three digits
        raise ValueError(
            f"{weights.path}: {name} are not the sinusoids of Marian, and litseq has no other "
            f"fixed positions."
        )


def _layer(weights: Weights, prefix: str, side: str, sizes: _Sizes) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    wide = (sizes.d_model, sizes.d_model)
    for ours, theirs in ATTENTION.items():
        if side == "encoder" and ours == "cross_attn":
            continue
        parts = [f"{prefix}{theirs}.{letter}_proj." for letter in "qkv"]
        out = f"{prefix}{theirs}.out_proj."
        state[f"{ours}.in_proj_weight"] = torch.cat(
            [_columns(weights.take(f"{part}weight", *wide)) for part in parts]
        )
        state[f"{ours}.in_proj_bias"] = torch.cat(
            [weights.take(f"{part}bias", sizes.d_model) for part in parts]
        )
        state[f"{ours}.out_proj.weight"] = _rows(weights.take(f"{out}weight", *wide))
        state[f"{ours}.out_proj.bias"] = _rows(weights.take(f"{out}bias", sizes.d_model))
    for ours, theirs in NORMS.items():
        if side == "encoder" and ours.startswith("cross_attn"):
            continue
        for kind in ("weight", "bias"):
            norm = weights.take(f"{prefix}{theirs}.{kind}", sizes.d_model)
            state[f"{ours}.{kind}"] = _rows(norm)
    inner, d_model = sizes.dim_feedforward, sizes.d_model
    one, two = "feed_forward.linear1.", "feed_forward.linear2."
    state[f"{one}weight"] = _columns(weights.take(f"{prefix}fc1.weight", inner, d_model))
    state[f"{one}bias"] = weights.take(f"{prefix}fc1.bias", inner)
    state[f"{two}weight"] = _rows(weights.take(f"{prefix}fc2.weight", d_model, inner))
    state[f"{two}bias"] = _rows(weights.take(f"{prefix}fc2.bias", d_model))
    return state


def _columns(weight: Tensor) -> Tensor:
    """Of a matrix that reads vectors of d_model, or holds them as its rows."""
    return weight[:, halves(weight.size(1)).argsort()]


def _rows(weight: Tensor) -> Tensor:
    """Of a matrix, bias or norm that writes vectors of d_model."""
    return weight[halves(weight.size(0)).argsort()]


# ---- the tokenizer ----


def _tokenizer(folder: Path, config: JsonFile, sizes: _Sizes) -> TranslationTokenizer:
    about = JsonFile.read(folder / "tokenizer_config.json", optional=True)
    for key in ("sp_model_kwargs", "additional_special_tokens", "extra_special_tokens"):
        if about.values.get(key):
            about.refuse(key, "litseq reads tokenizers without any")
    names = {
        "pad": about.text("pad_token", "<pad>"),
        "unk": about.text("unk_token", "<unk>"),
        "eos": about.text("eos_token", "</s>"),
    }
    _check_added(about, names)
    separate = about.truth("separate_vocabs", False)
    if separate and sizes.share:
        about.refuse("separate_vocabs", "share_encoder_decoder_embeddings in config.json denies it")
    source = _vocabulary(folder / "vocab.json", config, "vocab_size", sizes.vocab_size)
    target = source
    if separate:
        target = _vocabulary(
            folder / "target_vocab.json", config, "decoder_vocab_size", sizes.decoder_vocab_size
        )
    elif sizes.decoder_vocab_size != sizes.vocab_size:
        config.refuse("decoder_vocab_size", f"vocab.json has {sizes.vocab_size} pieces")
    most = min(len(source), len(target)) - 1
    ids = {
        "pad_id": config.whole("pad_token_id", least=0, most=most),
        "eos_id": config.whole("eos_token_id", least=0, most=most),
        "bos_id": config.whole("decoder_start_token_id", least=0, most=most),
        "unk_id": source.index(names["unk"]) if names["unk"] in source else -1,
    }
    for file, pieces in (("vocab.json", source), ("target_vocab.json", target)):
        for name, piece in names.items():
            i = ids[f"{name}_id"]
            if i < 0 or i >= len(pieces) or pieces[i] != piece:
                where = f"has the id {i}" if i >= 0 else "is there"
                raise ValueError(f"{folder / file}: {piece} must be a piece that {where}.")
    return TranslationTokenizer(
        *_sentencepiece(folder),
        src_lang=about.text("source_lang", "src"),
        tgt_lang=about.text("target_lang", "tgt"),
        piece_ids=PieceIds(source, target, **ids),
        origin=str(folder),
    )


def _check_added(about: JsonFile, names: dict[str, str]) -> None:
    added = about.values.get("added_tokens_decoder") or {}
    tokens = list(added.values()) if isinstance(added, dict) else [added]
    for token in tokens:
        content = token.get("content") if isinstance(token, dict) else token
        if content not in names.values():
            about.refuse(
                "added_tokens_decoder", "litseq reads no tokens beside those of vocab.json"
            )
    if (extra := about.path.with_name("added_tokens.json")).exists():
        for token in JsonFile.read(extra).values:
            if token not in names.values():
                raise ValueError(
                    f"{extra} adds {show(token)}; litseq reads no tokens beside those of "
                    f"vocab.json."
                )


def _vocabulary(path: Path, config: JsonFile, key: str, size: int) -> tuple[str, ...]:
    ids = JsonFile.read(path).values
    if len(ids) != size:
        raise ValueError(
            f"{path} has {len(ids)} pieces, and {key} in {config.path.name} is {size}; the two do "
            f"not belong together."
        )
    if not all(type(i) is int for i in ids.values()) or sorted(ids.values()) != [*range(size)]:
        raise ValueError(f"{path} must give its {size} pieces the ids 0 to {size - 1}, each once.")
    return tuple(sorted(ids, key=ids.__getitem__))


def _sentencepiece(folder: Path) -> list[bytes]:
    models = []
    for path in (folder / "source.spm", folder / "target.spm"):
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no file {path}; both sides' SentencePiece models belong to the folder."
            )
        models.append(path.read_bytes())
        load_processor(models[-1], str(path))  # whose error names the file
    return models[:1] if models[0] == models[1] else models


# ---- the search ----


def _generation(folder: Path, config: JsonFile) -> JsonFile:
    """How to search; older models say it in config.json."""
    path = folder / "generation_config.json"
    return JsonFile.read(path) if path.exists() else config


def _search(options: JsonFile, tokenizer: TranslationTokenizer) -> dict[str, Any]:
    for key, idle in _IDLE.items():
        value = options.values.get(key)
        if value is not None and value not in idle:
            options.refuse(key, "litseq has no such search; take the key out to go without it")
    never = [[tokenizer.pad_id], [tokenizer.bos_id]]
    if any(word not in never for word in _bad_words(options)):
        options.refuse("bad_words_ids", "litseq forbids the padding and the first token alone")
    for key, ours in (
        ("pad_token_id", tokenizer.pad_id),
        ("eos_token_id", tokenizer.eos_id),
        ("decoder_start_token_id", tokenizer.bos_id),
    ):
        if options.values.get(key, ours) not in (ours, [ours], None):
            options.refuse(key, f"config.json says {ours}")
    return {
        "beam_size": options.whole("num_beams", 1, least=1, most=1000),
        "length_penalty": options.number("length_penalty", 1.0),
        "length_offset": 0.0,
    }


def _bad_words(options: JsonFile) -> list[Any]:
    words = options.values.get("bad_words_ids") or []
    return words if isinstance(words, list) else [words]


@torch.no_grad()
def _renormalize(model: TransformerSeq2Seq, options: JsonFile) -> None:
    """Takes the probability of what is never chosen away, where transformers does so."""
    if not options.truth("renormalize_logits", False):
        return
    assert isinstance(model.network, Transformer)
    for word in _bad_words(options):
        model.network.output.bias[word] = _NEVER
