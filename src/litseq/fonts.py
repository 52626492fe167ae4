"""Fonts by the glyphs that they hold, so that no token is drawn as an empty box."""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["Fonts", "choose_fonts", "is_wide"]

_log = logging.getLogger(__name__)

_BASE = "DejaVu Sans"  # comes with matplotlib
_said: set[str] = set()


def is_wide(char: str) -> bool:
    """Whether a character fills a square, as those of Chinese, Japanese and Korean do."""
    return unicodedata.east_asian_width(char) in "WF"


@dataclass(frozen=True)
class Fonts:
    """Font families for some text.

    Attributes:
        families: Names for matplotlib: each character is drawn with the first that has it.
        missing: Characters that none of the system's fonts has.
    """

    families: tuple[str, ...]
    missing: frozenset[str] = frozenset()

    def drawable(self, text: str) -> str:
        """Replaces what cannot be drawn, or not be seen, by its number: ``U+732B``."""
        parts = (f" U+{ord(c):04X} " if self._hidden(c) else c for c in text)
        return "".join(parts).replace("  ", " ").strip() if any(map(self._hidden, text)) else text

    def _hidden(self, char: str) -> bool:
        return char in self.missing or not _is_visible(char)


def choose_fonts(text: str) -> Fonts:
    """Finds fonts on this system that hold every character of a text.

    Sans-serif and regular ones come first, and for Chinese characters those that draw them as the
    text's language does. Where characters remain that no font has, one warning says what to
    install.

    Args:
        text: All that is to be drawn, joined.
    """
    chars = frozenset(c for c in text if _is_visible(c) and not c.isspace())
    fonts = _choose(chars)
    if fonts.missing and not fonts.missing & _said:
        _log.warning(
            "no font on this system has %d of the characters to be drawn (such as %s): they appear "
            "by number; install one that has them (Debian, Ubuntu: apt install fonts-noto-cjk; "
            "elsewhere: https://fonts.google.com/noto).",
            len(fonts.missing),
            ", ".join(f"U+{ord(c):04X}" for c in sorted(fonts.missing)[:3]),
        )
    _said.update(fonts.missing)
    return fonts


def _is_visible(char: str) -> bool:
    # neither control nor format characters, surrogates, unassigned ones, line separators
    category = unicodedata.category(char)
    return category[0] != "C" and category not in ("Zl", "Zp")


@lru_cache(maxsize=256)
def _choose(chars: frozenset[str]) -> Fonts:
    from matplotlib.font_manager import fontManager

    entries = fontManager.ttflist
    base = next(entry for entry in entries if entry.name == _BASE)
    missing = chars - _covered(base, chars)
    families = [_BASE]
    for listed in (lambda: fontManager.ttflist, _new_fonts):
        if missing:
            found, missing = _cover(listed(), missing)
            families += found
    return Fonts(tuple(families), missing)


def _new_fonts() -> list[Any]:
    """Fonts that were installed after matplotlib made its list, which it keeps for ever."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {entry.fname for entry in fontManager.ttflist}
    num_known = len(fontManager.ttflist)
    for path in sorted(set(findSystemFonts()) - known):
        try:
            fontManager.addfont(path)
        except Exception as error:  # one damaged file must not hide the others
            _log.debug("%s is no font that can be used (%s)", path, error)
    return fontManager.ttflist[num_known:]


def _cover(entries: list[Any], missing: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Chooses few fonts that hold the characters; returns their names and what is left."""
    ranked = sorted(entries, key=lambda entry: _rank(entry, missing))
    covered: dict[str, frozenset[str]] = {}
    for entry in ranked:
        covered.setdefault(entry.name, _covered(entry, missing))
        if covered[entry.name] == missing:
            return [entry.name], frozenset()
    families = []
    while best := max(covered, key=lambda name: len(covered[name] & missing), default=""):
        if not covered[best] & missing:
            break
        families.append(best)
        missing -= covered[best]
    return families, missing


def _rank(entry: Any, chars: frozenset[str]) -> tuple[bool, bool, int, bool, str]:  # noqa: ANN401
    """Sorts regular before bold, sans before serif, the text's own language before others."""
    from matplotlib.font_manager import weight_dict

    name = entry.name
    weight = entry.weight if isinstance(entry.weight, int) else weight_dict.get(entry.weight, 400)
    mono = "Mono" in name
    own = name.endswith(_region(chars))
    return entry.style != "normal", "Sans" not in name or mono, abs(weight - 400), not own, name


def _region(chars: frozenset[str]) -> str:
    """The ending of pan-CJK font names: the same character looks different in each country."""
    names = {unicodedata.name(char, "").split()[0] for char in chars if unicodedata.name(char, "")}
    if names & {"HIRAGANA", "KATAKANA"}:
        return "JP"
    return "KR" if "HANGUL" in names else "SC"


def _covered(entry: Any, chars: frozenset[str]) -> frozenset[str]:  # noqa: ANN401 - FontEntry
    from matplotlib.ft2font import FT2Font

    index = getattr(entry, "index", 0)  # a collection's first font, where matplotlib knows no other
    try:
        font = FT2Font(entry.fname, face_index=index) if index else FT2Font(entry.fname)
        # Pictures of one size, such as emoji in colour, cannot be drawn; a font of last resort has
        # a box for everything, even for what is no character.
        if not font.scalable or font.get_char_index(0xFDD0):
            return frozenset()
        return frozenset(char for char in chars if font.get_char_index(ord(char)))
    except (OSError, RuntimeError):  # removed or damaged since matplotlib listed it
        return frozenset()
