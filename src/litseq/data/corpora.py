"""Parallel text from files, the Hub or the demo: checked, in file order, memory-mapped."""

import difflib
import gzip
import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray

__all__ = [
    "build_once",
    "cache_demo",
    "cache_files",
    "cache_hub",
    "cache_rows",
    "default_cache_dir",
    "hub_splits",
    "open_arrow",
    "split_by_source",
]

_FORMAT = 1  # part of every cache key: raise it when the same input gives other rows
_CHUNK = 10_000
Pair = tuple[str, str | None]


def default_cache_dir() -> Path:
    """``litseq`` below the cache of Hugging Face datasets."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "litseq"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Fills a folder unless it is there, all or nothing, whoever else does the same or is killed.

    Args:
        folder: What must exist afterwards.
        build: Writes the contents into the empty folder that it is given.

    Returns:
        ``folder``.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        build(draft)
        draft.chmod(folder.parent.stat().st_mode)  # mkdtemp keeps other users out
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same contents
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def open_arrow(folder: Path) -> datasets.Dataset:
    """Memory-maps the ``*.arrow`` files of a folder, in the order of their names."""
    parts = [datasets.Dataset.from_file(str(path)) for path in sorted(folder.glob("*.arrow"))]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def cache_files(
    sources: str | Sequence[str],
    *,
    src_lang: str,
    tgt_lang: str,
    src_column: str | None = None,
    tgt_column: str | None = None,
    need_target: bool = True,
    cache_dir: Path,
) -> Path:
    """Reads local files, one after the other, into one folder for ``open_arrow``.

    A source is the prefix of a text pair (``data/train`` for ``data/train.en`` and ``data/train.de``), or a
    ``.tsv`` (two columns), ``.jsonl`` or ``.parquet`` file; each also with ``.gz``. Without a target it may
    also be a single text file. Text lines end at "\\n" or "\\r\\n" alone; a byte order mark is dropped.

    Args:
        sources: One source or several.
        src_lang: The source's file name suffix and column name.
        tgt_lang: The target's.
        src_column: Name of the source column or key, dotted if nested; None: looked up.
        tgt_column: Name of the target's; None: looked up.
        need_target: Whether to read the target too.
        cache_dir: Where the folder is made; it is named by the files' contents.

    Returns:
        The folder; its columns are ``source`` and, if needed, ``target``.

    Raises:
        FileNotFoundError: If a file is missing; names the nearest one there is.
        ValueError: If a file is not what its name says; names file and line.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    columns = _Columns(src_lang, tgt_lang, src_column, tgt_column, need_target)
    files = [_find(name, columns) for name in names]
    if not files:
        raise ValueError("the list of files is empty.")
    parts = [[file.kind, *map(_digest, file.paths)] for file in files]
    key = _key("files", parts, columns.key)

    def pairs() -> Iterator[Pair]:
        for file in files:
            yield from _READERS[file.kind](file.paths, columns)

    return _cache_pairs(pairs(), cache_dir / "text" / key, need_target, ", ".join(names))


def cache_hub(
    name: str,
    *,
    config: str | None,
    split: str,
    src_lang: str,
    tgt_lang: str,
    src_column: str | None = None,
    tgt_column: str | None = None,
    need_target: bool = True,
    cache_dir: Path,
) -> Path:
    """Reads a split of a Hub dataset into a folder for ``open_arrow``.

    Args:
        name: The dataset's name on the Hub, or a local folder that ``datasets.load_dataset`` reads.
        config: Name of its configuration.
        split: Name of the split; a slice such as ``train[:1000]`` is fine.
        src_lang: Key of the source in a ``translation`` column, or name of its column.
        tgt_lang: The target's.
        src_column: Name of the source column, dotted if nested; None: looked up.
        tgt_column: Name of the target's; None: looked up.
        need_target: Whether to read the target too.
        cache_dir: Where the folder is made.

    Returns:
        The folder; its columns are ``source`` and, if needed, ``target``.

    Raises:
        ValueError: If the dataset cannot be loaded or lacks the columns.
    """
    where = f"{name} ({config}) [{split}]" if config else f"{name} [{split}]"
    with _explain_hub(where):
        data = datasets.load_dataset(name, config, split=split)
    columns = _Columns(src_lang, tgt_lang, src_column, tgt_column, need_target)
    tables = (table for table in data.with_format("arrow").iter(batch_size=_CHUNK))
    key = _key("hub", name, config, split, data._fingerprint, columns.key)
    return _cache_pairs(
        _table_pairs(tables, columns, where), cache_dir / "text" / key, need_target, where
    )


def hub_splits(name: str, config: str | None) -> list[str]:
    """Names of the splits of a Hub dataset.

    Args:
        name: The dataset's name.
        config: Name of its configuration.

    Raises:
        ValueError: If they cannot be found out.
    """
    with _explain_hub(name):
        return list(datasets.get_dataset_split_names(name, config))


@contextmanager
def _explain_hub(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the Hub's client raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot load dataset {where}: {reason}") from error


def cache_demo(
    *, split: Literal["train", "val", "test"], src_lang: str, tgt_lang: str, cache_dir: Path
) -> Path:
    """Unpacks a split of the built-in demo corpus into a folder for ``open_arrow``."""
    from litseq.data.demo import load_demo

    pairs = load_demo(src_lang, tgt_lang, split=split)
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    where = f"the demo's {split} split"
    return _cache_pairs(pairs, cache_dir / "text" / _key("demo", digest), True, where)


def cache_rows(folder: Path, rows: NDArray[np.int64], *, cache_dir: Path) -> Path:
    """Copies some rows of a folder of texts into one of their own, in the order given."""
    key = _key("rows", folder.name, hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest())
    data = open_arrow(folder)

    def pairs() -> Iterator[Pair]:
        for start in range(0, len(rows), _CHUNK):
            part = data[rows[start : start + _CHUNK].tolist()]
            yield from zip(part["source"], part["target"], strict=True)

    return _cache_pairs(pairs(), cache_dir / "text" / key, True, str(folder))


def split_by_source(
    sources: Iterable[str], *, val_size: int | float, test_size: int | float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cuts a corpus into training, validation and test rows by a hash of the source text.

    The same texts and seed give the same cut on every machine. Equal sources stay together, so no source
    of one part occurs in another.

    Args:
        sources: Source texts, N of them.
        val_size: Rows for validation: a number, reached or just passed so as to keep equal sources
            together, or a share below 1.
        test_size: Rows for the test, likewise.
        seed: Seed of the hash.

    Returns:
        Row numbers of training, validation and test, each ascending, int64.

    Raises:
        ValueError: If a size is negative, or nothing is left to train on.
    """
    for name, size in (("val_size", val_size), ("test_size", test_size)):
        if size < 0 or (isinstance(size, float) and size >= 1 and not size.is_integer()):
            raise ValueError(f"{name} must be a number of pairs or a share below 1, got {size}.")
    salt = seed.to_bytes(16, "big", signed=True)
    hashes = np.array([_hash(text, salt) for text in sources], dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]

    def end_of_group(start: int, size: int | float) -> int:
        end = start + (round(size * len(ranked)) if 0 < size < 1 else int(size))
        if end == start or end >= len(ranked):
            return min(end, len(ranked))
        return int(np.searchsorted(ranked, ranked[end - 1], side="right"))

    test_end = end_of_group(0, test_size)
    val_end = end_of_group(test_end, val_size)
    if val_end >= len(ranked):
        raise ValueError(
            f"val_size={val_size} and test_size={test_size} leave none of the {len(ranked):,} pairs to "
            f"train on; make them smaller."
        )
    parts = order[val_end:], order[test_end:val_end], order[:test_end]
    train, val, test = (np.sort(part).astype(np.int64) for part in parts)
    return train, val, test


def _hash(text: str, salt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=salt).digest(), "big")


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cache_pairs(pairs: Iterable[Pair], folder: Path, with_target: bool, where: str) -> Path:
    names = ["source", "target"] if with_target else ["source"]
    schema = pa.schema([(name, pa.string()) for name in names])

    def build(draft: Path) -> None:
        rows, count = iter(pairs), 0
        with (
            pa.OSFile(str(draft / "data.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            while chunk := list(islice(rows, _CHUNK)):
                sides = list(zip(*chunk, strict=True))[: len(names)]
                writer.write_batch(
                    pa.record_batch([pa.array(s, pa.string()) for s in sides], schema=schema)
                )
                count += len(chunk)
        if count == 0:
            raise ValueError(f"{where} holds 0 pairs.")

    return build_once(folder, build)


