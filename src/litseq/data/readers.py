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

__all__ = ["Columns", "Pair", "PairFile", "find_file", "read_file", "read_tables"]

Pair = tuple[str, str | None]
Kind = Literal["text", "tsv", "jsonl", "parquet"]

_BATCH = 10_000  # rows of a Parquet file in memory at a time


@dataclass(frozen=True)
class Columns:
    """Which columns or keys hold the two texts."""

    src_lang: str
    tgt_lang: str
    src_column: str | None
    tgt_column: str | None
    need_target: bool

    @property
    def key(self) -> list[object]:
        return [*vars(self).values()]

    def find(self, names: Sequence[str], where: str) -> list[str]:
        """The names of the source's column and, if needed, the target's."""
        found = [self._find_side("src", self.src_column, self.src_lang, names, where)]
        if self.need_target:
            found.append(self._find_side("tgt", self.tgt_column, self.tgt_lang, names, where))
        return found

    @staticmethod
    def _find_side(
        side: str, column: str | None, lang: str, names: Sequence[str], where: str
    ) -> str:
        long_name = {"src": "source", "tgt": "target"}[side]
        wanted = [column] if column else [f"translation.{lang}", lang, long_name, side]
        for name in wanted:
            if name in names:
                return name
        raise ValueError(
            f"{where}: no column {' or '.join(map(repr, wanted))}, only {', '.join(map(repr, names))}; "
            f"name it with {side}_column."
        )


@dataclass(frozen=True)
class PairFile:
    kind: str
    paths: tuple[Path, ...]


_KINDS = {".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


def find_file(name: str, columns: Columns) -> PairFile:
    """Finds the file or files that a name stands for."""
    path = Path(name)
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    if kind := _KINDS.get(bare.suffix):
        return PairFile(kind, (_existing(path, [path]),))
    langs = [columns.src_lang, columns.tgt_lang] if columns.need_target else [columns.src_lang]
    candidates = [[Path(f"{name}.{lang}"), Path(f"{name}.{lang}.gz")] for lang in langs]
    if not columns.need_target and path.is_file() and not any(p.is_file() for p in candidates[0]):
        return PairFile("text", (path,))
    return PairFile("text", tuple(_existing(path, either) for either in candidates))


def _existing(given: Path, candidates: Sequence[Path]) -> Path:
    for path in candidates:
        if path.is_dir():
            raise ValueError(f"{path} is a directory; give a file, or the prefix of a text pair.")
        if path.is_file():
            return path
        if path.exists():
            raise ValueError(f"{path} is not a regular file.")
    wanted = candidates[0]
    if given.is_dir():
        raise ValueError(
            f"{given} is a directory; give a file, or the prefix of a text pair ({wanted} is missing)."
        )
    if not wanted.parent.is_dir():
        raise FileNotFoundError(f"{wanted} is missing: there is no folder {wanted.parent}.")
    there = sorted(p.name for p in wanted.parent.iterdir())
    near = difflib.get_close_matches(wanted.name, there, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else "no name there is like it"
    also = "".join(f" (nor {path.name})" for path in candidates[1:])
    raise FileNotFoundError(f"{wanted} is missing{also}; {hint}.")


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


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):  # bytes: lines end at "\n" alone
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise ValueError(f"{path} looks like UTF-16; convert it to UTF-8.")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not "
                    f"UTF-8; convert the file to UTF-8."
                ) from error
            if b"\0" in raw:
                raise ValueError(
                    f"{path}:{number}: byte {raw.index(0) + 1} of the line is NUL; remove it."
                )
            yield line.removesuffix("\n").removesuffix("\r")


def _read_text(paths: Sequence[Path], columns: Columns) -> Iterator[Pair]:
    if len(paths) == 1:
        yield from ((line, None) for line in _lines(paths[0]))
        return
    counts = [0, 0]
    for source, target in zip_longest(*map(_lines, paths)):
        counts[0] += source is not None
        counts[1] += target is not None
        if counts[0] == counts[1]:
            yield source, target
    if counts[0] != counts[1]:
        raise ValueError(
            f"{paths[0]} has {counts[0]:,} lines and {paths[1]} has {counts[1]:,}; line N of one must "
            f"translate line N of the other."
        )


def _read_tsv(paths: Sequence[Path], columns: Columns) -> Iterator[Pair]:
    for number, line in enumerate(_lines(paths[0]), start=1):
        fields = line.split("\t")
        if len(fields) != 2 and (columns.need_target or len(fields) != 1):
            raise ValueError(
                f"{paths[0]}:{number}: expected source and target with one tab between, found "
                f"{len(fields) - 1} tabs."
            )
        yield fields[0], fields[1] if columns.need_target else None


def _read_jsonl(paths: Sequence[Path], columns: Columns) -> Iterator[Pair]:
    names: list[str] = []
    for number, line in enumerate(_lines(paths[0]), start=1):
        where = f"{paths[0]}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error}).") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(record).__name__}.")
        flat = _flatten(record)
        names = names or columns.find(list(flat), where)
        for name in names:
            if name not in flat:
                raise ValueError(f"{where}: key {name!r} is missing.")
        yield _pair([_check_text(flat[name], where, name) for name in names])


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": item for key, item in inner.items()} or {name: value}
    return flat


def _read_parquet(paths: Sequence[Path], columns: Columns) -> Iterator[Pair]:
    path = paths[0]
    try:
        with _open(path) as file:
            zipped = path.suffix == ".gz"
            parquet = pq.ParquetFile(pa.BufferReader(file.read()) if zipped else path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not Parquet ({' '.join(str(error).split())}).") from error
    tables = (pa.Table.from_batches([batch]) for batch in parquet.iter_batches(_BATCH))
    yield from read_tables(tables, columns, str(path))


def read_tables(tables: Iterable[Any], columns: Columns, where: str) -> Iterator[Pair]:
    row = 0
    for table in tables:
        flat = table.flatten()  # translation: {en, de} becomes translation.en, translation.de
        names = columns.find(flat.column_names, where)
        for texts in zip(*(flat.column(name).to_pylist() for name in names), strict=True):
            checked = [
                _check_text(text, f"{where}, row {row}", name)
                for text, name in zip(texts, names, strict=True)
            ]
            yield _pair(checked)
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


_READERS: dict[str, Callable[[Sequence[Path], Columns], Iterator[Pair]]] = {
    "text": _read_text,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
