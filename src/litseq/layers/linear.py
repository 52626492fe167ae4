"""Linear maps by the fastest kernels: weights that a search lays out once, and training."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from litseq.layers.rows import ROWS_STEP, is_trained_on_cpu

__all__ = ["Linear", "Packing", "is_plain", "linear", "packed_weights", "unpacked_product"]

_ROWS_TO_PACK = 256
"""So many rows are multiplied as they are: for fewer, packing takes longer than it saves."""


class Linear(nn.Linear):
    """``torch.nn.Linear``, on a CPU faster: within ``packed_weights``, and in training.

    The latter where rows come in a multiple of 64, at least 256, in float32 or bfloat16; gradients
    then have none themselves.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps float (..., K) to float (..., N)."""
        return linear(input, self.weight, self.bias)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    rows: slice | None = None,
    relu: bool = False,
) -> Tensor:
    """Computes ``F.linear(x, weight[rows], bias[rows])``, as the packing in use has it.

    Args:
        x: float (..., K).
        weight: float (N, K).
        bias: float (N,).
        rows: Those that are meant, where several maps stand in one weight.
        relu: Gives ReLU of it.
    """
    if rows == slice(0, len(weight)):
        rows = None
    packing = None if torch.compiler.is_compiling() else _in_use.get()
    if packing is not None and packing.takes(x, weight):
        return packing.product(x, weight, bias, rows, relu=relu)
    part = _part(weight, bias, rows)
    dtype = _trained_as(x, *part)
    y: Tensor
    if dtype is None:
        y = F.linear(x, *part)
    else:
        y = _Trained.apply(x, *part, dtype)  # type: ignore[no-untyped-call]
    return F.relu(y) if relu else y


def is_plain(module: nn.Module) -> bool:
    """Whether a module is no more than ``nn.Linear``, and nobody watches it."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) in (nn.Linear, Linear) and not hooks


@dataclass(frozen=True, eq=False)
class Packing:
    """Weights in the layout that the kernels of a CPU like best.

    Weights must not change while a packing lives. What it does not take, such as other precisions
    and what torch's own LSTM and GRU multiply by, is computed as elsewhere.

    In float32 and bfloat16, that of autocast too, the kernels are oneDNN's, and results are the
    same to rounding. A weight is packed once it has been used for some rows. Kernels are planned
    anew for each number of rows, so numbers are rounded up to few.

    Attributes:
        int8: Multiplies in 8 bits: weights have a scale for each row, and x one for all of a call,
            found on the way. So the output for a row depends, a little, on the other rows.
        any_tensor: Takes weights that are no parameters too, and keeps what it has packed.

    Raises:
        ValueError: If this torch or processor has no such kernels for int8.
    """

    int8: bool = False
    any_tensor: bool = False
    _packed: dict[Any, tuple[Any, Any]] = field(default_factory=dict, repr=False)
    _seen: dict[Any, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.int8 and not _has_int8():
            raise ValueError(
                "int8 needs torch's quantised kernels on an x86 processor, which are not here; "
                "translate without it, or with what litseq export --to ctranslate2 writes."
            )

    def __reduce__(self) -> tuple[type[Packing], tuple[bool, bool]]:
        """A copy packs for itself: it is for other weights."""
        return Packing, (self.int8, self.any_tensor)

    def takes(self, x: Tensor, weight: Tensor) -> bool:
        """Whether it multiplies these."""
        known = type(weight) is nn.Parameter or (self.any_tensor and type(weight) is Tensor)
        return (
            type(x) is Tensor
            and known
            and x.device.type == "cpu"
            and x.dim() > 1
            and x.numel() > 0
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and self._multiplies(_product_dtype(x, weight))
        )

    def _multiplies(self, dtype: torch.dtype | None) -> bool:
        return dtype == torch.float32 if self.int8 else _has_kernels(dtype)

    def product(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: slice | None = None,
        *,
        relu: bool = False,
    ) -> Tensor:
        """Computes what ``linear`` says."""
        dtype = _product_dtype(x, weight)
        key = id(weight), id(bias), dtype, rows and (rows.start, rows.stop, rows.step)
        x = x.to(dtype)
        if key not in self._packed:
            weight_part, bias_part = _part(weight, bias, rows)
            weight_part = weight_part.to(dtype)
            bias_part = None if bias_part is None else bias_part.to(dtype)
            seen = self._seen.get(key, 0)
            self._seen[key] = seen + x.shape[:-1].numel()
            if not self.int8 and seen < _ROWS_TO_PACK:
                y = F.linear(x, weight_part, bias_part)
                return y.relu_() if relu else y
            pack = _pack_int8 if self.int8 else _pack
            # with both, so that nothing else gets their ids
            self._packed[key] = (weight, bias), pack(weight_part, bias_part)
        multiply = _multiply_int8 if self.int8 else _multiply
        if x.dim() == 2:
            return multiply(x, self._packed[key][1], relu=relu)
        y = multiply(x.flatten(0, -2), self._packed[key][1], relu=relu)
        return y.view(*x.shape[:-1], y.size(-1))


_in_use: ContextVar[Packing | None] = ContextVar("_in_use", default=None)


@contextmanager
def packed_weights(packing: Packing | None = None) -> Iterator[None]:
    """Within it, ``linear`` uses a packing: this one, or the one that is in use, or a new one.

    Also a decorator. Nothing that happens within may change weights.
    """
    token = _in_use.set(packing or _in_use.get() or Packing())
    try:
        yield
    finally:
        _in_use.reset(token)


def _product_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """What ``F.linear`` computes these in; None if it refuses."""
    if torch.is_autocast_enabled("cpu") and torch.float64 not in (x.dtype, weight.dtype):
        return torch.get_autocast_dtype("cpu")
    return x.dtype if x.dtype == weight.dtype else None


# ---- oneDNN: what torch.compile emits for weights that are frozen ----

Packed = tuple[Tensor, Tensor | None]


def _has_kernels(dtype: torch.dtype | None) -> bool:
    known = dtype == torch.float32 or (dtype == torch.bfloat16 and _has_bfloat16())
    return known and bool(torch.backends.mkldnn.enabled) and _has_onednn()


@cache
def _has_onednn() -> bool:
    known = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return known and all(hasattr(torch.ops.mkldnn, name) for name in names)


@cache
def _has_bfloat16() -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def _pack(weight: Tensor, bias: Tensor | None) -> Packed:
    # laid out for some number of rows, and right for any
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 256)
    return packed, None if bias is None else bias.contiguous()


def _multiply(x: Tensor, packed: Packed, *, relu: bool) -> Tensor:
    weight, bias = packed
    num_rows = x.size(0)
    short = -num_rows % (8 if num_rows <= 256 else ROWS_STEP)
    x = F.pad(x, (0, 0, 0, short)) if short else x.contiguous()
    y = _by_onednn(x, weight, bias, relu=relu)
    return y[:num_rows] if short else y


def unpacked_product(x: Tensor, weight: Tensor) -> Tensor:
    """Computes ``F.linear(x, weight)`` of what a packing takes, (R, K) and (N, K), without one."""
    if x.size(0) % ROWS_STEP:  # kernels are planned for few numbers of rows
        return F.linear(x, weight)
    return _by_onednn(x, weight, None)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
    """Computes ``F.linear(x, weight, bias)``, and ReLU of it; the weight may be packed."""
    name = "relu" if relu else "none"
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], "")
    return y


# ---- in training ----


def _trained_as(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """What ``_Trained`` computes these in; None if torch shall.

    Torch shall not if x has a number of rows that many batches have (``litseq.layers.rows``).
    """
    fits = (
        x.dim() == 2
        and is_trained_on_cpu(x)
        and type(weight) in (Tensor, nn.Parameter)
        and (bias is None or bias.dtype == weight.dtype)
        and len(x) >= _ROWS_TO_PACK
        and len(x) % ROWS_STEP == 0
    )
    dtype = _product_dtype(x, weight) if fits else None
    return dtype if _has_kernels(dtype) else None


@cache
def _prefers_mkl() -> bool:
    """Whether MKL's products in float32 are the faster ones: on Intel's processors."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux, where platform would have to start a program
        about = platform.processor()
    return "GenuineIntel" in about and bool(torch._C.has_mkl)


class _Trained(torch.autograd.Function):
    """``F.linear``, by oneDNN or MKL; the gradient of the weight as torch has it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Maps (R, K) to (R, N), all as ``dtype``."""
        ctx.dtypes = x.dtype, weight.dtype
        x, weight = x.to(dtype).contiguous(), weight.to(dtype)
        of_x, of_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        bias = None if bias is None else bias.to(dtype)
        ctx.by_mkl = dtype == torch.float32 and _prefers_mkl()
        return F.linear(x, weight, bias) if ctx.by_mkl else _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Gives the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        of_x, of_weight, of_bias = None, None, None
        # in this order: the gradient has just been written, and that of x is read next
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum(0).to(ctx.dtypes[1])
        if ctx.needs_input_grad[1]:
            of_weight = (grad.t() @ x).to(ctx.dtypes[1])
        if ctx.needs_input_grad[0]:
            of_x = grad @ weight if ctx.by_mkl else _by_onednn(grad, weight.t(), None)
            of_x = of_x.to(ctx.dtypes[0])
        return of_x, of_weight, of_bias, None


def _part(weight: Tensor, bias: Tensor | None, rows: slice | None) -> tuple[Tensor, Tensor | None]:
    """Those rows of both; None: all."""
    if rows is None:
        return weight, bias
    return weight[rows], None if bias is None else bias[rows]


# ---- int8 ----


@cache
def _has_int8() -> bool:
    known = torch.backends.quantized.engine in ("x86", "fbgemm", "onednn")
    return known and hasattr(torch.ops.quantized, "linear_dynamic")


def _pack_int8(weight: Tensor, bias: Tensor | None) -> Any:  # noqa: ANN401 - opaque
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    zero = torch.zeros_like(scale, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantize", category=UserWarning)
        quantized = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(quantized, bias)


def _multiply_int8(x: Tensor, packed: Any, *, relu: bool) -> Tensor:  # noqa: ANN401
    quantized = torch.ops.quantized
    multiply = quantized.linear_relu_dynamic if relu else quantized.linear_dynamic
    # seven bits for x: eight overflow where the processor lacks VNNI
    y: Tensor = multiply(x.contiguous(), packed, True)
    return y
