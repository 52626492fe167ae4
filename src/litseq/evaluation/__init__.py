"""Scores that compare with published ones, and whether a difference between them holds."""

from litseq.evaluation.comet import CometScore, comet_score
from litseq.evaluation.confidence import Interval
from litseq.evaluation.legacy import LEGACY, LegacyBleu, LegacyScore, legacy_bleu
from litseq.evaluation.scores import (
    CorpusScores,
    Evaluation,
    bleu_tokenizer,
    corpus_scores,
    sentence_chrf,
)
from litseq.evaluation.significance import Comparison, SystemScore, compare

__all__ = [
    "CometScore",
    "Comparison",
    "CorpusScores",
    "Evaluation",
    "Interval",
    "LEGACY",
    "LegacyBleu",
    "LegacyScore",
    "SystemScore",
    "bleu_tokenizer",
    "comet_score",
    "compare",
    "corpus_scores",
    "legacy_bleu",
    "sentence_chrf",
]
