"""Rows of Arrow files, memory-mapped: read where they lie, by number."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from litseq.data.plans import Ints

__all__ = ["ArrowRows", "numbers_of"]

_CHUNK = 1000  # texts in memory at a time


class ArrowRows:
    """All rows of the ``*.arrow`` files of a folder, in the order of their names.

    It does what training needs of a ``datasets.Dataset``, whose import alone takes longer than all
    that is to be read before the first batch.

    Attributes:
        table: The rows, a ``pyarrow.Table``.

    Args:
        folder: Holds files in Arrow's streaming format, as ``datasets`` writes them.

    Raises:
        FileNotFoundError: If there is no such file.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.arrow"))
        if not files:
            raise FileNotFoundError(f"{folder} has lost its files; remove it, and run again.")
        self._folder = folder
        self._known: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
        self.table = pa.concat_tables(
            pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files
        )

    def __reduce__(self) -> tuple[type[ArrowRows], tuple[Path]]:
        """Worker processes map the files themselves."""
        return ArrowRows, (self._folder,)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)

    def texts(self, name: str, rows: Ints) -> list[str]:
        """The texts of some rows."""
        chunks = self.table.column(name).chunks
        return [chunks[c][i].as_py() for c, i in self._places(rows)]

    def iter_texts(self, name: str, rows: Ints | None = None) -> Iterator[str]:
        """The texts of some rows, of all by default; never all of them in memory."""
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), _CHUNK):
            yield from self.texts(name, rows[start : start + _CHUNK])

    def sequences(self, name: str, rows: Ints) -> list[NDArray[np.int32]]:
        """The lists of ids of some rows; what lies in the files, and not a copy of it."""
        lists = self._lists(name)
        found = []
        for c, i in self._places(rows):
            values, ends = lists[c]
            found.append(values[ends[i] : ends[i + 1]])
        return found

    def _places(self, rows: Ints) -> Iterator[tuple[int, int]]:
        """Of each row, in which chunk it is, and where."""
        rows = np.asarray(rows, dtype=np.int64)
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if len(wrong):
            raise IndexError(f"row {wrong[0]} is not among the {len(self):,} of {self._folder}.")
        chunk = np.searchsorted(self._starts, rows, side="right") - 1
        return zip(chunk.tolist(), (rows - self._starts[chunk]).tolist(), strict=True)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        sizes = [batch.num_rows for batch in self.table.to_batches()]
        return np.cumsum([0, *sizes[:-1]], dtype=np.int64)

    def _lists(self, name: str) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        if name not in self._known:
            chunks = self.table.column(name).chunks
            self._known[name] = [
                (np.from_dlpack(chunk.values), np.from_dlpack(chunk.offsets)) for chunk in chunks
            ]
        return self._known[name]


def numbers_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of numbers as an array, (N,)."""
    # its own to_numpy imports pandas, which takes a third of a second
    values: NDArray[Any] = np.from_dlpack(column.combine_chunks())
    return values
