"""The DataModule: from files, the Hub or the demo to batches for any sequence-to-sequence model."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from litseq.data.arguments import check_numbers
from litseq.data.buckets import TokenBucketLoader
from litseq.data.corpora import default_cache_dir
from litseq.data.encoding import TextEncoder
from litseq.data.filters import PairFilter
from litseq.data.prepare import SPLITS, Preparation, Split
from litseq.data.resumed_epoch import ResumedEpoch
from litseq.data.splits import OpenSplits
from litseq.data.stream_loader import StreamLoader
from litseq.data.tokenizer import ModelType, Normalization, TranslationTokenizer

__all__ = ["TranslationDataModule"]

_log = logging.getLogger(__name__)

_EVAL_MAX_TOKENS = 4096  # where max_tokens is "auto" and none has been chosen

_STAGES: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class TranslationDataModule(L.LightningDataModule):
    """Parallel text as length-bucketed batches of token ids.

    Data come from one of three places. Files: ``train``, ``val`` and ``test`` name them. The Hub:
    ``dataset`` names the dataset, and ``train``, ``val`` and ``test`` its splits. The built-in
    demo: nothing is named. A file is the prefix of a text pair (``data/train`` for
    ``data/train.en`` and ``data/train.de``), or a ``.tsv``, ``.jsonl`` or ``.parquet`` file; each
    also with ``.gz``.

    ``prepare_data`` reads, trains the tokenizer on the training split and encodes, once for the
    same inputs; ``setup`` maps the results into memory. Both work without a Trainer.

    Args:
        src_lang: Source language: file name suffix, column name or ``translation`` key.
        tgt_lang: Target language, likewise.
        dataset: Dataset on the Hub, or ``demo``. Default: the demo where no files are given.
        dataset_config: Configuration of the Hub dataset, such as ``de-en``.
        train: File or files to train on; with ``dataset``, its split.
        val: File or files for validation; with ``dataset``, its split.
        test: File or files for the test; with ``dataset``, its split.
        predict: File or files to translate, source side alone. Default: the sources of ``test``.
        src_column: Column or key of the source text, dotted if nested. Default: looked up.
        tgt_column: Column or key of the target text. Default: looked up.
        val_size: Pairs cut from ``train`` where ``val`` is not given: a number, or a share.
        test_size: Pairs cut from ``train`` where ``test`` is not given: a number, or a share.
        tokenizer: Folder, SentencePiece ``.model`` or litseq ``.ckpt`` to take the tokenizer from.
            Default: one is trained, on the training split alone.
        vocab_size: Pieces of the vocabulary (of each, if not shared) that is trained.
        model_type: How the trained tokenizer cuts words.
        shared_vocab: Whether both languages share one vocabulary.
        character_coverage: Share of the text's characters that get a piece of their own.
        byte_fallback: Whether characters without a piece are spelled in bytes, not unknown.
        split_digits: Whether every digit is a piece of its own, so that numbers are spelled, not
            learned by heart.
        user_symbols: Texts that are always one piece, such as language tags.
        normalization: What the trained tokenizer does to texts before it cuts them. With
            ``identity`` alone can an output hold full-width punctuation or no-break spaces; with
            ``nfkc_cf`` and ``nmt_nfkc_cf`` sources and outputs are in lower case.
        subword_sampling: Randomness of cutting training texts anew in each epoch: dropout
            probability for ``bpe``, exponent for ``unigram``; 0: none. For ``bpe`` it is
            SentencePiece's, where a merge that is left out stays out; Provilkov et al. (2020) draw
            again at each merge, and about half of their probability cuts as much. Batches are
            planned before the cuts: these are longer, exceed ``max_tokens``, and need more padding.
        sampling_nbest: Candidates of ``unigram`` sampling; -1: all.
        max_src_len: Source tokens at most, end symbol counted. Longer training pairs are dropped;
            in evaluation longer sources are cut.
        max_tgt_len: Target tokens at most, likewise.
        max_length_ratio: Longer over shorter side of a training pair at most, in tokens.
            Default: any.
        max_chars: Characters of a text that are read at most; longer training pairs are dropped.
        max_bad_lines: So many lines or rows of ``train``, ``val`` and of ``test`` each that cannot
            be read, such as bytes that are not UTF-8, are left out with their partners and listed
            in the cache; one more is an error. A line to ``predict`` is never left out.
        drop_duplicates: Whether a training pair that repeats an earlier one is dropped.
        max_tokens: Padded tokens per batch and device: sentences times the longest of either side.
            ``auto``: the most that fits into memory, which ``litseq.MemoryCheck`` finds before
            training; checkpoints keep the number, and a run that goes on keeps to it.
        max_sentences: Sentences per batch and device at most. Default: no limit.
        eval_max_tokens: ``max_tokens`` of evaluation and prediction. Default: ``max_tokens``, or
            4,096 where that is ``auto`` and none has been chosen.
        num_workers: Processes that load batches beside the training process.
        num_proc: Processes that encode texts. Default: chosen by size and machine.
        seed: Seed of batches, of ``val_size`` and ``test_size``, and of subword sampling.
        cache_dir: Where prepared data are kept. Default: ``litseq`` in the cache of Hugging Face
            datasets.
        allow_other_data: Whether a run may be resumed with training data that are not those of its
            checkpoint; the epoch then starts anew.
        streaming: Whether training pairs are read, filtered and encoded while one trains, in every
            epoch anew, rather than once before it: for a corpus that is not to be stored a second
            time. A tokenizer is then learned from the first 2,000,000 pairs. ``num_workers`` should
            be 1 at least. ``litseq.data.StreamLoader`` says more.
        shuffle_buffer: With ``streaming``, pairs that are in memory at a time, of which batches are
            made.

    Raises:
        ValueError: If arguments contradict each other.
    """

    def __init__(
        self,
        src_lang: str = "en",
        tgt_lang: str = "zh",
        *,
        dataset: str | None = None,
        dataset_config: str | None = None,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        src_column: str | None = None,
        tgt_column: str | None = None,
        val_size: int | float = 0,
        test_size: int | float = 0,
        tokenizer: str | None = None,
        vocab_size: int = 8000,
        model_type: ModelType = "bpe",
        shared_vocab: bool = True,
        character_coverage: float = 1.0,
        byte_fallback: bool = False,
        split_digits: bool = False,
        user_symbols: list[str] | None = None,
        normalization: Normalization = "identity",
        subword_sampling: float = 0.0,
        sampling_nbest: int = -1,
        max_src_len: int = 256,
        max_tgt_len: int = 256,
        max_length_ratio: float | None = None,
        max_chars: int = 5000,
        max_bad_lines: int = 0,
        drop_duplicates: bool = False,
        max_tokens: int | Literal["auto"] = 4096,
        max_sentences: int | None = None,
        eval_max_tokens: int | None = None,
        num_workers: int = 0,
        num_proc: int | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        allow_other_data: bool = False,
        streaming: bool = False,
        shuffle_buffer: int = 100_000,
    ) -> None:
        super().__init__()
        # The module's hyperparameters go to the logger, where an equal name with another value
        # would be an error.
        self.save_hyperparameters(logger=False)
        self.allow_zero_length_dataloader_with_multiple_devices = True
        check_numbers(self.hparams)
        self._preparation = Preparation(
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            dataset=dataset,
            dataset_config=dataset_config,
            train=train,
            val=val,
            test=test,
            predict=predict,
            src_column=src_column,
            tgt_column=tgt_column,
            val_size=val_size,
            test_size=test_size,
            seed=seed,
            tokenizer=tokenizer,
            tokenizer_options={
                "vocab_size": vocab_size,
                "model_type": model_type,
                "shared": shared_vocab,
                "character_coverage": character_coverage,
                "byte_fallback": byte_fallback,
                "split_digits": split_digits,
                "user_symbols": list(user_symbols or ()),
                "normalization": normalization,
            },
            max_chars=max_chars,
            max_bad_lines=max_bad_lines,
            num_proc=num_proc,
            cache_dir=Path(cache_dir) if cache_dir else default_cache_dir(),
            streaming=streaming,
        )
        self._pair_filter = PairFilter(
            max_src_len=max_src_len,
            max_tgt_len=max_tgt_len,
            max_length_ratio=max_length_ratio,
            max_chars=max_chars,
        )
        self._splits = OpenSplits(
            self._preparation,
            self._pair_filter,
            drop_duplicates=drop_duplicates,
            subword_sampling=subword_sampling,
            sampling_nbest=sampling_nbest,
        )
        self._shuffle_buffer = shuffle_buffer
        self._max_tokens = None if max_tokens == "auto" else max_tokens  # None: not chosen yet
        self._max_sentences = max_sentences
        self._eval_max_tokens = eval_max_tokens
        self._num_workers = num_workers
        self._seed = seed
        self._allow_other_data = allow_other_data
        self._tokenizer: TranslationTokenizer | None = None
        self._tokenizer_folder = ""
        self._expected: Mapping[str, Any] = {}
        self._described: TokenBucketLoader | StreamLoader | None = None  # and planned already

    @property
    def tokenizer(self) -> TranslationTokenizer:
        """The tokenizer; there after ``setup``."""
        if self._tokenizer is None:
            raise RuntimeError("there is no tokenizer yet; call prepare_data() and setup() first.")
        return self._tokenizer

    def texts(self, split: str, ids: Sequence[int]) -> tuple[list[str], list[str] | None]:
        """Raw texts, as they stand in the data.

        Args:
            split: ``train``, ``val``, ``test`` or ``predict``.
            ids: The examples' numbers in that split, as ``batch["id"]`` holds them.

        Returns:
            Sources and references; None where there are no references.
        """
        return self._splits.get(split).texts(np.array([int(i) for i in ids], dtype=np.int64))

    def describe(self) -> str:
        """The training data and their batches in one line.

        Raises:
            ValueError: If ``max_tokens`` is ``auto`` and cannot be chosen yet.
        """
        loader, tokenizer = self.train_dataloader(), self.tokenizer
        self._described = loader
        vocabulary = f"{tokenizer.src_vocab_size:,} shared"
        if not tokenizer.shared:
            vocabulary = f"{tokenizer.src_vocab_size:,} source, {tokenizer.tgt_vocab_size:,} target"
        langs = f"{tokenizer.src_lang}-{tokenizer.tgt_lang}"
        if isinstance(loader, StreamLoader):
            return (
                f"{langs}: training pairs are streamed, {self._shuffle_buffer:,} at a time, "
                f"vocabulary {vocabulary}; batches of at most max_tokens={loader.max_tokens:,} "
                f"padded tokens."
            )
        src, tgt = loader.efficiency()
        return (
            f"{langs}: {loader.num_examples:,} training pairs, "
            f"{loader.num_tokens[0]:,} source and {loader.num_tokens[1]:,} target tokens, "
            f"vocabulary {vocabulary}; {len(loader):,} batches per epoch and device, each of at "
            f"most max_tokens={loader.max_tokens:,} padded tokens, {src:.1%} of them real in the "
            f"source and {tgt:.1%} in the target."
        )

    def prepare_data(self) -> None:
        """Reads, trains the tokenizer, encodes; what is in the cache is not made again."""
        fn = None if self.trainer is None else self.trainer.state.fn
        wanted = set(SPLITS if fn is None else _STAGES[fn.value])
        if fn == "fit":
            wanted.add("test")  # a missing file shows now, not after the training
        self._preparation.run(wanted)

    def setup(self, stage: str | None = None) -> None:
        """Maps the prepared data of a stage into memory; on every rank.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; None: whatever there is.

        Raises:
            FileNotFoundError: If ``prepare_data`` has not run.
            ValueError: If no training pair passes the filters, or the tokenizer has become another
                since the last time.
        """
        if self.trainer is not None:
            callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            if not any(isinstance(callback, ResumedEpoch) for callback in callbacks):
                callbacks.insert(0, ResumedEpoch())
        self._described = None
        prepared = self._preparation.find()
        if self._tokenizer is None:
            self._tokenizer_folder = prepared.tokenizer
            self._tokenizer = self._preparation.load_tokenizer(prepared)
            self._check_tokenizer()
        elif prepared.tokenizer != self._tokenizer_folder:
            raise ValueError(
                "the training data have changed since they were set up, and with them the "
                "tokenizer, which the model knows by now; make a new TranslationDataModule."
            )
        wanted = SPLITS if stage is None else _STAGES[stage]
        self._splits.open(wanted, prepared, self._tokenizer)
        if self._splits.has_train and "train" in wanted:
            if self._max_tokens is not None:  # or else as soon as it is chosen
                _say(self.describe())

    def train_dataloader(self) -> TokenBucketLoader | StreamLoader:
        """Batches of the filtered training pairs, drawn anew in each epoch.

        Raises:
            ValueError: If ``max_tokens`` is ``auto`` and there is no Trainer that fits, or none of
                its callbacks chooses a number.
        """
        if self._max_tokens is None:
            self._choose_max_tokens()
        assert self._max_tokens is not None
        loader, self._described = self._described, None
        return self._train_loader(self._max_tokens) if loader is None else loader

    def val_dataloader(self) -> TokenBucketLoader | list[TokenBucketLoader]:
        """Every validation pair exactly once; no loader where training has no validation data."""
        fits = self.trainer is not None and self.trainer.state.fn == "fit"
        if fits and "val" not in self._splits:
            return []
        if fits and self._max_tokens is None and self._eval_max_tokens is None:
            self._choose_max_tokens()  # the check before training asks for these batches first
        return self._eval_loader("val")

    def test_dataloader(self) -> TokenBucketLoader:
        """Every test pair exactly once."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> TokenBucketLoader:
        """Every source to translate exactly once, without ``labels``."""
        return self._eval_loader("predict")

    @property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each split that is set up: of its texts and the tokenizer, not of any path.

        Of a stream it is that of its beginning, and of the files' sizes.
        """
        return self._splits.fingerprints

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so as to refuse another tokenizer, and to make equal batches."""
        if self._tokenizer is None:
            return {}
        return {
            "tokenizer": self._tokenizer.fingerprint,
            "src_vocab_size": self._tokenizer.src_vocab_size,
            "tgt_vocab_size": self._tokenizer.tgt_vocab_size,
            "max_tokens": self._max_tokens,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to go on with another tokenizer than the checkpoint's; takes its ``max_tokens``.

        Args:
            state_dict: What ``state_dict`` returned when the checkpoint was written.

        Raises:
            ValueError: If the tokenizers differ; at the latest in ``setup``. If ``max_tokens`` is
                ``auto`` and another number has been chosen already.
        """
        self._expected = dict(state_dict)
        if self._tokenizer is not None:
            self._check_tokenizer()
        former = state_dict.get("max_tokens")
        if self.hparams["max_tokens"] != "auto" or former in (None, self._max_tokens):
            return
        fits = self.trainer is not None and self.trainer.state.fn == "fit"
        if fits and self._max_tokens is not None:  # sharded weights are read late
            raise ValueError(
                f"max_tokens is {former} in the checkpoint, and auto has chosen "
                f"{self._max_tokens} before it was read; set data.max_tokens to {former}."
            )
        self._settle_max_tokens(former)

    def _choose_max_tokens(self) -> None:
        """Asks the Trainer's callbacks; ``data`` itself knows neither model nor device."""
        if self._splits.stream is None:
            self._splits.get("train")
        trainer = self.trainer
        if trainer is not None and trainer.state.fn == "fit":
            callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            for callback in callbacks:
                if hasattr(callback, "choose_max_tokens"):
                    self._settle_max_tokens(callback.choose_max_tokens(trainer, self._train_loader))
                    return
        raise ValueError(
            "max_tokens is 'auto', and nothing chooses the number: add litseq.MemoryCheck to "
            "trainer.callbacks, or give a number."
        )

    def _settle_max_tokens(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._described = None
        if self._splits.has_train:
            _say(self.describe())

    def _check_tokenizer(self) -> None:
        now, then = self.state_dict(), self._expected
        if then and then["tokenizer"] != now["tokenizer"]:
            raise ValueError(
                f"the data's tokenizer {now['tokenizer'][:12]} (vocabularies "
                f"{now['src_vocab_size']} and {now['tgt_vocab_size']}) is not the checkpoint's "
                f"{then['tokenizer'][:12]} ({then['src_vocab_size']} and "
                f"{then['tgt_vocab_size']}); set data.tokenizer to the checkpoint's path."
            )

    def _train_loader(self, max_tokens: int) -> TokenBucketLoader | StreamLoader:
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        if self._splits.stream is None:
            return self._loader("train", max_tokens=max_tokens, shuffle=not overfit, even=True)
        return StreamLoader(
            self._splits.stream,
            TextEncoder(self.tokenizer, self._pair_filter.max_chars),
            self._pair_filter,
            max_bad_lines=self._preparation.max_bad_lines,
            sampling=self._splits.sampling(self.tokenizer),
            shuffle_buffer=self._shuffle_buffer,
            max_tokens=max_tokens,
            shuffle=not overfit,
            lookahead=0 if self.trainer is None else 1,
            **self._loader_options(),
        )

    def _eval_loader(self, split: Split) -> TokenBucketLoader:
        max_tokens = self._eval_max_tokens or self._max_tokens or _EVAL_MAX_TOKENS
        return self._loader(split, max_tokens=max_tokens, shuffle=False, even=False)

    def _loader(
        self, split: Split, *, max_tokens: int, shuffle: bool, even: bool
    ) -> TokenBucketLoader:
        data = self._splits.get(split)
        return TokenBucketLoader(
            data.load_batch,
            data.lengths("src"),
            data.lengths("tgt") if data.with_target else None,
            ids=self._splits.train_ids if split == "train" else None,
            max_tokens=max_tokens,
            shuffle=shuffle,
            even=even,
            persistent_workers=True,
            data_fingerprint=data.fingerprint,
            **self._loader_options(),
        )

    def _loader_options(self) -> dict[str, Any]:
        """What every loader is told alike."""
        place = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return {
            "max_sentences": self._max_sentences,
            "seed": self._seed,
            "num_workers": self._num_workers,
            "pin_memory": torch.cuda.is_available(),
            "world_size": None if place is None else place["num_replicas"],
            "rank": None if place is None else place["rank"],
            "allow_other_data": self._allow_other_data,
        }


@rank_zero_only
def _say(message: str) -> None:
    _log.info("%s", message)
