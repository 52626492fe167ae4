"""Search by CTranslate2, behind the interface of litseq's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litseq.data.tokenizer import TranslationTokenizer
from litseq.decoding import Hypothesis, SearchOptions
from litseq.decoding.hypothesis import best_first, make_hypothesis
from litseq.losses import IGNORE
from litseq.translator import TextTranslator
from litseq.types import Batch

__all__ = ["CTranslate2Translator"]


@dataclass(frozen=True)
class CTranslate2Translator(TextTranslator):
    """Searches with a model that ``litseq export --to ctranslate2`` made.

    A beam of one finds what litseq's does, with a float32 model. A wider one finds nearly always
    the same: there a search ends with as many finished hypotheses as the beam is wide, or
    ``patience`` times as many, and they are ranked by log-probability while it goes on; at the end
    they are ranked as ``options`` say. CTranslate2 shares out what padding and the beginning had
    among the other tokens, so scores are higher by that, which is next to nothing in a trained
    model. Samples follow a seed of its own.

    Attributes:
        engine: A ``ctranslate2.Translator``.
    """

    engine: Any = field(repr=False)
    tokenizer: TranslationTokenizer

    @classmethod
    def load(
        cls, folder: Path, tokenizer: TranslationTokenizer, *, device: str = "auto"
    ) -> CTranslate2Translator:
        """Loads the model of a folder.

        Args:
            folder: What the export made.
            tokenizer: The one in it.
            device: auto, cpu, cuda or cuda:0.

        Raises:
            ModuleNotFoundError: If CTranslate2 is not installed.
            ValueError: If the folder holds no model of it, or it cannot run on the device.
        """
        try:
            import ctranslate2
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "CTranslate2 is not installed: pip install 'litseq[ctranslate2]'.", name=error.name
            ) from error
        kind, _, index = device.partition(":")
        try:
            engine = ctranslate2.Translator(
                str(folder),
                device=kind,
                device_index=int(index or 0),
                intra_threads=torch.get_num_threads(),
            )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"CTranslate2 cannot run {folder} on {device!r}: {reason}; export it again, or "
                f"give another device."
            ) from error
        return cls(
            tokenizer=tokenizer,
            pad_id=tokenizer.pad_id,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            engine=engine,
        )

    def log_probs(self, batch: Batch) -> Tensor:
        """The log-probability of each label, float (B, T); 0 where there is none."""
        labels = batch["labels"]
        targets = [self._ordinary(row) for row in labels.tolist()]
        results = self.engine.score_batch(
            self._sources(batch),
            [self.tokenizer.target_pieces(ids) for ids in targets],
            max_input_length=0,
        )
        found = torch.zeros(labels.shape)
        # it ends every target with EOS, also one that does not
        for row, result, length in zip(found, results, (labels != IGNORE).sum(1), strict=True):
            row[:length] = torch.tensor(result.log_probs[:length])
        return found

    def _sources(self, batch: Batch) -> list[list[str]]:
        lengths = batch["attention_mask"].sum(1).tolist()
        # without EOS, which the model's configuration adds
        return [
            self.tokenizer.source_pieces(ids[: length - 1])
            for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)
        ]

    @cached_property
    def _ids(self) -> dict[str, int]:
        pieces = self.tokenizer.target_pieces(range(self.tokenizer.tgt_vocab_size))
        return {piece: i for i, piece in enumerate(pieces)}

    def search(self, batch: Batch, options: SearchOptions) -> list[list[Hypothesis]]:
        """Finds the best outputs of a batch, n_best for each source, best first.

        Raises:
            ValueError: If attention is to be kept, or samples are to follow a seed.
        """
        if options.attention:
            raise ValueError(
                "CTranslate2 does not say where each layer and head looked; align words with the "
                "checkpoint itself (--ckpt)."
            )
        if options.sample and options.seed is not None:
            raise ValueError(
                "CTranslate2 has one seed for all threads and batches; leave out --seed, or sample "
                "with the checkpoint itself (--ckpt)."
            )
        never = self.tokenizer.target_pieces({self.pad_id, self.bos_id} - {self.eos_id})
        limits = options.max_len(batch["attention_mask"].sum(1)).tolist()
        results = self.engine.translate_batch(
            self._sources(batch),
            max_input_length=0,
            max_decoding_length=max(limits),
            min_decoding_length=0,
            length_penalty=0,
            return_scores=True,
            return_end_token=True,
            suppress_sequences=[[piece] for piece in never],
            **_search(options),
        )
        return [
            self._ranked(result, limit, options)
            for result, limit in zip(results, limits, strict=True)
        ]

    def _ranked(self, result: Any, limit: int, options: SearchOptions) -> list[Hypothesis]:  # noqa: ANN401 - of an untyped library
        found = [
            make_hypothesis(
                [self._ids[piece] for piece in pieces[:limit]],
                [log_prob],
                length_penalty=options.length_penalty,
                length_offset=options.length_offset,
            )
            for pieces, log_prob in zip(result.hypotheses, result.scores, strict=True)
        ]
        return best_first(found, eos_id=self.eos_id)[: options.n_best]


def _search(options: SearchOptions) -> dict[str, Any]:
    if not options.sample:
        beam = options.beam_size
        found: dict[str, Any] = {"beam_size": beam, "num_hypotheses": beam}
        if beam > 1 and options.patience is not None and math.isfinite(options.patience):
            # it counts in whole hypotheses, and gives no more than it waits for
            enough = max(options.n_best, math.ceil(options.patience * beam))
            found |= {"patience": enough / beam, "num_hypotheses": min(beam, enough)}
        return found
    return {
        "beam_size": 1,
        "num_hypotheses": options.n_best,
        "sampling_topk": options.top_k,
        "sampling_topp": options.top_p,
        "sampling_temperature": options.temperature,
    }
