"""How to search, as one record that a config or a command line can fill."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

__all__ = [
    "SearchOptions",
    "check_beam",
    "check_length_norm",
    "check_max_len",
    "check_sampling",
]


@dataclass(frozen=True)
class SearchOptions:
    """How to search for a translation: greedy (a beam of one), with a beam, or by sampling.

    Attributes:
        beam_size: Number of sequences kept alive per sentence; 1 = greedy search.
        length_penalty: Exponent of the length normalisation; 0 ranks by log-probability alone,
            larger values favour longer translations.
        length_offset: Lengths are counted from it: the score is the log-probability divided by
            ``((offset + length) / (offset + 1)) ** length_penalty``. 5 is Wu et al.'s (2016); 0
            is what fairseq, Marian and Hugging Face do.
        n_best: Number of hypotheses per sentence: at most ``beam_size``, or any number when
            sampling.
        patience: A beam ends when ``patience * beam_size`` sequences of a sentence have ended
            (Kasai et al. 2022, https://arxiv.org/abs/2204.05424); 1 is what fairseq and CTranslate2
            do. None, or inf: when nothing better can come.
        max_len_a: Limits the length to ``max_len_a * source length + max_len_b`` tokens.
        max_len_b: The constant part of that limit, in tokens.
        sample: Whether to sample; the options below have a meaning only then.
        temperature: Divides the log-probabilities; below 1 sharpens, above 1 flattens.
        top_k: Only the k most probable tokens can be drawn; 0 = all of them.
        top_p: Only the most probable tokens that together reach this probability can be drawn;
            1 = all of them.
        seed: Seed of the samples; None takes one from torch's global generator.
        attention: Whether to keep where the model looked: ``Hypothesis.attention``.

    Raises:
        ValueError: If a value is out of its range.
    """

    beam_size: int = 4
    length_penalty: float = 0.6
    length_offset: float = 5.0
    n_best: int = 1
    patience: float | None = None
    max_len_a: float = 1.0
    max_len_b: int = 50
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    attention: bool = False

    def __post_init__(self) -> None:
        n_best = 1 if self.sample else self.n_best
        check_beam(beam_size=self.beam_size, n_best=n_best, patience=self.patience)
        check_length_norm(length_penalty=self.length_penalty, length_offset=self.length_offset)
        check_sampling(
            n_best=self.n_best, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )
        for name in ("max_len_a", "max_len_b"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(
                    f"{name} must be a number of at least 0, got {value}; the default is "
                    f"{getattr(type(self), name)}."
                )

    def max_len(self, src_lengths: Tensor) -> Tensor:
        """The length limit of each sentence.

        Args:
            src_lengths: Number of source tokens, int64 (B,).

        Returns:
            ``max_len_a * length + max_len_b`` rounded down, at least 1, int64 (B,).
        """
        # In whole numbers: the default dtype may be too coarse to count, as bfloat16 is.
        ratio = Fraction(str(self.max_len_a)).limit_denominator(1_000_000)
        limit = src_lengths.long() * ratio.numerator // ratio.denominator + self.max_len_b
        return limit.clamp(min=1)


def check_beam(*, beam_size: int, n_best: int, patience: float | None = None) -> None:
    """Raises ``ValueError`` if an option of beam search is out of its range."""
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, got {beam_size}; 1 is greedy search.")
    if not 1 <= n_best <= beam_size:
        raise ValueError(
            f"n_best must lie between 1 and beam_size, got n_best={n_best}, beam_size={beam_size}; "
            f"raise beam_size or ask for fewer."
        )
    if patience is not None and not patience > 0:
        raise ValueError(
            f"patience must be a number above 0, got {patience}; 1 ends with beam_size finished "
            f"sequences, inf when nothing better can come."
        )


def check_length_norm(*, length_penalty: float, length_offset: float) -> None:
    """Raises ``ValueError`` if an option of ``length_norm`` is out of its range."""
    if not (length_penalty >= 0 and math.isfinite(length_penalty)):
        raise ValueError(
            f"length_penalty must be a number of at least 0, got {length_penalty}; "
            f"0 ranks by log-probability alone."
        )
    if not (length_offset >= 0 and math.isfinite(length_offset)):
        raise ValueError(
            f"length_offset must be a number of at least 0, got {length_offset}; 0 divides by the "
            f"length itself."
        )


def check_sampling(*, n_best: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raises ``ValueError`` if an option of sampling is out of its range."""
    if n_best < 1:
        raise ValueError(f"n_best must be at least 1, got {n_best}; ask for 1 or more.")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"temperature must be a number above 0, got {temperature}; "
            f"to take the most probable token always, use top_k=1 or greedy search."
        )
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0, got {top_k}; 0 keeps every token.")
    if not 0 < top_p <= 1:
        raise ValueError(
            f"top_p must lie above 0 and at most at 1, got {top_p}; 1 keeps every token."
        )


def check_max_len(max_len: Tensor) -> None:
    """Raises ``ValueError`` if a length limit is below 1."""
    if max_len.numel() > 0 and int(max_len.min()) < 1:
        raise ValueError(
            f"max_len must be at least 1 token for every sentence, got {int(max_len.min())}; "
            f"EOS counts as one."
        )
