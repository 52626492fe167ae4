"""Where two texts of unequal length stop being translations of each other."""

import math
from typing import Any

import numpy as np

__all__ = ["Drift"]


class Drift:
    """Finds about where that is, from the lengths of the lines.

    Where the lines fit, the logarithms of the lengths' ratios lie close together; after a line that
    one side lacks they scatter. The place is the border that best splits all lines into one part of
    little and one of much scatter: a normal distribution each, by the greatest likelihood.
    """

    _MAX = 1_000_000  # lines that are remembered
    _FEW = 20  # less than that on either side of the border says nothing

    def __init__(self) -> None:
        self._ratios: list[float] = []

    def see(self, source: int, target: int) -> None:
        """Takes the lengths of a pair, in characters."""
        if len(self._ratios) < self._MAX:
            self._ratios.append(math.log((source + 1) / (target + 1)))

    def hint(self) -> str:
        """Says where, if the scatter at least doubles there."""
        ratios = np.array(self._ratios)
        num = np.arange(self._FEW, len(ratios) - self._FEW)
        if not len(num):
            return ""
        sums, squares = np.cumsum(ratios), np.cumsum(ratios**2)

        def variance(total: Any, square: Any, count: Any) -> Any:  # noqa: ANN401 - arrays
            return np.maximum(square / count - (total / count) ** 2, 1e-6)

        before = variance(sums[num - 1], squares[num - 1], num)
        after_num = len(ratios) - num
        after = variance(sums[-1] - sums[num - 1], squares[-1] - squares[num - 1], after_num)
        best = int(np.argmin(num * np.log(before) + after_num * np.log(after)))
        if after[best] < 4 * before[best]:
            return ""
        return f"; their lengths stop fitting near line {num[best] + 1:,}"
