"""Sequence-to-sequence learning inside PyTorch Lightning.

The public names, each loaded when it is first asked for: ``import litseq`` itself is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litseq.architectures import (
        RnnAttentionSeq2Seq,
        RnnSeq2Seq,
        Seq2Seq,
        TransformerSeq2Seq,
    )
    from litseq.attention import capture_attention
    from litseq.callbacks import (
        AttentionLogger,
        BestCheckpoint,
        ExponentialAverage,
        MemoryCheck,
        NonFiniteGuard,
        PrecisionMonitor,
        RankMonitor,
        RunCheckpoint,
        TokenThroughput,
        TranslationSamples,
        TranslationWriter,
    )
    from litseq.checkpoint_io import SafeCheckpointIO
    from litseq.data import TokenBucketLoader, TranslationDataModule, TranslationTokenizer
    from litseq.decoding import SearchOptions, beam_search, generate, greedy_search, sample_search
    from litseq.evaluation import (
        Comparison,
        CorpusScores,
        Evaluation,
        comet_score,
        compare,
        corpus_scores,
        legacy_bleu,
    )
    from litseq.heatmaps import draw_attention
    from litseq.losses import r_drop_loss, token_loss
    from litseq.models import Rnn, RnnAttention, Seq2SeqModel, Transformer
    from litseq.schedules import scheduler

__version__ = "0.1.0"

_HOMES = {
    # Seq2Seq comes with its subclasses, so that it can restore them from a checkpoint
    "architectures": ("RnnAttentionSeq2Seq", "RnnSeq2Seq", "Seq2Seq", "TransformerSeq2Seq"),
    "attention": ("capture_attention",),
    "callbacks": (
        "AttentionLogger",
        "BestCheckpoint",
        "ExponentialAverage",
        "MemoryCheck",
        "NonFiniteGuard",
        "PrecisionMonitor",
        "RankMonitor",
        "RunCheckpoint",
        "TokenThroughput",
        "TranslationSamples",
        "TranslationWriter",
    ),
    "checkpoint_io": ("SafeCheckpointIO",),
    "data": ("TokenBucketLoader", "TranslationDataModule", "TranslationTokenizer"),
    "decoding": ("SearchOptions", "beam_search", "generate", "greedy_search", "sample_search"),
    "evaluation": (
        "Comparison",
        "CorpusScores",
        "Evaluation",
        "comet_score",
        "compare",
        "corpus_scores",
        "legacy_bleu",
    ),
    "heatmaps": ("draw_attention",),
    "losses": ("r_drop_loss", "token_loss"),
    "models": ("Rnn", "RnnAttention", "Seq2SeqModel", "Transformer"),
    "schedules": ("scheduler",),
}
_HOME = {name: f"litseq.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttentionLogger",
    "BestCheckpoint",
    "Comparison",
    "CorpusScores",
    "Evaluation",
    "ExponentialAverage",
    "MemoryCheck",
    "NonFiniteGuard",
    "PrecisionMonitor",
    "RankMonitor",
    "Rnn",
    "RnnAttention",
    "RnnAttentionSeq2Seq",
    "RnnSeq2Seq",
    "RunCheckpoint",
    "SafeCheckpointIO",
    "SearchOptions",
    "Seq2Seq",
    "Seq2SeqModel",
    "TokenBucketLoader",
    "TokenThroughput",
    "Transformer",
    "TransformerSeq2Seq",
    "TranslationDataModule",
    "TranslationSamples",
    "TranslationTokenizer",
    "TranslationWriter",
    "beam_search",
    "capture_attention",
    "comet_score",
    "compare",
    "corpus_scores",
    "draw_attention",
    "generate",
    "greedy_search",
    "legacy_bleu",
    "r_drop_loss",
    "sample_search",
    "scheduler",
    "token_loss",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    if name not in _HOME:
        raise AttributeError(f"module 'litseq' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
