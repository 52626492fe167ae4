"""Models in the formats of other programs."""

from litseq.export.ctranslate2 import write_ctranslate2
from litseq.export.from_marian import read_marian
from litseq.export.marian import MAX_POSITIONS, write_marian
from litseq.export.onnx import write_onnx
from litseq.export.verify import compare

__all__ = [
    "MAX_POSITIONS",
    "compare",
    "read_marian",
    "write_ctranslate2",
    "write_marian",
    "write_onnx",
]
