"""BLEU as older papers computed it: on tokenised text, each in its own way, by name.

Such a score compares with the paper that used it and with nothing else; report sacreBLEU's beside.
Its signature begins with ``legacy:``, so that nobody takes it for sacreBLEU's. The counting is that
of ``multi-bleu.perl``: 4-grams, closed brevity penalty, no smoothing.

The tokenizer is sacremoses, which keeps the full stop of an abbreviation or an ordinal ("usw.",
"10.") also at the end of a sentence, as ``tokenizer.perl`` once did; later versions of that script
split it off there, in 14 of the 29,000 German training sentences of Multi30k. It knows the
abbreviations of each language, so the language counts.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU

from litseq.evaluation.confidence import NUM_RESAMPLES, Interval, score
from litseq.evaluation.texts import check_pairs, primary_language, warn_if_tokenised

__all__ = ["LEGACY", "LegacyBleu", "LegacyScore", "legacy_bleu", "legacy_metric"]


@dataclass(frozen=True)
class LegacyBleu:
    """How one line of papers prepared text before it counted n-grams.

    Attributes:
        description: What it does and who used it.
        lowercase: Whether case goes, ``first`` or ``last``; Moses knows abbreviations by case.
        normalise: Whether Moses' ``normalize-punctuation`` comes before the tokenizer.
        split_compounds: Whether "rich-text" becomes "rich ##AT##-##AT## text".
        plain_apostrophe: Whether the apostrophe of print becomes that of a typewriter.
        tokenise: Whether Moses cuts the words; else they are what spaces part.
    """

    description: str
    lowercase: Literal["no", "first", "last"] = "no"
    normalise: bool = False
    split_compounds: bool = False
    plain_apostrophe: bool = False
    tokenise: bool = True


LEGACY = {
    "pretokenised": LegacyBleu(
        "BLEU on words as they stand, for a corpus that came tokenised and a model that was "
        "trained on it so (multi-bleu.perl on such a corpus).",
        tokenise=False,
    ),
    "tokenised": LegacyBleu("Cased BLEU on text tokenised by Moses (multi-bleu.perl)."),
    "multi30k": LegacyBleu(
        "Lower-cased, punctuation-normalised, Moses-tokenised BLEU, in this order: Multi30k as "
        "prepared by its authors, Wu et al. (2021), https://arxiv.org/abs/2105.14462, and other "
        "multimodal translation. The German test_2016_flickr then has 12,103 reference words.",
        lowercase="first",
        normalise=True,
    ),
    "iwslt14": LegacyBleu(
        "Moses-tokenised, then lower-cased BLEU, without normalised punctuation but for the "
        "apostrophe: fairseq's IWSLT'14 German-English (prepare-iwslt14.sh).",
        lowercase="last",
        plain_apostrophe=True,
    ),
    "wmt14-compound-split": LegacyBleu(
        "Cased, Moses-tokenised BLEU with split compounds, which raises it: the WMT'14 "
        "English-German of Vaswani et al. (2017), https://arxiv.org/abs/1706.03762, as fairseq's "
        "compound_split_bleu.sh computes it. tensor2tensor's get_ende_bleu.sh replaces Unicode "
        "punctuation in the hypotheses besides.",
        split_compounds=True,
    ),
}
"""The variants by name."""


@dataclass(frozen=True)
class LegacyScore:
    """A BLEU score on tokenised text.

    Attributes:
        name: Of the variant.
        bleu: 0 to 100.
        precisions: Of 1-grams to 4-grams, in percent.
        brevity_penalty: 1 where the hypotheses have at least as many words as the references.
        hyp_len: Words of the hypotheses.
        ref_len: Words of the references.
        confidence: 95 % confidence interval, or None.
        signature: What was done, never to be mistaken for sacreBLEU's.
    """

    name: str
    bleu: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    hyp_len: int
    ref_len: int
    confidence: Interval | None
    signature: str


def legacy_bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    name: str,
    tgt_lang: str | None,
    confidence: bool = False,
) -> LegacyScore:
    """Scores raw text by one of ``LEGACY``; both sides are tokenised here.

    Args:
        hypotheses: Raw text, one sentence each.
        references: Raw text in the same order.
        name: Of the variant.
        tgt_lang: Language code.
        confidence: Whether to add the interval.

    Raises:
        ModuleNotFoundError: If sacremoses is not installed.
        TypeError: If one of the two texts is a single string.
        ValueError: If there is no such variant, if Moses does not know the language, or if the
            texts differ in length or are empty.
    """
    check_pairs(hypotheses, references)
    metric, signature = legacy_metric(name, tgt_lang=tgt_lang)
    if LEGACY[name].tokenise:
        warn_if_tokenised("the hypotheses", hypotheses)
        warn_if_tokenised("the references", references)
    resamples = NUM_RESAMPLES if confidence else 0
    result: Any  # sacreBLEU's BLEUScore
    result, interval = score(metric, hypotheses, references, num_resamples=resamples)
    if interval:
        signature += f"|bs:{NUM_RESAMPLES}|seed:{metric.seed}"
    return LegacyScore(
        name=name,
        bleu=float(result.score),
        precisions=tuple(map(float, result.precisions)),
        brevity_penalty=float(result.bp),
        hyp_len=int(result.sys_len),
        ref_len=int(result.ref_len),
        confidence=interval,
        signature=signature,
    )


def legacy_metric(name: str, *, tgt_lang: str | None) -> tuple[Metric, str]:
    """Makes a metric of sacreBLEU's that prepares text as a variant says.

    Args:
        name: Of the variant.
        tgt_lang: Language code.

    Returns:
        The metric, whose own signature says nothing of the preparation, and the one that does.

    Raises:
        ModuleNotFoundError: If sacremoses is not installed.
        ValueError: If there is no such variant, or if Moses does not know the language.
    """
    if name not in LEGACY:
        raise ValueError(f"there is no legacy BLEU {name!r}; choose among {', '.join(LEGACY)}.")
    variant = LEGACY[name]
    language = _moses_language(tgt_lang) if variant.tokenise else ""
    prepare, version = _preparation(name, language)
    metric = BLEU(tokenize="none", force=True, smooth_method="none")
    metric.tokenizer = prepare
    parts = {
        "legacy": name,
        "case": "mixed" if variant.lowercase == "no" else f"lc-{variant.lowercase}",
        "norm": "moses" if variant.normalise else "apos" if variant.plain_apostrophe else "no",
        "tok": f"moses-{language}" if variant.tokenise else "none",
        "compounds": "split" if variant.split_compounds else "whole",
        "smooth": "none",
        "sacremoses": version,
    }
    return metric, "|".join(f"{key}:{value}" for key, value in parts.items())


def _sacremoses() -> Any:  # noqa: ANN401 - a module without types
    try:
        return importlib.import_module("sacremoses")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "legacy BLEU needs sacremoses, which is not installed: pip install 'litseq[legacy]'.",
            name=error.name,
        ) from error


def _moses_language(code: str | None) -> str:
    known = set(_sacremoses().corpus.NonbreakingPrefixes().available_langs.values())
    known -= {"zh", "yue"}  # written without spaces, which Moses does not cut
    language = primary_language(code)
    if language not in known:
        raise ValueError(
            f"legacy BLEU needs a target language that Moses knows, got {code!r}; give as tgt_lang "
            f"one of {', '.join(sorted(known))}."
        )
    return language


@functools.cache  # the tokenizer compiles its expressions anew each time
def _preparation(name: str, language: str) -> tuple[Callable[[str], str], str]:
    if not LEGACY[name].tokenise:
        return str, "no"
    sacremoses, variant = _sacremoses(), LEGACY[name]
    tokenizer = sacremoses.MosesTokenizer(language)
    normalizer = sacremoses.MosesPunctNormalizer(language)

    def prepare(text: str) -> str:
        if variant.lowercase == "first":
            text = text.lower()
        if variant.plain_apostrophe:
            text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        if variant.normalise:
            text = normalizer.normalize(text)
        # escapes would only rename tokens
        text = tokenizer.tokenize(text, escape=False, return_str=True)
        if variant.split_compounds:
            text = re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", text)
        return text.lower() if variant.lowercase == "last" else text

    return prepare, str(sacremoses.__version__)
