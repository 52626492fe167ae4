"""Pairs that are read anew whenever they are wanted, and never all in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from litseq.data.readers import Columns, Pair, PairFile, iter_file, iter_tables

if TYPE_CHECKING:
    import datasets

__all__ = ["FileStream", "HubStream", "PairStream", "digest_of"]

_HEAD = 1 << 20  # bytes of a file that name it, with its size
_ROWS = 1000  # rows of a Hub dataset in memory at a time


class PairStream(Protocol):
    """Pairs in an order that never changes."""

    @property
    def fingerprint(self) -> str:
        """Names the contents, as far as can be told without reading all."""

    def pairs(self, first: int = 0) -> Iterator[Pair | ValueError]:
        """The pairs from row ``first`` on; an error, not raised, in the place of each bad line."""


@dataclass(frozen=True)
class FileStream:
    """The pairs of local files, one after the other.

    Attributes:
        files: What ``readers.find_file`` found.
        columns: Languages and columns.
    """

    files: Sequence[PairFile]
    columns: Columns

    @cached_property
    def fingerprint(self) -> str:
        """A hash of each file's size and of its beginning."""
        paths = [path for file in self.files for path in file.paths]
        heads = [hashlib.sha256(_head(path)).hexdigest() for path in paths]
        sizes = [path.stat().st_size for path in paths]
        return digest_of(heads, sizes, astuple(self.columns))

    def pairs(self, first: int = 0) -> Iterator[Pair | ValueError]:
        """The pairs from row ``first`` on; what is skipped is read but not kept."""
        rows = chain.from_iterable(iter_file(file, self.columns) for file in self.files)
        return islice(rows, first, None)


@dataclass(frozen=True)
class HubStream:
    """The pairs of a dataset of the Hub, of which nothing is stored.

    Attributes:
        data: The dataset.
        where: What error messages call it.
        columns: Languages and columns.
    """

    data: datasets.IterableDataset
    where: str
    columns: Columns

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the name and of the first pairs."""
        return digest_of(self.where, [str(pair) for pair in islice(self.pairs(), 100)])

    def pairs(self, first: int = 0) -> Iterator[Pair | ValueError]:
        """The pairs from row ``first`` on."""
        data = self.data.skip(first) if first else self.data
        tables = data.with_format("arrow").iter(batch_size=_ROWS)
        return iter_tables(tables, self.columns, self.where, first=first)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def digest_of(*parts: object) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
