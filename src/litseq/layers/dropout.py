"""Dropout whose random numbers cost little."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout"]

_VALUES = 2**16  # of two random bytes
_SHARING = 256  # elements that have the second one together


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, with an eighth of the random numbers on a CPU.

    torch draws one there for each element. Here an element is dropped if its random byte is below
    256 p, which a second byte rounds down or up, for 256 elements together, as often as it takes:
    the probability of each differs from p by less than 1 in 100,000, and the scale is that of the
    probability. (Elements that share a rounding are correlated by it: by 4e-5 where p is 0.1.)

    The bytes are of numpy's SFC64, whose seed is drawn from torch's generator each time, so seeds
    and checkpoints mean what they always do. On other devices, compiled, and with p above 0.996 it
    is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zeroes elements of x, float of any shape, and scales the rest; nothing in evaluation."""
        if not self.training:
            return x
        if not self._is_fast(x):
            return super().forward(x)
        return x * self._factors(x)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Gives ``residual + self(x)``, both float of one shape; hooks are then not called."""
        y: Tensor
        if not self._is_fast(x) or residual.dtype != x.dtype or residual.shape != x.shape:
            y = residual + self(x)
            return y
        y = _AddedDropout.apply(residual, x, self._kept(x), self._scale)  # type: ignore[no-untyped-call]
        return y

    def after_relu(self, x: Tensor) -> Tensor:
        """Gives ``self(relu(x))``; on a CPU, of which training then keeps the result alone.

        What ReLU or dropout has made zero is zero there, and nothing else is. Hooks of this module
        are then not called.
        """
        y: Tensor
        if not self._is_fast(x):
            y = self(F.relu(x))
            return y
        y = _ReluDropout.apply(x, self._factors(x), _rounded(self._scale, x.dtype))  # type: ignore[no-untyped-call]
        return y

    @property
    def _dropped(self) -> int:
        return round(self.p * _VALUES)

    @property
    def _scale(self) -> float:
        return _VALUES / (_VALUES - self._dropped)

    def _is_fast(self, x: Tensor) -> bool:
        plain = type(x) is Tensor and x.device.type == "cpu" and not self.inplace
        fast = plain and not torch.compiler.is_compiling()
        # the first byte can be no more than 255
        return self.training and fast and 0 < self._dropped < _VALUES - 256

    def _factors(self, x: Tensor) -> Tensor:
        """Draws what the elements of x are multiplied by: 0, or one over the share that stays."""
        return self._kept(x).to(x.dtype).mul_(self._scale)

    def _kept(self, x: Tensor) -> Tensor:
        """Draws which elements of x stay, 0 or 1, uint8: read several times as fast as bool."""
        seed = int(torch.empty((), dtype=torch.int64).random_())
        runs = -(-x.numel() // _SHARING)
        last = runs * _SHARING
        words = np.random.Generator(np.random.SFC64(seed)).integers(
            2**64, size=-(-(last + runs) // 8), dtype=np.uint64
        )
        draws = words.view(np.uint8)
        least, rest = divmod(self._dropped, 256)
        stays_from = np.uint8(least) + (draws[last : last + runs, None] < rest)
        kept = draws[:last].reshape(runs, _SHARING) >= stays_from
        return torch.from_numpy(kept.view(np.uint8).reshape(-1)[: x.numel()].reshape(x.shape))


@cache
def _rounded(number: float, dtype: torch.dtype) -> float:
    """What a tensor of a dtype holds of it."""
    return float(torch.tensor(number, dtype=dtype))


class _AddedDropout(torch.autograd.Function):
    """Dropout, and then a sum."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        residual: Tensor,
        x: Tensor,
        kept: Tensor,
        scale: float,
    ) -> Tensor:
        """Returns residual + scale * x * kept."""
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return torch.addcmul(residual, x, kept, value=scale)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, None, None]:
        """Passes all to the residual, and what belongs to an element that stayed."""
        (kept,) = ctx.saved_tensors
        return grad, (grad * kept).mul_(ctx.scale), None, None


class _ReluDropout(torch.autograd.Function):
    """ReLU, and then dropout."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch keeps it opaque
        x: Tensor,
        factors: Tensor,
        scale: float,
    ) -> Tensor:
        """Returns relu(x) * factors, each of which is 0 or ``scale``; writes into them."""
        y = factors.mul_(x).relu_()
        ctx.save_for_backward(y)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None]:
        """Passes what belongs to an element above 0."""
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.scale), None, None
