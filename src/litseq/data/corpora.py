"""Parallel text from files, the Hub or the demo: read once, kept in Arrow files, memory-mapped."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from litseq.data.arrow import ArrowRows
from litseq.data.readers import Columns, Pair, find_file, read_file, read_tables, sound_pairs
from litseq.data.streams import HubStream, PairStream, digest_of

__all__ = [
    "BAD_LINES",
    "TEXTS",
    "build_once",
    "cache_cut",
    "cache_demo",
    "cache_files",
    "cache_head",
    "cache_hub",
    "default_cache_dir",
    "hub_splits",
    "split_by_source",
    "stream_hub",
]

_FORMAT = 1  # part of every cache key: raise it when the same input gives other rows
_CHUNK = 10_000  # rows in memory at a time

TEXTS = "texts.arrow"
"""The one file with the texts of a folder."""

BAD_LINES = "bad_lines.txt"
"""Beside the texts of a folder: the lines that were left out, with file, number and reason."""

Part = Literal["train", "val", "test"]


def default_cache_dir() -> Path:
    """``litseq`` below the cache of Hugging Face datasets, as its environment variables say."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    home = Path(os.environ.get("HF_HOME", home))
    return Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser() / "litseq"


def build_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """Fills a folder unless it is there: all or nothing, whoever else does the same or is killed.

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


def cache_files(
    names: str | Sequence[str], *, columns: Columns, max_bad_lines: int = 0, cache_dir: Path
) -> Path:
    """Reads local files, one after the other, into one folder for ``ArrowRows``.

    Args:
        names: One name or several, as ``readers.find_file`` takes them.
        columns: Languages, columns, and whether the target is needed.
        max_bad_lines: So many lines that cannot be read are left out with their partners, and
            listed in the folder's ``BAD_LINES``; one more is an error.
        cache_dir: Where the folder is made; the files' contents name it.

    Returns:
        The folder; its columns are ``source`` and, if needed, ``target``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is faulty or all are empty.
    """
    names = [names] if isinstance(names, str) else list(names)
    files = [find_file(name, columns) for name in names]
    contents = [[file.kind, *map(_digest, file.paths)] for file in files]
    bad, skip = _tolerate(max_bad_lines)
    limit = [max_bad_lines] if max_bad_lines else []
    return _cache_pairs(
        (pair for file in files for pair in read_file(file, columns, skip=skip)),
        cache_dir / "text" / _key("files", contents, astuple(columns), *limit),
        columns.need_target,
        ", ".join(str(path) for file in files for path in file.paths),
        bad=bad,
    )


def _tolerate(max_bad_lines: int) -> tuple[list[ValueError], Callable[[ValueError], None]]:
    """The bad lines so far, and what takes one more or raises it."""
    bad: list[ValueError] = []

    def skip(error: ValueError) -> None:
        if len(bad) == max_bad_lines:
            more = f" ({max_bad_lines} bad lines before it were skipped)" if bad else ""
            raise ValueError(f"{error}{more}")
        bad.append(error)

    return bad, skip


def cache_hub(
    name: str,
    *,
    config: str | None,
    split: str,
    columns: Columns,
    max_bad_lines: int = 0,
    cache_dir: Path,
) -> Path:
    """Reads a split of a Hub dataset into a folder for ``ArrowRows``.

    Args:
        name: The dataset's name, or a local folder that ``datasets.load_dataset`` reads.
        config: Name of its configuration.
        split: Name of the split; a slice such as ``train[:1000]`` is fine.
        columns: Languages, columns, and whether the target is needed.
        max_bad_lines: As in ``cache_files``.
        cache_dir: Where the folder is made.

    Returns:
        The folder; its columns are ``source`` and, if needed, ``target``.

    Raises:
        ValueError: If the dataset cannot be loaded or lacks the columns.
    """
    where = _where(name, config, split)
    with _explain_hub(where) as datasets:
        data = datasets.load_dataset(name, config, split=split)
    bad, skip = _tolerate(max_bad_lines)
    limit = [max_bad_lines] if max_bad_lines else []
    return _cache_pairs(
        read_tables(data.with_format("arrow").iter(batch_size=_CHUNK), columns, where, skip=skip),
        cache_dir / "text" / _key("hub", where, data._fingerprint, astuple(columns), *limit),
        columns.need_target,
        where,
        bad=bad,
    )


def stream_hub(
    name: str, *, config: str | None, splits: Sequence[str], columns: Columns
) -> HubStream:
    """Opens splits of a Hub dataset, one after the other, without storing them.

    Args:
        name: The dataset's name, or a local folder that ``datasets.load_dataset`` reads.
        config: Name of its configuration.
        splits: Names of the splits.
        columns: Languages, columns, and whether the target is needed.

    Raises:
        ValueError: If the dataset cannot be loaded.
    """
    where = _where(name, config, "+".join(splits))
    with _explain_hub(where) as datasets:
        parts = [datasets.load_dataset(name, config, split=s, streaming=True) for s in splits]
        data = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return HubStream(data, where, columns)


def cache_head(
    stream: PairStream, num_pairs: int, *, max_bad_lines: int = 0, cache_dir: Path
) -> Path:
    """Reads the first pairs of a stream into a folder for ``ArrowRows``.

    Args:
        stream: Where they come from.
        num_pairs: How many at most.
        max_bad_lines: As in ``cache_files``.
        cache_dir: Where the folder is made.

    Raises:
        ValueError: If a line is faulty, or there is none.
    """
    bad, skip = _tolerate(max_bad_lines)
    return _cache_pairs(
        islice(sound_pairs(stream.pairs(), skip), num_pairs),
        cache_dir / "text" / _key("head", stream.fingerprint, num_pairs, max_bad_lines),
        True,
        "train",
        bad=bad,
    )


def hub_splits(name: str, config: str | None) -> list[str]:
    """Names of the splits of a Hub dataset.

    Args:
        name: The dataset's name.
        config: Name of its configuration.

    Raises:
        ValueError: If they cannot be found out.
    """
    with _explain_hub(name) as datasets:
        return list(datasets.get_dataset_split_names(name, config))


def _where(name: str, config: str | None, split: str) -> str:
    return f"{name} ({config}) [{split}]" if config else f"{name} [{split}]"


@contextmanager
def _explain_hub(where: str) -> Iterator[Any]:
    import datasets  # half a second: who has all in the cache does without

    try:
        yield datasets
    except Exception as error:  # the Hub's client raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot load dataset {where}: {reason}") from error


def cache_demo(part: Part, *, src_lang: str, tgt_lang: str, cache_dir: Path) -> Path:
    """Unpacks a part of the built-in demo corpus into a folder for ``ArrowRows``."""
    from litseq.data.demo import load_demo

    pairs = load_demo(src_lang, tgt_lang, split=part)
    folder = cache_dir / "text" / _key("demo", pairs)
    return _cache_pairs(pairs, folder, True, f"the demo's {part} split")


def cache_cut(
    whole: Path,
    part: Part,
    *,
    val_size: int | float,
    test_size: int | float,
    seed: int,
    cache_dir: Path,
) -> Path:
    """Copies one part of a folder of texts, as ``split_by_source`` cuts it, into its own folder.

    Args:
        whole: A folder with ``source`` and ``target``.
        part: Which part.
        val_size: Size of the validation part.
        test_size: Size of the test part.
        seed: Seed of the cut.
        cache_dir: Where the folder is made.

    Raises:
        ValueError: As ``split_by_source`` says.
    """
    key = _key("cut", whole.name, part, val_size, test_size, seed)

    def pairs() -> Iterator[Pair]:
        data = ArrowRows(whole)
        train, val, test = split_by_source(
            data.iter_texts("source"), val_size=val_size, test_size=test_size, seed=seed
        )
        rows = {"train": train, "val": val, "test": test}[part]
        yield from zip(
            data.iter_texts("source", rows), data.iter_texts("target", rows), strict=True
        )

    return _cache_pairs(pairs(), cache_dir / "text" / key, True, f"the {part} part")


def split_by_source(
    sources: Iterable[str], *, val_size: int | float, test_size: int | float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cuts a corpus into training, validation and test rows by a hash of the source text.

    The same texts and seed give the same cut on every machine, whatever their order. Equal sources
    stay together, so no source of one part occurs in another.

    Args:
        sources: Source texts, N of them.
        val_size: Rows for validation: a share below 1, or a number, which is passed where equal
            sources must stay together.
        test_size: Rows for the test, likewise.
        seed: Seed of the hash.

    Returns:
        Row numbers of training, validation and test, each ascending, int64.

    Raises:
        ValueError: If a size is negative, or nothing is left to train on.
    """
    for name, size in (("val_size", val_size), ("test_size", test_size)):
        if size < 0 or (size > 1 and size != int(size)):
            raise ValueError(f"{name} must be a number of pairs or a share below 1, got {size}.")
    salt = seed.to_bytes(16, "big", signed=True)
    hashes = np.array([_hash(text, salt) for text in sources], dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]

    def end_of(start: int, size: int | float) -> int:
        end = start + (round(size * len(ranked)) if size < 1 else int(size))
        if end in (0, start) or end >= len(ranked):
            return end
        return int(np.searchsorted(ranked, ranked[end - 1], side="right"))

    test_end = end_of(0, test_size)
    val_end = end_of(test_end, val_size)
    if val_end >= len(ranked):
        raise ValueError(
            f"val_size={val_size} and test_size={test_size} leave none of the {len(ranked):,} "
            f"pairs to train on; make them smaller."
        )
    parts = order[val_end:], order[test_end:val_end], order[:test_end]
    train, val, test = (np.sort(part).astype(np.int64) for part in parts)
    return train, val, test


def _hash(text: str, salt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=salt).digest(), "big")


def _key(*parts: object) -> str:
    return digest_of(_FORMAT, *parts)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cache_pairs(
    pairs: Iterable[Pair],
    folder: Path,
    with_target: bool,
    where: str,
    *,
    bad: Sequence[ValueError] = (),
) -> Path:
    names = ["source", "target"] if with_target else ["source"]
    schema = pa.schema([(name, pa.string()) for name in names])

    def build(draft: Path) -> None:
        rows, count = iter(pairs), 0
        with (
            pa.OSFile(str(draft / TEXTS), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            while chunk := list(islice(rows, _CHUNK)):
                sides = list(zip(*chunk, strict=True))[: len(names)]
                arrays = [pa.array(side, pa.string()) for side in sides]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
                count += len(chunk)
        if count == 0:
            raise ValueError(f"{where}: 0 pairs; there is nothing to read.")
        if bad:
            text = "".join(f"{' '.join(str(error).split())}\n" for error in bad)
            (draft / BAD_LINES).write_text(text, encoding="utf-8")

    return build_once(folder, build)
