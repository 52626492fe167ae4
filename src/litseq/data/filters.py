"""Which pairs are worth training on, and what is said about the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FilterReport",
    "PairFilter",
    "SideCounts",
    "duplicate_rows",
    "filter_pairs",
    "review_pairs",
]

Counts = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class SideCounts:
    """What is counted in the texts of one side, for N examples.

    Attributes:
        tokens: Tokens with EOS, int (N,).
        unknown: Unknown tokens, int (N,).
        known: Tokens that are neither unknown nor EOS nor a bare space, int (N,).
        chars: Characters of the text, int (N,).
    """

    tokens: Counts
    unknown: Counts
    known: Counts
    chars: Counts

    @property
    def unknown_rate(self) -> float:
        """Share of unknown tokens among all, EOS included."""
        return float(self.unknown.sum() / self.tokens.sum())


@dataclass(frozen=True)
class FilterReport:
    """Counts of what a filter kept and dropped; as text, one line.

    Attributes:
        num_pairs: Pairs before filtering.
        dropped: Pairs dropped for each reason; a pair counts under the first that applies.
    """

    num_pairs: int
    dropped: Mapping[str, int]

    @property
    def num_kept(self) -> int:
        """Pairs that are left."""
        return self.num_pairs - sum(self.dropped.values())

    def __add__(self, other: "FilterReport") -> "FilterReport":
        reasons = {**self.dropped, **other.dropped}
        dropped = {r: self.dropped.get(r, 0) + other.dropped.get(r, 0) for r in reasons}
        return FilterReport(self.num_pairs + other.num_pairs, dropped)

    def __str__(self) -> str:
        kept = f"{self.num_pairs:,} pairs, kept {self.num_kept:,}"
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.items() if n)
        return f"{kept}: {reasons}" if reasons else kept


@dataclass(frozen=True)
class PairFilter:
    """Which pairs are trained on, as ``filter_pairs`` says; without looking at others.

    Attributes:
        max_src_len: Source tokens at most, EOS counted.
        max_tgt_len: Target tokens at most, EOS counted.
        max_length_ratio: Longer side over shorter side at most; None: any.
        max_chars: Characters of either side at most.
    """

    max_src_len: int
    max_tgt_len: int
    max_length_ratio: float | None
    max_chars: int


def filter_pairs(
    src: SideCounts,
    tgt: SideCounts,
    *,
    max_src_len: int,
    max_tgt_len: int,
    max_length_ratio: float | None = None,
    max_chars: int,
    duplicate: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], FilterReport]:
    """Selects the pairs to train on.

    Args:
        src: Counts of the sources.
        tgt: Counts of the targets.
        max_src_len: Source tokens at most, EOS counted.
        max_tgt_len: Target tokens at most, EOS counted.
        max_length_ratio: Longer side over shorter side at most, in tokens, EOS not counted; None:
            any.
        max_chars: Characters of either side at most.
        duplicate: True where a pair repeats an earlier one, bool (N,); None: not looked at.

    Returns:
        The numbers of the kept pairs, int64, ascending, and the counts.

    Raises:
        ValueError: If a limit would let nothing through.
    """
    _check_limits(max_src_len, max_tgt_len, max_length_ratio)
    src_words, tgt_words = src.tokens - 1, tgt.tokens - 1
    limits = " or ".join(map(str, sorted({max_src_len, max_tgt_len})))
    reasons: dict[str, NDArray[np.bool_]] = {
        f"longer than {max_chars:,} characters": np.maximum(src.chars, tgt.chars) > max_chars,
        "empty": np.minimum(src_words, tgt_words) == 0,
        "of unknown characters alone": np.minimum(src.known, tgt.known) == 0,
        f"longer than {limits} tokens": (src.tokens > max_src_len) | (tgt.tokens > max_tgt_len),
    }
    if max_length_ratio is not None:
        longer, shorter = np.maximum(src_words, tgt_words), np.minimum(src_words, tgt_words)
        reasons[f"of length ratio above {max_length_ratio:g}"] = longer > max_length_ratio * shorter
    if duplicate is not None:
        reasons["repeated"] = duplicate
    keep = np.ones(len(src.tokens), dtype=np.bool_)
    dropped = {}
    for reason, bad in reasons.items():
        dropped[reason] = int(np.count_nonzero(keep & bad))
        keep &= ~bad
    return np.flatnonzero(keep).astype(np.int64), FilterReport(len(keep), dropped)


def review_pairs(
    src: SideCounts, tgt: SideCounts | None, *, max_src_len: int, max_tgt_len: int, max_chars: int
) -> dict[str, int]:
    """Counts what is odd in evaluation data, where no pair is ever dropped.

    Args:
        src: Counts of the sources.
        tgt: Counts of the targets; None where there are none.
        max_src_len: Source tokens to which longer sources are cut, EOS counted.
        max_tgt_len: Target tokens likewise.
        max_chars: Characters to which longer texts are cut before they are encoded.

    Returns:
        What was found, and how often; nothing that was not.
    """
    _check_limits(max_src_len, max_tgt_len, None)
    odd: dict[str, NDArray[np.bool_]] = {
        "empty sources": src.tokens == 1,
        "sources of unknown characters alone": (src.tokens > 1) & (src.known == 0),
    }
    sides = {"sources": (src, max_src_len)} | ({"targets": (tgt, max_tgt_len)} if tgt else {})
    for name, (side, limit) in sides.items():
        odd[f"{name} cut to {max_chars:,} characters"] = side.chars > max_chars
        odd[f"{name} cut to {limit} tokens"] = side.tokens > limit
    return {what: n for what, rows in odd.items() if (n := int(np.count_nonzero(rows)))}


def _check_limits(max_src_len: int, max_tgt_len: int, max_length_ratio: float | None) -> None:
    if max_src_len < 2 or max_tgt_len < 2:
        raise ValueError(
            f"max_src_len and max_tgt_len count EOS and must be at least 2, got {max_src_len} and "
            f"{max_tgt_len}."
        )
    if max_length_ratio is not None and max_length_ratio < 1:
        raise ValueError(f"max_length_ratio must be at least 1, got {max_length_ratio}.")


def duplicate_rows(
    src_hashes: NDArray[np.int64], tgt_hashes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Marks pairs that repeat an earlier pair.

    Args:
        src_hashes: 64-bit hashes of the source texts, (N,).
        tgt_hashes: 64-bit hashes of the target texts, (N,).

    Returns:
        bool (N,); False at the first of each kind.
    """
    # Wraps around; the factor is odd, so that no bit of a hash is lost.
    pairs = src_hashes * np.int64(0x1E3779B97F4A7C15) + tgt_hashes
    _, first = np.unique(pairs, return_index=True)
    repeated = np.ones(len(pairs), dtype=np.bool_)
    repeated[first] = False
    return repeated
