"""Position codes: what tells a Transformer the order of its tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from litseq.types import compute_dtype

__all__ = [
    "LearnedPositions",
    "NoPositions",
    "RotaryPositions",
    "SinusoidalPositions",
    "rotate",
    "sinusoids",
]


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


def _where(start: int | Tensor, length: int) -> tuple[slice | Tensor, int]:
    """What takes positions start, start + 1, ... of a table, and how long that must be."""
    if isinstance(start, int):
        return slice(start, start + length), start + length
    places = start[:, None] + torch.arange(length, device=start.device)  # (N, T)
    return places, int(places.max()) + 1 if places.numel() else 0


class _Sinusoids(nn.Module):
    """Keeps the sinusoids of the first ``max_positions`` positions, computes those beyond."""

    table: Tensor

    def __init__(self, d_model: int, *, max_positions: int = 1024) -> None:
        super().__init__()
        # not persistent: the table follows from d_model, so a checkpoint need not hold it
        table = sinusoids(max_positions, d_model).to(torch.get_default_device())
        self.register_buffer("table", table, persistent=False)

    def codes(self, start: int | Tensor, length: int) -> Tensor:
        """The codes of positions start, start + 1, ..., float (T, D); of N starts (N, T, D)."""
        where, end = _where(start, length)
        if end <= self.table.size(0):
            return self.table[where]
        return sinusoids(end, self.table.size(1)).to(self.table)[where]


class SinusoidalPositions(_Sinusoids):
    """Adds the paper's sinusoids; any length is welcome.

    Args:
        d_model: Width of the embeddings; even.
        max_positions: Length of the table that is kept; longer sequences are computed when they
            come.
    """

    def forward(self, x: Tensor, *, start: int | Tensor = 0) -> Tensor:
        """Adds the codes of positions start, start + 1, ... to x, float (B, T, D).

        The start is one for all, or one for each row, int64 (B,).
        """
        return x + self.codes(start, x.size(1)).to(x.dtype)


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

    def forward(self, x: Tensor, *, start: int | Tensor = 0) -> Tensor:
        """Adds the vectors of positions start, start + 1, ... to x, float (B, T, D).

        The start is one for all, or one for each row, int64 (B,).

        Raises:
            ValueError: If a position is beyond ``max_positions``.
        """
        where, end = _where(start, x.size(1))
        if end > self.weight.size(0):
            raise ValueError(
                f"a sequence of {end} tokens is longer than the {self.weight.size(0)} learned "
                f"positions; raise max_positions or shorten the input."
            )
        return x + self.weight[where]


class NoPositions(nn.Module):
    """Adds nothing: positions come in elsewhere, as rotations, or not at all, for comparison.

    Without any, the encoder sees a bag of tokens; the decoder's causal mask still tells it a little
    of the order.
    """

    def __init__(self, d_model: int, *, max_positions: int = 1024) -> None:
        super().__init__()

    def forward(self, x: Tensor, *, start: int | Tensor = 0) -> Tensor:
        """Returns x, float (B, T, D)."""
        return x


class RotaryPositions(_Sinusoids):
    """Turns queries and keys instead of adding to the embeddings; any length is welcome.

    Each pair of dimensions of a head is a point in a plane. At position pos, pair i turns by the
    angle pos / 10000^(2 i / head_dim), whose sine and cosine are the sinusoids of width head_dim.
    The product of a query and a key then depends on what they hold and on their distance, and on
    nothing else: both turned by the same angle, it stays as it is. Values are not turned.

    Args:
        head_dim: Width of a head; even.
        max_positions: Length of the table that is kept; longer sequences are computed when they
            come.

    Raises:
        ValueError: If ``head_dim`` is odd.

    Source: Su et al. (2021), section 3.2, https://arxiv.org/abs/2104.09864.
    """

    def __init__(self, head_dim: int, *, max_positions: int = 1024) -> None:
        if head_dim % 2:
            raise ValueError(
                f"head_dim, which is d_model / num_heads, must be even for rotary positions, got "
                f"{head_dim}; choose num_heads so that it is even."
            )
        super().__init__(head_dim, max_positions=max_positions)

    def forward(self, length: int, *, start: int | Tensor = 0) -> Tensor:
        """Looks up what ``rotate`` takes: positions start, start + 1, ..., float (T, d_k).

        Where each of N rows has a start of its own, int64 (N,), it is float (N, 1, T, d_k).
        """
        codes = self.codes(start, length)
        return codes if isinstance(start, int) else codes[:, None]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns every pair (2 i, 2 i + 1) of dimensions by the angle of its position.

    Args:
        x: Queries or keys, float (B, H, T, d_k).
        rotation: Sines and cosines of the angles, interleaved, float (T, d_k) or (B, 1, T, d_k).

    Returns:
        float (B, H, T, d_k), of the dtype of x; every pair is as long as before.

    Source: Su et al. (2021), equation 34.
    """
    # a product of complex numbers is a turn; in float32 at least, for bfloat16 has no complex ones
    dtype = compute_dtype(x)
    pairs = torch.view_as_complex(
        x.to(dtype).view(*x.shape[:-1], x.size(-1) // 2, 2)
    )  # (B, H, T, d_k / 2)
    angles = rotation.to(dtype).view(*rotation.shape[:-1], rotation.size(-1) // 2, 2)
    sin, cos = angles.unbind(-1)  # each (..., T, d_k / 2)
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)
