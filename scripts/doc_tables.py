"""Tables in the documentation that scripts fill."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from litseq.textfiles import whole_file

__all__ = ["fill", "markdown"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table; bars, line breaks and control characters break no cell."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: object) -> str:
    text = " ".join(str(value).split()).replace("|", "\\|")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def fill(page: Path, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Replaces what stands between ``<!-- table:NAME -->`` and ``<!-- /table -->`` on a page.

    Args:
        page: A Markdown file.
        name: Name of the table.
        header: Titles of the columns.
        rows: Cells.

    Raises:
        ValueError: If the page has no such table.
    """
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- table:{name} -->", "<!-- /table -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page} has no {start} ... {end}; put the two lines where it belongs.")
    table = f"{start}\n\n{markdown(header, rows)}\n{end}"
    with whole_file(page) as file:
        file.write(pattern.sub(lambda _: table, text, count=1))
