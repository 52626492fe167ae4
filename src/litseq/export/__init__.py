"""Models in the formats of other programs."""

from litseq.export.from_marian import read_marian
from litseq.export.marian import MAX_POSITIONS, write_marian

__all__ = ["MAX_POSITIONS", "read_marian", "write_marian"]
