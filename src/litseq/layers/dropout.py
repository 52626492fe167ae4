"""Dropout whose random numbers cost little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Dropout"]

_VALUES = 2**16  # of the numbers that are drawn: four from 64 random bits


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, with a fourth of the random numbers on a CPU.

    torch draws one there for each element. Sixteen bits say as well whether it stays: the share
    that is dropped differs from ``p`` by less than 1 in 100,000, and the scale is that of the
    share. Draws come from torch's generator, so seeds and checkpoints mean what they always do. On
    other devices, and compiled, it is torch's own, which is fast there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zeroes elements of x, float of any shape, and scales the rest; nothing in evaluation."""
        dropped = round(self.p * _VALUES)
        plain = type(x) is Tensor and x.device.type == "cpu" and not self.inplace
        fast = plain and not torch.compiler.is_compiling()
        if not self.training or not fast or not 0 < dropped < _VALUES:
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        bits.random_(-(2**63), None)  # all 64 bits
        draws = bits.view(torch.int16)[: x.numel()].view(x.shape)
        kept = torch.ge(draws, dropped - _VALUES // 2, out=torch.empty_like(x))  # 0 or 1
        return x * kept.mul_(_VALUES / (_VALUES - dropped))
