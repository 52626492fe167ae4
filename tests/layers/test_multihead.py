import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from litseq.layers import dot_product
from litseq.layers.dot_product import DotProductAttention, _without_cudnn, attention_weights
from litseq.layers.dropout import Dropout
from litseq.layers.masks import future_mask, padding_to_attention_mask
from litseq.layers.multihead import MultiheadAttention

B, S, T, D, H = 2, 7, 5, 12, 3


@pytest.fixture
def ours():
    torch.manual_seed(0)
    layer = MultiheadAttention(D, H).double()
    nn.init.normal_(layer.in_proj_bias)  # zero biases would hide a bias in the wrong place
    nn.init.normal_(layer.out_proj.bias)
    return layer


@pytest.fixture
def theirs(ours):
    layer = nn.MultiheadAttention(D, H, batch_first=True).double()
    layer.load_state_dict(ours.state_dict())  # the parameters have the same names and shapes
    return layer


@pytest.fixture
def padding():
    return torch.arange(S) >= torch.tensor([[S], [4]])


def test_a_query_that_may_look_nowhere_is_no_nan():
    """A row of padding alone must not spoil the loss of its batch."""
    product = DotProductAttention("encoder", dropout=0.1)  # written out in training
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1] = False
    assert product(q, k, v, attn_mask=mask).isfinite().all()


@pytest.mark.parametrize("need_weights", [False, True])
def test_equals_torch(ours, theirs, padding, need_weights):
    query, memory = torch.randn(B, T, D).double(), torch.randn(B, S, D).double()
    out, weights = ours(
        query, memory, attn_mask=padding_to_attention_mask(padding), need_weights=need_weights
    )
    expected, expected_weights = theirs(
        query, memory, memory, key_padding_mask=padding, average_attn_weights=False
    )
    torch.testing.assert_close(out, expected)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights)
    else:
        assert weights is None


def test_causal_self_attention_equals_torch(ours, theirs):
    x = torch.randn(B, T, D).double()
    q, k, v = ours.queries_keys_values(x)
    out = ours.attend(q, k, v, is_causal=True)
    mask = ~future_mask(T)
    expected, _ = theirs(x, x, x, attn_mask=~mask)  # torch.nn: True = may not attend
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ours(x, x, attn_mask=mask)[0], expected)


def test_one_product_equals_three(ours):
    x = torch.randn(B, T, D).double()
    q, k, v = ours.queries_keys_values(x)
    torch.testing.assert_close(q, ours.queries(x))
    for fused, separate in zip((k, v), ours.keys_values(x), strict=True):
        torch.testing.assert_close(fused, separate)


def test_rows_sum_to_one_and_padding_gets_nothing(ours, padding):
    q, k = ours.queries(torch.randn(B, T, D).double()), ours.queries(torch.randn(B, S, D).double())
    weights = attention_weights(q, k, attn_mask=padding_to_attention_mask(padding))
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T).double())
    assert (weights.masked_select(padding[:, None, None, :]) == 0).all()


def test_weights_follow_the_formula():
    q, k = torch.randn(1, 1, T, 4).double(), torch.randn(1, 1, S, 4).double()
    scores = torch.einsum("td,sd->ts", q[0, 0], k[0, 0]) / 2.0  # sqrt(d_k) = 2
    expected = scores.exp() / scores.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(attention_weights(q, k)[0, 0], expected)


def test_weights_of_half_precision_are_float32():
    q = torch.randn(1, 1, T, 4, dtype=torch.bfloat16)
    assert attention_weights(q, q).dtype == torch.float32


@pytest.mark.parametrize("num_heads", [0, 5])
def test_refuses_heads_that_do_not_divide(num_heads):
    with pytest.raises(ValueError, match=f"d_model=12, num_heads={num_heads}"):
        MultiheadAttention(12, num_heads)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    layer = MultiheadAttention(D, H, dropout=0.5)
    x = torch.randn(B, T, D)
    assert not torch.equal(layer(x, x)[0], layer(x, x)[0])
    layer.eval()
    torch.testing.assert_close(layer(x, x)[0], layer(x, x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [None, 0.05])
@pytest.mark.parametrize("is_causal", [False, True])
def test_training_in_bfloat16_equals_the_fused_product(is_causal, scale):
    torch.manual_seed(0)
    product = DotProductAttention("encoder", scale=scale)
    q, k, v = torch.randn(3, 2, 3, 5, 8, dtype=torch.bfloat16).unbind(0)
    mask = (
        None if is_causal else (torch.rand(2, 1, 1, 5) < 0.7).index_fill(3, torch.tensor(0), True)
    )
    found = []
    for training in (True, False):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = product.train(training)(*leaves, attn_mask=mask, is_causal=is_causal)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        found.append([out, *(x.grad for x in leaves)])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(plain.float(), fused.float(), atol=0.05, rtol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast_takes_what_is_not_cast_yet(dtype):
    product, found = DotProductAttention("encoder", dropout=0.1), []
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    for cast in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype):
            y = product(*[x.to(dtype) if cast else x] * 3)
        assert y.dtype == dtype
        found.append([y, *torch.autograd.grad(y.float().square().sum(), x)])
    torch.testing.assert_close(*found, atol=0.05, rtol=0.03)


def test_training_in_bfloat16_drops_weights():
    torch.manual_seed(0)
    product = DotProductAttention("encoder", dropout=0.5)
    q, k = torch.randn(2, 1, 1, 400, 8, dtype=torch.bfloat16).unbind(0)
    v = torch.eye(400, dtype=torch.bfloat16)[None, None]  # the output is the weights
    kept = (product(q, k, v) != 0).float().mean().item()
    assert abs(kept - 0.5) < 0.01


@pytest.mark.parametrize("together", [1, 2, 3])  # sequences, of three
@pytest.mark.parametrize("masked", ["source", "each", "keys", "causal", "nothing"])
def test_training_with_dropout_has_the_gradients_of_autograd(masked, together, monkeypatch):
    torch.manual_seed(0)
    batch, heads, queries, width = 3, 2, 5, 4
    keys = queries if masked == "causal" else 7
    monkeypatch.setattr(dot_product, "_BLOCK", together * heads * queries * keys * 4)
    q = torch.randn(batch, heads, queries, width, dtype=torch.float64)
    k, v = torch.randn(2, batch, heads, keys, width, dtype=torch.float64).unbind(0)
    mask = {
        "source": torch.arange(keys) < torch.tensor([4, 6, 7])[:, None, None, None],
        "each": (torch.rand(batch, 1, queries, keys) < 0.6).index_fill(3, torch.tensor(1), True),
        "keys": torch.arange(keys) < 4,
        "causal": ~future_mask(keys, device=q.device),
        "nothing": None,
    }[masked]
    product = DotProductAttention("cross", dropout=0.3, scale=0.7)
    drawn = []

    def draw(self, shape):
        drawn.append(real(self, shape))
        return drawn[-1]

    real = Dropout.draw
    monkeypatch.setattr(Dropout, "draw", draw)
    found, weight = [], torch.randn(batch, heads, queries, width, dtype=torch.float64)
    for ours in (True, False):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        if ours:
            causal = masked == "causal"
            y = product(*leaves, attn_mask=None if causal else mask, is_causal=causal)
        else:
            assert len(drawn) == math.ceil(batch / together)
            who = torch.cat([kept.who for kept in drawn]).unflatten(0, (batch, heads))
            assert 0 < who.double().mean() < 1
            weights = attention_weights(*leaves[:2], attn_mask=mask, scale=0.7)
            y = (weights * who * drawn[0].scale) @ leaves[2]
        found.append([y, *torch.autograd.grad((y * weight).sum(), leaves)])
    torch.testing.assert_close(*found)


def test_training_keeps_the_weights_once_and_a_byte_for_each():
    product = DotProductAttention("encoder", dropout=0.1)
    q, k, v = torch.randn(3, 2, 3, 50, 4, requires_grad=True).unbind(0)
    mask = torch.ones(2, 1, 1, 50, dtype=torch.bool)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t
    ):
        product(q, k, v, attn_mask=mask)
    found = sorted((t.numel(), t.dtype.itemsize) for t in kept.values() if t.numel() > q.numel())
    assert found == [(2 * 3 * 50 * 50, 1), (2 * 3 * 50 * 50, 4)]


def test_only_cudnns_kernel_is_left_out():
    cuda = torch.backends.cuda
    names = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled")
    with _without_cudnn():
        assert not cuda.cudnn_sdp_enabled()
        assert all(getattr(cuda, name)() for name in names)
    with sdpa_kernel(SDPBackend.MATH), _without_cudnn():  # somebody's choice
        assert [getattr(cuda, name)() for name in names] == [False, False, True]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), _without_cudnn():
        assert cuda.cudnn_sdp_enabled()
