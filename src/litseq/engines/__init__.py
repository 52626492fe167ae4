"""Exported models, run by the programs that they were exported for."""

from litseq.engines.ctranslate2 import CTranslate2Translator
from litseq.engines.folder import Engine, Exported, load_exported, read_exported, write_exported
from litseq.engines.marian import MarianTranslator
from litseq.engines.onnx import OnnxModel

__all__ = [
    "CTranslate2Translator",
    "Engine",
    "Exported",
    "MarianTranslator",
    "OnnxModel",
    "load_exported",
    "read_exported",
    "write_exported",
]
