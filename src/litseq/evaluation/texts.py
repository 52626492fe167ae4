"""What scores ask of texts: lists of equal length, of raw sentences."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

__all__ = ["check_pairs", "primary_language", "short", "warn_if_tokenised"]

_log = logging.getLogger(__name__)

# Other codes of the languages that need their own tokenizer: ISO 639-3 and 639-2, as FLORES and
# Tatoeba use them, with the Chinese languages that are written in the same characters.
_LANGUAGES = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh"), "zh"),
    **dict.fromkeys(("ja", "jpn"), "ja"),
    **dict.fromkeys(("ko", "kor"), "ko"),
}

# What people do not write, with the share of lines from which on it is no accident. A space before
# a full stop is rare in raw text of any language, unlike one before ! ? : ; which is right in
# French; one raw line in thousands has it.
_MARKS = (
    ("the mark @@ of subword-nmt", re.compile(r"@@(\s|$)"), 0.01),
    ("the mark ▁ of SentencePiece", re.compile("▁"), 0.01),
    ("the mark ##AT## of split compounds", re.compile(r"##AT##"), 0.01),
    ("the mark @-@ of Moses", re.compile(r"(^|\s)@[-/,.]@(\s|$)"), 0.01),
    ("an escape of Moses", re.compile(r"&(?:apos|quot|amp|lt|gt|#124|#91|#93);"), 0.01),
    ("a space before its last full stop", re.compile(r"\S \.\s*$"), 0.1),
)
_said: set[tuple[str, str]] = set()


def primary_language(code: str | None) -> str:
    """The language of a code with script or region: ``de`` of ``de-CH``, ``zh`` of ``zho_Hans``."""
    primary = (code or "").replace("_", "-").split("-")[0].lower()
    return _LANGUAGES.get(primary, primary)


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuses what is no corpus of pairs.

    Raises:
        TypeError: If one of the two is a single string.
        ValueError: If the two differ in length or are empty.
    """
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise TypeError("hypotheses and references must be lists of sentences, got one string.")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"each hypothesis needs its reference, got {len(hypotheses)} hypotheses and "
            f"{len(references)} references."
        )
    if not hypotheses:
        raise ValueError("nothing to score, got 0 hypotheses; check that the split is not empty.")


def short(text: str) -> str:
    """Quotes a line for a message, cut where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def warn_if_tokenised(name: str, lines: Sequence[str]) -> None:
    """Warns where text looks tokenised, as its scores would compare with no others.

    One warning for each name and kind of mark, however often it is asked: a training validates
    often.

    Args:
        name: What the lines are, to begin the warning: "the references".
        lines: Sentences that ought to be raw text.

    Source: Post (2018), section 3, https://aclanthology.org/W18-6319. sacreBLEU warns of the space
    before the full stop alone, from 100 lines on.
    """
    for mark, pattern, share in _MARKS:
        found = [number for number, line in enumerate(lines, 1) if pattern.search(line)]
        if not found or len(found) < share * len(lines):
            continue
        if (name, mark) not in _said:
            _said.add((name, mark))
            _log.warning(
                "%s look tokenised: %d of %d lines have %s, the first is line %d, %s; scores "
                "compare with others on raw text only.",
                name,
                len(found),
                len(lines),
                mark,
                found[0],
                short(lines[found[0] - 1]),
            )
        return
