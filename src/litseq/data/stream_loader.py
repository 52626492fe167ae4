"""Batches out of a stream: for a corpus too large to be prepared beforehand."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from litseq.data.collate import collate
from litseq.data.encoding import SubwordSampling, TextEncoder, counts_of, resample, sequences_of
from litseq.data.filters import FilterReport, PairFilter, filter_pairs
from litseq.data.loading import (
    EpochSetter,
    check_place,
    locate_rank,
    makes_same_batches,
    without_labels,
)
from litseq.data.plans import Ints, check_limits, deal_batches, plan_batches
from litseq.data.readers import Pair
from litseq.data.streams import PairStream, digest_of
from litseq.types import Batch

__all__ = ["StreamLoader"]

_log = logging.getLogger(__name__)

_PARTS = 16  # of the shuffle buffer; one is read, encoded and sent to the training process at once


class StreamLoader:
    """Yields length-bucketed batches of a stream; resumes with the very next batch.

    The stream is read in stretches of ``shuffle_buffer`` pairs. Each is filtered, encoded and
    planned as ``TokenBucketLoader`` does with all; in every epoch they end at other rows. So memory
    does not grow with the corpus, nothing is written, and training starts at once. The price is
    that pairs far apart never meet in a batch, so a sorted corpus should be shuffled once before.

    Every rank reads the stream and takes its share of the batches, which follow from stream, seed
    and epoch alone: not from the number of worker processes, and one step of four ranks is two of
    two. In an epoch every pair that passes the filter is used exactly once, in equally many steps
    on each rank; in the last one, a rank for which nothing is left gets a batch with ``id`` -1 and
    no label. How many steps there are shows when they are done: there is no ``len``.

    Worker processes take turns with sixteenths of a stretch and read the next one while the batches
    of the last are used. Without one, training waits at the start of every stretch.

    Args:
        stream: Where pairs come from.
        encoder: Makes ids of their texts.
        pair_filter: Which of them are used.
        max_bad_lines: So many lines of an epoch that cannot be read are left out, with a warning;
            one more is an error.
        sampling: How to cut texts anew in each epoch; None: always alike.
        shuffle_buffer: Rows of a stretch, rounded up to a multiple of 16.
        max_tokens: Padded tokens per batch and device on its longer side.
        max_sentences: Examples per batch at most; None: no limit.
        shuffle: Whether to draw new batches in every epoch.
        seed: Seed of all draws.
        num_workers: Number of processes that read and encode; 0: this one.
        pin_memory: Whether batches land in page-locked memory.
        world_size: Number of ranks; None: as ``torch.distributed`` says when first needed.
        rank: This process's rank; None likewise.
        lookahead: Batches that were asked for but are not used yet when ``state_dict`` is called.
            A Trainer looks one ahead, for it must know the last one when it comes.
        allow_other_data: Whether a state saved with other data is taken for its epoch, which then
            starts anew.

    Raises:
        ValueError: If a limit is below 1.
    """

    def __init__(
        self,
        stream: PairStream,
        encoder: TextEncoder,
        pair_filter: PairFilter,
        *,
        max_bad_lines: int = 0,
        sampling: SubwordSampling | None = None,
        shuffle_buffer: int = 100_000,
        max_tokens: int,
        max_sentences: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        world_size: int | None = None,
        rank: int | None = None,
        lookahead: int = 0,
        allow_other_data: bool = False,
    ) -> None:
        check_limits(max_tokens, max_sentences)
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {shuffle_buffer}.")
        if lookahead not in (0, 1):
            raise ValueError(f"lookahead must be 0 or 1, got {lookahead}.")
        self._filter = pair_filter
        self._pad_id = encoder.tokenizer.pad_id
        self._part = -(-shuffle_buffer // _PARTS)
        self.max_tokens = max_tokens
        self.max_sentences = max_sentences
        self.shuffle = shuffle
        self.seed = seed
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._given_place = check_place(world_size, rank)
        self._lookahead = lookahead
        self._allow_other_data = allow_other_data
        self._parts = _Parts(stream, encoder, pair_filter, max_bad_lines, sampling, self._part)
        self._data = digest_of(stream.fingerprint, encoder.tokenizer.fingerprint)
        limits = [max_tokens, max_sentences, shuffle, self._part, astuple(pair_filter)]
        self._fingerprint = digest_of(self._data, limits)
        self._place = _Place(0)
        self._resuming = False
        self._reported = False

    @property
    def batch_sampler(self) -> EpochSetter:
        """Where Lightning looks for ``sampler.set_epoch``."""
        return EpochSetter(self)

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next batch belongs to."""
        return self._place.epoch

    @property
    def position(self) -> int:
        """Steps of the present epoch that are done."""
        return -(-self._place.read // self._locate()[0])

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, unless that epoch is the present one."""
        if epoch != self._place.epoch:
            self._place, self._resuming = _Place(epoch), False

    def largest_batches(self) -> list[Batch]:
        """A batch as large as any can be, of made-up ids; no place is lost."""
        src_len, tgt_len = self._filter.max_src_len, self._filter.max_tgt_len
        size = max(1, self.max_tokens // max(src_len, tgt_len))
        size = min(size, self.max_sentences or size)
        src, tgt = (np.full(n, self._pad_id + 1) for n in (src_len, tgt_len))
        return [collate([src] * size, [tgt] * size, ids=np.arange(size), pad_id=self._pad_id)]

    def __iter__(self) -> Iterator[Batch]:
        # A generator: it looks at its place only when the first batch is asked for, since a Trainer
        # makes the iterator before it sets the epoch.
        if not self._resuming:
            self._place = _Place(self._place.epoch)
        self._resuming = False
        for batch, after in self._steps(self._place):
            if self._pin_memory:
                tensors = cast(dict[str, Tensor], batch)
                batch = cast(Batch, {name: value.pin_memory() for name, value in tensors.items()})
            if not self._lookahead:
                self._place = after
            yield batch
            self._place = after  # who looks ahead is done with this one now

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch, in plain numbers that are the same on every rank."""
        return {
            "epoch": self._place.epoch,
            "row": self._place.row,
            "batches": self._place.batch,
            "read": self._place.read,
            "seed": self.seed,
            "data": self._data,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes to the place that ``state_dict`` named, with any number of ranks.

        Other limits, filters or seed make other batches, in which that place means nothing: then
        the epoch starts anew, with a warning.

        Args:
            state_dict: What ``state_dict`` returned, here or on another rank.

        Raises:
            ValueError: If the data are others, unless ``allow_other_data``.
        """
        now = self.state_dict()
        place = _Place(int(state_dict["epoch"]))
        if makes_same_batches(
            state_dict,
            now,
            allow_other_data=self._allow_other_data,
            say=self._locate()[1] == 0 and state_dict["batches"] > 0,
        ):
            names = ("epoch", "row", "batches", "read")
            place = _Place(*(int(state_dict[name]) for name in names))
        self._place, self._resuming = place, True

    def _locate(self) -> tuple[int, int]:
        return self._given_place or locate_rank()

    def _steps(self, start: "_Place") -> Iterator[tuple[Batch, "_Place"]]:
        """This rank's batches, each with the place of the step after it."""
        world_size, rank = self._locate()
        group: list[tuple[_Stretch, Ints]] = []
        for stretch, ids, place in self._batches(start):
            if len(group) == world_size:
                mine, wanted = group[rank]
                yield mine.load(wanted, self._pad_id), place
                group = []
            group.append((stretch, ids))
        if group:
            end = _Place(start.epoch + 1)
            wanted = deal_batches([ids for _, ids in group], world_size)[rank]
            if len(wanted):
                mine = next(stretch for stretch, ids in group if wanted[0] in ids)
                yield mine.load(wanted, self._pad_id), end
            else:
                mine, ids = group[0]
                yield without_labels(mine.load(ids[:1], self._pad_id)), end

    def _batches(self, start: "_Place") -> Iterator[tuple["_Stretch", Ints, "_Place"]]:
        """The batches of all ranks: stretch, rows of it, and place."""
        read, total = start.read, None
        for stretch in self._stretches(start):
            total = stretch.report if total is None else total + stretch.report
            lengths = stretch.lengths
            seed = np.random.SeedSequence([self.seed, start.epoch, stretch.row])
            plan = plan_batches(
                *lengths,
                max_tokens=self.max_tokens,
                max_sentences=self.max_sentences,
                shuffle=self.shuffle,
                seed=int(seed.generate_state(1)[0]),
            )
            if not self._reported:
                src, tgt = map(plan.efficiency, lengths)
                self._say(
                    logging.INFO,
                    f"train, from row {stretch.row:,}: {stretch.report}; {len(plan):,} batches, of "
                    f"which {src:.1%} are real tokens in the source and {tgt:.1%} in the target.",
                )
                self._reported = True
            first = start.batch if stretch.row == start.row else 0
            for number, positions in list(enumerate(plan.batches()))[first:]:
                place = _Place(start.epoch, stretch.row, number, read)
                yield stretch, stretch.ids[positions], place
                read += 1
        if start.row == 0:  # the whole epoch was seen
            if total is None or total.num_kept == 0:
                raise ValueError(f"no training pair is left: {total or '0 pairs'}.")
            self._say(logging.INFO, f"train, epoch {start.epoch}: {total}; {read:,} batches.")

    def _stretches(self, start: "_Place") -> Iterator["_Stretch"]:
        self._parts.epoch, self._parts.first = start.epoch, start.row
        parts = iter(
            DataLoader(
                self._parts,
                batch_size=None,
                num_workers=self._num_workers,
                # the whole next stretch
                prefetch_factor=-(-_PARTS // self._num_workers) if self._num_workers else None,
                # Starting a pass draws a number; from the global one it would change dropout.
                generator=torch.Generator(),
            )
        )
        row, size = start.row, _PARTS
        if self.shuffle and row == 0:  # so that stretches have other borders in each epoch
            size = int(np.random.default_rng([self.seed, start.epoch]).integers(1, _PARTS + 1))
        while found := list(islice(parts, size)):
            for part in found:
                if part.error is not None:
                    raise part.error
                for message in part.bad:
                    self._say(logging.WARNING, f"left out: {message}")
            yield _Stretch(row, found)
            row += size * self._part
            size = _PARTS

    def _say(self, level: int, message: str) -> None:
        if self._locate()[1] == 0:
            _log.log(level, "%s", message)


@dataclass(frozen=True)
class _Place:
    """A batch of an epoch: the ``batch``-th of the stretch that begins at ``row``.

    ``read`` batches of the epoch, of all ranks together, come before it.
    """

    epoch: int
    row: int = 0
    batch: int = 0
    read: int = 0


@dataclass(frozen=True, eq=False)
class _Part:
    """So many rows in a row, filtered and encoded.

    Attributes:
        ids: Numbers of the rows that are kept, int64 (N,).
        src: Their source ids, one after the other, int32.
        src_lengths: How many are whose, int64 (N,).
        tgt: Target ids likewise.
        tgt_lengths: How many are whose.
        report: What was kept and dropped.
        bad: What was wrong with lines that were left out.
        error: Why there are no further parts, if for another reason than the end.
    """

    ids: Ints
    src: NDArray[np.int32]
    src_lengths: Ints
    tgt: NDArray[np.int32]
    tgt_lengths: Ints
    report: FilterReport
    bad: Sequence[str] = ()
    error: Exception | None = None


class _Parts(IterableDataset[_Part]):
    """Reads a stream; each worker process encodes every so-manieth part."""

    def __init__(
        self,
        stream: PairStream,
        encoder: TextEncoder,
        pair_filter: PairFilter,
        max_bad_lines: int,
        sampling: SubwordSampling | None,
        size: int,
    ) -> None:
        self._stream = stream
        self._encoder = encoder
        self._filter = pair_filter
        self._max_bad_lines = max_bad_lines
        self._sampling = sampling
        self._size = size
        self.epoch = 0
        self.first = 0

    def __iter__(self) -> Iterator[_Part]:
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        row, number, num_bad = self.first, 0, 0
        pairs = self._stream.pairs(row)
        while True:
            error: Exception | None = None
            try:
                found = list(islice(pairs, self._size))
                bad = [pair for pair in found if isinstance(pair, ValueError)]
                if num_bad + len(bad) > self._max_bad_lines:
                    error = bad[self._max_bad_lines - num_bad]
                num_bad += len(bad)
            except (ValueError, OSError) as raised:  # in a worker it would lose its first line
                error = raised
            if error is not None:
                if number % turns == turn:
                    yield _empty(error)
                return
            if not found:
                return
            if number % turns == turn:
                yield self._encode(row, found, bad)
            row, number = row + len(found), number + 1

    def _encode(
        self, row: int, found: Sequence[Pair | ValueError], bad: Sequence[ValueError]
    ) -> _Part:
        sound = [(row + i, p) for i, p in enumerate(found) if not isinstance(p, ValueError)]
        ids = np.array([i for i, _ in sound], dtype=np.int64)
        sources, targets = [p[0] for _, p in sound], [p[1] or "" for _, p in sound]
        texts = {"source": pa.array(sources, pa.string()), "target": pa.array(targets, pa.string())}
        rows = self._encoder(pa.table(texts))
        counts = counts_of(rows, "src"), counts_of(rows, "tgt")
        keep, report = filter_pairs(*counts, **asdict(self._filter))
        kept = rows.take(keep)
        sides = {side: sequences_of(kept, side) for side in ("src", "tgt")}
        if self._sampling is not None:
            resample(
                self._sampling,
                sides["src"],
                sides["tgt"],
                sources=[sources[i] for i in keep],
                targets=[targets[i] for i in keep],
                ids=ids[keep],
                epoch=self.epoch,
                max_src_len=self._filter.max_src_len,
                max_tgt_len=self._filter.max_tgt_len,
            )
        src, tgt = (np.concatenate([_NO_IDS, *side]) for side in sides.values())
        lengths = (np.array(list(map(len, side)), dtype=np.int64) for side in sides.values())
        src_lengths, tgt_lengths = lengths
        messages = [str(error) for error in bad]
        return _Part(ids[keep], src, src_lengths, tgt, tgt_lengths, report, messages)


class _Stretch:
    """The parts of a shuffle buffer as one."""

    def __init__(self, row: int, parts: Sequence[_Part]) -> None:
        self.row = row
        self.report = sum((part.report for part in parts[1:]), start=parts[0].report)
        self.ids = np.concatenate([part.ids for part in parts])
        self.lengths = (
            np.concatenate([part.src_lengths for part in parts]),
            np.concatenate([part.tgt_lengths for part in parts]),
        )
        sides = ([part.src for part in parts], [part.tgt for part in parts])
        self._flat = tuple(map(np.concatenate, sides))
        self._ends = tuple(map(np.cumsum, self.lengths))

    def load(self, ids: Ints, pad_id: int) -> Batch:
        """The batch of some rows, none of which may be of another stretch."""
        rows = np.searchsorted(self.ids, ids)
        src, tgt = (
            [flat[end - length : end] for end, length in np.stack((ends, lengths), 1)[rows]]
            for flat, ends, lengths in zip(self._flat, self._ends, self.lengths, strict=True)
        )
        return collate(src, tgt, ids=ids, pad_id=pad_id)


_NO_IDS = np.empty(0, dtype=np.int32)


def _empty(error: Exception) -> _Part:
    none = np.empty(0, dtype=np.int64)
    return _Part(none, _NO_IDS, none, _NO_IDS, none, FilterReport(0, {}), error=error)
