"""Whether a difference between systems holds: paired tests, by sacreBLEU's own implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sacrebleu.significance import PairedTest

from litseq.evaluation.confidence import Interval, resampling_seed, score
from litseq.evaluation.legacy import legacy_metric
from litseq.evaluation.scores import make_metric
from litseq.evaluation.texts import check_pairs, warn_if_tokenised

__all__ = ["LEVEL", "Comparison", "SystemScore", "compare"]

LEVEL = 0.05
"""A difference holds where its p-value is below."""

_TESTS = {"bs": "paired bootstrap", "ar": "approximate randomisation"}


@dataclass(frozen=True)
class SystemScore:
    """One system under one metric.

    Attributes:
        system: Its name.
        metric: ``bleu``, ``chrf``, ``ter`` or the name of a legacy BLEU as ``legacy:multi30k``.
        score: 0 to 100; of TER, lower is better, and more than 100 is possible.
        confidence: 95 % confidence interval.
        difference: From the baseline's score; None for the baseline.
        p_value: Of the difference; None for the baseline.
    """

    system: str
    metric: str
    score: float
    confidence: Interval
    difference: float | None = None
    p_value: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the difference is more than chance, p < 0.05; None for the baseline.

        Of two equal scores it is not, though sacreBLEU's p is tiny there.
        """
        return None if self.p_value is None else bool(self.difference) and self.p_value < LEVEL


@dataclass(frozen=True)
class Comparison:
    """Systems against a baseline.

    Attributes:
        baseline: Name of the system that the others are compared with.
        method: ``bs`` or ``ar``.
        num_samples: Resamples or trials of the test.
        num_sentences: Sentences of the test set.
        signatures: Of each metric.
        rows: Metric by metric, in each the baseline first.
    """

    baseline: str
    method: str
    num_samples: int
    num_sentences: int
    signatures: dict[str, str]
    rows: tuple[SystemScore, ...]

    def sentences(self) -> list[str]:
        """Says of each system and metric, in words, whether the difference holds."""
        return [self._sentence(row) for row in self.rows if row.p_value is not None]

    def _sentence(self, row: SystemScore) -> str:
        name = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}.get(row.metric, row.metric)
        difference = row.difference or 0.0
        if not difference:
            return f"{name}: {row.system} and {self.baseline} have the same score."
        better = (difference > 0) != (row.metric == "ter")
        words = (
            f"{name}: {row.system} is {abs(difference):.2f} {'better' if better else 'worse'} than "
            f"{self.baseline}, "
        )
        tested = f"p = {row.p_value:.4f}, {_TESTS[self.method]}"
        if row.holds:
            return f"{words}and the difference holds ({tested})."
        return f"{words}but the difference may be chance ({tested})."


def compare(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    *,
    metrics: Sequence[str] = ("bleu", "chrf"),
    legacy: Sequence[str] = (),
    method: Literal["bs", "ar"] = "bs",
    tgt_lang: str | None = None,
) -> Comparison:
    """Compares systems with a baseline, on the same sentences.

    Scores, p-values and intervals are those of ``sacrebleu --paired-bs`` and ``--paired-ar`` (1,000
    resamples, 10,000 trials, seed 12345). Under ``ar``, where sacreBLEU's command has none, the
    intervals are those of the bootstrap. A p-value speaks of these sentences and these two outputs,
    not of another seed of the training. The bootstrap's is one-sided, for the side that is ahead:
    of two equal systems it is below 0.05 about one time in ten. That of ``ar`` is two-sided: one
    time in twenty.

    sacreBLEU keeps all resamples of one system in memory: 72 KB for each sentence under chrF.

    Args:
        systems: Hypotheses of each system by its name, raw text; the first is the baseline.
        references: Raw text in the same order.
        metrics: Among ``bleu``, ``chrf`` and ``ter``.
        legacy: Names of ``litseq.evaluation.LEGACY``, tested beside.
        method: ``bs``, paired bootstrap resampling, or ``ar``, approximate randomisation.
        tgt_lang: Language code, as for ``corpus_scores``.

    Raises:
        ModuleNotFoundError: If a legacy BLEU is asked for and sacremoses is not installed.
        TypeError: If a system's hypotheses, or the references, are a single string.
        ValueError: If there are fewer than two systems or no metric, if lengths differ, if a
            metric, a variant or the method is unknown, or if ``SACREBLEU_SEED`` is no number or 0.

    Source: Koehn (2004), https://aclanthology.org/W04-3250; Riezler and Maxwell (2005),
    https://aclanthology.org/W05-0908.
    """
    if method not in _TESTS:
        raise ValueError(f"there is no method {method!r}; choose among {', '.join(_TESTS)}.")
    if len(systems) < 2:
        raise ValueError(f"a comparison needs two systems or more, got {len(systems)}.")
    if not [*metrics, *legacy]:
        raise ValueError("a comparison needs a metric, got none.")
    for hypotheses in systems.values():
        check_pairs(hypotheses, references)
    if resampling_seed() == "0":
        raise ValueError(
            "SACREBLEU_SEED is 0, which sacreBLEU's tests take for no seed; give another number."
        )
    made = {name: (make_metric(name, tgt_lang=tgt_lang), "") for name in metrics}
    made |= {f"legacy:{name}": legacy_metric(name, tgt_lang=tgt_lang) for name in legacy}
    for name, hypotheses in systems.items():
        warn_if_tokenised(f"the hypotheses of {name}", hypotheses)
    warn_if_tokenised("the references", references)

    rows: list[SystemScore] = []
    signatures: dict[str, str] = {}
    num_samples = 0
    # one by one: every BLEU has the same name there, and the draws are the same each time
    for name, (metric, signature) in made.items():
        test = PairedTest(list(systems.items()), {name: metric}, [references], test_type=method)
        signed, results = _run(test)
        num_samples = test.n_samples
        signatures[name] = str(signed)
        if signature:  # sacreBLEU's own says nothing of how the text was prepared
            signatures[name] = f"{signature}|{method}:{num_samples}|seed:{signed.info['seed']}"
        for (system, hypotheses), result in zip(systems.items(), results, strict=True):
            interval = Interval(float(result.mean), float(result.ci)) if method == "bs" else None
            if interval is None:
                _, interval = score(metric, hypotheses, references)
            rows.append(_row(system, name, result, interval, results[0]))
    return Comparison(
        next(iter(systems)), method, num_samples, len(references), signatures, tuple(rows)
    )


def _run(test: PairedTest) -> tuple[Any, list[Any]]:
    """Runs a test of one metric: its signature, and a result for each system."""
    signatures, results = test()
    del results["System"]
    [signature], [rows] = signatures.values(), results.values()
    return signature, rows


def _row(
    system: str,
    metric: str,
    result: Any,  # noqa: ANN401 - sacreBLEU's Result, of one declared type for three
    interval: Interval | None,
    baseline: Any,  # noqa: ANN401
) -> SystemScore:
    assert interval is not None
    if result is baseline:
        return SystemScore(system, metric, float(result.score), interval)
    difference = float(result.score - baseline.score)
    return SystemScore(
        system, metric, float(result.score), interval, difference, float(result.p_value)
    )
