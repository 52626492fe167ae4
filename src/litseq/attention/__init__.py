"""Attention that can be seen: captured from any model, summarised, turned into alignments."""

from litseq.attention.capture import capture_attention
from litseq.attention.maps import AttentionMap, AttentionMaps
from litseq.attention.readers import Reader, Seen

__all__ = ["AttentionMap", "AttentionMaps", "Reader", "Seen", "capture_attention"]
