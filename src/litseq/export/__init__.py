"""Models in the formats of other programs."""

from litseq.export.marian import MAX_POSITIONS, write_marian

__all__ = ["MAX_POSITIONS", "write_marian"]
