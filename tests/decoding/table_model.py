"""A model whose next-token distributions are the rows of a table, and searches written out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from litseq.decoding import Hypothesis, length_norm
from litseq.types import DecoderState

PAD, UNK, BOS, EOS = 0, 1, 2, 3
V = 7
NEVER = (PAD, UNK, BOS)


@dataclass(frozen=True)
class TableState(DecoderState):
    code: Tensor  # int64 (N,), stands for the sentence and all tokens read so far


class TableModel:
    """Next-token logits are looked up by a code of the whole prefix, so a misplaced state is seen.

    Memory is int64 (B,), one number per sentence. ``rows`` keeps the batch size of every step.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table  # float (number of codes, V)
        self.rows: list[int] = []

    def init_state(self, memory: Tensor) -> TableState:
        return TableState(memory)

    def step(self, token: Tensor, state: TableState) -> tuple[Tensor, TableState]:
        self.rows.append(token.numel())
        code = self.next_code(token, state.code)
        return self.table[code], TableState(code)

    def next_code(self, token, code):
        return (code * 31 + token * 7 + 1) % len(self.table)

    def log_probs(self, sentence: int, tokens: tuple[int, ...]) -> list[float]:
        """The next token's log-probabilities after BOS and these tokens."""
        code = sentence
        for token in (BOS, *tokens):
            code = self.next_code(token, code)
        return self.table[code].log_softmax(-1).tolist()

    def score(
        self, sentence: int, tokens: tuple[int, ...], *, alpha: float, offset: float = 5.0
    ) -> Hypothesis:
        """Teacher forcing."""
        each = [self.log_probs(sentence, tokens[:i])[token] for i, token in enumerate(tokens)]
        norm = length_norm(len(tokens), alpha, offset)
        return Hypothesis(tokens, sum(each), sum(each) / norm, tuple(each))


def random_model(seed: int, *, num_codes: int = 997, sharpness: float = 2.0) -> TableModel:
    generator = torch.Generator().manual_seed(seed)
    return TableModel(
        sharpness * torch.randn(num_codes, V, generator=generator, dtype=torch.float64)
    )


def rank(hypotheses: list[Hypothesis], n_best: int) -> list[Hypothesis]:
    ranked = sorted(hypotheses, key=lambda h: (h.tokens[-1] != EOS, -h.score))
    return ranked[:n_best]


def all_sequences(max_len: int, prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Every sequence that ends with EOS or has max_len tokens, without those of ``NEVER``."""
    if prefix and (prefix[-1] == EOS or len(prefix) == max_len):
        return [prefix]
    tokens = (token for token in range(V) if token not in NEVER)
    return [found for token in tokens for found in all_sequences(max_len, (*prefix, token))]


def plain_beam_search(
    model: TableModel,
    sentence: int,
    *,
    beam_size: int,
    alpha: float,
    n_best: int,
    max_len: int,
    offset: float = 5.0,
    enough: float = math.inf,
) -> list[Hypothesis]:
    """Beam search for one sentence, in lists, that goes on to the limit, or until enough ended."""
    alive: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[tuple[int, ...]] = []
    for _ in range(max_len):
        extended = [
            ((*tokens, token), total + log_prob)
            for tokens, total in alive
            for token, log_prob in enumerate(model.log_probs(sentence, tokens))
            if token not in NEVER
        ]
        extended.sort(key=lambda pair: -pair[1])
        finished += [tokens for tokens, _ in extended[:beam_size] if tokens[-1] == EOS]
        alive = [pair for pair in extended if pair[0][-1] != EOS][:beam_size]
        if len(finished) >= enough:
            break
    found = finished + [tokens for tokens, _ in alive]
    scored = [model.score(sentence, tokens, alpha=alpha, offset=offset) for tokens in found]
    return rank(scored, n_best)


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    """The same tokens in the same order; sums and scores to rounding of float64."""
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    for name in ("log_prob", "score", "token_log_probs"):
        torch.testing.assert_close(
            [getattr(h, name) for h in found],
            [getattr(h, name) for h in expected],
            rtol=1e-12,
            atol=1e-12,
        )
