"""Tensors and numbers inside of JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Json", "array", "as_bytes", "digest", "numbers", "picture", "size", "tensor_of"]

Json = dict[str, Any]


def array(tensor: Tensor) -> Json:
    """Writes a tensor: dtype, shape, and its bytes, little-endian, in base64.

    Args:
        tensor: uint8, or float of any precision, which becomes float32; any shape, any device.

    Returns:
        ``dtype`` ("uint8" or "float32"), ``shape`` and ``data``.
    """
    dtype = torch.uint8 if tensor.dtype == torch.uint8 else torch.float32
    values = tensor.detach().to("cpu", dtype).numpy()
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return {
        "dtype": str(values.dtype),
        "shape": list(tensor.shape),
        "data": base64.b64encode(data).decode("ascii"),
    }


def tensor_of(written: Json) -> Tensor:
    """Reads what ``array`` wrote."""
    dtype = np.dtype(written["dtype"])
    values = np.frombuffer(base64.b64decode(written["data"]), dtype=dtype.newbyteorder("<"))
    return torch.from_numpy(values.astype(dtype).reshape(written["shape"]))


def as_bytes(weights: Tensor) -> Tensor:
    """Rounds weights to 255ths so that each row still sums to 1.

    Every number is rounded down, and what is missing goes to the largest remainders.

    Args:
        weights: Float (..., S), 0 or more; each row sums to 1.

    Returns:
        uint8 (..., S); each row sums to 255; less than 1 / 255 off, and 0 where it was 0.
    """
    scaled = weights.double() * 255
    floor = scaled.floor()
    missing = 255 - floor.sum(-1, keepdim=True)
    # the place of each remainder among those of its row, from 0 for the largest
    place = (floor - scaled).argsort(dim=-1, stable=True).argsort(dim=-1)
    return (floor + (place < missing)).to(torch.uint8)


def picture(tensor: Tensor, *, columns: int = 64) -> Json:
    """Writes a matrix that is to be looked at, not computed with.

    Args:
        tensor: Float (rows, D).
        columns: Columns that are kept, the first ones.

    Returns:
        ``array`` of a uint8 (rows, at most ``columns``), and ``range``: the numbers that 0 and 255
        stand for.
    """
    kept = tensor[:, :columns].float()
    low, high = kept.min(), kept.max()
    scaled = (kept - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    return {**array((scaled * 255).round().to(torch.uint8)), "range": numbers([low, high])}


def digest(*tensors: Tensor) -> str:
    """The first 12 hexadecimal digits of SHA-256 over the float32 bytes."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:12]


def numbers(values: Iterable[Tensor | float], *, digits: int = 9) -> list[float]:
    """Writes numbers with few digits; nine give every float32 back exactly."""
    return [float(f"{float(value):.{digits}g}") for value in values]


def size(value: Any) -> int:  # noqa: ANN401 - whatever JSON holds
    """Counts the bytes that a value takes on the page, where arrays stand compressed."""
    text = json.dumps(_compressed(value), ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "surrogatepass"))


def _compressed(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_compressed(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() >= {"dtype", "shape", "data"}:
        data = base64.b64encode(zlib.compress(base64.b64decode(value["data"])))
        return {**value, "data": min(data.decode("ascii"), value["data"], key=len)}
    return {key: _compressed(item) for key, item in value.items()}
