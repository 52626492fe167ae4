"""Positions of a batch as rows of one matrix, which layers read without asking whose they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ROWS_STEP",
    "Size",
    "from_rows",
    "is_trained_on_cpu",
    "join_heads",
    "split_heads",
    "to_rows",
]

ROWS_STEP = 64
"""Kernels are planned for numbers of rows that are multiples of it, where there are many rows."""

Size = tuple[int, int]
"""Sequences and positions of each, (B, T)."""


def to_rows(x: Tensor) -> Tensor:
    """Puts the positions of float (B, T, D) into rows, float (R, D), R at least B T.

    In training on a CPU there may be more rows than positions, zeros: hardly two batches of text
    have the same shape, and oneDNN plans its kernels anew for each number of rows.
    """
    rows = x.flatten(0, 1)
    more = _round_up(len(rows)) - len(rows)
    if more and is_trained_on_cpu(x):
        rows = F.pad(rows, (0, 0, 0, more))
    return rows


def from_rows(rows: Tensor, size: Size) -> Tensor:
    """Undoes ``to_rows``: float (B, T, D)."""
    return _positions(rows, size).view(*size, rows.size(-1))


def split_heads(rows: Tensor, size: Size, *, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Takes what stands side by side in rows apart: float (R, parts H d) to parts (B, H, T, d)."""
    if is_trained_on_cpu(rows):
        found: tuple[Tensor, ...] = _SplitHeads.apply(rows, size, parts, num_heads)  # type: ignore[no-untyped-call]
        return found
    shape = *size, parts, num_heads, rows.size(-1) // (parts * num_heads)
    return _positions(rows, size).view(shape).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(heads: Tensor, num_rows: int) -> Tensor:
    """Puts the heads of each position side by side: float (B, H, T, d) to (R, H d)."""
    if is_trained_on_cpu(heads):
        rows: Tensor = _JoinHeads.apply(heads, num_rows)  # type: ignore[no-untyped-call]
        return rows
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)  # by sizes that an export leaves open


def is_trained_on_cpu(x: Tensor) -> bool:
    """Whether kernels that are planned, and gradients that are written out, pay for this."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _round_up(num_rows: int) -> int:
    """To one of 32 numbers between powers of 2, at most a 32nd more; few rows are left alone."""
    if num_rows < 512:
        return num_rows
    step = max(ROWS_STEP, 1 << (num_rows.bit_length() - 6))
    return -(-num_rows // step) * step


def _positions(rows: Tensor, size: Size) -> Tensor:
    """Those that are no padding of their number."""
    number = size[0] * size[1]
    return rows if len(rows) == number else rows[:number]


def _heads(rows: Tensor, size: Size, num_heads: int, *parts: int) -> Tensor:
    """Where heads lie in contiguous rows: a view of them, (*parts, B, H, T, d)."""
    (batch, length), width = size, rows.size(-1)
    dim = width // math.prod((num_heads, *parts))
    shape = *parts, batch, num_heads, length, dim
    steps = *(num_heads * dim for _ in parts), length * width, dim, width, 1
    return rows.as_strided(shape, steps)


def _blank_rows(shape: Sequence[int], size: Size, like: Tensor) -> Tensor:
    """Rows to be written, those beyond the positions zero."""
    rows = like.new_empty(shape)
    number = size[0] * size[1]
    if len(rows) > number:
        rows[number:].zero_()
    return rows


class _SplitHeads(torch.autograd.Function):
    """One copy forward, one backward, where autograd makes two."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        rows: Tensor,
        size: Size,
        parts: int,
        num_heads: int,
    ) -> tuple[Tensor, ...]:
        """Returns each part by itself, contiguous."""
        ctx.shape, ctx.size = rows.shape, size
        if parts == 1:
            return (_heads(rows.contiguous(), size, num_heads).contiguous(),)
        return _heads(rows.contiguous(), size, num_heads, parts).contiguous().unbind(0)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *grads: Tensor,
    ) -> tuple[Tensor, None, None, None]:
        """Puts the gradients side by side again."""
        of_rows = _blank_rows(ctx.shape, ctx.size, grads[0])
        if len(grads) == 1:
            _heads(of_rows, ctx.size, grads[0].size(1)).copy_(grads[0])
        else:
            heads = _heads(of_rows, ctx.size, grads[0].size(1), len(grads))
            torch._foreach_copy_(heads.unbind(0), grads)
        return of_rows, None, None, None


class _JoinHeads(torch.autograd.Function):
    """The same the other way."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        heads: Tensor,
        num_rows: int,
    ) -> Tensor:
        """Returns rows, those beyond the positions zero."""
        batch, ctx.num_heads, length, width = heads.shape
        ctx.size = batch, length
        rows = _blank_rows((num_rows, ctx.num_heads * width), ctx.size, heads)
        _heads(rows, ctx.size, ctx.num_heads).copy_(heads)
        return rows

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        """Takes the gradients of the heads apart again, contiguous."""
        return _heads(grad.contiguous(), ctx.size, ctx.num_heads).contiguous(), None
