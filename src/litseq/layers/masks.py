"""Attention masks: the one place where padding turns into what attention understands.

Throughout litseq a padding mask is True where there is padding, and an attention mask is True where
a query may attend, as ``scaled_dot_product_attention`` has it. (``torch.nn`` modules take attention
masks of the opposite meaning, and so is ``future_mask``, which hides scores.)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["future_mask", "padding_to_attention_mask"]


def padding_to_attention_mask(key_padding_mask: Tensor) -> Tensor:
    """Lets every query attend to every key that is not padding.

    Args:
        key_padding_mask: bool (B, S); True = padding.

    Returns:
        bool (B, 1, 1, S); True = may attend; broadcasts over heads and queries.
    """
    batch, length = key_padding_mask.shape
    return ~key_padding_mask.view(batch, 1, 1, length)


def future_mask(size: int, *, device: torch.device | None = None) -> Tensor:
    """Hides the positions after t from position t.

    Returns:
        bool (T, T); True = may *not* attend.

    Source: Vaswani et al. (2017), section 3.2.3, https://arxiv.org/abs/1706.03762.
    """
    return torch.ones(size, size, dtype=torch.bool, device=device).triu_(1)
