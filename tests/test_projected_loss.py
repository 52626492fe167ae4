"""A projection and its loss at once are a projection, and then its loss."""

import pytest
import torch
from torch import nn

from litseq import projected_loss as module
from litseq.layers import linear
from litseq.losses import token_loss
from litseq.projected_loss import projected_loss

B, T, D, V = 2, 5, 7, 23


@pytest.fixture
def hidden():
    return torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def projection():
    return nn.Linear(D, V).double()


@pytest.fixture(params=[3, T], ids=["padding", "no padding"])
def labels(request):
    labels = torch.randint(V, (B, T))
    labels[1, request.param :] = -100
    return labels


@pytest.mark.parametrize("piece", [3 * V, 1000 * V])  # rows in pieces of three, and at once
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_equals_one_after_the_other(
    hidden, projection, labels, label_smoothing, piece, monkeypatch
):
    monkeypatch.setitem(module._PIECE, True, piece)
    monkeypatch.setattr(module, "_BIAS_SUMS", 2)
    found = projected_loss(hidden, projection, labels, label_smoothing=label_smoothing)
    expected = token_loss(projection(hidden), labels, label_smoothing=label_smoothing)
    torch.testing.assert_close(found, expected)
    inputs = (hidden, projection.weight, projection.bias)
    ours, theirs = (torch.autograd.grad(3 * x.loss, inputs) for x in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert (ours[0][labels == -100] == 0).all()


def test_gradient_is_the_derivative(hidden, projection, labels):
    assert torch.autograd.gradcheck(
        lambda h: projected_loss(h, projection, labels, label_smoothing=0.1).loss, (hidden,)
    )


def test_rows_are_masked_where_they_are_not_picked(hidden, projection, labels, monkeypatch):
    """As on an accelerator, which would wait to count them."""
    expected = projected_loss(hidden, projection, labels, label_smoothing=0.1)
    monkeypatch.setattr(module, "_rows", lambda counts: (None, ~counts))
    monkeypatch.setitem(module._PIECE, False, 4 * V)
    found = projected_loss(hidden, projection, labels, label_smoothing=0.1)
    torch.testing.assert_close(found, expected)
    inputs = (hidden, projection.weight, projection.bias)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.loss, inputs, retain_graph=True) for x in (found, expected))
    )


@pytest.mark.parametrize("frozen", ["weight", "bias", "hidden", "all"])
def test_what_is_frozen_has_no_gradient(hidden, projection, labels, frozen):
    tensors = {"hidden": hidden, "weight": projection.weight, "bias": projection.bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(frozen not in (name, "all"))
    loss = projected_loss(hidden, projection, labels, label_smoothing=0.1).loss
    if frozen == "all":
        assert not loss.requires_grad
        return
    loss.backward()
    assert {name for name, x in tensors.items() if x.grad is None} == {frozen}


@pytest.mark.parametrize("way", ["autocast", "true"])
def test_bfloat16_is_near_and_summed_in_float32(hidden, projection, labels, way):
    hidden, projection = hidden.detach().float().requires_grad_(), projection.float()
    expected = projected_loss(hidden, projection, labels, label_smoothing=0.1)
    exact = torch.autograd.grad(expected.loss, (hidden, projection.weight, projection.bias))
    if way == "true":
        hidden, projection = hidden.detach().bfloat16().requires_grad_(), projection.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        found = projected_loss(hidden, projection, labels, label_smoothing=0.1)
    assert found.loss.dtype == found.nll.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.01, atol=0)
    grads = torch.autograd.grad(found.loss, (hidden, projection.weight, projection.bias))
    for ours, theirs in zip(grads, exact, strict=True):
        assert ours.dtype == (torch.bfloat16 if way == "true" else torch.float32)
        torch.testing.assert_close(ours.float(), theirs, rtol=0.02, atol=0.02)


def test_float16_keeps_its_loss_scale(hidden, projection, labels, monkeypatch):
    called = []
    monkeypatch.setattr(
        module, "token_loss", lambda *a, **k: called.append(a) or token_loss(*a, **k)
    )
    projected_loss(hidden.half(), projection.half(), labels)
    assert len(called) == 1


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", ["no bias", "its own forward", "a hook"])
def test_what_is_more_than_a_linear_map_is_called(hidden, labels, kind):
    projection = nn.Linear(D, V, bias=kind != "no bias")
    if kind == "its own forward":
        projection = Scaled(D, V)
    elif kind == "a hook":
        projection.register_forward_hook(lambda module, args, output: 3 * output)
    hidden, projection = hidden, projection.double()
    found = projected_loss(hidden, projection, labels, label_smoothing=0.1)
    expected = token_loss(projection(hidden), labels, label_smoothing=0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_only_the_loss_has_a_gradient_and_only_once(hidden, projection, labels):
    found = projected_loss(hidden, projection, labels, label_smoothing=0.1)
    assert found.loss.requires_grad
    assert not found.nll.requires_grad
    (grad,) = torch.autograd.grad(found.loss**2, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_training_no_gradient_is_computed(hidden, projection, labels, mode, monkeypatch):
    expected = projected_loss(hidden, projection, labels, label_smoothing=0.1)
    monkeypatch.setattr(module, "_Slopes", lambda *_: pytest.fail("gradients were added"))
    with mode():
        found = projected_loss(hidden, projection, labels, label_smoothing=0.1)
    torch.testing.assert_close(found.loss, expected.loss.detach())


def test_a_compiled_step_is_one_graph(hidden, projection, labels):
    step = torch.compile(
        lambda h: projected_loss(h, projection, labels, label_smoothing=0.1).loss,
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    expected = projected_loss(hidden, projection, labels, label_smoothing=0.1).loss
    torch.testing.assert_close(step(hidden), expected)


def test_nothing_to_learn_from(hidden, projection, labels):
    found = projected_loss(hidden, projection, labels.fill_(-100), label_smoothing=0.1)
    assert (found.loss, found.nll, found.num_tokens) == (0, 0, 0)
    found.loss.backward()
    assert not hidden.grad.any()


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_refuses_smoothing_out_of_range(hidden, projection, labels, value):
    with pytest.raises(ValueError, match=f"got {value}"):
        projected_loss(hidden, projection, labels, label_smoothing=value)


@pytest.mark.parametrize("num_rows", [64, 400, 448])  # of which pieces of 64 are made
def test_the_fast_kernels_of_float32(num_rows, monkeypatch):
    monkeypatch.setitem(module._PIECE, True, 64 * V)
    hidden = torch.randn(num_rows, D, requires_grad=True)
    projection, labels = nn.Linear(D, V), torch.randint(V, (num_rows,))
    labels[::7] = -100
    inputs = (hidden, projection.weight, projection.bias)
    found, expected = (
        loss.loss
        for loss in (
            projected_loss(hidden, projection, labels, label_smoothing=0.1),
            token_loss(projection(hidden), labels, label_smoothing=0.1),
        )
    )
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(x, inputs) for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_rows", [400, 448])  # the former by kernels that are not planned
def test_the_fast_kernels_of_bfloat16(num_rows, monkeypatch):
    monkeypatch.setitem(module._PIECE, True, 64 * V)
    packed, pack = [], linear._pack
    monkeypatch.setattr(linear, "_pack", lambda *x: packed.append(x) or pack(*x))
    hidden = torch.randn(num_rows, D, requires_grad=True)
    projection, labels = nn.Linear(D, V), torch.randint(V, (num_rows,))
    labels[::7] = -100
    inputs = (hidden, projection.weight, projection.bias)
    expected = token_loss(projection(hidden), labels, label_smoothing=0.1).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = projected_loss(hidden, projection, labels, label_smoothing=0.1).loss
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
    assert len(packed) == linear._has_bfloat16()
    grads = (torch.autograd.grad(x, inputs) for x in (found, expected))
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("gap", [0.0, 30.0, 60.0, 75.0, 95.0, 300.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_token_with_hardly_a_chance(gap, label_smoothing):
    """Its probability has few digits in float32, or none; its logarithm has all."""
    projection = nn.Linear(1, 3)
    projection.weight.data = torch.tensor([[0.0], [gap], [gap - 1]])
    projection.bias.data.zero_()
    hidden, labels = torch.ones(2, 1), torch.tensor([0, 1])
    found = projected_loss(hidden, projection, labels, label_smoothing=label_smoothing)
    logits = projection(hidden).double()
    expected = token_loss(logits, labels, label_smoothing=label_smoothing)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert found.nll.item() == pytest.approx(expected.nll.item(), rel=1e-6)


def test_the_largest_logit_is_looked_for_only_where_it_is_needed(monkeypatch):
    asked, amax = [], torch.Tensor.amax
    monkeypatch.setattr(torch.Tensor, "amax", lambda *x, **y: asked.append(x) or amax(*x, **y))
    projection = nn.Linear(D, V)
    projected_loss(torch.randn(B, D), projection, torch.randint(V, (B,)))
    assert not asked
    projection.bias.data[0] = 300.0
    projected_loss(torch.randn(B, D), projection, torch.ones(B, dtype=torch.int64))
    assert len(asked) == 2
