"""Dropout whose random numbers cost little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

__all__ = ["Dropout", "Kept"]

_VALUES = 2**16  # of two random bytes
_SHARING = 256  # elements that have the second one together
_ZERO = torch.zeros((), dtype=torch.float32, device="cpu")


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
        if not self.is_fast(x):
            return super().forward(x)
        y: Tensor = _Dropped.apply(x, self.draw(x.shape))  # type: ignore[no-untyped-call]
        return y

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Gives ``residual + self(x)``, both float of one shape; hooks are then not called."""
        y: Tensor
        if not self.is_fast(x) or residual.shape != x.shape:
            y = residual + self(x)
            return y
        y = _AddedDropout.apply(residual, x, self.draw(x.shape))  # type: ignore[no-untyped-call]
        return y

    def after_relu(self, x: Tensor) -> Tensor:
        """Gives ``self(relu(x))``; on a CPU, of which training then keeps the result alone.

        What ReLU or dropout has made zero is zero there, and nothing else is. Hooks of this module
        are then not called.
        """
        y: Tensor
        if not self.is_fast(x):
            y = self(F.relu(x))
            return y
        y = _ReluDropout.apply(x, self.draw(x.shape))  # type: ignore[no-untyped-call]
        return y

    def is_fast(self, x: Tensor) -> bool:
        """Whether the numbers are drawn here, and not by torch."""
        plain = type(x) is Tensor and x.dim() > 0 and x.device.type == "cpu"
        fast = plain and not self.inplace and not torch.compiler.is_compiling()
        # the first byte can be no more than 255
        return self.training and fast and 0 < self._dropped < _VALUES - 256

    def draw(self, shape: Sequence[int]) -> Kept:
        """Draws who stays of so many elements, where ``is_fast``."""
        seed = torch.randint(2**63 - 1, (), device="cpu").tolist()
        number = math.prod(shape)
        runs = -(-number // _SHARING)
        last = runs * _SHARING
        words = np.random.Generator(np.random.SFC64(seed)).integers(
            2**64, size=-(-(last + runs) // 8), dtype=np.uint64
        )
        draws = words.view(np.uint8)
        least, rest = divmod(self._dropped, 256)
        stays_from = np.uint8(least) + (draws[last : last + runs, None] < rest)
        who = draws[:last].reshape(runs, _SHARING) >= stays_from
        return Kept(
            from_dlpack(who.view(np.uint8).reshape(-1)[:number].reshape(shape)),
            _VALUES / (_VALUES - self._dropped),
        )

    @property
    def _dropped(self) -> int:
        return round(self.p * _VALUES)


class Kept(NamedTuple):
    """What a draw of dropout leaves.

    Attributes:
        who: 1 for an element that stays, else 0; uint8, which is read several times as fast as
            bool.
        scale: One over the share that stays.
    """

    who: Tensor
    scale: float

    def of(self, x: Tensor) -> Tensor:
        """Zeroes elements of x, float of the shape that was drawn, and scales the rest."""
        return torch.addcmul(_ZERO, x, self.who, value=self.scale)


def _keep(ctx: Any, kept: Kept) -> None:  # noqa: ANN401 - torch keeps it opaque
    ctx.save_for_backward(kept.who)
    ctx.scale = kept.scale


def _kept(ctx: Any) -> Kept:  # noqa: ANN401
    (who,) = ctx.saved_tensors
    return Kept(who, ctx.scale)


class _Dropped(torch.autograd.Function):
    """Dropout, of which a byte an element is kept."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        kept: Kept,
    ) -> Tensor:
        """Returns dropout of x."""
        _keep(ctx, kept)
        return kept.of(x)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        """Passes what belongs to an element that stayed."""
        return _kept(ctx).of(grad), None


class _AddedDropout(torch.autograd.Function):
    """Dropout, and then a sum."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        residual: Tensor,
        x: Tensor,
        kept: Kept,
    ) -> Tensor:
        """Returns residual + dropout of x."""
        _keep(ctx, kept)
        ctx.dtypes = residual.dtype, x.dtype
        return torch.addcmul(residual, x, kept.who, value=kept.scale)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, None]:
        """Passes all to the residual, and what belongs to an element that stayed."""
        of_residual, of_x = ctx.dtypes
        return grad.to(of_residual), _kept(ctx).of(grad).to(of_x), None


class _ReluDropout(torch.autograd.Function):
    """ReLU, and then dropout."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        kept: Kept,
    ) -> Tensor:
        """Returns dropout of relu(x), which it keeps."""
        y = kept.of(x).relu_()
        ctx.save_for_backward(y)
        ctx.scale = kept.scale
        return y

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        """Passes what belongs to an element above 0."""
        (y,) = ctx.saved_tensors
        # an ELU that is flat below 0 and has a slope above is a ReLU that scales as well
        return torch.ops.aten.elu_backward(grad, 0, ctx.scale, 1, True, y), None
