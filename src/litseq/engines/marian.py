"""Search by transformers' Marian, behind the interface of litseq's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from litseq.data.tokenizer import TranslationTokenizer
from litseq.decoding import Hypothesis, SearchOptions
from litseq.decoding.hypothesis import make_hypothesis
from litseq.translator import TextTranslator
from litseq.types import Batch, shift_right

__all__ = ["MarianTranslator"]


@dataclass(frozen=True)
class MarianTranslator(TextTranslator):
    """Searches with ``transformers.MarianMTModel``, whose length normalisation counts from 0.

    At the length limit it takes what is more probable, where litseq takes what has ended.

    Attributes:
        model: The ``MarianMTModel``, in evaluation mode.
        reader: The ``MarianTokenizer``.
    """

    model: Any = field(repr=False)
    reader: Any = field(repr=False)

    @classmethod
    def load(cls, folder: Path, tokenizer: TranslationTokenizer) -> MarianTranslator:
        """Loads model and tokenizer of a folder.

        Args:
            folder: What ``from_pretrained`` loads.
            tokenizer: What turns its ids into text.

        Raises:
            ModuleNotFoundError: If transformers is not installed.
        """
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "an export to Marian is compared by transformers, which is not installed: pip "
                "install 'litseq[huggingface]'.",
                name=error.name,
            ) from error
        logging: Any = transformers.utils.logging
        logging.disable_progress_bar()
        model: Any = transformers.MarianMTModel.from_pretrained(folder)
        return cls(
            tokenizer=tokenizer,
            pad_id=model.config.pad_token_id,
            bos_id=model.config.decoder_start_token_id,
            eos_id=model.config.eos_token_id,
            model=model.eval(),
            reader=transformers.MarianTokenizer.from_pretrained(folder),
        )

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Scores every token where the labels are, float (B, T, V)."""
        tgt_in = shift_right(batch["labels"], bos_id=self.bos_id, pad_id=self.pad_id)
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=tgt_in,
        )
        logits: Tensor = output.logits
        return logits

    @torch.inference_mode()
    def search(self, batch: Batch, options: SearchOptions) -> list[list[Hypothesis]]:
        """Finds the best outputs of a batch, n_best for each source, best first."""
        lengths = options.max_len(batch["attention_mask"].sum(1))
        n = options.n_best
        generated = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            num_beams=options.beam_size,
            num_return_sequences=n,
            length_penalty=options.length_penalty,
            early_stopping=True if options.patience == 1 else "never",
            max_length=int(lengths.max()) + 1,  # and the token that it starts with
        )
        tokens = [self._until_end(ids[1:]) for ids in generated.tolist()]
        log_probs = self._log_probs(batch, tokens, n)
        found = [
            make_hypothesis(
                ids, values[: len(ids)], length_penalty=options.length_penalty, length_offset=0
            )
            for ids, values in zip(tokens, log_probs.tolist(), strict=True)
        ]
        return [found[i : i + n] for i in range(0, len(found), n)]

    def _log_probs(self, batch: Batch, tokens: list[list[int]], n_best: int) -> Tensor:
        sources = batch["input_ids"].repeat_interleave(n_best, 0)
        masks = batch["attention_mask"].repeat_interleave(n_best, 0)
        labels = pad_sequence([torch.tensor(ids) for ids in tokens], True, self.pad_id)
        log_probs = self.logits(Batch(input_ids=sources, attention_mask=masks, labels=labels))
        return log_probs.log_softmax(-1).gather(-1, labels[..., None])[..., 0]

    def _until_end(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self.eos_id) + 1] if self.eos_id in ids else ids
