"""SentencePiece for both sides of a translation pair, as one object that fits into a checkpoint."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
from torch import Tensor

from litseq.data.piece_ids import NumberedProcessor, PieceIds
from litseq.data.subword_sampling import SubwordSampler
from litseq.data.tokenizer_training import check_user_symbols, one_line, train_model

__all__ = ["ModelType", "Normalization", "TranslationTokenizer", "load_processor"]

ModelType = Literal["bpe", "unigram", "char", "word"]
Normalization = Literal["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"]

_SPACE = "\u2581"
_FORMAT = 2  # 1 where SentencePiece's own ids are used, which former versions read too
_SHARD_COMMON = "meta.pt"  # of a checkpoint in shards: all but the weights


class TranslationTokenizer:
    """Text to ids and back: a source and a target SentencePiece model, or one for both.

    Texts that look like special pieces ("<s>", "</s>", "<pad>") are ordinary text: pad, bos and eos
    never come from a text. The character U+2581, with which SentencePiece writes a space, becomes a
    space.

    Args:
        source_model: A serialized SentencePiece model.
        target_model: The target's model; None where one model serves both sides.
        src_lang: Name of the source language.
        tgt_lang: Name of the target language.
        piece_ids: Which id a piece has, where that is not SentencePiece's number of it.
        origin: What error messages call the models, such as a file name.

    Raises:
        ValueError: If a model is none, lacks a special piece, or the two number theirs differently.
    """

    def __init__(
        self,
        source_model: bytes,
        target_model: bytes | None = None,
        *,
        src_lang: str = "src",
        tgt_lang: str = "tgt",
        piece_ids: PieceIds | None = None,
        origin: str = "the tokenizer",
    ) -> None:
        self.src_lang = src_lang
        self.tgt_lang = tgt_lang
        self._models = (source_model,) if target_model is None else (source_model, target_model)
        self._piece_ids = piece_ids
        self._source: Any = load_processor(source_model, origin)
        self._target: Any = (
            self._source if target_model is None else load_processor(target_model, origin)
        )
        if piece_ids is not None:
            unk_id = piece_ids.unk_id
            self._source = NumberedProcessor(self._source, piece_ids.source, unk_id)
            self._target = NumberedProcessor(self._target, piece_ids.target, unk_id)
            self.pad_id, self.unk_id = piece_ids.pad_id, unk_id
            self.bos_id, self.eos_id = piece_ids.bos_id, piece_ids.eos_id
            return
        for processor in (self._source, self._target):
            _check_special_ids(processor, origin)
        ids = _special_ids(self._source)
        if ids != _special_ids(self._target):
            raise ValueError(
                f"{origin}: the source model numbers pad, unk, bos and eos {list(ids)}, the target "
                f"model {list(_special_ids(self._target))}; train both with the same special ids."
            )
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = ids

    @classmethod
    def train(
        cls,
        sources: Iterable[str],
        targets: Iterable[str],
        *,
        vocab_size: int,
        model_type: ModelType = "bpe",
        shared: bool = True,
        character_coverage: float = 1.0,
        byte_fallback: bool = False,
        split_digits: bool = False,
        user_symbols: Sequence[str] = (),
        normalization: Normalization = "identity",
        src_lang: str = "src",
        tgt_lang: str = "tgt",
    ) -> "TranslationTokenizer":
        """Learns the vocabulary: the same bytes for the same texts, options and SentencePiece.

        Args:
            sources: Source texts of the training split.
            targets: Target texts of the training split.
            vocab_size: Pieces of each model, special ones included; for ``char`` at most.
            model_type: How texts are cut: byte-pair encoding, unigram language model, characters or
                words.
            shared: Whether one model is learned from both sides' texts.
            character_coverage: Share of the text's characters that get a piece; others are unknown.
            byte_fallback: Spell characters without a piece as UTF-8 bytes (256 more pieces).
            split_digits: Make every digit a piece, so that no number is learned by heart.
            user_symbols: Texts that are always one piece, such as language tags.
            normalization: What is done to every text before it is cut. ``identity`` leaves it alone
                but for spaces at its ends and repeated ones, so that an output can equal its
                reference; the others also replace compatibility characters, such as full-width
                punctuation and no-break spaces, and those in ``_cf`` fold case.
            src_lang: Name of the source language.
            tgt_lang: Name of the target language.

        Raises:
            ValueError: If the texts are empty or cannot give that vocabulary.
        """
        options = {
            "vocab_size": vocab_size,
            "model_type": model_type,
            "character_coverage": character_coverage,
            "byte_fallback": byte_fallback,
            "split_digits": split_digits,
            "user_defined_symbols": list(user_symbols),
            "normalization_rule_name": normalization,
            "hard_vocab_limit": model_type != "char",
        }
        check_user_symbols(user_symbols)
        if shared:
            models = [train_model(_chain(sources, targets), f"{src_lang} and {tgt_lang}", options)]
        else:
            models = [
                train_model(texts, lang, options)
                for texts, lang in ((sources, src_lang), (targets, tgt_lang))
            ]
        return cls(*models, src_lang=src_lang, tgt_lang=tgt_lang)

    @property
    def shared(self) -> bool:
        """Whether both sides have one vocabulary: a piece has the same id on either."""
        return len(self._models) == 1 if self._piece_ids is None else self._piece_ids.shared

    @property
    def models(self) -> tuple[bytes, bytes]:
        """The source and the target SentencePiece model, serialized; the same where shared."""
        return self._models[0], self._models[-1]

    @property
    def src_vocab_size(self) -> int:
        """Number of source pieces, special pieces included."""
        return int(self._source.vocab_size())

    @property
    def tgt_vocab_size(self) -> int:
        """Number of target pieces, special pieces included."""
        return int(self._target.vocab_size())

    @property
    def source_space_id(self) -> int:
        """Id of the source piece that is a space and nothing else."""
        return int(self._source.piece_to_id(_SPACE))

    @property
    def target_space_id(self) -> int:
        """Id of the target piece that is a space and nothing else."""
        return int(self._target.piece_to_id(_SPACE))

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the models: equal exactly where texts get equal ids."""
        digest = hashlib.sha256(b"litseq tokenizer 1")
        for model in self._models:
            digest.update(len(model).to_bytes(8, "big") + model)
        if self._piece_ids is not None:
            digest.update(json.dumps(self._piece_ids.as_dict()).encode())
        return digest.hexdigest()

    def encode_source(self, texts: Sequence[str]) -> list[list[int]]:
        """Cuts source texts into ids; each list ends with EOS."""
        return _encode(self._source, texts, self.eos_id)

    def encode_target(self, texts: Sequence[str]) -> list[list[int]]:
        """Cuts target texts into ids; each list ends with EOS."""
        return _encode(self._target, texts, self.eos_id)

    def sample_source(
        self,
        texts: Sequence[str],
        *,
        alpha: float,
        nbest_size: int = -1,
        seed: int,
        streams: Iterable[int] | None = None,
    ) -> list[list[int]]:
        """Cuts source texts at random, to regularise training; each list ends with EOS.

        Args:
            texts: Source texts.
            alpha: For BPE the probability with which a merge is left out; for unigram the exponent
                of the candidates' probabilities (0: all alike).
            nbest_size: For unigram the number of candidates; -1: all; 0 or 1: the best alone.
            seed: The same seed gives the same cuts, in whichever process.
            streams: A number for each text, such as the example's: seed and number say how a text
                is cut, whatever the other texts. Default: 0, 1, 2 and so on.

        Raises:
            ValueError: If alpha or ``nbest_size`` is out of range, or the model's pieces are words
                or characters.

        Source: Kudo (2018), https://arxiv.org/abs/1804.10959; Provilkov et al. (2020),
        https://arxiv.org/abs/1910.13267.
        """
        sampler = self._source_sampler
        return self._sample(self._source, sampler, texts, alpha, nbest_size, seed, streams)

    def sample_target(
        self,
        texts: Sequence[str],
        *,
        alpha: float,
        nbest_size: int = -1,
        seed: int,
        streams: Iterable[int] | None = None,
    ) -> list[list[int]]:
        """Cuts target texts at random, as ``sample_source`` does."""
        sampler = self._target_sampler
        return self._sample(self._target, sampler, texts, alpha, nbest_size, seed, streams)

    def decode(self, ids: Iterable[int]) -> str:
        """Joins target ids to text. Special ids are left out; unknown ones print as " ⁇ "."""
        return self._decode(self._target, ids)

    def decode_source(self, ids: Iterable[int]) -> str:
        """Joins source ids to text, as ``decode`` does."""
        return self._decode(self._source, ids)

    def source_pieces(self, ids: Iterable[int]) -> list[str]:
        """The source pieces as they stand in the vocabulary, special ones included."""
        return [str(self._source.id_to_piece(int(i))) for i in ids]

    def target_pieces(self, ids: Iterable[int]) -> list[str]:
        """The target pieces as they stand in the vocabulary, special ones included."""
        return [str(self._target.id_to_piece(int(i))) for i in ids]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as uint8 tensors and strings, so that it loads with ``weights_only=True``."""
        names = ("source_model", "target_model")
        models: dict[str, Any] = {
            name: torch.frombuffer(bytearray(model), dtype=torch.uint8)
            for name, model in zip(names, self._models, strict=False)
        }
        langs = {"src_lang": self.src_lang, "tgt_lang": self.tgt_lang}
        # "shared" says that there is one model, whatever the ids
        state = {"format": 1, "shared": len(models) == 1, **langs, **models}
        if self._piece_ids is None:
            return state
        return {**state, "format": _FORMAT, "piece_ids": self._piece_ids.as_dict()}

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], *, origin: str = "the tokenizer state"
    ) -> "TranslationTokenizer":
        """Builds the tokenizer that ``state_dict`` described.

        Args:
            state: What ``state_dict`` returned.
            origin: What error messages call it.

        Raises:
            ValueError: If the state is incomplete or of a newer format.
        """
        needed = ("format", "shared", "src_lang", "tgt_lang", "source_model")
        missing = [name for name in needed if name not in state]
        if missing:
            raise ValueError(f"{origin} holds no litseq tokenizer: {', '.join(missing)} missing.")
        if state["format"] > _FORMAT:
            raise ValueError(
                f"{origin} has tokenizer format {state['format']}, this litseq reads up to "
                f"{_FORMAT}; update litseq."
            )
        return cls(
            _to_bytes(state["source_model"]),
            None if state["shared"] else _to_bytes(state["target_model"]),
            src_lang=state["src_lang"],
            tgt_lang=state["tgt_lang"],
            piece_ids=_piece_ids(state, origin),
            origin=origin,
        )

    def save(self, folder: str | Path) -> None:
        """Writes ``tokenizer.json`` and ``shared.model``, or ``source.model`` and ``target.model``.

        Args:
            folder: Made if it is not there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = _file_names(len(self._models) == 1)
        for name, model in zip(names, self._models, strict=True):
            (folder / name).write_bytes(model)
        about = {
            "format": 1 if self._piece_ids is None else _FORMAT,
            "models": names,
            "src_lang": self.src_lang,
            "tgt_lang": self.tgt_lang,
            "fingerprint": self.fingerprint,
            **({} if self._piece_ids is None else {"piece_ids": self._piece_ids.as_dict()}),
        }
        (folder / "tokenizer.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "TranslationTokenizer":
        """Reads a folder written by ``save``, a SentencePiece ``.model`` or a litseq ``.ckpt``.

        Args:
            path: The folder or file. A ``.model`` serves both sides.

        Raises:
            FileNotFoundError: If there is no such file, or the folder holds no tokenizer.
            ValueError: If the file is not what its name says.
        """
        path = Path(path)
        if path.is_dir() and (path / _SHARD_COMMON).is_file():
            return cls.from_state_dict(_read_checkpoint(path / _SHARD_COMMON), origin=str(path))
        if path.is_dir():
            return cls._load_folder(path)
        if not path.exists():
            raise FileNotFoundError(
                f"no tokenizer at {path}; give a folder, a SentencePiece .model or a litseq .ckpt."
            )
        if path.suffix == ".ckpt":
            return cls.from_state_dict(_read_checkpoint(path), origin=str(path))
        return cls(path.read_bytes(), origin=str(path))

    @classmethod
    def _load_folder(cls, folder: Path) -> "TranslationTokenizer":
        about_path = folder / "tokenizer.json"
        if not about_path.is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(f"{folder} holds no tokenizer.json (it holds {found}).")
        try:
            about = json.loads(about_path.read_text(encoding="utf-8"))
            names, langs = about["models"], (about["src_lang"], about["tgt_lang"])
            expected = about["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{about_path} is damaged ({error!r}); save the tokenizer again."
            ) from error
        if names not in (_file_names(True), _file_names(False)):
            raise ValueError(f"{about_path} names unexpected model files {names!r}.")
        for name in names:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; save the tokenizer again.")
        models = [(folder / name).read_bytes() for name in names]
        tokenizer = cls(
            *models,
            src_lang=langs[0],
            tgt_lang=langs[1],
            piece_ids=_piece_ids(about, str(about_path)),
            origin=str(folder),
        )
        if tokenizer.fingerprint != expected:
            raise ValueError(
                f"the models in {folder} have fingerprint {tokenizer.fingerprint[:12]}, but its "
                f"tokenizer.json says {str(expected)[:12]}; save the tokenizer again."
            )
        return tokenizer

    @cached_property
    def _source_sampler(self) -> SubwordSampler:
        return SubwordSampler(_sentencepiece(self._source), self._models[0])

    @cached_property
    def _target_sampler(self) -> SubwordSampler:
        if len(self._models) == 1:
            return self._source_sampler
        return SubwordSampler(_sentencepiece(self._target), self._models[-1])

    def _sample(
        self,
        processor: Any,  # noqa: ANN401 - untyped library
        sampler: SubwordSampler,
        texts: Sequence[str],
        alpha: float,
        nbest_size: int,
        seed: int,
        streams: Iterable[int] | None,
    ) -> list[list[int]]:
        numbered = isinstance(processor, NumberedProcessor)
        begun = [processor.begin(text) if numbered else ([], text) for text in texts]
        texts = [rest for _, rest in begun]
        cuts = sampler(
            list(map(one_line, texts)),
            alpha=alpha,
            nbest_size=nbest_size,
            seed=seed,
            streams=range(len(texts)) if streams is None else streams,
        )
        if numbered:
            cuts = list(map(processor.renumber, cuts))
        return [[*code, *ids, self.eos_id] for (code, _), ids in zip(begun, cuts, strict=True)]

    def _decode(self, processor: Any, ids: Iterable[int]) -> str:  # noqa: ANN401 - untyped library
        special = (self.pad_id, self.bos_id, self.eos_id)
        return str(processor.decode([i for i in map(int, ids) if i not in special]))


def _file_names(shared: bool) -> list[str]:
    return ["shared.model"] if shared else ["source.model", "target.model"]


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def _chain(*parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        yield from part


def _piece_ids(values: Mapping[str, Any], origin: str) -> PieceIds | None:
    if values.get("piece_ids") is None:
        return None
    return PieceIds.from_dict(values["piece_ids"], origin=origin)


def _sentencepiece(processor: Any) -> Any:  # noqa: ANN401 - untyped library
    return processor.processor if isinstance(processor, NumberedProcessor) else processor


def _encode(processor: Any, texts: Sequence[str], eos_id: int) -> list[list[int]]:  # noqa: ANN401
    if isinstance(processor, NumberedProcessor):
        return [[*ids, eos_id] for ids in processor.encode(texts)]
    # One thread: callers that want more cores run more processes.
    ids: list[list[int]] = processor.encode(list(map(one_line, texts)), add_eos=True, num_threads=1)
    return ids


def _special_ids(processor: Any) -> tuple[int, int, int, int]:  # noqa: ANN401
    return (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())


def load_processor(model: bytes, origin: str) -> Any:  # noqa: ANN401
    """Loads a SentencePiece model.

    Args:
        model: The serialized model.
        origin: What error messages call it.

    Raises:
        ValueError: If it is none.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        if not model:
            raise RuntimeError("it is empty")
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{origin} is not a SentencePiece model ({len(model):,} bytes; {reason})."
        ) from error
    return processor


def _check_special_ids(processor: Any, origin: str) -> None:  # noqa: ANN401 - untyped library
    names = ("pad", "unk", "bos", "eos")
    missing = [name for name, i in zip(names, _special_ids(processor), strict=True) if i < 0]
    if missing:
        raise ValueError(
            f"{origin} defines no {' and no '.join(missing)} piece; train it with --pad_id=0 "
            f"--unk_id=1 --bos_id=2 --eos_id=3."
        )


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    try:
        # Mapped: the weights, nearly all of the file, are not read.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises a dozen kinds
        raise ValueError(
            f"{path} is no checkpoint, is damaged, or holds more than tensors and plain values, "
            f"which might run code; give another file."
        ) from error
    part = checkpoint.get("litseq") if isinstance(checkpoint, dict) else None
    state = part.get("tokenizer") if isinstance(part, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no tokenizer; only checkpoints written by litseq do.")
    return state
