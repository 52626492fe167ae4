"""COMET, a learned metric, where its package is installed.

Not tested with the package itself, only against a stand-in for its documented interface: pip cannot
install it beside litseq, as unbabel-comet 2.2.7 requires jsonargparse 3.13.1 and torchmetrics below
0.11. It works in an environment of its own, on the files that ``litseq test`` leaves:

    comet-score -s RUN/test/sources.txt -t RUN/test/hypotheses.txt -r RUN/test/references.txt
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from litseq.evaluation.texts import check_pairs, warn_if_tokenised

__all__ = ["CometScore", "comet_score"]


@dataclass(frozen=True)
class CometScore:
    """A COMET score.

    Attributes:
        score: Mean over the sentences, mostly between 0 and 1; higher is better.
        sentences: Score of each sentence.
        signature: Model and version of the package: scores of two models do not compare.
    """

    score: float
    sentences: tuple[float, ...]
    signature: str


def comet_score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    sources: Sequence[str],
    model: str = "Unbabel/wmt22-comet-da",
    batch_size: int = 8,
    num_gpus: int = 0,
) -> CometScore:
    """Scores raw text by COMET, where the package unbabel-comet can be imported.

    The model is downloaded from the Hugging Face Hub at the first use and read by the package of
    COMET's authors; name a model only if you trust whoever made it.

    Args:
        hypotheses: Raw text, one sentence each.
        references: Raw text in the same order.
        sources: Raw text in the same order.
        model: Name on the Hub.
        batch_size: Sentences at a time.
        num_gpus: 0 computes on the CPU.

    Raises:
        ModuleNotFoundError: If the package unbabel-comet is not installed.
        TypeError: If hypotheses or references are a single string.
        ValueError: If they differ in length or are empty, or there is not one source for each.

    Source: Rei et al. (2020), https://aclanthology.org/2020.emnlp-main.213.
    """
    check_pairs(hypotheses, references)
    if isinstance(sources, str) or len(sources) != len(hypotheses):
        got = "one string" if isinstance(sources, str) else f"{len(sources)}"
        raise ValueError(
            f"COMET needs the source of each of {len(hypotheses)} hypotheses, got {got}."
        )
    try:
        comet = importlib.import_module("comet")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "COMET needs unbabel-comet, which is not installed; its requirements exclude litseq's, "
            "so install it in an environment of its own and run there: comet-score "
            "-s RUN/test/sources.txt -t RUN/test/hypotheses.txt -r RUN/test/references.txt",
            name=error.name,
        ) from error
    warn_if_tokenised("the hypotheses", hypotheses)
    network = comet.load_from_checkpoint(comet.download_model(model))
    rows = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
    ]
    output = network.predict(rows, batch_size=batch_size, gpus=num_gpus)
    return CometScore(
        score=float(output.system_score),
        sentences=tuple(map(float, output.scores)),
        signature=f"comet:{model}|unbabel-comet:{getattr(comet, '__version__', 'unknown')}",
    )
