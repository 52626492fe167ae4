"""Random cuts of texts into subwords: SentencePiece's distributions, random numbers of our own.

SentencePiece mixes something of the process into its seed, so that the same seed gives other cuts
in the next process. Here a cut is a function of model, text and seed alone, so that a resumed run
sees the texts cut as they would have been.

Source: Kudo (2018), https://arxiv.org/abs/1804.10959; Provilkov et al. (2020),
https://arxiv.org/abs/1910.13267; the source of SentencePiece 0.2.3.
"""

import math
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

__all__ = ["SubwordSampler"]

_UNIGRAM, _BPE = 1, 2  # types of models
_NORMAL, _UNKNOWN, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 4, 5, 6  # types of pieces
_UNKNOWN_PENALTY = 10.0  # nats below the least likely piece
_MAX_NBEST = 512
_NO_MERGE = 1 << 32  # a rank after all others
_MAX_DEPTH = 100  # of unused pieces within unused pieces
# Parts of a text (words, mostly) up to this many characters come again and are worth remembering.
_MAX_REMEMBERED_CHARS = 32
_REMEMBERED_MERGES = 1 << 16  # about 25 MB
_REMEMBERED_LATTICES = 1 << 14  # about 50 MB


@dataclass(frozen=True)
class _Vocabulary:
    """What cutting needs of a model; the lists are in the order of ids."""

    model_type: int
    pieces: list[str]
    scores: list[float]
    types: list[int]

    @cached_property
    def unk_id(self) -> int:
        return self.types.index(_UNKNOWN)

    @cached_property
    def byte_ids(self) -> list[int]:
        """Ids of the pieces <0x00> to <0xFF>; none where unknown characters stay unknown."""
        ids = self.ids(_BYTE)
        return [ids[f"<0x{byte:02X}>"] for byte in range(256)] if ids else []

    def ids(self, *types: int) -> dict[str, int]:
        """Ids of the pieces of some types."""
        entries = enumerate(zip(self.pieces, self.types, strict=True))
        return {piece: i for i, (piece, kind) in entries if kind in types}

    def unknown(self, text: str) -> list[int]:
        """Ids of a text that is no piece: UTF-8 bytes where the model has these."""
        return [self.byte_ids[byte] for byte in text.encode()] if self.byte_ids else [self.unk_id]


def _read_vocabulary(model: bytes) -> _Vocabulary:
    # SentencePiece's own classes for this need a protobuf of the very version they came with.
    pieces, scores, types = [], [], []
    model_type = _UNIGRAM
    for number, value in _fields(model):
        if number == 1:
            piece: dict[int, Any] = {2: bytes(4), 3: _NORMAL} | dict(_fields(value))
            pieces.append(piece[1].decode(errors="surrogateescape"))
            scores.append(struct.unpack("<f", piece[2])[0])
            types.append(piece[3])
        elif number == 2:
            model_type = dict(_fields(value)).get(3, model_type)
    return _Vocabulary(model_type, pieces, scores, types)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message: an int if a varint, else bytes.

    Source: https://protobuf.dev/programming-guides/encoding.
    """
    i = 0
    while i < len(message):
        tag, i = _varint(message, i)
        if tag & 7 == 0:
            value, i = _varint(message, i)
            yield tag >> 3, value
        else:
            size = {1: 8, 5: 4}.get(tag & 7)
            if size is None:
                size, i = _varint(message, i)
            yield tag >> 3, message[i : i + size]
            i += size


def _varint(message: bytes, i: int) -> tuple[int, int]:
    value = shift = 0
    while message[i] & 0x80:
        value |= (message[i] & 0x7F) << shift
        shift += 7
        i += 1
    return value | message[i] << shift, i + 1


class _Parts:
    """Parts of a text that can be cut one by one: no piece crosses their borders.

    With pieces that do not go beyond words, parts are words or less.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self._inner = {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}

    def __call__(self, text: str) -> list[str]:
        inner = self._inner
        borders = [i for i in range(1, len(text)) if text[i - 1 : i + 1] not in inner]
        return [text[i:j] for i, j in pairwise([0, *borders, len(text)])]


class _Bpe:
    """BPE-dropout: merges neighbours, the best pair first, and leaves merges out at random."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = vocabulary.ids(_NORMAL, _USER_DEFINED, _UNUSED)
        self._unused = vocabulary.ids(_UNUSED)
        self._frozen = vocabulary.ids(_USER_DEFINED)
        longest_first = sorted(self._frozen, key=len, reverse=True)
        self._symbols = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)
        # The library compares the scores' bits, for which -0.0 is less than 0.0.
        bits = np.array(vocabulary.scores, dtype=np.float32).view(np.int32).astype(np.int64)
        ranks = np.where(bits < 0, 1 + (bits & 0x7FFFFFFF), -bits)
        self._ranks = {piece: int(ranks[i]) for piece, i in self._ids.items()}
        # How an unused piece is taken apart may depend on its other places in the text.
        self._parts = (lambda text: [text]) if self._unused else _Parts(self._ids)
        self._remembered = lru_cache(_REMEMBERED_MERGES)(self._merge)

    def cut(self, text: str, alpha: float, random: np.random.Generator) -> list[int]:
        """Cuts a normalized text; ``alpha`` is the probability of leaving a merge out."""
        # n symbols have n - 1 pairs, and each of at most n - 1 merges makes two more.
        most = 3 * len(text)
        left_out = np.flatnonzero(random.random(most) < alpha).tolist()
        left_out.append(most)
        ids: list[int] = []
        start = i = 0  # number of the part's first decision, and of the next merge to leave out
        for part in self._parts(text):
            if len(part) > _MAX_REMEMBERED_CHARS:
                own, decisions = self._merge(part, {n - start for n in left_out[i:]})
                i = bisect_left(left_out, start + decisions)
            else:
                # One more merge is left out at a time, for few parts have many of them.
                gone: tuple[int, ...] = ()
                own, decisions = self._remembered(part, gone)
                while left_out[i] < start + decisions:
                    gone += (left_out[i] - start,)
                    own, decisions = self._remembered(part, gone)
                    i += 1
            ids += own
            start += decisions
        return ids

    def _merge(self, part: str, left_out: Container[int]) -> tuple[list[int], int]:
        """Merges a part's symbols.

        Args:
            part: A text.
            left_out: Which merges to leave out, counted from 0 in the order in which they come up.

        Returns:
            The ids, and how many merges came up.
        """
        symbols = self._symbols.findall(part)
        halves: dict[str, tuple[str, str]] = {}

        def rank(left: str, right: str) -> int:
            whole = left + right
            if whole not in self._ranks or left in self._frozen or right in self._frozen:
                return _NO_MERGE
            if whole in self._unused:
                halves[whole] = left, right
            return self._ranks[whole]

        ranks = [rank(left, right) for left, right in pairwise(symbols)]
        decisions = 0
        while (best := min(ranks, default=_NO_MERGE)) != _NO_MERGE:
            i = ranks.index(best)
            decisions += 1
            if decisions - 1 in left_out:
                ranks[i] = _NO_MERGE  # until a neighbour changes
                continue
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            del ranks[i]
            if i > 0:
                ranks[i - 1] = rank(symbols[i - 1], symbols[i])
            if i < len(ranks):
                ranks[i] = rank(symbols[i], symbols[i + 1])
        return [i for symbol in symbols for i in self._spell(symbol, halves)], decisions

    def _spell(
        self, symbol: str, halves: Mapping[str, tuple[str, str]], depth: int = 0
    ) -> list[int]:
        piece_id = self._ids.get(symbol)
        if piece_id is not None and (symbol not in self._unused or depth > _MAX_DEPTH):
            return [piece_id]
        if symbol not in halves:
            return self._vocabulary.unknown(symbol)
        left, right = halves[symbol]
        return self._spell(left, halves, depth + 1) + self._spell(right, halves, depth + 1)


class _Ends(NamedTuple):
    """The pieces that end at one place of a text."""

    cumulative: list[float]  # their probabilities, added up, times any constant
    starts: list[int]
    ids: list[list[int]]


class _Unigram:
    """Samples from all ways to cut a text: forward filtering, backward sampling."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = vocabulary.ids(_NORMAL, _USER_DEFINED)
        self._longest = max(map(len, self._ids), default=1)
        normal = vocabulary.ids(_NORMAL)
        self._unk_score = min((vocabulary.scores[i] for i in normal.values()), default=0.0)
        self._unk_score -= _UNKNOWN_PENALTY
        self._scores = vocabulary.scores.copy()
        for piece, i in vocabulary.ids(_USER_DEFINED).items():
            self._scores[i] = 0.1 * (len(piece) - 1)
        # Candidates' log probabilities up to a constant: as if every character of the text cost
        # what an unknown one does, and known pieces gave it back.
        self._gains = [0.0] * len(self._scores)
        for piece, i in self._ids.items():
            self._gains[i] = self._scores[i] - self._unk_score * len(piece)
        self._parts = _Parts(self._ids)
        self._remembered = lru_cache(_REMEMBERED_LATTICES)(self._filter)

    def cut(self, text: str, alpha: float, random: np.random.Generator) -> list[int]:
        """Cuts a normalized text, each way with probability proportional to P**alpha."""
        draws = iter(random.random(len(text)).tolist())
        ids: list[int] = []
        for part in self._parts(text):
            lattice = (
                self._filter(part, alpha)
                if len(part) > _MAX_REMEMBERED_CHARS
                else self._remembered(part, alpha)
            )
            own = []
            end = len(part)
            while end:
                ends = lattice[end]
                i = _choose(ends.cumulative, next(draws))
                own.append(ends.ids[i])
                end = ends.starts[i]
            for piece in reversed(own):
                ids += piece
        return ids

    def choose(
        self, candidates: list[list[int]], alpha: float, random: np.random.Generator
    ) -> list[int]:
        """Chooses one of several cuts of a text with probability proportional to P**alpha."""
        scores = [alpha * sum(map(self._gains.__getitem__, ids)) for ids in candidates]
        return candidates[_choose(_accumulate(scores), random.random())]

    def _filter(self, part: str, alpha: float) -> list[_Ends]:
        """What may end after each number of characters; nothing ends before the first."""
        lattice = [_Ends([], [], [])]
        forward = [0.0]  # log of the sum over all cuts of so many characters
        for end in range(1, len(part) + 1):
            starts, ids, scores = [], [], []
            for start in range(max(0, end - self._longest), end):
                piece = part[start:end]
                if piece in self._ids:
                    piece_id = self._ids[piece]
                    ids.append([piece_id])
                    score = self._scores[piece_id]
                elif len(piece) == 1:
                    ids.append(self._vocabulary.unknown(piece))
                    score = self._unk_score
                else:
                    continue
                starts.append(start)
                scores.append(forward[start] + alpha * score)
            cumulative = _accumulate(scores)
            forward.append(max(scores) + math.log(cumulative[-1]))
            lattice.append(_Ends(cumulative, starts, ids))
        return lattice


def _accumulate(scores: Sequence[float]) -> list[float]:
    """Adds up probabilities, given as logs; in units of the highest, so that none overflows."""
    best = max(scores)
    return list(accumulate(math.exp(score - best) for score in scores))


def _choose(cumulative: Sequence[float], uniform: float) -> int:
    # The bound counts where rounding takes the product up to the last sum.
    return bisect_right(cumulative, uniform * cumulative[-1], 0, len(cumulative) - 1)


class SubwordSampler:
    """Cuts texts at random: BPE-dropout, or sampling from a unigram language model.

    Args:
        processor: A ``SentencePieceProcessor``.
        model: The serialized model that it was loaded from.

    Raises:
        ValueError: If the model cuts into words or characters, where there is nothing to sample.
    """

    def __init__(self, processor: Any, model: bytes) -> None:  # noqa: ANN401 - untyped library
        self._processor = processor
        self._model = model
        vocabulary = _read_vocabulary(model)
        if vocabulary.model_type not in (_BPE, _UNIGRAM):
            raise ValueError(
                "texts cannot be cut at random by a SentencePiece model of words or characters; "
                "leave subword_sampling at 0 or train with model_type bpe or unigram."
            )
        self._unk_id = vocabulary.unk_id
        is_bpe = vocabulary.model_type == _BPE
        self._cutter = _Bpe(vocabulary) if is_bpe else _Unigram(vocabulary)

    def __reduce__(self) -> tuple[Any, ...]:
        return SubwordSampler, (self._processor, self._model)  # what is remembered stays behind

    def __call__(
        self,
        texts: Sequence[str],
        *,
        alpha: float,
        nbest_size: int,
        seed: int,
        streams: Iterable[int],
    ) -> list[list[int]]:
        """Cuts each text, without EOS.

        Args:
            texts: Any texts.
            alpha: For BPE the probability with which a merge is left out; for unigram the exponent
                of the candidates' probabilities.
            nbest_size: For unigram the number of candidates; negative: all; 0 or 1: the best.
            seed: Seed of the random numbers.
            streams: One number per text: which of the seed's streams of random numbers it is cut
                with. A text's cut does not depend on the other texts.

        Raises:
            ValueError: If alpha is negative or not finite, or there are too many candidates.
        """
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha must be finite and at least 0, got {alpha}; 0.1 is usual.")
        if nbest_size > _MAX_NBEST:
            raise ValueError(
                f"nbest_size must be at most {_MAX_NBEST}, got {nbest_size}; -1 samples from all "
                f"candidates."
            )
        random = np.random.Philox(key=seed % (1 << 128))
        generator, state = np.random.Generator(random), random.state
        ids = []
        for text, stream in zip(texts, streams, strict=True):
            # Philox counts in 256 bits: a stream is what follows on its highest 64. Setting them
            # takes a tenth of the time of a new generator.
            state["state"]["counter"][3] = stream
            random.state = state
            ids.append(self._cut(text, alpha, nbest_size, generator))
        return ids

    def _cut(
        self, text: str, alpha: float, nbest_size: int, random: np.random.Generator
    ) -> list[int]:
        cutter = self._cutter
        if isinstance(cutter, _Unigram) and nbest_size >= 0:
            candidates = self._processor.nbest_encode(text, nbest_size=nbest_size)
            return cutter.choose(candidates, alpha, random)
        ids = cutter.cut(self._processor.normalize(text), alpha, random)
        if ids.count(self._unk_id) < 2:
            return ids
        # A run of unknown characters is one unknown piece.
        unk_id = self._unk_id
        return ids[:1] + [b for a, b in pairwise(ids) if not a == b == unk_id]
