"""Heatmaps of attention weights, drawn to be read: one panel per head, tokens on both axes."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litseq.fonts import Fonts, choose_fonts, is_wide

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

__all__ = ["draw_attention", "render", "write_png"]

# Inches, and points for letters.
_SIZE, _SMALL = 8.0, 7.0
_COLUMN = 0.072  # width of half a square character at _SIZE
_LINE = 0.16
_LEADING = 0.185
_RISE = 0.038  # from the baseline to the middle of a letter
_PANEL = 2.0  # a panel is about so wide, unless its cells would get smaller or larger than these
_CELLS = (0.17, 0.34)
_GAP, _MARGIN = 0.22, 0.15
_BAR = 0.75  # the colour scale, its numbers included
_MIN_WIDTH = 4.2  # room for a title
_DPI = 100
_LABEL_COLUMNS = 16

_INK, _GREY = "#1b1b1f", "#5f6368"


def draw_attention(
    weights: Tensor,
    *,
    query_tokens: Sequence[str],
    key_tokens: Sequence[str],
    title: str = "",
    panel_titles: Sequence[str] | None = None,
    query_label: str = "query",
    key_label: str = "key",
    max_tokens: int = 40,
    max_heads: int = 16,
) -> Figure:
    """Draws the attention weights of one layer for one sentence, a panel for each head.

    Row t, column s: how much query t takes of key s. White is 0 and the darkest blue is 1 in every
    panel of every figure, so figures can be compared. Tokens are drawn with fonts that have their
    characters. Neither pyplot nor matplotlib's settings are touched; the figure can be saved
    (``figure.savefig``) in any of matplotlib's formats.

    Args:
        weights: float (H, T, S), each between 0 and 1.
        query_tokens: T labels of the rows.
        key_tokens: S labels of the columns.
        title: Stands above; lines end with a line feed, long ones are wrapped.
        panel_titles: H titles; ``head 0``, ``head 1`` ... by default.
        query_label: What the rows are.
        key_label: What the columns are.
        max_tokens: Rows and columns that are drawn at most; a note tells of the others.
        max_heads: Panels that are drawn at most; likewise.

    Raises:
        ValueError: If sizes do not fit each other, or a limit is below 1.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    _check(weights, query_tokens, key_tokens, panel_titles)
    for name, limit in (("max_tokens", max_tokens), ("max_heads", max_heads)):
        if limit < 1:
            raise ValueError(f"{name} must be at least 1, got {limit}.")
    names = panel_titles or [f"head {head}" for head in range(weights.size(0))]
    notes = [
        f"rows: {query_label}; columns: {key_label}",
        *_cuts(weights, max_tokens, max_heads),
    ]
    shown = weights[:max_heads, :max_tokens, :max_tokens]
    rows, columns = list(query_tokens[:max_tokens]), list(key_tokens[:max_tokens])
    names = list(names[: shown.size(0)])
    fonts = choose_fonts("".join([*rows, *columns, *names, title, *notes]))
    rows, columns = ([_label(token, fonts) for token in tokens] for tokens in (rows, columns))
    layout = _Layout.of(rows, columns, names, title=title, notes=notes)
    pen = _Pen.of(layout, fonts)
    for head, name in enumerate(names):
        _draw_panel(pen, shown[head], name, rows, columns, head)
    _draw_surroundings(pen)
    return pen.figure


def render(figure: Figure) -> Pixels:
    """Turns a figure into uint8 (height, width, 3)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def write_png(path: Path, pixels: Pixels) -> None:
    """Writes what ``render`` made; the folder is made where it is not there."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # whoever looks at the folder sees whole files
    Image.fromarray(pixels).save(part, format="png", compress_level=3)
    part.replace(path)


def _check(
    weights: Tensor,
    query_tokens: Sequence[str],
    key_tokens: Sequence[str],
    panel_titles: Sequence[str] | None,
) -> None:
    if weights.dim() != 3 or 0 in weights.shape:
        raise ValueError(
            f"weights must be (heads, queries, keys), none of them 0, got shape "
            f"{tuple(weights.shape)}; choose one sentence of the batch."
        )
    heads, num_queries, num_keys = weights.shape
    for name, tokens, size in (
        ("query_tokens", query_tokens, num_queries),
        ("key_tokens", key_tokens, num_keys),
        ("panel_titles", panel_titles, heads),
    ):
        if tokens is not None and len(tokens) != size:
            raise ValueError(
                f"{name} must hold {size} for weights of shape {tuple(weights.shape)}, got "
                f"{len(tokens)}."
            )


def _cuts(weights: Tensor, max_tokens: int, max_heads: int) -> list[str]:
    sizes = zip(("heads", "rows", "columns"), weights.shape, strict=True)
    limits = (max_heads, max_tokens, max_tokens)
    cut = [
        f"the first {limit} of {size} {what}"
        for (what, size), limit in zip(sizes, limits, strict=True)
        if size > limit
    ]
    return [f"shown: {', '.join(cut)}"] if cut else []


# ---- labels ----


def _width(text: str) -> int:
    """Columns that a text takes: two for a square character, none for an accent put on another."""
    return sum(0 if unicodedata.combining(c) else 2 if is_wide(c) else 1 for c in text)


def _fit(text: str, columns: int) -> int:
    """Number of characters that fit in so many columns."""
    taken = 0
    for place, char in enumerate(text):
        taken += _width(char)
        if taken > columns:
            return place
    return len(text)


def _label(token: str, fonts: Fonts) -> str:
    """Shortens a token, and shows what would be invisible."""
    text = fonts.drawable(token)
    if not text.strip():
        return repr(text)
    if _fit(text, _LABEL_COLUMNS) == len(text):
        return text
    return text[: _fit(text, _LABEL_COLUMNS - 1)] + "…"


def _lines(label: str) -> str | None:
    """How a column's label is written upright; None: it is turned by 90 degrees instead.

    Words of square characters are written downwards, and what fits its cell as it is.
    """
    if any(map(is_wide, label)) and all(is_wide(c) or c in "▁…" for c in label):
        return "\n".join(label)
    return label if _width(label) <= 2 else None


def _height(label: str) -> float:
    """Height of a column's label."""
    lines = _lines(label)
    return _width(label) * _COLUMN if lines is None else (lines.count("\n") + 1) * _LINE


def _wrap(text: str, columns: int) -> Iterator[str]:
    """Breaks lines at spaces where there are any, else anywhere."""
    for line in text.split("\n"):
        while (end := max(_fit(line, columns), 1)) < len(line):
            space = line.rfind(" ", 1, end + 1)
            end = space if space > 0 else end
            yield line[:end]
            line = line[end:].lstrip()
        yield line


# ---- places ----


@dataclass(frozen=True)
class _Layout:
    """Where everything stands, in inches from the upper left corner."""

    cell: float
    num_rows: int  # of a panel
    num_columns: int
    across: int  # panels side by side
    num_panels: int
    left: float  # room for the rows' labels
    step: tuple[float, float]  # from one panel to the next: to the right, down
    title: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # below the title: what rows and columns are, what was cut

    @classmethod
    def of(
        cls,
        rows: Sequence[str],
        columns: Sequence[str],
        names: Sequence[str],
        *,
        title: str,
        notes: Sequence[str],
    ) -> _Layout:
        low, high = _CELLS
        cell = min(max(_PANEL / max(len(rows), len(columns)), low), high)
        name_width = max(map(_width, names)) * _COLUMN * 1.2  # bold
        label_height = max(map(_height, columns)) + 0.06
        size = (
            max(len(columns) * cell, name_width) + _GAP,
            len(rows) * cell + label_height + _LINE + _GAP,
        )
        plain = cls(
            cell,
            num_rows=len(rows),
            num_columns=len(columns),
            across=min(range(1, len(names) + 1), key=lambda n: _badness(n, len(names), size)),
            num_panels=len(names),
            left=_MARGIN + max(map(_width, rows)) * _COLUMN + 0.06,
            step=size,
        )
        letters = int((plain.width - 2 * _MARGIN) / (_COLUMN * 1.1))
        wrapped = tuple(line for note in notes for line in _wrap(note, letters))
        return replace(plain, title=tuple(_wrap(title, letters)) if title else (), notes=wrapped)

    @property
    def panel(self) -> tuple[float, float]:
        """Width and height of the cells of one panel."""
        return self.num_columns * self.cell, self.num_rows * self.cell

    @property
    def down(self) -> int:
        """Panels one below the other."""
        return math.ceil(self.num_panels / self.across)

    @property
    def top(self) -> float:
        """Room for title and notes."""
        return _MARGIN + (len(self.title) + len(self.notes)) * _LEADING

    @property
    def right(self) -> float:
        """Where the panels end."""
        return self.left + self.across * self.step[0] - _GAP

    @property
    def bottom(self) -> float:
        """Where the panels end below."""
        return self.top + self.down * self.step[1]

    @property
    def width(self) -> float:
        """Of the figure."""
        return max(self.right + _BAR + _MARGIN, _MIN_WIDTH)

    @property
    def height(self) -> float:
        """Of the figure."""
        return self.bottom + _MARGIN

    def place(self, number: int) -> tuple[float, float]:
        """Upper left corner of a panel's cells."""
        down, across = divmod(number, self.across)
        x, y = self.step
        return self.left + across * x, self.top + (down + 1) * y - self.panel[1]


def _badness(across: int, num_panels: int, size: tuple[float, float]) -> float:
    """How far a grid is from the shape of a screen; empty places count, too."""
    down = math.ceil(num_panels / across)
    shape = across * size[0] / (down * size[1])
    return abs(math.log(shape / 1.6)) + (across * down - num_panels) / num_panels


# ---- drawing ----


@dataclass(frozen=True)
class _Pen:
    """A figure whose only axes are measured in inches.

    Axes with ticks of their own for each panel would take ten times as long to draw.
    """

    figure: Figure
    axes: Any
    layout: _Layout
    fonts: dict[str, Any]

    @classmethod
    def of(cls, layout: _Layout, fonts: Fonts) -> _Pen:
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties

        figure = Figure((layout.width, layout.height), dpi=_DPI, facecolor="white")
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1), frameon=False)
        axes.set_axis_off()
        families = list(fonts.families)

        def font(size: float, weight: str = "normal") -> FontProperties:
            # every property given: the user's settings are for the user's figures
            return FontProperties(
                family=families,
                style="normal",
                variant="normal",
                weight=weight,
                stretch="normal",
                size=size,
            )

        styles = {"token": font(_SIZE), "small": font(_SMALL), "title": font(_SIZE + 0.5, "bold")}
        return cls(figure, axes, layout, styles)

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        style: str = "token",
        color: str = _INK,
        ha: str = "left",
        va: str = "center",
        turned: bool = False,
    ) -> None:
        self.axes.text(
            x,
            y,
            text,
            fontproperties=self.fonts[style],
            color=color,
            ha=ha,
            va=va,
            rotation=90 if turned else 0,
            rotation_mode="anchor",  # letters stand on one line, whatever hangs below it
            linespacing=1.0,
            parse_math=False,  # a dollar sign is a token like any other
            usetex=False,
        )

    def image(self, values: Any, x: float, y: float, width: float, height: float) -> None:  # noqa: ANN401
        from matplotlib.patches import Rectangle

        self.axes.imshow(
            values,
            extent=(x, x + width, y + height, y),
            origin="upper",
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",  # one hue, ever darker: readable without colour, too
            vmin=0.0,
            vmax=1.0,
            clip_on=False,
        )
        self.axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=_GREY, linewidth=0.6)
        )


def _draw_panel(
    pen: _Pen,
    weights: Tensor,
    name: str,
    rows: Sequence[str],
    columns: Sequence[str],
    number: int,
) -> None:
    layout = pen.layout
    x, y = layout.place(number)
    width, height = layout.panel
    pen.image(weights.detach().float().cpu().numpy(), x, y, width, height)
    top = y + height - layout.step[1] + _GAP + _LINE / 2
    pen.write(x, top, name, style="title", color=_GREY)
    for column, label in enumerate(columns):
        middle = x + (column + 0.5) * layout.cell
        lines = _lines(label)
        if lines is None:
            pen.write(middle + _RISE, y - 0.05, label, va="baseline", turned=True)
        else:
            pen.write(middle, y - 0.04, lines, ha="center", va="bottom")
    if number % layout.across == 0:
        for row, label in enumerate(rows):
            middle = y + (row + 0.5) * layout.cell
            pen.write(x - 0.05, middle + _RISE, label, ha="right", va="baseline")


def _draw_surroundings(pen: _Pen) -> None:
    layout = pen.layout
    y = _MARGIN + _LEADING / 2
    for line, text in enumerate(layout.title):
        pen.write(_MARGIN, y, text, style="token" if line else "title")
        y += _LEADING
    for text in layout.notes:
        pen.write(_MARGIN, y, text, color=_GREY)
        y += _LEADING
    _draw_scale(pen, layout.right + _GAP, layout.place(0)[1], min(layout.panel[1], 2.0))
    # imshow moved them; y goes down
    pen.axes.set_xlim(0, layout.width)
    pen.axes.set_ylim(layout.height, 0)


def _draw_scale(pen: _Pen, x: float, y: float, height: float) -> None:
    pen.image(torch.linspace(1, 0, 101)[:, None].numpy(), x, y, 0.12, height)
    for value in (0.0, 0.5, 1.0):
        pen.write(x + 0.17, y + (1 - value) * height, f"{value:g}", style="small")
