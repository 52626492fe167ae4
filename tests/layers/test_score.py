from typing import get_args

import pytest
import torch

from litseq.layers.score import Score, ScoreAttention

B, S, T, H, D = 2, 7, 5, 3, 4
SCORES = get_args(Score)


def make(score: Score) -> ScoreAttention:
    torch.manual_seed(0)
    return ScoreAttention(score, query_size=H, memory_size=H if score == "dot" else D).double()


def make_inputs(attend: ScoreAttention) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    query = torch.randn(B, T, H, dtype=torch.float64)
    memory = torch.randn(B, S, H if attend.score == "dot" else D, dtype=torch.float64)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, 4:] = True
    return query, memory, padding


def score_by_hand(attend: ScoreAttention, s: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """One number for one decoder state and one encoder state, as the papers print it."""
    if attend.score == "dot":
        return s.dot(h)
    if attend.score == "general":
        return s.dot(attend.key_projection.weight.mv(h))
    v = attend.energy.weight[0]
    if attend.score == "additive":
        w, u = attend.query_projection.weight, attend.key_projection.weight
        return v.dot(torch.tanh(w.mv(s) + u.mv(h)))
    w = torch.cat([attend.query_projection.weight, attend.key_projection.weight], dim=1)
    return v.dot(torch.tanh(w.mv(torch.cat([s, h]))))


@pytest.mark.parametrize("score", SCORES)
def test_equals_the_formula(score):
    attend = make(score)
    query, memory, padding = make_inputs(attend)
    context, weights = attend(query, attend.project_keys(memory), memory, padding)
    for b in range(B):
        for t in range(T):
            real = memory[b][~padding[b]]
            alpha = torch.stack([score_by_hand(attend, query[b, t], h) for h in real]).exp()
            alpha = alpha / alpha.sum()
            torch.testing.assert_close(weights[b, t, : len(real)], alpha)
            by_hand = sum(a * h for a, h in zip(alpha, real, strict=True))
            torch.testing.assert_close(context[b, t], by_hand)


@pytest.mark.parametrize("score", SCORES)
def test_rows_sum_to_one_and_padding_gets_exactly_nothing(score):
    attend = make(score)
    query, memory, padding = make_inputs(attend)
    context, weights = attend(query, attend.project_keys(memory), memory, padding)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T, dtype=torch.float64))
    assert weights[1, :, 4:].eq(0).all()
    assert weights[~padding[:, None].expand_as(weights)].gt(0).all()
    memory = memory.masked_fill(padding[..., None], 1e6)
    changed, _ = attend(query, attend.project_keys(memory), memory, padding)
    assert changed.equal(context)


@pytest.mark.parametrize("score", SCORES)
def test_gradients_are_exact(score):
    attend = make(score)
    query, memory, padding = make_inputs(attend)
    query.requires_grad_()
    memory.requires_grad_()

    def run(q, m):
        return attend(q, attend.project_keys(m), m, padding)

    assert torch.autograd.gradcheck(run, (query, memory), fast_mode=True)


def test_dot_and_general_differ_by_a_matrix_alone():
    dot, general = make("dot"), ScoreAttention("general", query_size=H, memory_size=H).double()
    with torch.no_grad():
        general.key_projection.weight.copy_(torch.eye(H))
    query, memory, _ = make_inputs(dot)
    expected = dot.scores(query, dot.project_keys(memory))
    torch.testing.assert_close(general.scores(query, general.project_keys(memory)), expected)


def test_unknown_score_is_named_with_the_known_ones():
    match = "score must be one of additive, dot, general, concat, got 'mlp'; choose one of them"
    with pytest.raises(ValueError, match=match):
        ScoreAttention("mlp", query_size=H, memory_size=D)


def test_dot_needs_vectors_of_one_size():
    match = "got decoder states of 3 and encoder states of 4; use 'general'"
    with pytest.raises(ValueError, match=match):
        ScoreAttention("dot", query_size=H, memory_size=D)
