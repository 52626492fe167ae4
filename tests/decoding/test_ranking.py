import math

import pytest
import torch

from litseq.decoding.hypothesis import best_first, length_norm, make_hypothesis
from litseq.decoding.ranking import first_maximum, next_log_probs, top_k


def some_values(size, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(5, size, generator=generator, dtype=torch.float64)
    if kind == "ties":
        values = values.round()
    if kind == "mostly -inf":
        values = values.masked_fill(values < 1.5, -torch.inf)
    if kind == "equal":
        values = torch.zeros_like(values)
    if kind == "nan":
        values[1, size // 2 :] = torch.nan
    return values


@pytest.mark.parametrize("size", [1, 23, 64, 65, 640, 1000])
@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("kind", ["distinct", "ties", "mostly -inf", "equal"])
def test_top_k_is_a_stable_sort(size, k, kind):
    k = min(k, size)
    values = some_values(size, kind, seed=size + k)
    expected = values.sort(dim=1, descending=True, stable=True)
    found, index = top_k(values, k)
    assert torch.equal(found, expected.values[:, :k])
    assert torch.equal(index, expected.indices[:, :k])


@pytest.mark.parametrize("size", [1, 23, 63, 64, 65, 128, 640, 1000])
@pytest.mark.parametrize("kind", ["distinct", "ties", "mostly -inf", "equal", "nan"])
def test_first_maximum_is_argmax(size, kind):
    values = some_values(size, kind, seed=size)
    assert torch.equal(first_maximum(values), values.argmax(dim=1))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_log_probs_are_at_least_float32(given, expected):
    logits = torch.tensor([[1.0, 2.0, -3.0]], dtype=given)
    log_probs = next_log_probs(logits, ())
    assert log_probs.dtype == expected
    assert torch.equal(log_probs, logits.to(expected).log_softmax(-1))


def test_suppressing_leaves_the_other_log_probs_alone():
    logits = torch.tensor([[1.0, 2.0, -3.0, 0.5]])
    log_probs = next_log_probs(logits, (0, 2))
    assert torch.equal(log_probs[:, [1, 3]], logits.log_softmax(-1)[:, [1, 3]])
    assert torch.equal(log_probs[:, [0, 2]], torch.full((1, 2), -torch.inf))


def test_length_norm_is_that_of_wu_et_al():
    assert length_norm(1, 0.6) == 1.0
    assert length_norm(13, 1.0) == 3.0
    assert length_norm(7, 0.0) == 1.0
    assert length_norm(19, 0.5) == 2.0


def test_without_an_offset_the_length_itself_divides():
    assert length_norm(1, 0.6, 0.0) == 1.0
    assert length_norm(13, 1.0, 0.0) == 13.0
    assert length_norm(16, 0.5, 0.0) == 4.0
    assert make_hypothesis([5, 3], [-1.0, -2.5], length_penalty=1.0, length_offset=0.0).score == (
        -1.75
    )


def test_a_hypothesis_adds_up():
    hypothesis = make_hypothesis([5, 3], [-1.0, -2.5], length_penalty=1.0)
    assert hypothesis.tokens == (5, 3)
    assert hypothesis.log_prob == -3.5
    assert hypothesis.score == pytest.approx(-3.0, rel=1e-15)  # divided by (5 + 2) / 6
    assert hypothesis.token_log_probs == (-1.0, -2.5)


def test_finished_hypotheses_come_first():
    worse, better, unfinished = (
        make_hypothesis(tokens, [log_prob], length_penalty=0.0)
        for tokens, log_prob in (([3], -9.0), ([3], -2.0), ([5], -1.0))
    )
    assert best_first([unfinished, worse, better], eos_id=3) == [better, worse, unfinished]


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_a_token_without_a_finite_log_prob_is_an_error(bad):
    message = (
        r"no next token has a finite log-probability .* \[5, 4\]; .* look at the training loss"
    )
    with pytest.raises(ValueError, match=message):
        make_hypothesis([5, 4], [-1.0, bad], length_penalty=0.6)
