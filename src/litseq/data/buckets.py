"""A loader of length-bucketed batches that can resume, with any number of ranks."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import DataLoader, Dataset, Sampler

from litseq.data.loading import (
    EpochSetter,
    check_place,
    locate_rank,
    makes_same_batches,
    without_labels,
)
from litseq.data.plans import (
    BatchPlan,
    Ints,
    check_lengths,
    check_limits,
    deal_batches,
    plan_batches,
)
from litseq.types import Batch

__all__ = ["BatchPlan", "LoadBatch", "TokenBucketLoader", "plan_batches"]

LoadBatch = Callable[[Ints, int], Batch]


class TokenBucketLoader:
    """Yields length-bucketed batches; reshuffles in every epoch; resumes with the very next batch.

    An iterable of its own around a private DataLoader: a Trainer leaves it alone, so users set no
    flag, and it works without Lightning. Ranks are dealt disjoint batches, and every example is
    read exactly once: in training (``shuffle``) in equally many steps on each rank. A rank for
    which there is nothing (the last step of an epoch may have fewer examples than ranks, an
    evaluation fewer batches) gets a batch with ``id`` -1 and no label: Lightning would not wait for
    the others on a rank without a batch, while they wait for it.

    The batches and their order do not depend on the number of ranks: one step of four ranks is two
    of two. So an epoch may be resumed with another number of them.

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
        even: Whether all ranks take equally many steps, as in training; None: as ``shuffle``.
        seed: Seed of all draws.
        num_workers: Number of processes that load batches; 0: this one.
        persistent_workers: Whether they stay between passes.
        pin_memory: Whether batches land in page-locked memory.
        world_size: Number of ranks; None: as ``torch.distributed`` says when first needed.
        rank: This process's rank; None likewise.
        data_fingerprint: Names the data; a state saved with another is refused.
        allow_other_data: Whether such a state is taken for its epoch, which then starts anew.

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
        even: bool | None = None,
        seed: int = 0,
        num_workers: int = 0,
        persistent_workers: bool = False,
        pin_memory: bool = False,
        world_size: int | None = None,
        rank: int | None = None,
        data_fingerprint: str = "",
        allow_other_data: bool = False,
    ) -> None:
        self._place = check_place(world_size, rank)
        src = np.asarray(src_lengths, dtype=np.int64)
        tgt = None if tgt_lengths is None else np.asarray(tgt_lengths, dtype=np.int64)
        check_lengths(src, tgt)
        self._ids = np.arange(len(src)) if ids is None else np.asarray(ids, dtype=np.int64)
        self._src_lengths = src[self._ids]
        self._tgt_lengths = None if tgt is None else tgt[self._ids]
        if shuffle and len(self._ids) == 0:
            raise ValueError("there is no example to train on.")
        self.max_tokens = max_tokens
        self.max_sentences = max_sentences
        self.shuffle = shuffle
        self._even = shuffle if even is None else even
        self.seed = seed
        check_limits(max_tokens, max_sentences)
        self._data = data_fingerprint
        self._allow_other_data = allow_other_data
        self._fingerprint = self._make_fingerprint(data_fingerprint)
        self._epoch = 0
        self._read = 0  # batches of the epoch that all ranks together read before this pass
        self._yielded = 0  # batches of this pass that were handed out
        self._resuming = False  # whether the next pass goes on after those that were read
        self._plan: tuple[int, BatchPlan] | None = None  # key: epoch
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
    def batch_sampler(self) -> "EpochSetter":
        """Where Lightning looks for ``sampler.set_epoch``."""
        return EpochSetter(self)

    @property
    def _iterator(self) -> Any:  # noqa: ANN401 - torch's
        """Where Lightning looks, when a run ends, for worker processes to end, and puts None."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        self._loader._iterator = value

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

    @property
    def position(self) -> int:
        """Steps of the present epoch that are done; what is left fits into the others."""
        world_size, _ = self._locate()
        left = len(self.plan()) - self._read
        return -(-len(self.plan()) // world_size) + self._yielded - -(-left // world_size)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, unless that epoch is the present one."""
        if epoch != self._epoch:
            self._go_to(epoch)

    def plan(self, epoch: int | None = None) -> BatchPlan:
        """The batches of an epoch, of all ranks; None: of the present one.

        Raises:
            ValueError: If there are fewer training pairs than ranks.
        """
        world_size, _ = self._locate()
        if self._even and self.num_examples < world_size:
            raise ValueError(
                f"{self.num_examples} training pairs cannot feed {world_size} processes; use at "
                f"most {self.num_examples} devices."
            )
        key = (self._epoch if epoch is None else epoch) if self.shuffle else 0
        if self._plan is None or self._plan[0] != key:
            plan = plan_batches(
                self._src_lengths,
                self._tgt_lengths,
                max_tokens=self.max_tokens,
                max_sentences=self.max_sentences,
                shuffle=self.shuffle,
                seed=self.seed,
                epoch=key,
            )
            self._plan = (key, plan)
        return self._plan[1]

    def efficiency(self) -> tuple[float, float]:
        """Share of real tokens among the padded ones in the present epoch: source, target."""
        plan, src = self.plan(), self._src_lengths
        tgt = src if self._tgt_lengths is None else self._tgt_lengths
        return plan.efficiency(src), plan.efficiency(tgt)

    def largest_batches(self) -> list[Batch]:
        """Reads the batches of the present epoch that take the most memory; no place is lost.

        That is the one with the most positions of both sides, which decide about the logits, and
        the one with the most pairs of a source and a target position, which decide about attention;
        often they are one and the same.
        """
        plan = self.plan()
        src = self._src_lengths
        tgt = src if self._tgt_lengths is None else self._tgt_lengths
        size = np.diff(plan.bounds)
        src_len, tgt_len = (
            np.maximum.reduceat(side[plan.order], plan.bounds[:-1]) for side in (src, tgt)
        )
        largest = {
            int((size * (src_len + tgt_len)).argmax()),
            int((size * src_len * tgt_len).argmax()),
        }
        batches = (plan.order[plan.bounds[k] : plan.bounds[k + 1]] for k in sorted(largest))
        return [self._loader.dataset[(self._epoch, self._ids[batch], True)] for batch in batches]

    def __len__(self) -> int:
        world_size, rank = self._locate()
        num_batches = len(self.plan())
        if self._even:
            return -(-num_batches // world_size)
        return max(len(range(rank, num_batches, world_size)), min(num_batches, 1))

    def __iter__(self) -> Iterator[Batch]:
        # A generator: it looks at epoch and start only when the first batch is asked for, since a
        # Trainer makes the iterator before it sets the epoch.
        if not self._resuming:
            self._go_to(self._epoch)
        self._resuming, self._yielded = False, 0
        self._agenda.items = self._remaining()
        num_batches = len(self._agenda.items)
        for batch in iter(self._loader):
            self._yielded += 1
            if self._yielded == num_batches:
                # The last one: whoever saves now saves the start of the next epoch. A Trainer does
                # not come back for StopIteration.
                self._go_to(self._epoch + 1)
                yield batch
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch, in plain numbers that are the same on every rank."""
        return {
            "epoch": self._epoch,
            "batches": self._read + self._yielded * self._locate()[0],
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
        epoch, batches = int(state_dict["epoch"]), int(state_dict["batches"])
        say = batches > 0 and self._locate()[1] == 0
        if not makes_same_batches(
            state_dict, self.state_dict(), allow_other_data=self._allow_other_data, say=say
        ):
            batches = 0
        if batches >= len(self.plan()):
            epoch, batches = epoch + 1, 0
        self._go_to(epoch)
        self._read, self._resuming = batches, True

    def _go_to(self, epoch: int) -> None:
        self._epoch, self._read, self._yielded, self._resuming = epoch, 0, 0, False

    def _locate(self) -> tuple[int, int]:
        return self._place or locate_rank()

    def _remaining(self) -> list["_Item"]:
        """What this rank reads from the place of resumption on."""
        world_size, rank = self._locate()
        plan = self.plan()
        batches = plan.batches()[self._read :]
        if self._even:
            batches = deal_batches(batches, world_size)
        elif rank >= len(batches) > 0:
            batches = [plan.order[:0]] * (rank + 1)
        shortest = self._ids[plan.order[:1]]
        return [
            (self._epoch, self._ids[batch] if len(batch) else shortest, len(batch) > 0)
            for batch in batches[rank::world_size]
        ]

    def _make_fingerprint(self, data_fingerprint: str) -> str:
        limits = f"{data_fingerprint} {self.max_tokens} {self.max_sentences} {self.shuffle}"
        digest = hashlib.sha256(limits.encode())
        for lengths in (self._ids, self._src_lengths, self._tgt_lengths):
            digest.update(b"|" if lengths is None else lengths.astype("<i8").tobytes())
        return digest.hexdigest()


_Item = tuple[int, Ints, bool]
"""An epoch, numbers of examples, and whether they count."""


class _Agenda(Sampler[_Item]):
    """The batches of the next pass.

    It does not know its loader: without that circle, worker processes end with the last reference.
    """

    def __init__(self) -> None:
        self.items: list[_Item] = []

    def __iter__(self) -> Iterator[_Item]:
        return iter(self.items)


class _Batches(Dataset[Batch]):
    """Lets a DataLoader's workers call ``load_batch``."""

    def __init__(self, load_batch: LoadBatch) -> None:
        self._load_batch = load_batch

    def __getitem__(self, item: _Item) -> Batch:
        epoch, ids, counts = item
        batch = self._load_batch(ids, epoch)
        return batch if counts else without_labels(batch)
