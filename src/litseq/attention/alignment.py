"""Which source word a target word comes from, as attention sees it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor

from litseq.attention.maps import AttentionMaps

__all__ = ["alignment_error_rate", "alignment_weights", "hard_alignment", "pharaoh"]

Pair = tuple[int, int]
"""Number of the source word, number of the target word, both from 0."""


def alignment_weights(maps: AttentionMaps, layer: int = -2) -> Tensor:
    """Averages the heads of one layer's cross-attention.

    The last decoder layer is busy with the next word; the one before it aligns best (Garg et al.
    2019, section 4.2, https://arxiv.org/abs/1909.02074).

    Args:
        maps: What was captured.
        layer: Number of the layer; a negative one counts from the last. A model of fewer layers
            gives its first.

    Returns:
        float (B, T, S).

    Raises:
        ValueError: If the layer is not there.
    """
    layers = sorted({m.layer for m in maps if m.kind == "cross"})
    if layer < 0:
        layer = max(layer, -len(layers))
    return maps.find("cross", layer).weights.mean(1)


def hard_alignment(weights: Tensor) -> list[Pair]:
    """Joins each target word to the source word that it looks at most.

    Args:
        weights: float (T, S), without the ends of the sentences.

    Returns:
        A pair for each target word, in its order; none if there is no source word.
    """
    if 0 in weights.shape:
        return []
    return [(s, t) for t, s in enumerate(weights.argmax(-1).tolist())]


def pharaoh(pairs: Iterable[Pair]) -> str:
    """Writes an alignment as ``0-0 1-2``: source, target."""
    return " ".join(f"{s}-{t}" for s, t in sorted(pairs))


def alignment_error_rate(
    found: Collection[Pair], sure: Collection[Pair], possible: Collection[Pair] = ()
) -> float:
    """Compares an alignment with a gold one: 0 is perfect, 1 has nothing in common.

    Args:
        found: The alignment.
        sure: Links that must be there.
        possible: Links that may be there.

    Raises:
        ValueError: If there is nothing to compare.

    Source: Och and Ney (2003), section 5.1, https://aclanthology.org/J03-1002.
    """
    a, s = set(found), set(sure)
    if not a | s:
        raise ValueError("there is no link to compare, neither found nor sure.")
    return 1 - (len(a & s) + len(a & (s | set(possible)))) / (len(a) + len(s))
