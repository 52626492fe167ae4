"""Text files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

__all__ = ["one_line", "whole_file"]


def one_line(text: str) -> str:
    """Joins lines of any kind: a break would shift the numbers of all lines that follow."""
    return " ".join(text.splitlines())


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Opens a file to write; it takes its place when the block ends, and never after an error.

    Args:
        path: The file, UTF-8, replaced where it exists; its folder must be there.
    """
    # In the same folder: a replacement is atomic within one file system only.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
