"""Text files: read line by line, written whole or not at all."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn, TextIO

__all__ = [
    "check_output",
    "leave_closed_pipe",
    "one_line",
    "open_input",
    "printable",
    "read_lines",
    "whole_file",
]

# What commands a terminal, or turns the direction of what follows; not line feed and tab.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """Joins lines of any kind: a break would shift the numbers of all lines that follow."""
    return " ".join(text.splitlines())


def printable(text: str) -> str:
    r"""Writes control characters as ``\x1b``: a text that is shown must not command a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def leave_closed_pipe() -> NoReturn:
    """Ends the command quietly, as its reader, such as ``head``, has seen enough."""
    # what is left in the buffer goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(141)


def check_output(path: Path) -> None:
    """Finds out before the work whether its result can be written.

    Raises:
        ValueError: If the path is a folder.
        FileNotFoundError: If there is no folder to write in.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file to write.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in.")


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Opens a file to write; it takes its place when the block ends, and never after an error.

    Args:
        path: The file, UTF-8, replaced where it exists; its folder must be there. What a symbolic
            link points to is replaced, not the link; what is no ordinary file, such as a pipe, is
            written to as it stands.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        return
    # In the same folder: a replacement is atomic within one file system only.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def open_input(name: str) -> Iterator[BinaryIO]:
    """Opens a file to read; ``-`` is standard input.

    Raises:
        ValueError: If it is a folder, or standard input is closed.
        FileNotFoundError: If it is not there.
    """
    if name == "-" and sys.stdin is None:
        raise ValueError("standard input is closed; give a file.")
    if name == "-":
        yield sys.stdin.buffer
        return
    path = Path(name)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a text file.")
    if not path.exists():
        raise FileNotFoundError(f"no input file at {path}.")
    with path.open("rb") as file:
        yield file


def read_lines(file: BinaryIO, name: str, *, keep_mark: bool = False) -> Iterator[str]:
    """Decodes line by line, so that an error names its line; only a line feed ends a line.

    Args:
        file: What ``open_input`` opened.
        name: Its name, for errors.
        keep_mark: Whether a byte order mark at the start of the file is text.

    Raises:
        ValueError: If a line is not UTF-8.
    """
    for number, line in enumerate(file, 1):
        if number == 1 and not keep_mark:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{'standard input' if name == '-' else name}, line {number}: byte "
                f"0x{line[error.start]:02x} at position {error.start + 1} is not UTF-8; convert "
                f"the text to UTF-8."
            ) from error
        yield text.removesuffix("\n").removesuffix("\r")
