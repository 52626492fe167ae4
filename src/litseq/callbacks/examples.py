"""A few examples of any module's batches, kept to be run again and again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

__all__ = [
    "choose_examples",
    "find_tokenizers",
    "has_ids",
    "keep_batch",
    "num_examples",
    "savable",
    "tensors_of",
    "texts_of",
]

_MAX_SAVED = 1 << 20  # bytes of sentences in a checkpoint


def keep_batch(kept: list[Any], batch: Any, *, most: int) -> None:  # noqa: ANN401 - anybody's
    """Adds a copy of a batch, on the CPU, unless there are ``most`` already."""
    if len(kept) < most:
        batch = dict(batch) if isinstance(batch, Mapping) else batch
        # a normal tensor of its own: it outlives the validation, and its inference mode
        with torch.inference_mode(False):
            kept.append(
                apply_to_collection(batch, Tensor, lambda t: t.detach().to("cpu", copy=True))
            )


def savable(batches: list[Any]) -> list[Any]:
    """The batches, where a checkpoint can hold them; none otherwise."""
    return batches if _num_bytes(batches) <= _MAX_SAVED else []


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
    if has_ids(batch):
        return len(batch["input_ids"])
    if type(batch) not in (dict, list, tuple) or _num_bytes(batch) == math.inf:
        return 0
    parts = list(batch.values() if isinstance(batch, dict) else batch)
    tensors = [part for part in parts if isinstance(part, Tensor) and part.dim()]
    if any(len(list(tensors_of(part))) for part in parts if not isinstance(part, Tensor)):
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


def _num_bytes(value: Any) -> float:  # noqa: ANN401 - any nesting
    """About what it takes in a checkpoint.

    Infinite if that cannot hold it, as it is loaded with ``weights_only=True``.
    """
    if type(value) is dict:
        return sum(map(_num_bytes, (*value, *value.values())))
    if type(value) in (list, tuple):
        return sum(map(_num_bytes, value))
    if type(value) is Tensor:
        return value.numel() * value.element_size()
    if type(value) is str:
        return len(value)
    return 8 if value is None or type(value) in (bool, int, float) else math.inf


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
        (t for t in find_tokenizers(owners) if hasattr(t, "decode") and not isinstance(t, bytes)),
        None,
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


def find_tokenizers(owners: Sequence[object]) -> Iterator[Any]:
    """Yields what may be a tokenizer: ``tokenizer`` of each owner, then its other attributes."""
    for owner in owners:
        yield getattr(owner, "tokenizer", None)
        yield from vars(owner).values() if hasattr(owner, "__dict__") else ()


def has_ids(batch: Any) -> bool:  # noqa: ANN401
    """Whether a batch has ``input_ids`` (B, S)."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return isinstance(ids, Tensor) and ids.dim() == 2


def tensors_of(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Yields all tensors of a batch, however deep they lie."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (t for part in value.values() for t in tensors_of(part))
    elif isinstance(value, (tuple, list)):
        yield from (t for part in value for t in tensors_of(part))
