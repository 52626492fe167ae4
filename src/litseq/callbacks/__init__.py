"""Lightning callbacks that work on any LightningModule; what a module lacks is said in one line."""

from litseq.callbacks.attention import AttentionLogger
from litseq.callbacks.outputs import TranslationWriter, run_folder
from litseq.callbacks.progress import TokenThroughput
from litseq.callbacks.samples import TranslationSamples

__all__ = [
    "AttentionLogger",
    "TokenThroughput",
    "TranslationSamples",
    "TranslationWriter",
    "run_folder",
]
