"""Batches of similar lengths within a budget of padded tokens, and which rank gets which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BatchPlan", "Ints", "deal_batches", "plan_batches"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Who goes with whom, and when: the batches of one epoch, for any number of ranks.

    Attributes:
        order: Positions of the examples, sorted by length, int64 (N,).
        bounds: Batch k is ``order[bounds[k]:bounds[k + 1]]``, int64 (num_batches + 1,).
        schedule: Batch numbers in the order in which they are read, int64 (num_batches,).
    """

    order: Ints
    bounds: Ints
    schedule: Ints

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.schedule)

    def batches(self) -> list[Ints]:
        """The batches in the order in which they are read: arrays of example positions."""
        return [self.order[self.bounds[k] : self.bounds[k + 1]] for k in self.schedule]

    def efficiency(self, lengths: ArrayLike) -> float:
        """Share of real tokens among the padded ones; 1.0 for a plan without batches.

        Args:
            lengths: Token counts of one side, int (N,).
        """
        if len(self) == 0:
            return 1.0
        in_order = np.asarray(lengths, dtype=np.int64)[self.order]
        longest = np.maximum.reduceat(in_order, self.bounds[:-1])
        return float(in_order.sum() / (longest * np.diff(self.bounds)).sum())


def plan_batches(
    src_lengths: ArrayLike,
    tgt_lengths: ArrayLike | None = None,
    *,
    max_tokens: int,
    max_sentences: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    epoch: int = 0,
) -> BatchPlan:
    """Sorts examples by length and cuts the row into batches.

    In a batch, sentences x longest side <= ``max_tokens``; an example above that makes a batch
    alone. The plan is a function of its arguments, the same on every rank and machine and for every
    number of ranks.

    The row is sorted by the longer side, and among equals by the difference of the sides, upwards
    and downwards in turn: so neighbours are alike on both sides.

    With ``shuffle``, each epoch draws the order among equal lengths, where the first batch ends
    (which moves all other borders), and the order of the batches. The number of batches is the same
    in every epoch.

    Without, as in evaluation, batches and order never change; the order is drawn once, so that the
    first batches are a fair sample.

    Args:
        src_lengths: Source token counts, int (N,), each at least 1.
        tgt_lengths: Target token counts, int (N,); None where there is no target.
        max_tokens: Padded tokens of one batch on its longer side.
        max_sentences: Examples of one batch at most; None: no limit.
        shuffle: Whether to draw anew in every epoch.
        seed: Seed of all draws.
        epoch: Number of the epoch.

    Raises:
        ValueError: If a limit is below 1, or the lengths do not fit.
    """
    src, tgt = check_lengths(src_lengths, tgt_lengths)
    check_limits(max_tokens, max_sentences)
    num_examples = len(src)
    rng = np.random.default_rng([seed, epoch] if shuffle else [seed])
    longest = np.maximum(src, tgt)
    order = _sort(src, tgt, longest, rng if shuffle else None)
    in_order = longest[order]

    bounds = _cut(in_order, max_tokens, max_sentences)
    if shuffle and num_examples:
        # A shorter first batch moves every border and costs one batch at most. Count that one in
        # always, or else the length of an epoch would depend on the draw.
        num_batches = min(len(bounds), num_examples)
        first = int(rng.integers(1, bounds[1], endpoint=True))
        bounds = _cut(in_order, max_tokens, max_sentences, first=first)
        while len(bounds) - 1 < num_batches:
            k = int(np.diff(bounds).argmax())
            bounds = np.insert(bounds, k + 1, (bounds[k] + bounds[k + 1]) // 2)
    return BatchPlan(order, bounds, rng.permutation(len(bounds) - 1))


def deal_batches(batches: Sequence[Ints], world_size: int) -> list[Ints]:
    """Makes as many batches for each rank: batch ``s * world_size + r`` is rank r's at step s.

    Batches keep their order, so a step of W ranks is W steps of one rank, also when the number of
    ranks changes on the way. Where the last step has fewer batches than ranks, its largest are
    halved; where it has even fewer examples than ranks, empty batches fill it.

    Args:
        batches: The batches of all ranks together, in their order.
        world_size: Number of ranks.
    """
    rest = len(batches) % world_size
    if rest == 0:
        return list(batches)
    last = list(batches[-rest:])
    while len(last) < world_size:
        k = max(range(len(last)), key=lambda i: len(last[i]))
        half = len(last[k]) // 2
        if half == 0:
            last += [last[0][:0]] * (world_size - len(last))
        else:
            last[k : k + 1] = [last[k][:half], last[k][half:]]
    return [*batches[:-rest], *last]


def check_lengths(src_lengths: ArrayLike, tgt_lengths: ArrayLike | None) -> tuple[Ints, Ints]:
    """Gives both sides as arrays, the source twice where there is no target."""
    src = np.asarray(src_lengths, dtype=np.int64)
    tgt = src if tgt_lengths is None else np.asarray(tgt_lengths, dtype=np.int64)
    if src.ndim != 1 or src.shape != tgt.shape:
        raise ValueError(
            f"src_lengths and tgt_lengths must be one row each of equal size, got shapes "
            f"{src.shape} and {tgt.shape}."
        )
    if src.size and min(src.min(), tgt.min()) < 1:
        raise ValueError(f"lengths must be at least 1, got {min(src.min(), tgt.min())}.")
    return src, tgt


def check_limits(max_tokens: int, max_sentences: int | None) -> None:
    """Refuses limits that no batch can keep."""
    for name, value in {"max_tokens": max_tokens, "max_sentences": max_sentences}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _sort(src: Ints, tgt: Ints, longest: Ints, rng: np.random.Generator | None) -> Ints:
    difference = (src - tgt).astype(np.float64)
    if rng is not None:
        difference += rng.random(len(src))  # below 1: it decides among equals alone
    # Where one length ends with long sources, the next one begins with long sources.
    difference[longest % 2 == 1] *= -1
    order = np.argsort(difference, kind="stable")
    # of so few bits that numpy sorts them by counting
    lengths = longest[order].astype(np.min_scalar_type(longest.max(initial=0)))
    return order[np.argsort(lengths, kind="stable")]


def _cut(
    longest: Ints, max_tokens: int, max_sentences: int | None, *, first: int | None = None
) -> Ints:
    """Borders of the fewest batches that keep the budget; ``longest`` (N,) ascends."""
    num_examples = len(longest)
    most = num_examples if max_sentences is None else max_sentences
    count = np.arange(1, min(most, max_tokens, num_examples) + 1)
    bounds = [0]
    if first is not None:
        bounds.append(first)
    while bounds[-1] < num_examples:
        start = bounds[-1]
        # The first is the shortest, so no more than this many fit; of these, a prefix does.
        fit = max(1, min(most, max_tokens // int(longest[start])))
        padded = longest[start : start + fit] * count[: min(fit, num_examples - start)]
        bounds.append(start + max(1, int(np.count_nonzero(padded <= max_tokens))))
    return np.array(bounds, dtype=np.int64)
