import math

import pytest
import torch

from litseq.attention.summaries import (
    confidence,
    coverage,
    diagonality,
    entropy,
    head_agreement,
    summarize,
)

B, H, T, S = 2, 3, 5, 7


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return torch.randn(B, H, T, S, dtype=torch.float64).softmax(-1)


def test_entropy_is_torch_s(weights):
    expected = torch.distributions.Categorical(probs=weights).entropy()
    torch.testing.assert_close(entropy(weights), expected)
    torch.testing.assert_close(entropy(weights, normalized=True), expected / math.log(S))


def test_entropy_of_what_may_be_seen():
    uniform = torch.ones(1, 1, 4, 4, dtype=torch.float64).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    nats = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log()
    torch.testing.assert_close(entropy(uniform)[0, 0], nats)
    expected = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(entropy(uniform, normalized=True)[0, 0], expected)
    assert entropy(torch.eye(3)).eq(0).all()


def test_keys_of_weight_zero_may_be_seen():
    """Where a softmax is sure, float32 has nothing left for the others; they count all the same."""
    sure = torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1.0]])
    torch.testing.assert_close(entropy(sure, normalized=True), torch.tensor([1 / 3, 0.0]))
    assert summarize(sure[None, None])["entropy"].item() == pytest.approx(1 / 6)
    four = torch.tensor([4.0])
    torch.testing.assert_close(
        entropy(sure, normalized=True, visible=four), torch.tensor([1 / 2, 0.0])
    )
    hidden = torch.arange(8)[None] < 4
    assert summarize(sure[None, None, :1], key_mask=hidden)["entropy"].item() == pytest.approx(0.5)


def test_confidence_and_coverage(weights):
    assert confidence(weights).equal(weights.max(-1).values)
    torch.testing.assert_close(coverage(weights), weights.sum(2))
    mask = torch.arange(T) < torch.tensor([[T], [2]])
    torch.testing.assert_close(coverage(weights, mask)[1], weights[1, :, :2].sum(1))


def test_diagonality():
    assert diagonality(torch.eye(6)[None, None]).item() == 1
    assert diagonality(torch.eye(6).flip(0)[None, None]).item() == pytest.approx(
        1 - sum(abs(2 * t / 5 - 1) for t in range(6)) / 6
    )
    uniform = torch.full((1, 1, 400, 300), 1 / 300, dtype=torch.float64)
    assert diagonality(uniform).item() == pytest.approx(2 / 3, abs=2e-3)
    one = torch.ones(1, 1, 1, 1)
    assert diagonality(one).item() == 1


def test_agreement_is_one_minus_jensen_shannon(weights):
    agreement = head_agreement(weights)
    assert agreement.shape == (B, H, H)
    torch.testing.assert_close(agreement, agreement.transpose(1, 2))
    ones = torch.ones(B, H, dtype=torch.float64)
    torch.testing.assert_close(agreement.diagonal(dim1=1, dim2=2), ones)
    p, q = weights[0, 0], weights[0, 2]
    m = (p + q) / 2
    js = ((p * (p / m).log2()).sum(-1) + (q * (q / m).log2()).sum(-1)) / 2
    torch.testing.assert_close(agreement[0, 0, 2], 1 - js.mean())
    apart = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # (1, 2, 1, 2)
    torch.testing.assert_close(head_agreement(apart)[0, 0, 1], torch.tensor(0.0))


def padded(weights, t, s):
    """Adds padding to a batch of one: keys of weight 0, queries of any weight."""
    wide = torch.zeros(1, H, T, S, dtype=weights.dtype)
    wide[..., :t, :s] = weights
    wide[..., t:, 0] = 1
    masks = {"query_mask": torch.arange(T)[None] < t, "key_mask": torch.arange(S)[None] < s}
    return wide, masks


def test_padding_changes_nothing():
    weights = torch.randn(1, H, 3, 4, dtype=torch.float64).softmax(-1)
    wide, masks = padded(weights, 3, 4)
    expected = summarize(weights)
    found = summarize(wide, **masks)
    assert set(found) == {"entropy", "confidence", "diagonality", "coverage", "agreement"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)
        assert found[name].shape == (H,)


def test_summary_of_clear_cases():
    """A head on the diagonal, one that looks everywhere, one that looks at the first key alone."""
    size = 6
    heads = torch.stack(
        [torch.eye(size), torch.full((size, size), 1 / size), torch.eye(size)[:1].expand(size, -1)]
    )[None]
    found = summarize(heads.double())
    torch.testing.assert_close(found["entropy"], torch.tensor([0.0, 1.0, 0.0]).double())
    torch.testing.assert_close(found["confidence"], torch.tensor([1.0, 1 / 6, 1.0]).double())
    torch.testing.assert_close(found["coverage"], torch.tensor([1.0, 1.0, 1 / 6]).double())
    assert found["diagonality"][0] == 1
    assert found["diagonality"][2] == pytest.approx(0.5)
    alike = head_agreement(heads.double())[0]
    assert alike.diagonal().tolist() == [1.0] * 3
    others = alike.masked_fill(torch.eye(3, dtype=torch.bool), 0).amax(-1)  # with the likest other
    torch.testing.assert_close(found["agreement"], others)
    assert (others < 0.9).all()
    assert "agreement" not in summarize(heads[:, :1])
