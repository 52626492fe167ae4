"""Text pairs out of files: found, decoded and checked line by line."""

import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from litseq.data.drift import Drift

__all__ = [
    "Columns",
    "Pair",
    "PairFile",
    "find_file",
    "iter_file",
    "iter_tables",
    "read_file",
    "read_tables",
    "sound_pairs",
]

Pair = tuple[str, str | None]
Kind = Literal["text", "tsv", "jsonl", "parquet"]

_BATCH = 10_000  # rows of a Parquet file in memory at a time
# As which damage shows; an OSError of Arrow's has no number.
_PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class Columns:
    """Which file name suffixes, columns or keys hold the two texts.

    Attributes:
        src_lang: Language of the source.
        tgt_lang: Language of the target.
        src_column: Name of the source column, dotted if nested; None: looked up.
        tgt_column: Name of the target column; None: looked up.
        need_target: Whether the target is read.
    """

    src_lang: str
    tgt_lang: str
    src_column: str | None
    tgt_column: str | None
    need_target: bool

    def find(self, names: Sequence[str], where: str) -> list[str]:
        """Chooses the source's and, if needed, the target's column.

        Args:
            names: The columns there are; nested ones dotted.
            where: What an error message calls the place.

        Raises:
            ValueError: If a column is missing; lists those that are there.
        """
        found = [_find_column("src", "source", self.src_column, self.src_lang, names, where)]
        if self.need_target:
            found.append(
                _find_column("tgt", "target", self.tgt_column, self.tgt_lang, names, where)
            )
        return found


def _find_column(
    side: str, word: str, given: str | None, lang: str, names: Sequence[str], where: str
) -> str:
    wanted = [given] if given else [f"translation.{lang}", lang, word, side]
    for name in wanted:
        if name in names:
            return name
    raise ValueError(
        f"{where}: no column {' or '.join(map(repr, wanted))} among "
        f"{', '.join(map(repr, names))}; name it with {side}_column."
    )


@dataclass(frozen=True)
class PairFile:
    """One file of pairs, or two text files side by side.

    Attributes:
        kind: How it is read.
        paths: The file or the two files.
    """

    kind: Kind
    paths: tuple[Path, ...]


_KINDS: dict[str, Kind] = {
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}


def find_file(name: str, columns: Columns) -> PairFile:
    """Finds what a name stands for.

    Args:
        name: A ``.tsv``, ``.jsonl`` or ``.parquet`` file, or the prefix of text files that end in
            the languages; each also with ``.gz``. Where no target is needed, also one text file.
        columns: The languages.

    Raises:
        FileNotFoundError: If a file is missing; names the nearest one there is.
        ValueError: If the name stands for something else, such as a folder.
    """
    path = Path(name)
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    if kind := _KINDS.get(bare.suffix):
        return PairFile(kind, (_existing(path),))
    langs = [columns.src_lang, columns.tgt_lang] if columns.need_target else [columns.src_lang]
    sides = [Path(f"{name}.{lang}") for lang in langs]
    zipped = [Path(f"{name}.{lang}.gz") for lang in langs]
    found = [a if a.exists() or not b.exists() else b for a, b in zip(sides, zipped, strict=True)]
    if not any(side.exists() for side in found):
        if path.is_dir():
            raise ValueError(f"{path} is a directory; give a file, or the prefix of text files.")
        if path.is_file() and not columns.need_target:
            return PairFile("text", (path,))
        if path.is_file():
            raise ValueError(
                f"{path} is a single file of unknown kind; give the prefix of a text pair, or a "
                f".tsv, .jsonl or .parquet file."
            )
    return PairFile("text", tuple(map(_existing, found)))


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give a file, or the prefix of text files.")
    if path.is_file():
        return path
    if path.exists():
        raise ValueError(f"{path} is no regular file; write it to disk first.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} is missing: there is no folder {path.parent}.")
    there = sorted(p.name for p in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else "no name in that folder is like it"
    raise FileNotFoundError(f"{path} is missing, with and without .gz; {hint}.")


def read_file(
    file: PairFile, columns: Columns, *, skip: Callable[[ValueError], None] | None = None
) -> Iterator[Pair]:
    """Reads the pairs of a file in order; None for a target that is not needed.

    Text lines end at LF or CRLF alone; a byte order mark at the start is dropped.

    Args:
        file: What ``find_file`` found.
        columns: Which columns to read.
        skip: Called with what is wrong with a line, which is then left out with its partner; it may
            raise the error. None: the first such line is an error.

    Raises:
        ValueError: If the contents are not what they should be; names file and line.
    """
    return sound_pairs(iter_file(file, columns), skip)


def iter_file(file: PairFile, columns: Columns) -> Iterator[Pair | ValueError]:
    """Reads as ``read_file`` does; an error, not raised, stands in the place of each bad line.

    Raises:
        ValueError: If not a line but the file is faulty.
    """
    return _READERS[file.kind](file.paths, columns)


def sound_pairs(
    items: Iterable[Pair | ValueError], skip: Callable[[ValueError], None] | None
) -> Iterator[Pair]:
    """The pairs among pairs and errors; ``skip`` is as in ``read_file``."""
    for item in items:
        if not isinstance(item, ValueError):
            yield item
        elif skip is None:
            raise item
        else:
            skip(item)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Opens a plain or gzipped file and explains what is wrong with a damaged one."""
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except EOFError as error:
        raise ValueError(f"{path} is truncated: its gzip data end early; copy it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or not gzip ({error}); copy it again.") from error


def _lines(path: Path) -> Iterator[str | ValueError]:
    """The lines of a file; an error, not raised, in the place of each that is no text."""
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):  # bytes: lines end at "\n" alone
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise ValueError(f"{path} looks like UTF-16; convert it to UTF-8.")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            yield _decode(raw, f"{path}:{number}")


def _decode(raw: bytes, where: str) -> str | ValueError:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return ValueError(
            f"{where}: byte {error.start + 1} of the line is 0x{raw[error.start]:02x}, which is "
            f"not UTF-8; convert the file to UTF-8."
        )
    if b"\0" in raw:
        many = "; is the file UTF-16?" if 3 * raw.count(0) > len(raw) else "; remove it."
        return ValueError(f"{where}: byte {raw.index(0) + 1} of the line is NUL{many}")
    return line.removesuffix("\n").removesuffix("\r")


def _read_text(paths: Sequence[Path], columns: Columns) -> Iterator[Pair | ValueError]:
    if len(paths) == 1:
        for line in _lines(paths[0]):
            yield line if isinstance(line, ValueError) else (line, None)
        return
    counts = [0, 0]
    drift = Drift()
    for source, target in zip_longest(*map(_lines, paths)):
        counts[0] += source is not None
        counts[1] += target is not None
        if isinstance(source, ValueError):
            yield source
        elif isinstance(target, ValueError):
            yield target
        elif counts[0] == counts[1]:
            drift.see(len(source), len(target))
            yield source, target
    if counts[0] != counts[1]:
        raise ValueError(
            f"{paths[0]} has {counts[0]:,} lines and {paths[1]} has {counts[1]:,}; line N of one "
            f"must translate line N of the other{drift.hint()}."
        )


def _read_tsv(paths: Sequence[Path], columns: Columns) -> Iterator[Pair | ValueError]:
    for number, line in enumerate(_lines(paths[0]), start=1):
        if isinstance(line, ValueError):
            yield line
            continue
        fields = line.split("\t")
        if len(fields) != 2 and (columns.need_target or len(fields) != 1):
            yield ValueError(
                f"{paths[0]}:{number}: expected source and target with one tab between, found "
                f"{len(fields) - 1} tabs."
            )
            continue
        yield fields[0], fields[1] if columns.need_target else None


def _read_jsonl(paths: Sequence[Path], columns: Columns) -> Iterator[Pair | ValueError]:
    names: list[str] = []
    for number, line in enumerate(_lines(paths[0]), start=1):
        where = f"{paths[0]}:{number}"
        try:
            if isinstance(line, ValueError):
                raise line
            if not line.strip():
                continue
            flat = _flatten(_record(line, where))
            names = names or columns.find(list(flat), where)
            for name in names:
                if name not in flat:
                    raise ValueError(f"{where}: key {name!r} is missing.")
            yield _pair([_check_text(flat[name], where, name) for name in names])
        except ValueError as error:
            yield error


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValueError) and line.lstrip().startswith("["):
            raise ValueError(f"{where}: an array begins; give one JSON object a line.") from error
        raise ValueError(f"{where}: not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    return record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in record if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return record


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": item for key, item in inner.items()} or {name: value}
    return flat


def _read_parquet(paths: Sequence[Path], columns: Columns) -> Iterator[Pair | ValueError]:
    path = paths[0]
    try:
        with _open(path) as file:
            zipped = path.suffix == ".gz"
            parquet = pq.ParquetFile(pa.BufferReader(file.read()) if zipped else path)
        tables = (pa.Table.from_batches([batch]) for batch in parquet.iter_batches(_BATCH))
        yield from iter_tables(tables, columns, str(path))
    except _PARQUET_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's own
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not Parquet, or is damaged ({reason}).") from error


def read_tables(
    tables: Iterable[Any],
    columns: Columns,
    where: str,
    *,
    skip: Callable[[ValueError], None] | None = None,
) -> Iterator[Pair]:
    """Reads pairs out of ``pyarrow.Table`` objects.

    Args:
        tables: One after the other.
        columns: Which columns to read; of a struct such as ``translation`` its fields.
        where: What error messages call the place.
        skip: As in ``read_file``.

    Raises:
        ValueError: If a column is missing or holds something else than text; names the row.
    """
    return sound_pairs(iter_tables(tables, columns, where), skip)


def iter_tables(
    tables: Iterable[Any], columns: Columns, where: str, *, first: int = 0
) -> Iterator[Pair | ValueError]:
    """Reads as ``read_tables`` does; an error, not raised, stands in the place of each bad row.

    Args:
        tables: One after the other.
        columns: Which columns to read.
        where: What error messages call the place.
        first: Number of the first row.

    Raises:
        ValueError: If a column is missing.
    """
    row = first
    for table in tables:
        flat = table.flatten()  # translation: {en, de} becomes translation.en, translation.de
        names = columns.find(flat.column_names, where)
        for texts in zip(*(flat.column(name).to_pylist() for name in names), strict=True):
            try:
                yield _pair(
                    [
                        _check_text(text, f"{where}, row {row}", name)
                        for text, name in zip(texts, names, strict=True)
                    ]
                )
            except ValueError as error:
                yield error
            row += 1


def _pair(texts: Sequence[str]) -> Pair:
    return texts[0], texts[1] if len(texts) == 2 else None


def _check_text(text: object, where: str, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{where}: {name!r} must be text, found {type(text).__name__}.")
    if "\0" in text:
        raise ValueError(f"{where}: {name!r} holds NUL at character {text.index(chr(0)) + 1}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {name!r} holds half a surrogate pair at character {error.start + 1}."
        ) from error
    return text


_READERS: dict[Kind, Callable[[Sequence[Path], Columns], Iterator[Pair | ValueError]]] = {
    "text": _read_text,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
