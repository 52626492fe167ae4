"""Probe sentences: a few examples of any module's batches, run, and seen token by token."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from litseq.attention import AttentionMap, AttentionMaps
from litseq.losses import IGNORE
from litseq.types import AttentionKind

__all__ = [
    "Labels",
    "View",
    "choose_examples",
    "find_labels",
    "num_bytes",
    "num_examples",
    "on_cpu",
    "run_module",
    "sharding_of",
    "texts_of",
    "unchanged",
    "views",
]

Labels = Callable[[list[int], bool], Sequence[str]]
"""Turns ids into what is written on an axis; the second argument: whether they are the source's."""


def choose_examples(batches: Sequence[Any], number: int) -> list[Any]:
    """Takes examples spread evenly over batches.

    Batches are narrowed to the chosen rows if they have ``input_ids`` (B, S), or if all tensors of
    a plain dict, list or tuple have as many rows, and not as many columns too. Of any other batch
    nobody knows whether its examples come first: the first one is taken whole.

    Args:
        batches: The first batches of a validation, on the CPU.
        number: Examples wanted.
    """
    sizes = [num_examples(batch) for batch in batches]
    places = [(b, row) for b, size in enumerate(sizes) for row in range(size)]
    if not all(sizes):
        return list(batches[:1])
    number = min(number, len(places))
    chosen = [places[(2 * i + 1) * len(places) // (2 * number)] for i in range(number)]
    rows = {b: torch.tensor([row for c, row in chosen if c == b]) for b, _ in chosen}
    return [_narrow(batches[b], sizes[b], index) for b, index in rows.items()]


def num_examples(batch: Any) -> int:  # noqa: ANN401 - anybody's
    """Rows of a batch; 0 where it cannot be known that the examples come first."""
    if _has_ids(batch):
        return len(batch["input_ids"])
    if type(batch) not in (dict, list, tuple) or num_bytes(batch) == math.inf:
        return 0
    parts = list(batch.values() if isinstance(batch, dict) else batch)
    tensors = [part for part in parts if isinstance(part, Tensor) and part.dim()]
    if any(len(list(_tensors(part))) for part in parts if not isinstance(part, Tensor)):
        return 0  # deeper ones may be examples themselves
    first = {t.size(0) for t in tensors}
    second = {t.size(min(1, t.dim() - 1)) for t in tensors}
    return first.pop() if len(first) == 1 < len(second) else 0


def _narrow(batch: Any, size: int, rows: Tensor) -> Any:  # noqa: ANN401
    def narrow(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, Tensor) and value.dim() and len(value) == size:
            return value[rows]
        if _are_strings(value) and len(value) == size:
            return [value[row] for row in rows.tolist()]
        return value

    if isinstance(batch, Mapping):
        return {name: narrow(value) for name, value in batch.items()}
    return type(batch)(map(narrow, batch))


def _are_strings(value: Any) -> TypeGuard[Sequence[str]]:  # noqa: ANN401
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def num_bytes(value: Any) -> float:  # noqa: ANN401 - any nesting
    """About what it takes in a checkpoint.

    Infinite if that cannot hold it, as it is loaded with ``weights_only=True``.
    """
    if type(value) is dict:
        return sum(map(num_bytes, (*value, *value.values())))
    if type(value) in (list, tuple):
        return sum(map(num_bytes, value))
    if type(value) is Tensor:
        return value.numel() * value.element_size()
    if type(value) is str:
        return len(value)
    return 8 if value is None or type(value) in (bool, int, float) else math.inf


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


def on_cpu(batch: Any) -> Any:  # noqa: ANN401
    """Copies a batch to the CPU, whatever it is made of."""
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    return apply_to_collection(batch, Tensor, lambda t: t.detach().to("cpu", copy=True))


def sharding_of(trainer: Trainer) -> str:
    """Name of a strategy that may leave no rank with whole parameters; empty for any other."""
    # Both Lightning packages have them; by name, one check serves both.
    return next((c.__name__ for c in type(trainer.strategy).__mro__ if c.__name__ in _SHARDING), "")


_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}


def texts_of(batch: Any, number: int, *owners: object) -> tuple[list[str], list[str]]:  # noqa: ANN401
    """Finds the raw texts of a batch.

    Args:
        batch: A batch on the CPU.
        number: Examples of it.
        owners: What may have a tokenizer as an attribute.

    Returns:
        Sources and references, ``number`` each: the batch's strings ``source`` and ``reference``,
        or ``input_ids`` and ``labels``, decoded; empty where it has neither.
    """
    tokenizer: Any = next(
        (t for t in _tokenizers(owners) if hasattr(t, "decode") and not isinstance(t, bytes)), None
    )

    def texts(name: str, ids_name: str, method: str) -> list[str]:
        given = batch.get(name) if isinstance(batch, Mapping) else None
        ids = batch.get(ids_name) if isinstance(batch, Mapping) else None
        if _are_strings(given) and len(given) == number:
            return list(given)
        if tokenizer is None or not isinstance(ids, Tensor) or ids.shape[0] != number:
            return [""] * number
        decode = getattr(tokenizer, method, tokenizer.decode)
        hidden = {"skip_special_tokens": True} if hasattr(tokenizer, "batch_decode") else {}
        return [decode([i for i in row if i >= 0], **hidden) for row in ids.tolist()]

    return texts("source", "input_ids", "decode_source"), texts("reference", "labels", "decode")


def _tokenizers(owners: Sequence[object]) -> Iterator[Any]:
    for owner in owners:
        yield getattr(owner, "tokenizer", None)
        yield from vars(owner).values() if hasattr(owner, "__dict__") else ()


def find_labels(*owners: object) -> Labels:
    """Finds a tokenizer that can name its tokens.

    Args:
        owners: What may have one as an attribute: litseq's ``tokenizer``, or one of Hugging Face
            of any name. The first that is found counts.

    Returns:
        A function that names tokens; without a tokenizer by their numbers.
    """
    for candidate in _tokenizers(owners):
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
        if _has_ids(batch):
            self.source = batch["input_ids"]
            self.source_mask = batch.get("attention_mask")
            self.target = batch.get("labels", batch.get("decoder_input_ids"))
            self.shifted = "labels" in batch
        else:
            ids = [t for t in _tensors(batch) if t.dim() == 2 and not t.is_floating_point()]
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


def _has_ids(batch: Any) -> bool:  # noqa: ANN401
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return isinstance(ids, Tensor) and ids.dim() == 2


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (t for part in value.values() for t in _tensors(part))
    elif isinstance(value, (tuple, list)):
        yield from (t for part in value for t in _tensors(part))


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
    labels = batch.get("labels") if _has_ids(batch) else None
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        return None
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        return None
    kept = labels[row] != IGNORE
    log_probs = logits[row].detach().float().cpu().log_softmax(-1)[kept]
    found = log_probs.gather(-1, labels[row][kept][:, None])
    return float(found.mean()) if len(found) else None
