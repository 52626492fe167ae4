"""Searches over models of random tables, and what attention looks like in numbers."""

import math

import torch
from bounded import EXAMPLES, bounded
from hypothesis import given
from hypothesis import strategies as st
from table_model import BOS, EOS, NEVER, random_model

from litseq.attention import summaries
from litseq.attention.alignment import hard_alignment
from litseq.decoding import beam_search, greedy_search

IDS = {"bos_id": BOS, "eos_id": EOS, "suppress": NEVER}


@EXAMPLES
def test_searches(examples):
    @bounded(examples)
    @given(
        seed=st.integers(0, 10_000),
        limits=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        beam_size=st.integers(1, 5),
        n_best=st.integers(1, 5),
        alpha=st.floats(0, 2),
        sharpness=st.sampled_from([0.1, 1.0, 5.0]),
    )
    def check(seed, limits, beam_size, n_best, alpha, sharpness):
        model = random_model(seed, sharpness=sharpness)
        memory, max_len = torch.arange(len(limits)), torch.tensor(limits)
        n_best = min(n_best, beam_size)
        found = beam_search(
            model, memory, beam_size=beam_size, length_penalty=alpha, n_best=n_best,
            max_len=max_len, **IDS,
        )  # fmt: skip
        for sentence, (hypotheses, limit) in enumerate(zip(found, limits, strict=True)):
            assert 1 <= len(hypotheses) <= n_best
            assert len({h.tokens for h in hypotheses}) == len(hypotheses)
            ranks = [(h.tokens[-1] != EOS, -h.score) for h in hypotheses]
            assert ranks == sorted(ranks)  # finished ones first, then by score
            for h in hypotheses:
                assert 1 <= len(h.tokens) <= limit
                assert EOS not in h.tokens[:-1]
                assert not set(h.tokens) & set(NEVER)
                exact = model.score(sentence, h.tokens, alpha=alpha)
                assert math.isclose(h.log_prob, exact.log_prob, rel_tol=1e-9, abs_tol=1e-9)
                assert math.isclose(h.score, exact.score, rel_tol=1e-9, abs_tol=1e-9)
        greedy = greedy_search(model, memory, max_len=max_len, **IDS)
        one = beam_search(
            model, memory, beam_size=1, length_penalty=0.0, n_best=1, max_len=max_len, **IDS
        )
        assert [h.tokens for h in greedy] == [hs[0].tokens for hs in one]

    check()


@EXAMPLES
def test_attention_in_numbers(examples):
    @bounded(examples)
    @given(
        seed=st.integers(0, 10_000),
        shape=st.tuples(*[st.integers(1, 6)] * 4),
        sharpness=st.sampled_from([0.0, 1.0, 30.0]),
    )
    def check(seed, shape, sharpness):
        generator = torch.Generator().manual_seed(seed)
        weights = (
            sharpness * torch.randn(shape, generator=generator, dtype=torch.float64)
        ).softmax(-1)
        _, heads, num_queries, num_keys = shape
        tiny = 1e-9
        nats = summaries.entropy(weights)
        assert nats.min() >= -tiny
        assert nats.max() <= math.log(num_keys) + tiny
        share = summaries.entropy(weights, normalized=True, visible=torch.tensor(num_keys))
        assert share.min() >= -tiny
        assert share.max() <= 1 + tiny
        assert summaries.confidence(weights).min() >= 1 / num_keys - tiny
        covered = summaries.coverage(weights)
        torch.testing.assert_close(
            covered.sum(-1), torch.full(shape[:2], float(num_queries), dtype=torch.float64)
        )
        for value in (summaries.diagonality(weights), summaries.head_agreement(weights)):
            assert value.min() >= -tiny
            assert value.max() <= 1 + tiny
        agreement = summaries.head_agreement(weights)
        torch.testing.assert_close(agreement, agreement.transpose(1, 2))
        torch.testing.assert_close(
            agreement.diagonal(dim1=1, dim2=2), torch.ones(shape[0], heads, dtype=torch.float64)
        )
        for name, value in summaries.summarize(weights).items():
            assert torch.isfinite(value).all(), name
        pairs = hard_alignment(weights[0, 0])
        assert [t for _, t in pairs] == list(range(num_queries))
        assert all(0 <= s < num_keys for s, _ in pairs)

    check()
