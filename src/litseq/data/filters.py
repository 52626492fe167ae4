"""Which pairs are worth training on, and a line that says what became of the others."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FilterReport", "duplicate_rows", "filter_pairs"]


@dataclass(frozen=True)
class FilterReport:
    """Counts of what a filter kept and dropped.

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

    def __str__(self) -> str:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.items() if n)
        kept = f"{self.num_pairs:,} pairs, kept {self.num_kept:,}"
        return f"{kept}: {reasons}" if reasons else kept


def filter_pairs(
    src_lengths: NDArray[np.int64],
    tgt_lengths: NDArray[np.int64],
    *,
    max_src_len: int,
    max_tgt_len: int,
    max_length_ratio: float | None = None,
    num_chars: NDArray[np.int64] | None = None,
    max_chars: int | None = None,
    duplicate: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], FilterReport]:
    """Selects the pairs to train on.

    Args:
        src_lengths: Source token counts with EOS, (N,); 1 means that nothing stood before EOS.
        tgt_lengths: Target token counts with EOS, (N,).
        max_src_len: Source tokens at most, EOS counted.
        max_tgt_len: Target tokens at most, EOS counted.
        max_length_ratio: Longer side over shorter side at most, EOS not counted; None: any.
        num_chars: Characters of the longer side, (N,); None: not filtered.
        max_chars: Characters at most.
        duplicate: True where a pair repeats an earlier one, (N,); None: not filtered.

    Returns:
        The numbers of the kept pairs, int64, ascending, and the counts.

    Raises:
        ValueError: If a limit lets nothing through.
    """
    if max_src_len < 2 or max_tgt_len < 2:
        raise ValueError(
            f"max_src_len and max_tgt_len count EOS and must be at least 2, got {max_src_len} and "
            f"{max_tgt_len}."
        )
    if max_length_ratio is not None and max_length_ratio < 1:
        raise ValueError(f"max_length_ratio must be at least 1, got {max_length_ratio}.")
    reasons: dict[str, NDArray[np.bool_]] = {}
    if num_chars is not None and max_chars is not None:
        reasons[f"longer than {max_chars:,} characters"] = num_chars > max_chars
    reasons["empty"] = (src_lengths < 2) | (tgt_lengths < 2)
    too_long = (src_lengths > max_src_len) | (tgt_lengths > max_tgt_len)
    limits = sorted({max_src_len, max_tgt_len})
    reasons[f"longer than {' or '.join(map(str, limits))} tokens"] = too_long
    if max_length_ratio is not None:
        longer = np.maximum(src_lengths, tgt_lengths) - 1
        shorter = np.minimum(src_lengths, tgt_lengths) - 1
        reasons[f"of length ratio above {max_length_ratio:g}"] = longer > max_length_ratio * shorter
    if duplicate is not None:
        reasons["repeated"] = duplicate
    keep = np.ones(len(src_lengths), dtype=np.bool_)
    dropped = {}
    for reason, bad in reasons.items():
        dropped[reason] = int(np.count_nonzero(keep & bad))
        keep &= ~bad
    return np.flatnonzero(keep).astype(np.int64), FilterReport(len(keep), dropped)


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
    pairs = src_hashes * 0x1E3779B97F4A7C15 + tgt_hashes  # wraps around; odd, so nothing is lost
    _, first = np.unique(pairs, return_index=True)
    repeated = np.ones(len(pairs), dtype=np.bool_)
    repeated[first] = False
    return repeated
