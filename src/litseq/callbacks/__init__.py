"""Lightning callbacks that work on any LightningModule; what a module lacks is said in one line."""

from litseq.callbacks.attention import AttentionLogger
from litseq.callbacks.averaging import ExponentialAverage
from litseq.callbacks.best_checkpoint import BestCheckpoint
from litseq.callbacks.memory import MemoryCheck
from litseq.callbacks.nonfinite import NonFiniteError, NonFiniteGuard
from litseq.callbacks.outputs import TranslationWriter, run_folder
from litseq.callbacks.precision import PrecisionMonitor
from litseq.callbacks.progress import TokenThroughput
from litseq.callbacks.ranks import RankMonitor
from litseq.callbacks.run_checkpoint import RunCheckpoint, StoppedError
from litseq.callbacks.samples import TranslationSamples

__all__ = [
    "AttentionLogger",
    "BestCheckpoint",
    "ExponentialAverage",
    "MemoryCheck",
    "NonFiniteError",
    "NonFiniteGuard",
    "PrecisionMonitor",
    "RankMonitor",
    "RunCheckpoint",
    "StoppedError",
    "TokenThroughput",
    "TranslationSamples",
    "TranslationWriter",
    "run_folder",
]
