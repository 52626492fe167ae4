"""Position codes: what tells a Transformer the order of its tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["LearnedPositions", "NoPositions", "SinusoidalPositions", "sinusoids"]


def sinusoids(num_positions: int, d_model: int) -> Tensor:
    """Writes every position as sines and cosines of d_model / 2 wavelengths.

    Dimension pair i turns with position at its own speed, from one radian per token (i = 0) down to
    one radian per nearly 10,000 tokens:

        PE[pos, 2 i]     = sin(pos / 10000^(2 i / d_model))
        PE[pos, 2 i + 1] = cos(pos / 10000^(2 i / d_model))

    The product of two codes depends on their distance alone, and a shift by k positions is the same
    rotation wherever it happens: that is what lets attention learn "three tokens back".

    Returns:
        float32 (num_positions, d_model), on the CPU; sines and cosines interleaved, as in the
        paper.

    Raises:
        ValueError: If ``d_model`` is odd.

    Source: Vaswani et al. (2017), section 3.5, https://arxiv.org/abs/1706.03762.
    """
    if d_model % 2:
        raise ValueError(
            f"d_model must be even for sinusoidal positions, got {d_model}; choose an even number."
        )
    # float64 until the end: float32 loses whole radians' digits at high positions. On the CPU: not
    # every device has float64.
    position = torch.arange(num_positions, dtype=torch.float64, device="cpu")
    pair = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu")
    angle = position[:, None] * torch.exp(pair * (-math.log(10000.0) / d_model))  # (P, D / 2)
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1).float()


class SinusoidalPositions(nn.Module):
    """Adds the paper's sinusoids; any length is welcome.

    Args:
        d_model: Width of the embeddings; even.
        max_positions: Length of the table that is kept; longer sequences are computed when they
            come.
    """

    table: Tensor

    def __init__(self, d_model: int, *, max_positions: int = 1024) -> None:
        super().__init__()
        # not persistent: the table follows from d_model, so a checkpoint need not hold it
        table = sinusoids(max_positions, d_model).to(torch.get_default_device())
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, *, start: int = 0) -> Tensor:
        """Adds the codes of positions start, start + 1, ... to x, float (B, T, D)."""
        end = start + x.size(1)
        if end <= self.table.size(0):
            return x + self.table[start:end].to(x.dtype)
        return x + sinusoids(end, x.size(2))[start:].to(x)


class LearnedPositions(nn.Module):
    """Adds one learned vector per position: as good as sinusoids in the paper (table 3, row E).

    Args:
        d_model: Width of the embeddings.
        max_positions: Number of positions; longer sequences are an error.
    """

    def __init__(self, d_model: int, *, max_positions: int = 1024) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, d_model))
        nn.init.normal_(self.weight, std=d_model**-0.5)

    def forward(self, x: Tensor, *, start: int = 0) -> Tensor:
        """Adds the vectors of positions start, start + 1, ... to x, float (B, T, D).

        Raises:
            ValueError: If a position is beyond ``max_positions``.
        """
        end = start + x.size(1)
        if end > self.weight.size(0):
            raise ValueError(
                f"a sequence of {end} tokens is longer than the {self.weight.size(0)} learned "
                f"positions; raise max_positions or shorten the input."
            )
        return x + self.weight[start:end]


class NoPositions(nn.Module):
    """Adds nothing: an encoder that sees a bag of tokens, for comparison.

    The decoder's causal mask still tells it a little of the order.
    """

    def __init__(self, d_model: int, *, max_positions: int = 1024) -> None:
        super().__init__()

    def forward(self, x: Tensor, *, start: int = 0) -> Tensor:
        """Returns x, float (B, T, D)."""
        return x
