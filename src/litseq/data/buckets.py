"""Batches of similar lengths within a budget of padded tokens, and a loader that can resume."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from litseq.types import Batch

__all__ = ["BatchPlan", "LoadBatch", "TokenBucketLoader", "plan_batches"]

_log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
LoadBatch = Callable[[Ints, int], Batch]


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Who goes with whom, and when: the batches of one epoch for all ranks together.

    Attributes:
        order: Positions of the examples, sorted by length, int64 (N,).
        bounds: Batch k is ``order[bounds[k]:bounds[k + 1]]``, int64 (num_batches + 1,).
        schedule: Batch numbers in the order in which they are dealt to ranks, int64
            (num_batches,): each row of ``world_size`` neighbours is one step.
        world_size: Number of ranks.
    """

    order: Ints
    bounds: Ints
    schedule: Ints
    world_size: int = 1

    def __len__(self) -> int:
        """Number of batches of all ranks together."""
        return len(self.schedule)

    def batches(self, rank: int = 0) -> list[Ints]:
        """The batches of one rank in their order: arrays of example positions."""
        return [
            self.order[self.bounds[k] : self.bounds[k + 1]]
            for k in self.schedule[rank :: self.world_size]
        ]

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
    world_size: int = 1,
) -> BatchPlan:
    """Sorts examples by length and cuts the row into batches.

    In a batch, sentences x longest side <= ``max_tokens``; an example above that makes a batch
    alone. The plan is a function of its arguments, the same on every rank and machine.

    The row is sorted by the longer side, and among equals by the difference of the sides, upwards
    and downwards in turn: so neighbours are alike on both sides.

    With ``shuffle``, each epoch draws the order among equal lengths, where the first batch ends
    (which moves all other borders), and the order of the batches. The number of batches is the same
    in every epoch and a multiple of ``world_size``: batches are halved until it is, so that no
    example is left out or doubled.

    Without, as in evaluation, batches and order never change; the order is drawn once, so that the
    first batches are a fair sample. There may be fewer batches than ranks.

    Args:
        src_lengths: Source token counts, int (N,), each at least 1.
        tgt_lengths: Target token counts, int (N,); None where there is no target.
        max_tokens: Padded tokens of one batch on its longer side.
        max_sentences: Examples of one batch at most; None: no limit.
        shuffle: Whether to draw anew in every epoch.
        seed: Seed of all draws.
        epoch: Number of the epoch.
        world_size: Number of ranks.

    Raises:
        ValueError: If a limit is below 1, the lengths do not fit, or a shuffled plan has fewer
            examples than ranks.
    """
    src, tgt = _check_lengths(src_lengths, tgt_lengths)
    _check_limits(max_tokens, max_sentences, world_size)
    num_examples = len(src)
    if shuffle and num_examples < world_size:
        raise ValueError(
            f"{num_examples} training pairs cannot feed {world_size} processes; use at most "
            f"{num_examples} devices."
        )
    rng = np.random.default_rng([seed, epoch] if shuffle else [seed])
    longest = np.maximum(src, tgt)
    order = _sort(src, tgt, longest, rng if shuffle else None)
    in_order = longest[order]

    bounds = _cut(in_order, max_tokens, max_sentences)
    num_batches = len(bounds) - 1
    if shuffle:
        # A shorter first batch moves every border and costs one batch at most. Count that one in
        # always, or else the length of an epoch would depend on the draw.
        first = int(rng.integers(1, bounds[1], endpoint=True))
        bounds = _cut(in_order, max_tokens, max_sentences, first=first)
        num_batches = min(num_batches + 1, num_examples)
    wanted = -(-num_batches // world_size) * world_size
    if wanted > num_examples:  # nearly every batch holds a single example
        wanted = num_examples // world_size * world_size if shuffle else num_batches
    bounds = _resize(bounds, wanted)
    return BatchPlan(order, bounds, _schedule(wanted, world_size, rng), world_size)


def _check_lengths(src_lengths: ArrayLike, tgt_lengths: ArrayLike | None) -> tuple[Ints, Ints]:
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


def _check_limits(max_tokens: int, max_sentences: int | None, world_size: int) -> None:
    limits = {"max_tokens": max_tokens, "max_sentences": max_sentences, "world_size": world_size}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _sort(src: Ints, tgt: Ints, longest: Ints, rng: np.random.Generator | None) -> Ints:
    difference = (src - tgt).astype(np.float64)
    if rng is not None:
        difference += rng.random(len(src))  # below 1: it decides among equals alone
    # Where one length ends with long sources, the next one begins with long sources.
    difference[longest % 2 == 1] *= -1
    return np.lexsort((difference, longest)).astype(np.int64)


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


def _resize(bounds: Ints, num_batches: int) -> Ints:
    """Halves the largest batches, or joins the shortest, until there are ``num_batches``."""
    while len(bounds) - 1 < num_batches:
        k = int(np.diff(bounds).argmax())
        bounds = np.insert(bounds, k + 1, (bounds[k] + bounds[k + 1]) // 2)
    while len(bounds) - 1 > num_batches:  # over the budget, but with the two shortest sentences
        bounds = np.delete(bounds, 1)
    return bounds


def _schedule(num_batches: int, world_size: int, rng: np.random.Generator) -> Ints:
    """Deals neighbours in length to the ranks of one step, the steps in random order."""
    steps, rest = divmod(num_batches, world_size)
    dealt = np.arange(steps * world_size).reshape(steps, world_size)
    dealt = rng.permuted(rng.permutation(dealt), axis=1)
    return np.concatenate([dealt.ravel(), np.arange(num_batches - rest, num_batches)])


class TokenBucketLoader:
    """Yields length-bucketed batches; reshuffles in every epoch; resumes with the very next batch.

    An iterable of its own around a private DataLoader: a Trainer leaves it alone, so users set no
    flag, and it works without Lightning. Ranks are dealt disjoint batches: equally many in training
    (``shuffle``), and in evaluation such that every example is read exactly once.

    A pass that ran to its end moves on to the next epoch by itself; ``set_epoch`` does so
    explicitly. A pass that was broken off starts its epoch anew, unless ``load_state_dict`` says
    where to go on.

    Args:
        load_batch: Makes a batch from the numbers of its examples, int64 (B,), and the epoch.
        src_lengths: Source token counts, int (N,).
        tgt_lengths: Target token counts, int (N,); None where there is no target.
        ids: The examples to use, int (M,); None: all N.
        max_tokens: Padded tokens per batch and device on its longer side.
        max_sentences: Examples per batch at most; None: no limit.
        shuffle: Whether to draw new batches in every epoch, as in training.
        seed: Seed of all draws.
        num_workers: Number of processes that load batches; 0: this one.
        persistent_workers: Whether they stay between passes.
        pin_memory: Whether batches land in page-locked memory.
        world_size: Number of ranks; None: as ``torch.distributed`` says when first needed.
        rank: This process's rank; None likewise.
        data_fingerprint: Names the data; a state saved with another is not resumed.

    Raises:
        ValueError: If there is nothing to train on, or as ``plan_batches`` says.
    """

    def __init__(
        self,
        load_batch: LoadBatch,
        src_lengths: ArrayLike,
        tgt_lengths: ArrayLike | None = None,
        *,
        ids: ArrayLike | None = None,
        max_tokens: int,
        max_sentences: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        persistent_workers: bool = False,
        pin_memory: bool = False,
        world_size: int | None = None,
        rank: int | None = None,
        data_fingerprint: str = "",
    ) -> None:
        if (world_size is None) != (rank is None):
            raise ValueError(f"give both or none of world_size={world_size} and rank={rank}.")
        src = np.asarray(src_lengths, dtype=np.int64)
        tgt = None if tgt_lengths is None else np.asarray(tgt_lengths, dtype=np.int64)
        _check_lengths(src, tgt)
        self._ids = np.arange(len(src)) if ids is None else np.asarray(ids, dtype=np.int64)
        self._src_lengths = src[self._ids]
        self._tgt_lengths = None if tgt is None else tgt[self._ids]
        if shuffle and len(self._ids) == 0:
            raise ValueError("there is no example to train on.")
        self.max_tokens = max_tokens
        self.max_sentences = max_sentences
        self.shuffle = shuffle
        self.seed = seed
        self._place = None if world_size is None or rank is None else (world_size, rank)
        _check_limits(max_tokens, max_sentences, world_size or 1)
        self._fingerprint = self._make_fingerprint(data_fingerprint)
        self._epoch = 0
        self._start = 0  # where the next pass begins
        self._yielded = 0  # batches of this epoch that were handed out
        self._plan: tuple[tuple[int, int], BatchPlan] | None = None  # key: epoch, world size
        self._agenda = _Agenda()
        self._loader = DataLoader(
            _Batches(load_batch),
            batch_size=None,
            sampler=self._agenda,
            num_workers=num_workers,
            persistent_workers=persistent_workers and num_workers > 0,
            pin_memory=pin_memory,
            # Starting a pass draws a number; from the global generator it would change dropout.
            generator=torch.Generator(),
        )

    @property
    def batch_sampler(self) -> "_EpochSetter":
        """Where Lightning looks for ``sampler.set_epoch``."""
        return _EpochSetter(self)

    @property
    def num_examples(self) -> int:
        """Examples of an epoch, on all ranks together."""
        return len(self._ids)

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Real tokens of an epoch on all ranks together: source, target."""
        tgt = 0 if self._tgt_lengths is None else int(self._tgt_lengths.sum())
        return int(self._src_lengths.sum()), tgt

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next batch belongs to."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, unless that epoch is the present one."""
        if epoch != self._epoch:
            self._epoch, self._start, self._yielded = epoch, 0, 0

    def plan(self, epoch: int | None = None) -> BatchPlan:
        """The batches of an epoch, of all ranks; None: of the present one."""
        world_size, _ = self._locate()
        epoch = self._epoch if epoch is None else epoch
        key = (epoch if self.shuffle else 0, world_size)
        if self._plan is None or self._plan[0] != key:
            plan = plan_batches(
                self._src_lengths,
                self._tgt_lengths,
                max_tokens=self.max_tokens,
                max_sentences=self.max_sentences,
                shuffle=self.shuffle,
                seed=self.seed,
                epoch=key[0],
                world_size=world_size,
            )
            self._plan = (key, plan)
        return self._plan[1]

    def efficiency(self) -> tuple[float, float]:
        """Share of real tokens among the padded ones in the present epoch: source, target."""
        plan, src = self.plan(), self._src_lengths
        tgt = src if self._tgt_lengths is None else self._tgt_lengths
        return plan.efficiency(src), plan.efficiency(tgt)

    def __len__(self) -> int:
        world_size, rank = self._locate()
        return len(range(rank, len(self.plan()), world_size))

    def __iter__(self) -> Iterator[Batch]:
        # A generator: it looks at epoch and start only when the first batch is asked for, since a
        # Trainer makes the iterator before it sets the epoch.
        num_batches = len(self)
        self._agenda.items = self._remaining()
        self._yielded, self._start = self._start, 0
        batches = iter(self._loader)
        for batch in batches:
            self._yielded += 1
            if self._yielded >= num_batches:
                # The last one: whoever saves now saves the start of the next epoch. A Trainer does
                # not come back for StopIteration.
                self._epoch, self._yielded = self._epoch + 1, 0
                yield batch
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch, in plain numbers that are the same on every rank."""
        return {
            "epoch": self._epoch,
            "batches": self._yielded,
            "seed": self.seed,
            "world_size": self._locate()[0],
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes to the place that ``state_dict`` named.

        Other data, limits, seed or number of ranks make other batches, in which that place means
        nothing: then the epoch starts anew, with a warning.

        Args:
            state_dict: What ``state_dict`` returned, here or on another rank.
        """
        self._epoch = int(state_dict["epoch"])
        self._start = int(state_dict["batches"])
        now = self.state_dict()
        differ = [k for k in ("fingerprint", "seed", "world_size") if state_dict[k] != now[k]]
        if differ and self._start > 0:
            changes = ", ".join(f"{k} {state_dict[k]} -> {now[k]}" for k in differ)
            _log.warning(
                "the batches are not those of the checkpoint (%s): epoch %d starts anew.",
                changes,
                self._epoch,
            )
            self._start = 0
        if self._start >= len(self):
            self._epoch, self._start = self._epoch + 1, 0
        self._yielded = self._start

    def _locate(self) -> tuple[int, int]:
        """World size and rank; read late, as loaders may be made before the process group."""
        if self._place is not None:
            return self._place
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0

    def _remaining(self) -> list[tuple[int, Ints]]:
        """Epoch and example numbers of the batches from ``_start`` on."""
        _, rank = self._locate()
        return [(self._epoch, self._ids[b]) for b in self.plan().batches(rank)[self._start :]]

    def _make_fingerprint(self, data_fingerprint: str) -> str:
        limits = f"{data_fingerprint} {self.max_tokens} {self.max_sentences} {self.shuffle}"
        digest = hashlib.sha256(limits.encode())
        for lengths in (self._ids, self._src_lengths, self._tgt_lengths):
            digest.update(b"|" if lengths is None else lengths.astype("<i8").tobytes())
        return digest.hexdigest()


class _EpochSetter:
    """Stands in for a batch sampler: the Trainer calls ``batch_sampler.sampler.set_epoch``."""

    def __init__(self, loader: TokenBucketLoader) -> None:
        self.sampler = loader


class _Agenda(Sampler[tuple[int, Ints]]):
    """The batches of the next pass.

    It does not know its loader: without that circle, worker processes end with the last reference.
    """

    def __init__(self) -> None:
        self.items: list[tuple[int, Ints]] = []

    def __iter__(self) -> Iterator[tuple[int, Ints]]:
        return iter(self.items)


class _Batches(Dataset[Batch]):
    """Lets a DataLoader's workers call ``load_batch``."""

    def __init__(self, load_batch: LoadBatch) -> None:
        self._load_batch = load_batch

    def __getitem__(self, item: tuple[int, Ints]) -> Batch:
        epoch, ids = item
        return self._load_batch(ids, epoch)
