"""The splits of prepared data, open to be read, and what there is to say about their pairs."""

import logging
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from litseq.data.encoding import EncodedSplit, SubwordSampling
from litseq.data.filters import PairFilter, duplicate_rows, filter_pairs, review_pairs
from litseq.data.prepare import SPLITS, Preparation, Prepared, Split
from litseq.data.streams import PairStream
from litseq.data.tokenizer import TranslationTokenizer

__all__ = ["OpenSplits"]

_log = logging.getLogger(__name__)


class OpenSplits:
    """Training pairs, filtered or as a stream, and evaluation data, none of which is left out.

    What the filter drops, and what is odd in evaluation data, is logged on the first rank.

    Args:
        preparation: Says where the splits lie.
        pair_filter: Which training pairs are kept; in evaluation longer texts are cut.
        drop_duplicates: Whether a training pair that repeats an earlier one is dropped.
        subword_sampling: ``alpha`` of ``SubwordSampling`` for training texts; 0: none.
        sampling_nbest: ``nbest_size`` likewise.

    Attributes:
        stream: The training pairs, where they are streamed.
        train_ids: Numbers of the training pairs that are kept, int64, ascending.

    Raises:
        ValueError: If duplicates are to be dropped from a stream.
    """

    def __init__(
        self,
        preparation: Preparation,
        pair_filter: PairFilter,
        *,
        drop_duplicates: bool,
        subword_sampling: float,
        sampling_nbest: int,
    ) -> None:
        if preparation.streaming and drop_duplicates:
            raise ValueError(
                "drop_duplicates compares all pairs, which streaming never has; leave one out."
            )
        self._preparation = preparation
        self._filter = pair_filter
        self._drop_duplicates = drop_duplicates
        self._subword_sampling = subword_sampling
        self._sampling_nbest = sampling_nbest
        self._splits: dict[str, EncodedSplit] = {}
        self.stream: PairStream | None = None
        self.train_ids: NDArray[np.int64] | None = None

    def __contains__(self, split: str) -> bool:
        return split in self._splits

    def get(self, split: str) -> EncodedSplit:
        """A split that is open.

        Raises:
            ValueError: If there is none of that name.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        if split == "train" and self.stream is not None:
            raise ValueError("train is streamed: its texts are not kept.")
        if split not in self._splits:
            source = "predict or test" if split == "predict" else split
            raise ValueError(
                f"there are no {split} data: give {source}, and call prepare_data() and setup()."
            )
        return self._splits[split]

    @property
    def has_train(self) -> bool:
        """Whether there are training pairs, streamed or not."""
        return "train" in self._splits or self.stream is not None

    @property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each split, and of the stream."""
        found = {name: split.fingerprint for name, split in self._splits.items()}
        if self.stream is not None:
            found["train"] = self.stream.fingerprint
        return found

    def open(
        self, wanted: Sequence[Split], prepared: Prepared, tokenizer: TranslationTokenizer
    ) -> None:
        """Maps splits into memory, as far as there are data for them; each once.

        Args:
            wanted: The splits that will be used.
            prepared: Their folders.
            tokenizer: What their ids were made with.

        Raises:
            ValueError: If no training pair passes the filter.
        """
        if self._preparation.streaming and "train" in wanted:
            self.stream = self._preparation.stream()
        for split in wanted:
            folder = prepared.tokens.get(split)
            if folder and (split not in self._splits or self._splits[split].fingerprint != folder):
                self._splits[split] = self._open(split, prepared, tokenizer)
                if split == "train":
                    self._filter_train()
                else:
                    self._review(split)
        if "train" in self._splits and "train" in wanted:
            self._report_overlap(prepared, tokenizer)

    def sampling(self, tokenizer: TranslationTokenizer) -> SubwordSampling | None:
        """How training texts are cut anew in each epoch; None: always alike."""
        if self._subword_sampling == 0:
            return None
        return SubwordSampling(
            tokenizer=tokenizer,
            alpha=self._subword_sampling,
            nbest_size=self._sampling_nbest,
            seed=self._preparation.seed,
            max_chars=self._filter.max_chars,
        )

    def _open(
        self, split: Split, prepared: Prepared, tokenizer: TranslationTokenizer
    ) -> EncodedSplit:
        texts, tokens = self._preparation.folders(prepared, split)
        return EncodedSplit(
            texts,
            tokens,
            max_src_len=self._filter.max_src_len,
            max_tgt_len=self._filter.max_tgt_len,
            pad_id=tokenizer.pad_id,
            with_target=split != "predict",
            sampling=self.sampling(tokenizer) if split == "train" else None,
        )

    def _filter_train(self) -> None:
        data = self._splits["train"]
        duplicate = None
        if self._drop_duplicates:
            duplicate = duplicate_rows(data.column("src_hash"), data.column("tgt_hash"))
        src, tgt = data.counts("src"), data.counts("tgt")
        limits = asdict(self._filter)
        self.train_ids, report = filter_pairs(src, tgt, **limits, duplicate=duplicate)
        if report.num_kept == 0:
            raise ValueError(f"no training pair is left: {report}.")
        unknown = f"{src.unknown_rate:.2%} source, {tgt.unknown_rate:.2%} target"
        _say(logging.INFO, f"train: {report}; unknown tokens: {unknown}.")

    def _review(self, split: Split) -> None:
        data = self._splits[split]
        src = data.counts("src")
        odd = review_pairs(
            src,
            data.counts("tgt") if data.with_target else None,
            max_src_len=self._filter.max_src_len,
            max_tgt_len=self._filter.max_tgt_len,
            max_chars=self._filter.max_chars,
        )
        _say(
            logging.INFO,
            f"{split}: {len(data):,} pairs; unknown tokens: {src.unknown_rate:.2%} source.",
        )
        if odd:
            found = ", ".join(f"{n:,} {what}" for what, n in odd.items())
            _say(logging.WARNING, f"{split}: {found}.")

    def _report_overlap(self, prepared: Prepared, tokenizer: TranslationTokenizer) -> None:
        """Scores on sentences that were trained on say little."""
        train = self._splits["train"].column("src_hash")
        for split in ("val", "test"):
            if split in prepared.tokens:
                data = self._splits.get(split) or self._open(split, prepared, tokenizer)
                sources = data.column("src_hash")
                if shared := int(np.count_nonzero(np.isin(sources, train))):
                    _say(
                        logging.WARNING,
                        f"{split}: {shared:,} of {len(sources):,} sources also occur in train.",
                    )


@rank_zero_only
def _say(level: int, message: str) -> None:
    _log.log(level, "%s", message)
