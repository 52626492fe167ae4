"""Attention that can be seen: captured from any model, summarised, turned into alignments."""

from litseq.attention.alignment import (
    align_words,
    alignment_error_rate,
    alignment_weights,
    hard_alignment,
)
from litseq.attention.capture import capture_attention
from litseq.attention.maps import AttentionMap, AttentionMaps
from litseq.attention.readers import Reader, Seen
from litseq.attention.summaries import (
    confidence,
    coverage,
    diagonality,
    entropy,
    head_agreement,
    summarize,
)
from litseq.attention.words import join_words, merge_weights, word_numbers

__all__ = [
    "AttentionMap",
    "AttentionMaps",
    "Reader",
    "Seen",
    "align_words",
    "alignment_error_rate",
    "alignment_weights",
    "capture_attention",
    "confidence",
    "coverage",
    "diagonality",
    "entropy",
    "hard_alignment",
    "head_agreement",
    "join_words",
    "merge_weights",
    "summarize",
    "word_numbers",
]
