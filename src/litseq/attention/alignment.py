"""Which source word a target word comes from, as attention sees it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from litseq.attention.words import join_words, merge_weights, word_numbers
from litseq.types import WordAlignment

__all__ = ["align_words", "alignment_error_rate", "alignment_weights", "hard_alignment"]

Pair = tuple[int, int]
"""Number of the source word, number of the target word, both from 0."""


def alignment_weights(attention: Tensor) -> Tensor:
    """Averages the heads of the decoder layer that aligns best: the last but one, if there is one.

    The last layer is busy with the next word; in six layers the fifth aligns best (Garg et al.
    2019, section 4.2, https://arxiv.org/abs/1909.02074).

    Args:
        attention: Cross-attention of one hypothesis, float (L, H, T, S).

    Returns:
        float (T, S).
    """
    return attention[-2 if attention.size(0) > 1 else 0].mean(0)


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


def align_words(
    attention: Tensor, src_pieces: Sequence[str], tgt_pieces: Sequence[str]
) -> WordAlignment:
    """Aligns the words of a hypothesis with those of its source.

    Args:
        attention: Cross-attention of the hypothesis, float (L, H, T, S); what is beyond the pieces,
            such as the ends of the sentences, is left out.
        src_pieces: SentencePiece's pieces of the source, at most S.
        tgt_pieces: Those of the hypothesis, at most T.
    """
    weights = alignment_weights(attention)[: len(tgt_pieces), : len(src_pieces)]
    words = merge_weights(weights, word_numbers(tgt_pieces), word_numbers(src_pieces))
    return WordAlignment(
        src_words=tuple(join_words(src_pieces)),
        tgt_words=tuple(join_words(tgt_pieces)),
        pairs=tuple(hard_alignment(words)),
    )


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
