"""Translator: from source ids or raw text, through the search, to text with scores."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor

from litseq.attention import align_words
from litseq.data.buckets import plan_batches
from litseq.data.collate import collate
from litseq.data.tokenizer import TranslationTokenizer
from litseq.decoding import Hypothesis, SearchOptions, Sources, generate_all, length_limits
from litseq.layers.linear import Packing, packed_weights
from litseq.losses import IGNORE
from litseq.models.base import Seq2SeqModel
from litseq.types import Batch, Memory, ScoredText, Translation, WordAlignment, shift_right

__all__ = ["TextDecoder", "TextTranslator", "Translator"]

_log = logging.getLogger(__name__)

_MAX_POSITIONS = 2**18
"""Positions that are searched at once at most: hypotheses x (source + longest output).

As many may wait for their last steps. A batch of ``max_tokens=4096`` holds fewer in a beam of 5,
unless its sources are of four tokens or less. Many such make large batches, whose outputs may each
grow to ``max_len_b`` tokens.
"""

_SENTENCES = 2048
"""Sentences of a search at most: it remembers all of their candidates until its end."""


class TextDecoder(Protocol):
    """What turns ids into text: a litseq tokenizer, or one of Hugging Face."""

    def decode(self, ids: list[int], /) -> str:
        """Joins the tokens to text."""


@dataclass(frozen=True)
class TextTranslator(ABC):
    """A tokenizer, the ids that it means by padding, beginning and end, and a way to search.

    Attributes:
        tokenizer: Turns target ids into text; a ``TranslationTokenizer`` reads raw text too.
        pad_id: Id of padding.
        bos_id: Id that begins every target.
        eos_id: Id that ends every source and target.
    """

    tokenizer: TextDecoder
    pad_id: int
    bos_id: int
    eos_id: int

    @abstractmethod
    def search(self, batch: Batch, options: SearchOptions) -> list[list[Hypothesis]]:
        """Finds the best outputs of a batch, n_best for each source, best first."""

    def search_all(
        self, batches: Iterable[Batch], options: SearchOptions
    ) -> list[list[Hypothesis]]:
        """Finds the best outputs of several batches, in their order."""
        return [found for batch in batches for found in self.search(batch, options)]

    def translate_batch(self, batch: Batch, options: SearchOptions) -> list[tuple[ScoredText, ...]]:
        """Translates a batch; n_best texts for each source, best first.

        With ``options.attention`` their words are aligned with those of the source.

        Raises:
            ValueError: If words are to be aligned without a litseq tokenizer, or by a model that
                has no attention.
        """
        sources = batch["input_ids"].tolist() if options.attention else repeat(())
        return self._texts(sources, self.search(batch, options))

    def _texts(
        self, sources: Iterable[Sequence[int]], found: Iterable[list[Hypothesis]]
    ) -> list[tuple[ScoredText, ...]]:
        return [
            tuple(
                ScoredText(
                    self.target_text(h.tokens),
                    h.score,
                    h.log_prob,
                    len(h.tokens),
                    None if h.attention is None else self._align(h.attention, source, h.tokens),
                )
                for h in hypotheses
            )
            for source, hypotheses in zip(sources, found, strict=False)
        ]

    def _align(self, attention: Tensor, src: Iterable[int], tgt: Iterable[int]) -> WordAlignment:
        if not isinstance(self.tokenizer, TranslationTokenizer):
            raise ValueError(
                f"aligning words needs a litseq tokenizer, got {type(self.tokenizer).__name__}; "
                f"use a litseq DataModule or checkpoint."
            )
        return align_words(
            attention,
            self.tokenizer.source_pieces(self._ordinary(src)),
            self.tokenizer.target_pieces(self._ordinary(tgt)),
        )

    @packed_weights()
    def translate(
        self,
        texts: Sequence[str],
        options: SearchOptions,
        *,
        max_tokens: int,
        max_src_len: int,
        device: torch.device,
        first_id: int = 0,
    ) -> list[Translation]:
        """Translates raw text, in batches of similar lengths, and keeps its order.

        Args:
            texts: Raw source sentences; a blank one has a blank translation.
            options: How to search.
            max_tokens: Padded source tokens per batch.
            max_src_len: Tokens of a source that are read at most, EOS counted.
            device: Where the model is.
            first_id: Id of the first text, where these are a part of more: ids choose the random
                numbers of sampling.

        Raises:
            ValueError: If the tokenizer cannot read raw text.
        """
        if not isinstance(self.tokenizer, TranslationTokenizer):
            raise ValueError(
                f"translating text needs a litseq tokenizer, got "
                f"{type(self.tokenizer).__name__}; use a litseq DataModule or checkpoint."
            )
        encoded = self.tokenizer.encode_source(texts)
        _warn_of_unknown(encoded, self.tokenizer, first_id)
        encoded = _cut(encoded, max_src_len, first_id)
        blank = replace(_BLANK, alignment=_NOTHING if options.attention else None)
        results = [Translation(i, text, (blank,)) for i, text in enumerate(texts, first_id)]
        filled = [i for i, text in enumerate(texts) if text.strip()]
        lengths = [len(encoded[i]) for i in filled]
        plan = plan_batches(lengths, max_tokens=max_tokens, shuffle=False).batches()
        batches = [[filled[row] for row in rows] for rows in plan if filled]
        batches.sort(key=lambda places: max(len(encoded[i]) for i in places))

        def batch_of(places: list[int]) -> Batch:
            ids = [first_id + i for i in places]
            batch = collate([encoded[i] for i in places], ids=ids, pad_id=self.pad_id)
            return Batch(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                id=batch["id"],
            )

        for group in _groups(batches, _SENTENCES):
            places = [i for some in group for i in some]
            found = self.search_all(map(batch_of, group), options)
            texts_found = self._texts([encoded[i] for i in places], found)
            for i, hypotheses in zip(places, texts_found, strict=True):
                results[i] = replace(results[i], hypotheses=hypotheses)
        return results

    def target_text(self, ids: Iterable[int]) -> str:
        """Turns target ids, padded or not, into text."""
        return self.tokenizer.decode(self._ordinary(ids))

    def source_text(self, ids: Iterable[int]) -> str:
        """Turns source ids, padded or not, into text."""
        if isinstance(self.tokenizer, TranslationTokenizer):
            return self.tokenizer.decode_source(ids)
        return self.tokenizer.decode(self._ordinary(ids))

    def _ordinary(self, ids: Iterable[int]) -> list[int]:
        special = {self.pad_id, self.bos_id, self.eos_id, IGNORE}
        return [i for i in ids if i not in special]


@dataclass(frozen=True)
class Translator(TextTranslator):
    """Searches with one of litseq's own models.

    Attributes:
        model: In evaluation mode, on the device of the batches.
        packing: How a CPU multiplies by the weights, which must not change then; None: in the
            precision of all else, laid out anew for each search.
    """

    model: Seq2SeqModel
    packing: Packing | None = None

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Scores every token where the labels are, float (B, T, V)."""
        tgt_in = shift_right(batch["labels"], bos_id=self.bos_id, pad_id=self.pad_id)
        logits: Tensor = self.model(batch["input_ids"], batch["attention_mask"] == 0, tgt_in)
        return logits

    def search(self, batch: Batch, options: SearchOptions) -> list[list[Hypothesis]]:
        """Finds the best outputs of a batch, n_best for each source, best first.

        A batch that could take too much memory is searched in parts; the result is that of the
        whole.
        """
        return self.search_all([batch], options)

    @torch.inference_mode()
    def search_all(
        self, batches: Iterable[Batch], options: SearchOptions
    ) -> list[list[Hypothesis]]:
        """Finds the best outputs of several batches, in their order.

        The last sentences of a batch wait for those of others (``litseq.decoding.turns``).
        """
        if options.sample and options.seed is None:
            options = replace(options, seed=int(torch.randint(2**62, ())))
        with packed_weights(self.packing):
            return generate_all(
                self.model,
                (self._sources(batch, options) for batch in batches),
                options=options,
                bos_id=self.bos_id,
                eos_id=self.eos_id,
                suppress=tuple({self.pad_id, self.bos_id} - {self.eos_id}),
            )

    def _sources(self, batch: Batch, options: SearchOptions) -> Sources[Memory]:
        src, mask = batch["input_ids"], batch["attention_mask"]
        return Sources(
            lambda rows: self.model.encode(src[rows], mask[rows] == 0),
            length_limits(self.model, mask.sum(1), options),
            room=min(_rows_at_once(src.size(1), options), max(len(src), 1)),
            # a sentence draws the same sample whatever batch, or part, it is in
            ids=batch["id"].tolist() if options.sample and "id" in batch else None,
        )


def _groups(batches: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Batches that follow each other, of about so many sentences together."""
    group: list[list[int]] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= size:
            yield group
            group = []
    if group:
        yield group


def _rows_at_once(src_len: int, options: SearchOptions) -> int:
    """How many sources of so many tokens are searched together; at least one."""
    hypotheses = options.n_best if options.sample else options.beam_size
    longest = int(options.max_len(torch.tensor(src_len)))
    return max(_MAX_POSITIONS // (hypotheses * (src_len + longest)), 1)


_BLANK = ScoredText("", 0.0, 0.0, 0)
_NOTHING = WordAlignment((), (), ())


def _cut(encoded: list[list[int]], max_src_len: int, first_id: int) -> list[list[int]]:
    long = [i for i, ids in enumerate(encoded) if len(ids) > max_src_len]
    if long:
        _log.warning(
            "%d of %d sources are longer than max_src_len=%d tokens and were cut (first: line %d, "
            "%d tokens).",
            len(long),
            len(encoded),
            max_src_len,
            first_id + long[0] + 1,
            len(encoded[long[0]]),
        )
    return [
        [*ids[: max_src_len - 1], ids[-1]] if len(ids) > max_src_len else ids for ids in encoded
    ]


def _warn_of_unknown(
    encoded: Sequence[Sequence[int]], tokenizer: TranslationTokenizer, first_id: int
) -> None:
    unk = tokenizer.unk_id
    unreadable = {unk, tokenizer.eos_id, tokenizer.source_space_id}
    lost = [i for i, ids in enumerate(encoded) if unk in ids and unreadable.issuperset(ids)]
    if lost:
        _log.warning(
            "%d of %d sources hold only unknown characters (first: line %d); the model cannot read "
            "them: is this the right language?",
            len(lost),
            len(encoded),
            first_id + lost[0] + 1,
        )
