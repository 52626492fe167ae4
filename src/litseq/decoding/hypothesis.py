"""One sequence that a search found, and how sequences of different lengths are ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Hypothesis", "best_first", "length_norm", "make_hypothesis"]


@dataclass(frozen=True)
class Hypothesis:
    """One sequence that a search found.

    Attributes:
        tokens: Token ids without BOS; the last one is EOS if, and only if, the sequence is
            finished.
        log_prob: Sum of ``token_log_probs``, EOS included, in nats.
        score: What sequences are ranked by: ``log_prob`` divided by ``length_norm`` of the number
            of tokens.
        token_log_probs: The model's own log-probability of each token, in nats: the one that
            teacher forcing gives, whatever was suppressed, sharpened or cut off to choose the
            token.
        attention: Where the model looked for each token, float32 (L, H, T, S): layers, heads,
            tokens, source positions (padding is 0). None unless the search was asked to keep it.
    """

    tokens: tuple[int, ...]
    log_prob: float
    score: float
    token_log_probs: tuple[float, ...]
    attention: Tensor | None = field(default=None, compare=False, repr=False)


def length_norm(length: int, length_penalty: float, length_offset: float = 5.0) -> float:
    """Divisor of a log-probability: ``((offset + length) / (offset + 1)) ** length_penalty``.

    Args:
        length: Number of tokens, EOS included.
        length_penalty: The exponent alpha; 0 ranks by log-probability alone, larger values favour
            longer sequences. Vaswani et al. (2017) use 0.6.
        length_offset: 5 is the paper's; 0 divides by ``length ** length_penalty``, as fairseq,
            Marian and Hugging Face do.

    Source: Wu et al. (2016), section 7, equation 14, https://arxiv.org/abs/1609.08144.
    """
    return float(((length_offset + length) / (length_offset + 1.0)) ** length_penalty)


def make_hypothesis(
    tokens: Sequence[int],
    token_log_probs: Sequence[float],
    *,
    length_penalty: float,
    length_offset: float = 5.0,
    attention: Tensor | None = None,
) -> Hypothesis:
    """Adds up the tokens' log-probabilities and scores the sum.

    Raises:
        ValueError: If there is no token, or the model gave one of them no finite log-probability.
    """
    log_prob = math.fsum(token_log_probs) if all(map(math.isfinite, token_log_probs)) else math.nan
    if not tokens or math.isnan(log_prob):
        # A search takes such a token only if there is no better one.
        raise ValueError(
            f"no next token has a finite log-probability after the {len(tokens)} token ids "
            f"{list(tokens[:8])}; the model's logits are NaN or infinite, or every "
            f"token is suppressed: look at the training loss and the suppressed ids."
        )
    return Hypothesis(
        tokens=tuple(tokens),
        log_prob=log_prob,
        score=log_prob / length_norm(len(tokens), length_penalty, length_offset),
        token_log_probs=tuple(token_log_probs),
        attention=attention,
    )


def best_first(hypotheses: Sequence[Hypothesis], *, eos_id: int) -> list[Hypothesis]:
    """Sorts by score, the unfinished behind the finished; equal ones keep their order."""
    return sorted(hypotheses, key=lambda found: (found.tokens[-1] != eos_id, -found.score))
