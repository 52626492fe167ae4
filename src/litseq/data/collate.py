"""Lists of ids to one padded batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litseq.types import Batch

__all__ = ["collate"]

TokenIds = Sequence[int] | NDArray[np.integer[Any]]
IGNORED_LABEL = -100  # the padding that torch and Hugging Face losses skip by default


def collate(
    src: Sequence[TokenIds],
    tgt: Sequence[TokenIds] | None = None,
    *,
    ids: TokenIds | None = None,
    pad_id: int = 0,
) -> Batch:
    """Pads sequences at their end and stacks them.

    Args:
        src: Source token ids with EOS, B sequences (lists or integer arrays), none of them empty.
        tgt: Target token ids with EOS, B sequences; None where there is no target.
        ids: The examples' numbers in their split, B; None to leave ``id`` out.
        pad_id: What fills ``input_ids``; ``labels`` are filled with -100.

    Returns:
        ``input_ids`` and ``attention_mask`` (B, S), ``labels`` (B, T) and ``id`` (B,), all int64.

    Raises:
        ValueError: If there is no sequence, a sequence is empty, or the counts differ.
    """
    if len(src) == 0:
        raise ValueError("cannot make a batch of no sequences.")
    input_ids, token = _pad(src, pad_id, "src")
    batch = Batch(input_ids=input_ids, attention_mask=torch.from_numpy(token.astype(np.int64)))
    if tgt is not None:
        _check_count("tgt", len(tgt), len(src))
        batch["labels"], _ = _pad(tgt, IGNORED_LABEL, "tgt")
    if ids is not None:
        _check_count("ids", len(ids), len(src))
        batch["id"] = torch.from_numpy(np.array(ids, dtype=np.int64))
    return batch


def _pad(
    sequences: Sequence[TokenIds], padding: int, name: str
) -> tuple[Tensor, NDArray[np.bool_]]:
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    if lengths.min() == 0:
        raise ValueError(f"{name}[{int(lengths.argmin())}] is empty; every sequence ends with EOS.")
    token = np.arange(lengths.max()) < lengths[:, None]  # (B, L)
    padded = np.full(token.shape, padding, dtype=np.int64)
    padded[token] = np.concatenate([np.asarray(sequence) for sequence in sequences])
    return torch.from_numpy(padded), token


def _check_count(name: str, count: int, expected: int) -> None:
    if count != expected:
        raise ValueError(f"{name} has {count} entries for {expected} source sequences.")
