"""The demo corpus inside the package: phrases in four languages, frozen from Unicode CLDR.

It needs no network, trains in minutes, and has one right answer per source. It is phrases (dates,
spans, amounts, series of names), not general translation: ``demo_corpus/README.md`` says what is in
it, and ``scripts/make_demo.py`` made it.
"""

from __future__ import annotations

import gzip
from importlib import resources
from typing import Literal, get_args

__all__ = ["DEFAULT_PAIR", "LANGUAGES", "PAIRS", "load_demo"]

LANGUAGES: tuple[str, ...] = ("en", "de", "fr", "zh")
"""The languages of the corpus. Any two of them make a pair, in either direction."""

PAIRS: tuple[str, ...] = ("en-zh", "en-fr", "en-de")
"""The pairs that documentation and examples speak of."""

DEFAULT_PAIR = "en-zh"
"""The pair that shows attention best.

Chinese says the year first, the weekday after the day, the time zone before the hour and "per hour"
before the number: attention has to jump, where into German it mostly steps forward.
"""

_Split = Literal["train", "val", "test"]


def load_demo(src_lang: str, tgt_lang: str, *, split: _Split) -> list[tuple[str, str]]:
    """Reads one split of the demo corpus for one pair of languages.

    A split says the same phrases in all languages. Within a language no text occurs twice, neither
    in a split nor in two of them, so pairs are one-to-one and can be read in either direction.

    Args:
        src_lang: Language to translate from, one of ``LANGUAGES``.
        tgt_lang: Language to translate to, another of ``LANGUAGES``.
        split: ``"train"`` (12,500 pairs), ``"val"`` (500) or ``"test"`` (1,000).

    Returns:
        (source, target) texts, always in the same order.

    Raises:
        ValueError: If there is no such pair or no such split.
    """
    if src_lang == tgt_lang or not {src_lang, tgt_lang} <= set(LANGUAGES):
        raise ValueError(
            f"the demo corpus has no pair {src_lang!r} to {tgt_lang!r}; choose one of "
            f"{', '.join(PAIRS)}, or any two of {', '.join(LANGUAGES)}."
        )
    if split not in get_args(_Split):
        raise ValueError(
            f"the demo corpus has no split {split!r}; choose one of {', '.join(get_args(_Split))}."
        )
    return list(zip(_read(split, src_lang), _read(split, tgt_lang), strict=True))


def _read(split: str, language: str) -> list[str]:
    file = resources.files("litseq.data") / "demo_corpus" / f"{split}.{language}.gz"
    return gzip.decompress(file.read_bytes()).decode().removesuffix("\n").split("\n")
