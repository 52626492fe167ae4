"""The page of ``litseq explain``: one file that needs nothing but a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
import zlib
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

import jinja2
from markupsafe import Markup

from litseq.explain.arrays import tensor_of

__all__ = ["Language", "render"]

Language = Literal["en", "zh"]

# In the order in which data flows; the template and the script look parts up by these names.
SECTIONS: dict[str, tuple[str, ...]] = {
    "transformer": (
        "overview",
        "tokens",
        "positions",
        "attention",
        "head",
        "memory",
        "kinds",
        "output",
        "beam",
        "alignment",
        "caution",
    ),
    "rnn_attention": (
        "overview",
        "tokens",
        "states",
        "scores",
        "output",
        "beam",
        "alignment",
        "caution",
    ),
    "rnn": ("overview", "tokens", "states", "context", "output", "beam"),
    # models of somebody's own: with attention over the source, with other attention, with none
    "custom_cross": (
        "overview",
        "tokens",
        "attention",
        "output",
        "beam",
        "alignment",
        "caution",
    ),
    "custom_attention": ("overview", "tokens", "attention", "output", "beam", "caution"),
    "custom": ("overview", "tokens", "output", "beam"),
}

_LONGEST_TABLE = 64
"""Longest sentence whose alignment is written as a table for readers without a script."""

_SHARED = ("numbers.js", "dom.js", "matrix.js", "overview.js", "output.js")
# Joined in this order to one module script.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "transformer": (
        *_SHARED,
        "positions.js",
        "attention.js",
        "head.js",
        "memory.js",
        "alignment.js",
        "main.js",
    ),
    "rnn_attention": (*_SHARED, "alignment.js", "recurrent.js", "main.js"),
    "rnn": (*_SHARED, "recurrent.js", "main.js"),
    "custom_cross": (*_SHARED, "attention.js", "alignment.js", "main.js"),
    "custom_attention": (*_SHARED, "attention.js", "alignment.js", "main.js"),
    "custom": (*_SHARED, "main.js"),
}


def render(record: dict[str, Any], *, language: str = "en") -> str:
    """Writes the page of one record.

    The page opens from disk and asks the network for nothing: its content security policy allows
    the one script and the one style by their hashes and forbids everything else.

    Args:
        record: What ``litseq.explain.record`` made of a model and its sentences.
        language: Language that the page opens in; the reader can switch.

    Returns:
        HTML.

    Raises:
        ValueError: If the language or the record's architecture is unknown, or if the record has
            no sentence.
    """
    if language not in get_args(Language):
        known = ", ".join(get_args(Language))
        raise ValueError(f"language must be one of {known}, got {language!r}; choose one of them.")
    architecture = record["model"]["architecture"]
    if architecture not in SECTIONS:
        known = ", ".join(SECTIONS)
        raise ValueError(
            f"the page explains the architectures {known}, got {architecture!r}; "
            f"explain a model of one of them."
        )
    if not record["sentences"]:
        raise ValueError("the record has no sentence; explain one or more sentences.")
    texts = {name: json.loads(_read(f"texts.{name}.json")) for name in get_args(Language)}
    script = "\n".join(_bare(_read(name)) for name in SCRIPTS[architecture])
    style = _bare(_read("page.css"))
    arrays = bytearray()
    data = {"texts": _needed(texts, architecture), "record": _split(record, arrays)}
    return (
        _environment()
        .get_template("template.html.j2")
        .render(
            language=language,
            text=texts[language],
            version=record["litseq"],
            model=record["model"],
            sections=SECTIONS[architecture],
            sentences=[_static(sentence) for sentence in record["sentences"]],
            # JSON writes no zero byte, so the first one ends it
            data=_packed(_json(data) + b"\0" + arrays),
            script=Markup(script),
            style=Markup(style),
            policy=f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
            f"base-uri 'none'; form-action 'none'",
        )
    )


@cache
def _read(name: str) -> str:
    return (resources.files("litseq.explain") / "page" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = _visible
    return environment


def _bare(source: str) -> str:
    """Leaves out indentation, empty lines and the lines that are comments: a fifth of the page."""
    source = re.sub(r"^\s*(/\*.*?\*/|//[^\n]*)$", "", source, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line.strip() for line in source.splitlines() if line.strip())


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # a lone surrogate has no UTF-8; its escape is what JSON writes, too
    return text.encode("utf-8", "backslashreplace")


def _split(value: Any, arrays: bytearray) -> Any:  # noqa: ANN401 - any JSON
    """Moves the bytes of all arrays of a record into one row; the record keeps their places."""
    if isinstance(value, list):
        return [_split(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() >= {"dtype", "shape", "data"}:
        at = len(arrays)
        arrays += base64.b64decode(value["data"])
        return {key: item for key, item in value.items() if key != "data"} | {"at": at}
    return {key: _split(item, arrays) for key, item in value.items()}


def _packed(data: bytes) -> str:
    # the last percent of a large record costs many seconds
    level = 9 if len(data) < 1_000_000 else 6
    return base64.b64encode(zlib.compress(data, level)).decode()


def _needed(texts: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Leaves out the sections of other architectures."""
    foreign = {"states", "scores", "context"} - set(SECTIONS[architecture])
    return {
        language: {name: part for name, part in groups.items() if name not in foreign}
        for language, groups in texts.items()
    }


def _visible(text: str) -> str:
    """Shows what has no shape of its own: control, direction and invisible characters."""
    return "".join(_visible_character(c) for c in text)


def _visible_character(c: str) -> str:
    if c < " ":
        return chr(0x2400 + ord(c))  # the control pictures of Unicode
    if c == "\x7f":
        return "\u2421"
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\u27e8U+{ord(c):04X}\u27e9"
    return c


def _static(sentence: dict[str, Any]) -> dict[str, Any]:
    """Chooses what the page shows of a sentence without a script."""
    steps = sentence["steps"]
    weights: list[list[float] | None] = [None] * len(steps)
    weights = [*(_alignment(sentence["detail"]) or weights)]
    return {
        "source": sentence["source"],
        "output": sentence["output"],
        "reference": sentence["reference"],
        "log_prob": sentence["log_prob"],
        "src": sentence["src"]["tokens"],
        "tgt": [
            {"token": token, "prob": step["prob"], "weights": row}
            for token, step, row in zip(sentence["tgt"]["tokens"], steps, weights, strict=True)
        ],
    }


def _alignment(detail: dict[str, Any]) -> list[list[float]] | None:
    """Gives each output token's weights over the source, (T, S): the last layer's mean head."""
    if "weights" in detail:
        short = max(detail["weights"]["shape"]) <= _LONGEST_TABLE
        return _rows(detail["weights"]) if short else None
    cross = [item for item in detail.get("attention", ()) if item["kind"] == "cross"]
    if not cross:
        return None
    num_heads, num_rows, num_columns = cross[-1]["weights"]["shape"]
    if max(num_rows, num_columns) > _LONGEST_TABLE:
        return None
    rows = _rows(cross[-1]["weights"])  # (H * T, S)
    return [
        [sum(column) / num_heads for column in zip(*rows[t::num_rows], strict=True)]
        for t in range(num_rows)
    ]


def _rows(array: dict[str, Any]) -> list[list[float]]:
    """Unpacks an array of weights to rows of its last dimension."""
    weights = tensor_of(array).double().flatten(0, -2)
    rows: list[list[float]] = (weights / 255 if array["dtype"] == "uint8" else weights).tolist()
    return rows
