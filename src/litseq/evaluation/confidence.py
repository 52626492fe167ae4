"""How far a score would move, had the test set been drawn anew: bootstrap resampling."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.base import Metric, Score
from sacrebleu.significance import estimate_ci

__all__ = ["NUM_RESAMPLES", "Interval", "mean_interval", "resampling_seed", "score"]

NUM_RESAMPLES = 1000
"""Resamples of an interval and of a paired bootstrap test; sacreBLEU's own number."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval.

    Attributes:
        mean: Mean score of the resamples.
        margin: Half the width of the interval around it.
    """

    mean: float
    margin: float

    @property
    def low(self) -> float:
        """Lower end; no score is below 0."""
        return max(0.0, self.mean - self.margin)

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.margin


def score(
    metric: Metric,
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[Score, Interval | None]:
    """Scores a corpus by one of sacreBLEU's metrics, with a confidence interval.

    Score, interval and signature are those of ``metric.corpus_score(..., n_bootstrap=1000)`` and
    of ``sacrebleu --confidence``, to the last digit: the same generator, seed (12345, or
    ``SACREBLEU_SEED``), draws and sums. There all resamples stand in memory at once, 72 KB for each
    sentence under chrF; here one at a time.

    Args:
        metric: Its signature then names seed and resamples.
        hypotheses: One sentence each.
        references: One for each hypothesis.
        num_resamples: How often the sentences are drawn with replacement; 0 for no interval.

    Returns:
        sacreBLEU's score, and the interval or None.

    Source: Koehn (2004), https://aclanthology.org/W04-3250.
    """
    statistics = metric._extract_corpus_statistics(hypotheses, [references])
    result = metric._aggregate_and_compute(statistics)
    if not num_resamples:
        return result, None
    rows = np.array(statistics, dtype=np.float32)  # as sacreBLEU; (sentences, counts)
    resampled = [
        metric._compute_score_from_stats(rows[drawn].sum(0))
        for drawn in _draws(len(rows), num_resamples)
    ]
    if len({type(one.score) for one in resampled}) > 1:  # a chrF of 0 among numpy's numbers,
        for one in resampled:  # over which sacreBLEU 2.6 fails
            one.score = float(one.score)
    result.estimate_ci(resampled)
    metric.n_bootstrap, metric.seed = num_resamples, resampling_seed()
    return result, Interval(float(result._mean), float(result._ci))


def mean_interval(values: Sequence[float]) -> Interval:
    """Finds the interval of a mean over the sentences, from the draws that ``score`` makes."""
    rows = np.array(values, dtype=np.float64)
    mean, margin = estimate_ci(
        np.array([rows[drawn].mean() for drawn in _draws(len(rows), NUM_RESAMPLES)])
    )
    return Interval(float(mean), float(margin))


def _draws(size: int, count: int) -> Iterator[NDArray[np.int64]]:
    seed = resampling_seed()
    rng = np.random.default_rng(None if seed == "none" else int(seed))
    for _ in range(count):
        yield rng.choice(size, size=size, replace=True)


def resampling_seed() -> str:
    """The seed that sacreBLEU draws sentences with: a number, or none.

    Raises:
        ValueError: If ``SACREBLEU_SEED`` is something else.
    """
    seed = os.environ.get("SACREBLEU_SEED", "12345").lower()
    if seed != "none" and not seed.isdecimal():
        raise ValueError(
            f"SACREBLEU_SEED must be a whole number or 'none', got {seed!r}; unset it for 12345."
        )
    return seed
