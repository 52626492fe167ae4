"""Positions as rows: nothing but their order in memory differs."""

import pytest
import torch
from torch import nn

from litseq.layers import linear, rows
from litseq.layers.rows import from_rows, join_heads, split_heads, to_rows
from litseq.models.transformer import Transformer
from litseq.projected_loss import projected_loss

H, D = 3, 4  # heads, and the width of each


def positions(batch, length, width):
    return torch.randn(batch, length, width, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("size", "num_rows"), [((3, 5), 15), ((35, 15), 576), ((64, 15), 960), ((97, 43), 4224)]
)
def test_there_and_back(size, num_rows):
    x = positions(*size, 2)
    found = to_rows(x)
    assert found.shape == (num_rows, 2)
    assert (found[size[0] * size[1] :] == 0).all()
    assert torch.equal(from_rows(found, size), x)
    (grad,) = torch.autograd.grad((from_rows(found, size) ** 2).sum(), x)
    torch.testing.assert_close(grad, 2 * x.detach())


def test_without_training_no_row_is_added():
    x = positions(35, 15, 2)
    with torch.no_grad():
        assert to_rows(x).shape == (525, 2)
    compiled = torch.compile(to_rows, fullgraph=True, backend="eager")
    assert compiled(x).shape == (525, 2)


def test_few_numbers_of_rows_a_little_above():
    for low in (512, 1024, 4096, 16384, 65536):
        numbers = {n: rows._round_up(n) for n in range(low, 2 * low + 1)}
        assert len(set(numbers.values())) <= 33
        for number, rounded in numbers.items():
            assert number <= rounded <= max(number * 33 / 32, number + 63)
            assert rounded % 64 == 0


def plainly(x, size, parts):
    leading = x[: size[0] * size[1]].view(*size, parts, H, D)
    return tuple(leading[:, :, part].transpose(1, 2) for part in range(parts))


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("more", [0, 4])
@pytest.mark.parametrize("trained", [True, False])
def test_heads_are_split(parts, more, trained):
    size = 2, 5
    x = torch.randn(10 + more, parts * H * D, dtype=torch.float64, requires_grad=True)
    with torch.set_grad_enabled(trained):
        found = split_heads(x, size, parts=parts, num_heads=H)
    expected = plainly(x, size, parts)
    assert len(found) == parts
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.is_contiguous() == trained
    if trained:
        weights = [torch.randn_like(part) for part in found]
        grads = (
            torch.autograd.grad(sum((a * b).sum() for a, b in zip(of, weights, strict=True)), x)[0]
            for of in (found, expected)
        )
        torch.testing.assert_close(*grads)


def test_a_part_that_leads_nowhere_has_no_gradient():
    x = torch.randn(10, 3 * H * D, dtype=torch.float64, requires_grad=True)
    q, _, _ = split_heads(x, (2, 5), parts=3, num_heads=H)
    (grad,) = torch.autograd.grad(q.sum(), x)
    assert (grad[:, : H * D] == 1).all()
    assert (grad[:, H * D :] == 0).all()


@pytest.mark.parametrize("more", [0, 4])
@pytest.mark.parametrize("trained", [True, False])
def test_heads_are_joined(more, trained):
    heads = torch.randn(2, H, 5, D, dtype=torch.float64, requires_grad=True)
    with torch.set_grad_enabled(trained):
        found = join_heads(heads, 10 + (more if trained else 0))
    expected = heads.transpose(1, 2).reshape(10, H * D)
    assert torch.equal(found[:10], expected)
    assert (found[10:] == 0).all()
    if trained:
        weights = torch.randn_like(expected)
        grads = (
            torch.autograd.grad((of[:10] * weights).sum(), heads)[0] for of in (found, expected)
        )
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    "options", [{}, {"norm_first": True}, {"gated": True}, {"positions": "rotary"}]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_training_step_is_the_same(options, dtype, monkeypatch):
    """With rows added and oneDNN's products in float32; without either."""
    torch.manual_seed(0)
    network = Transformer(
        40, d_model=H * D, num_heads=H, num_encoder_layers=2, num_decoder_layers=2,
        dim_feedforward=20, dropout=0.0, **options,
    ).to(dtype)  # fmt: skip
    src, labels = torch.randint(4, 40, (50, 11)), torch.randint(4, 40, (50, 13))
    src[::3, 7:], labels[::4, 5:] = 0, -100
    tgt_in = labels.roll(1, 1).clamp(min=0)
    found, calls = [], []
    trained = linear._Trained.apply
    for ours in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(linear._Trained, "apply", lambda *x: calls.append(x) or trained(*x))
            if not ours:
                patch.setattr(rows, "_round_up", lambda number: number)
            hidden = network(src, src == 0, tgt_in, project=False)
            assert hidden.shape == (50, 13, H * D)
            loss = projected_loss(hidden, network.output, labels, label_smoothing=0.1).loss
            grads = torch.autograd.grad(loss, list(network.parameters()))
            found.append((loss, *grads))
            # 2 layers of 4 products, 2 of 7, one of each for its own place
            assert len(calls) == (22 if dtype == torch.float32 else 0)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(*found, **tolerance)


def test_a_training_step_in_bfloat16_is_near(monkeypatch):
    torch.manual_seed(0)
    network = Transformer(
        40, d_model=H * D, num_heads=H, num_encoder_layers=2, num_decoder_layers=2,
        dim_feedforward=20, dropout=0.0,
    )  # fmt: skip
    src, labels = torch.randint(4, 40, (50, 11)), torch.randint(4, 40, (50, 13))
    src[::3, 7:], labels[::4, 5:] = 0, -100
    tgt_in = labels.roll(1, 1).clamp(min=0)
    found, calls, trained = [], [], linear._Trained.apply
    monkeypatch.setattr(linear._Trained, "apply", lambda *x: calls.append(x) or trained(*x))
    for half in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            hidden = network(src, src == 0, tgt_in, project=False)
            loss = projected_loss(hidden, network.output, labels, label_smoothing=0.1).loss
        assert len(calls) == (22 if not half or linear._has_bfloat16() else 0)
        calls.clear()
        grads = torch.autograd.grad(loss, list(network.parameters()))
        assert all(grad.dtype == torch.float32 for grad in grads)
        found.append((loss, torch.cat([grad.flatten() for grad in grads])))
    (ours, our_grads), (theirs, their_grads) = found
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0)
    assert (our_grads - their_grads).norm() < 0.03 * their_grads.norm()


def test_subclasses_and_other_devices_take_the_plain_way():
    assert rows.is_trained_on_cpu(torch.ones(2, requires_grad=True))
    assert not rows.is_trained_on_cpu(nn.Parameter(torch.ones(2)))
    assert not rows.is_trained_on_cpu(torch.ones(2, device="meta"))
