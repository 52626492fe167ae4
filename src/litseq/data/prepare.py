"""From what a user names to folders of texts, a tokenizer and ids: each made once, and kept."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import sentencepiece

from litseq.data import corpora
from litseq.data.arrow import ArrowRows
from litseq.data.encoding import cache_tokens
from litseq.data.readers import Columns, find_file
from litseq.data.streams import FileStream, PairStream
from litseq.data.tokenizer import TranslationTokenizer

__all__ = ["SPLITS", "Preparation", "Prepared", "Split"]

_log = logging.getLogger(__name__)

Split = Literal["train", "val", "test", "predict"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "predict")
Files = str | list[str] | None

_HUB_NAMES: dict[corpora.Part, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_MAX_TOKENIZER_PAIRS = 2_000_000  # more make SentencePiece slow and its vocabulary no better


@dataclass(frozen=True)
class Prepared:
    """Where the prepared data lie: names of folders below the cache.

    Attributes:
        tokenizer: Folder in ``tokenizers``.
        texts: Folder in ``text`` for each split.
        tokens: Folder in ``tokens`` for each split.
    """

    tokenizer: str
    texts: dict[str, str]
    tokens: dict[str, str]


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared; the arguments are those of ``TranslationDataModule``.

    Raises:
        ValueError: If arguments contradict each other, or a language has an odd name.
    """

    src_lang: str
    tgt_lang: str
    dataset: str | None
    dataset_config: str | None
    train: Files
    val: Files
    test: Files
    predict: Files
    src_column: str | None
    tgt_column: str | None
    val_size: int | float
    test_size: int | float
    seed: int
    tokenizer: str | None
    tokenizer_options: dict[str, Any]
    max_chars: int
    max_bad_lines: int
    num_proc: int | None
    cache_dir: Path
    streaming: bool = False

    def __post_init__(self) -> None:
        for name, lang in (("src_lang", self.src_lang), ("tgt_lang", self.tgt_lang)):
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", lang):
                raise ValueError(
                    f"{name} must be letters, digits, '.', '_' or '-', 100 at most, got {lang!r}."
                )
        cuts = self.val_size or self.test_size
        if self.is_demo and (self.train or self.val or self.test or cuts):
            raise ValueError(
                "the demo brings its own train, val and test; leave these and their sizes out."
            )
        for name, files, size in (
            ("val", self.val, self.val_size),
            ("test", self.test, self.test_size),
        ):
            if files and size:
                raise ValueError(f"give {name}={files!r} or {name}_size={size}, not both.")
        if self.streaming and (self.is_demo or cuts):
            reason = (
                "val_size and test_size cut it before"
                if cuts
                else "the demo is prepared as a whole"
            )
            raise ValueError(
                f"streaming reads train while one trains, but {reason}; give train, val and test "
                f"as files or as splits of a dataset."
            )
        if cuts and self.dataset is None and not self.train:
            raise ValueError("val_size and test_size cut the training data; give train too.")

    @property
    def is_demo(self) -> bool:
        """Whether the built-in corpus is meant: by name, or because nothing else is named."""
        names_data = self.train or self.val or self.test or (self.predict and self.tokenizer)
        return self.dataset == "demo" or (self.dataset is None and not names_data)

    def run(self, wanted: Collection[Split]) -> Prepared:
        """Prepares splits, as far as there are data for them, and notes it where ``find`` looks.

        Args:
            wanted: The splits that will be used. Training data are also read where a tokenizer
                must be trained.

        Raises:
            ValueError: If data are faulty, or there is nothing to train a tokenizer on.
            FileNotFoundError: If a file is missing.
        """
        needed = wanted if self.tokenizer else {*wanted, "train"}
        found = {split: self._cache_texts(split) for split in SPLITS if split in needed}
        tokenizer_folder = self._cache_tokenizer(found.get("train"))
        tokenizer = TranslationTokenizer.load(tokenizer_folder)
        texts = {split: folder for split, folder in found.items() if folder and split in wanted}
        if self.streaming:
            texts.pop("train", None)  # as far as the tokenizer was trained on
        tokens = {
            split: cache_tokens(
                folder,
                tokenizer,
                max_chars=self.max_chars,
                num_proc=self.num_proc,
                cache_dir=self.cache_dir,
                desc=f"Encoding {split}",
            )
            for split, folder in texts.items()
        }
        prepared = Prepared(
            tokenizer=tokenizer_folder.name,
            texts={split: folder.name for split, folder in texts.items()},
            tokens={split: folder.name for split, folder in tokens.items()},
        )
        self._write(prepared, wanted)
        return prepared

    def find(self) -> Prepared:
        """Reads what every ``run`` noted, in this process or another.

        Raises:
            FileNotFoundError: If nothing was prepared with these arguments.
        """
        current = self._note("tokenizer")
        if not current.exists():
            raise FileNotFoundError(
                f"the data are not prepared in {self.cache_dir}; call prepare_data() first."
            )
        tokenizer = json.loads(current.read_text(encoding="utf-8"))
        notes = {split: self._note(split) for split in SPLITS}
        found = {
            split: json.loads(note.read_text(encoding="utf-8"))
            for split, note in notes.items()
            if note.exists()
        }
        # Ids of another tokenizer are left from before the training data changed.
        found = {s: row for s, row in found.items() if row["tokenizer"] == tokenizer}
        return Prepared(
            tokenizer=tokenizer,
            texts={s: row["texts"] for s, row in found.items() if row["texts"]},
            tokens={s: row["tokens"] for s, row in found.items() if row["tokens"]},
        )

    def folders(self, prepared: Prepared, split: str) -> tuple[Path, Path]:
        """The folders of a split's texts and ids."""
        return (
            self.cache_dir / "text" / prepared.texts[split],
            self.cache_dir / "tokens" / prepared.tokens[split],
        )

    def stream(self) -> PairStream:
        """The training pairs, to be read while one trains.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If there are none, or the dataset cannot be loaded.
        """
        columns = self._columns(need_target=True)
        if self.dataset is not None:
            names = self._hub_names("train")
            if not names:
                raise ValueError(f"dataset {self.dataset} has no training split; name it: train.")
            return corpora.stream_hub(
                self.dataset, config=self.dataset_config, splits=names, columns=columns
            )
        if not self.train:
            raise ValueError("streaming needs train: files, or splits of a dataset.")
        return FileStream([find_file(name, columns) for name in self._given("train")], columns)

    def load_tokenizer(self, prepared: Prepared) -> TranslationTokenizer:
        """The tokenizer that the ids were made with, for the languages of these data."""
        tokenizer = TranslationTokenizer.load(self.cache_dir / "tokenizers" / prepared.tokenizer)
        # A model may serve several pairs, and a bare ``.model`` does not name its own.
        tokenizer.src_lang, tokenizer.tgt_lang = self.src_lang, self.tgt_lang
        return tokenizer

    def _note(self, name: str) -> Path:
        given = (self.train, self.val, self.test, self.predict, self.tokenizer, self.dataset)
        names = chain.from_iterable([n] if isinstance(n, str) else n or () for n in given)
        # Relative names mean other files in another folder.
        cwd = None if all(map(os.path.isabs, names)) else os.getcwd()
        arguments = {**asdict(self), "cache_dir": None, "num_proc": None, "cwd": cwd}
        return self.cache_dir / "prepared" / f"{_key(arguments)}.{name}.json"

    def _write(self, prepared: Prepared, wanted: Collection[Split]) -> None:
        # A note for each split: what was prepared for another stage, at whatever time, stays.
        notes: dict[str, Any] = {
            split: {
                "tokenizer": prepared.tokenizer,
                "texts": prepared.texts.get(split),
                "tokens": prepared.tokens.get(split),
            }
            for split in wanted
        }
        for name, content in {**notes, "tokenizer": prepared.tokenizer}.items():
            note, text = self._note(name), json.dumps(content)
            if note.exists() and note.read_bytes() == text.encode():
                continue  # the cache may be shared, and closed to writing
            note.parent.mkdir(parents=True, exist_ok=True)
            draft = note.with_suffix(f".{uuid4().hex}.draft")  # the cache may be on many machines
            draft.write_text(text, encoding="utf-8")
            draft.replace(note)

    def _cache_texts(self, split: Split) -> Path | None:
        """The folder of a split's texts; None where no data are named for it."""
        if split == "train" and self.streaming:
            return self._cache_head()
        if split == "predict":
            if self.predict is None:
                return self._cache_texts("test")
            return self._cache_files(self.predict, need_target=False)
        if self.is_demo:
            langs = {"src_lang": self.src_lang, "tgt_lang": self.tgt_lang}
            return corpora.cache_demo(split, **langs, cache_dir=self.cache_dir)
        sizes = {"train": self.val_size or self.test_size}
        sizes |= {"val": self.val_size, "test": self.test_size}
        return self._cache_cut(split) if sizes[split] else self._cache_given(split)

    def _cache_given(self, split: corpora.Part) -> Path | None:
        if self.dataset is None:
            given = self._given(split)
            return self._cache_files(given, need_target=True) if given else None
        names = "+".join(self._hub_names(split))  # the Hub's way to join
        if not names:
            return None
        folder = corpora.cache_hub(
            self.dataset,
            config=self.dataset_config,
            split=names,
            columns=self._columns(need_target=True),
            max_bad_lines=self.max_bad_lines,
            cache_dir=self.cache_dir,
        )
        _warn_of_bad_lines(folder, f"{self.dataset} [{names}]")
        return folder

    def _given(self, split: corpora.Part) -> list[str]:
        given: Files = {"train": self.train, "val": self.val, "test": self.test}[split]
        return [given] if isinstance(given, str) else given or []

    def _hub_names(self, split: corpora.Part) -> list[str]:
        """The splits of the dataset that are meant; none, if it has none of that kind."""
        assert self.dataset is not None
        if given := self._given(split):
            return given
        there = corpora.hub_splits(self.dataset, self.dataset_config)
        return [name for name in _HUB_NAMES[split] if name in there][:1]

    def _cache_head(self) -> Path | None:
        """What the tokenizer learns from, if one is to be trained; finds missing files anyway."""
        stream = self.stream()
        if self.tokenizer is not None:
            return None
        _log.info("streaming: the tokenizer learns from the first %d pairs.", _MAX_TOKENIZER_PAIRS)
        return corpora.cache_head(
            stream,
            _MAX_TOKENIZER_PAIRS,
            max_bad_lines=self.max_bad_lines,
            cache_dir=self.cache_dir,
        )

    def _cache_files(self, names: str | list[str], *, need_target: bool) -> Path:
        folder = corpora.cache_files(
            names,
            columns=self._columns(need_target=need_target),
            # as many predictions as lines
            max_bad_lines=self.max_bad_lines if need_target else 0,
            cache_dir=self.cache_dir,
        )
        _warn_of_bad_lines(folder, names)
        return folder

    def _columns(self, *, need_target: bool) -> Columns:
        return Columns(
            src_lang=self.src_lang,
            tgt_lang=self.tgt_lang,
            src_column=self.src_column,
            tgt_column=self.tgt_column,
            need_target=need_target,
        )

    def _cache_cut(self, part: corpora.Part) -> Path:
        whole = self._cache_given("train")
        if whole is None:
            raise ValueError(
                f"dataset {self.dataset} has no training split to cut; name it: train."
            )
        return corpora.cache_cut(
            whole,
            part,
            val_size=self.val_size,
            test_size=self.test_size,
            seed=self.seed,
            cache_dir=self.cache_dir,
        )

    def _cache_tokenizer(self, texts: Path | None) -> Path:
        folder = self.cache_dir / "tokenizers"
        if self.tokenizer is not None:
            given = TranslationTokenizer.load(self.tokenizer)
            return corpora.build_once(folder / given.fingerprint[:32], given.save)
        if texts is None:
            raise ValueError(
                "there is no tokenizer: give train, to train one, or tokenizer, to load one."
            )
        # Another version of the library may learn another vocabulary.
        learned_from = [texts.name, self.src_lang, self.tgt_lang, sentencepiece.__version__]
        key = _key([learned_from, self.tokenizer_options])
        return corpora.build_once(folder / key, lambda draft: self._train(texts).save(draft))

    def _train(self, texts: Path) -> TranslationTokenizer:
        data, rows = ArrowRows(texts), None
        if len(data) > _MAX_TOKENIZER_PAIRS:
            _log.info("training the tokenizer on %d of %d pairs.", _MAX_TOKENIZER_PAIRS, len(data))
            rows = np.linspace(0, len(data) - 1, _MAX_TOKENIZER_PAIRS).astype(np.int64)
        return TranslationTokenizer.train(
            data.iter_texts("source", rows),
            data.iter_texts("target", rows),
            src_lang=self.src_lang,
            tgt_lang=self.tgt_lang,
            **self.tokenizer_options,
        )


def _warn_of_bad_lines(folder: Path, names: object) -> None:
    if (listed := folder / corpora.BAD_LINES).exists():
        count = listed.read_bytes().count(b"\n")
        _log.warning("%s: %d bad lines were skipped, see %s", names, count, listed)


def _key(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
