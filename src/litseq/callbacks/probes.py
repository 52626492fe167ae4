"""Probe sentences: examples of any module, run as if nothing were, and seen token by token."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from litseq.attention import AttentionMap, AttentionMaps
from litseq.callbacks.examples import find_tokenizers, has_ids, tensors_of
from litseq.losses import IGNORE
from litseq.types import AttentionKind

__all__ = [
    "Labels",
    "View",
    "find_labels",
    "run_module",
    "sharding_of",
    "unchanged",
    "views",
]

Labels = Callable[[list[int], bool], Sequence[str]]
"""Turns ids into what is written on an axis; the second argument: whether they are the source's."""


def run_module(module: torch.nn.Module, batch: Any) -> Any:  # noqa: ANN401 - anybody's
    """Runs a module on a batch as its author would.

    Its method ``attention_probe(batch)``, where it has one. Else its ``forward``, with the batch: a
    mapping gives the arguments that ``forward`` names, a tuple or a list as many as have no default
    there, but at least one: what else is in it may be no argument at all, such as classes. Anything
    else, and a mapping of which it names nothing, is its only argument.
    """
    probe = getattr(module, "attention_probe", None)
    if callable(probe):
        return probe(batch)
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = {p.kind for p in parameters}
    if isinstance(batch, Mapping):
        names = {p.name for p in parameters}
        every = inspect.Parameter.VAR_KEYWORD in kinds
        given = {name: value for name, value in batch.items() if every or name in names}
        return module(**given) if given else module(batch)
    if isinstance(batch, (tuple, list)):
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        every = inspect.Parameter.VAR_POSITIONAL in kinds
        needed = sum(p.kind in positional and p.default is p.empty for p in parameters)
        number = len(batch) if every else max(1, needed)
        return module(*batch[:number])
    return module(batch)


@contextmanager
def unchanged(module: LightningModule) -> Iterator[None]:
    """Evaluation mode, no gradients, nothing logged; all modes and random numbers come back."""
    modes = {part: part.training for part in module.modules()}
    # By class: what is wrapped would answer for its wrapper. Both Lightning packages have it.
    logging_ones = [vars(part) for part in modes if hasattr(type(part), "log_dict")]
    own: list[dict[str, Any]] = [
        {n: names[n] for n in ("log", "log_dict") if n in names} for names in logging_ones
    ]
    states = random.getstate(), np.random.get_state()
    device = module.device
    # Only these have generators of their own that torch can fork by device.
    devices = [device] if device.type in ("cuda", "xpu") else []
    with (
        torch.random.fork_rng(devices, device_type=device.type if devices else None),
        # Not inference mode: what a module keeps for later steps must allow gradients there.
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        try:
            module.eval()
            for names in logging_ones:
                names.update(log=_log_nothing, log_dict=_log_nothing)
            yield
        finally:
            for names, before in zip(logging_ones, own, strict=True):
                for name in ("log", "log_dict"):
                    names.pop(name, None)
                names.update(before)
            random.setstate(states[0])
            np.random.set_state(states[1])
            for part, mode in modes.items():
                part.training = mode
            torch.clear_autocast_cache()  # it may hold weights without their gradients' way back


def _log_nothing(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
    """Stands for ``self.log`` and ``self.log_dict``: the probe is no part of the run's metrics."""


def sharding_of(trainer: Trainer) -> str:
    """Name of a strategy that may leave no rank with whole parameters; empty for any other."""
    # Both Lightning packages have them; by name, one check serves both.
    return next((c.__name__ for c in type(trainer.strategy).__mro__ if c.__name__ in _SHARDING), "")


_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}


def find_labels(*owners: object) -> Labels:
    """Finds a tokenizer that can name its tokens.

    Args:
        owners: What may have one as an attribute: litseq's ``tokenizer``, or one of Hugging Face
            of any name. The first that is found counts.

    Returns:
        A function that names tokens; without a tokenizer by their numbers.
    """
    for candidate in find_tokenizers(owners):
        if hasattr(candidate, "source_pieces") and hasattr(candidate, "target_pieces"):
            return _pieces(candidate)
        if hasattr(candidate, "convert_ids_to_tokens"):
            return _tokens(candidate)
    return lambda ids, is_source: list(map(str, ids))


def _pieces(tokenizer: Any) -> Labels:  # noqa: ANN401
    def name(ids: list[int], is_source: bool) -> list[str]:
        return list((tokenizer.source_pieces if is_source else tokenizer.target_pieces)(ids))

    return name


def _tokens(tokenizer: Any) -> Labels:  # noqa: ANN401
    def name(ids: list[int], is_source: bool) -> list[str]:
        return list(map(str, tokenizer.convert_ids_to_tokens(ids)))

    return name


@dataclass(frozen=True)
class View:
    """One map of one sentence, without padding.

    Attributes:
        kind: Who looks at whom.
        layer: Number of the layer within its kind.
        weights: float32 (H, T, S).
        query_tokens: T labels.
        key_tokens: S labels.
        query_label: What the rows are.
        key_label: What the columns are.
        log_prob: Mean log-probability of the target's tokens, in nats; None where unknown.
    """

    kind: AttentionKind
    layer: int
    weights: Tensor
    query_tokens: Sequence[str]
    key_tokens: Sequence[str]
    query_label: str
    key_label: str
    log_prob: float | None = None

    @property
    def name(self) -> str:
        """Kind and layer, such as ``cross.0``."""
        return f"{self.kind}.{self.layer}"


class _Side(NamedTuple):
    """One axis: which positions are tokens, and what they are called."""

    positions: Tensor  # int64 (n,)
    tokens: Sequence[str]
    label: str


def views(
    maps: AttentionMaps,
    batch: Any,  # noqa: ANN401 - anybody's
    output: Any,  # noqa: ANN401
    *,
    labels: Labels,
    max_rows: int,
) -> Iterator[list[View]]:
    """Yields all maps of each sentence of a batch, but those of which only padding would be left.

    Args:
        maps: What was captured.
        batch: What the module was given, on the CPU.
        output: What it returned; logits (B, T, V), or something that has them as ``logits``, give
            the target's log-probability.
        labels: Names tokens.
        max_rows: Sentences at most.
    """
    newest = {m.name: m for m in maps}  # of an attention that ran several times
    number = min(max_rows, *(m.weights.size(0) for m in newest.values()))
    kinds = {m.kind for m in newest.values()}
    for row in range(number):
        sentence = _Sentence(batch, row, kinds, labels, newest.values())
        score = _log_prob(batch, output, row) if "cross" in kinds else None
        found = [sentence.view(m, score) for m in newest.values()]
        yield [view for view in found if view.weights.numel()]


class _Sentence:
    """Says of one row of a batch which tokens stand on the axes of its maps."""

    def __init__(
        self,
        batch: Any,  # noqa: ANN401
        row: int,
        kinds: set[AttentionKind],
        labels: Labels,
        maps: Any,  # noqa: ANN401 - a view of a dict's values
    ) -> None:
        self.row, self.labels = row, labels
        self.alone = len(kinds) == 1 and "cross" not in kinds  # a single stack
        if has_ids(batch):
            self.source = batch["input_ids"]
            self.source_mask = batch.get("attention_mask")
            self.target = batch.get("labels", batch.get("decoder_input_ids"))
            self.shifted = "labels" in batch
        else:
            ids = [t for t in tensors_of(batch) if t.dim() == 2 and not t.is_floating_point()]
            self.source, self.target = (*ids, None, None)[:2]
            self.source_mask, self.shifted = None, False
        # Where the batch does not say what is padding, the weights do: nobody looks at it.
        self.lengths = {m.kind: _length(m.weights[row]) for m in maps if m.kind != "cross"}
        cross = [_length(m.weights[row]) for m in maps if m.kind == "cross"]
        if cross:
            self.lengths.setdefault("encoder", cross[0])

    def view(self, m: AttentionMap, log_prob: float | None) -> View:
        weights = m.weights[self.row]
        queries = self._side(m, weights, is_query=True)
        keys = self._side(m, weights, is_query=False)
        return View(
            m.kind,
            m.layer,
            weights[:, queries.positions][:, :, keys.positions],
            queries.tokens,
            keys.tokens,
            queries.label,
            keys.label,
            log_prob,
        )

    def _side(self, m: AttentionMap, weights: Tensor, *, is_query: bool) -> _Side:
        size = weights.size(-2 if is_query else -1)
        if m.kind == "encoder" or self.alone or (m.kind == "cross" and not is_query):
            kind: AttentionKind = m.kind if self.alone else "encoder"
            return self._source_side(size, self.lengths.get(kind, size))
        return self._target_side(size, predicts=m.kind == "cross")

    def _source_side(self, size: int, length: int) -> _Side:
        ids = _row(self.source, self.row, size)
        mask = _row(self.source_mask, self.row, size)
        positions = torch.arange(min(size, length)) if mask is None else mask.nonzero()[:, 0]
        name = "the token" if self.alone else "the source token"
        if ids is None:
            return _Side(positions, _numbers(positions), f"{name}, by position")
        return _Side(positions, self.labels(ids[positions].tolist(), True), name)

    def _target_side(self, size: int, *, predicts: bool) -> _Side:
        ids = _row(self.target, self.row, size)
        # what the module reads without its last token: the row predicts the next one
        longer = _row(self.target, self.row, size + 1) if ids is None else None
        if ids is None and longer is None:
            positions = torch.arange(min(size, self.lengths.get("decoder", size)))
            return _Side(
                positions, [str(int(i)) for i in positions], "the target token, by position"
            )
        if ids is not None and self.shifted:  # labels: the row of each reads the one before
            positions = (ids != IGNORE).nonzero()[:, 0]
            tokens = self.labels(ids[positions].tolist(), False)
            if predicts:
                return _Side(positions, tokens, _PREDICTS)
            return _Side(positions, ["<s>", *tokens[:-1]], _READS)
        positions = torch.arange(min(size, self.lengths.get("decoder", size)))
        if longer is not None and predicts:
            return _Side(positions, self.labels(longer[1:][positions].tolist(), False), _PREDICTS)
        ids = longer if ids is None else ids
        assert ids is not None
        return _Side(positions, self.labels(ids[positions].tolist(), False), _READS)


_PREDICTS = "the target token that is predicted"
_READS = "the target token that is read"


def _row(ids: Tensor | None, row: int, size: int) -> Tensor | None:
    """One example of ids, whether batch or time comes first; None where the sizes do not fit."""
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return None
    if ids.size(1) == size and row < ids.size(0):
        return ids[row]
    return ids[:, row] if ids.size(0) == size and row < ids.size(1) else None


def _numbers(positions: Tensor) -> list[str]:
    return list(map(str, positions.tolist()))


def _length(weights: Tensor) -> int:
    """Number of keys up to the last that anybody looks at; weights float (H, T, S)."""
    seen = (weights > 0).any(0).any(0).nonzero()
    return int(seen.max()) + 1 if len(seen) else weights.size(-1)


def _log_prob(batch: Any, output: Any, row: int) -> float | None:  # noqa: ANN401
    logits = output.get("logits") if isinstance(output, Mapping) else output
    logits = getattr(logits, "logits", logits)
    labels = batch.get("labels") if has_ids(batch) else None
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        return None
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        return None
    kept = labels[row] != IGNORE
    log_probs = logits[row].detach().float().cpu().log_softmax(-1)[kept]
    found = log_probs.gather(-1, labels[row][kept][:, None])
    return float(found.mean()) if len(found) else None
