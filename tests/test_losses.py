import pytest
import torch
import torch.nn.functional as F

from litseq import losses
from litseq.losses import r_drop_loss, token_loss

B, T, V = 2, 5, 23


@pytest.fixture
def logits():
    return torch.randn(B, T, V, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def labels():
    labels = torch.randint(V, (B, T))
    labels[1, 3:] = -100
    return labels


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_equals_torch(logits, labels, label_smoothing):
    loss, nll, num_tokens = token_loss(logits, labels, label_smoothing=label_smoothing)
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing, reduction="sum"
    )
    torch.testing.assert_close(loss, expected)
    plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(nll, plain.detach())
    assert num_tokens.item() == 8
    ours = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, logits)[0])


def test_half_precision_is_summed_in_float32(labels):
    logits = torch.randn(B, T, V, dtype=torch.bfloat16)
    loss, nll, _ = token_loss(logits, labels, label_smoothing=0.1)
    assert loss.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(loss, token_loss(logits.float(), labels, label_smoothing=0.1).loss)


def test_padding_has_no_gradient(logits, labels):
    token_loss(logits, labels, label_smoothing=0.1).loss.backward()
    assert (logits.grad[labels == -100] == 0).all()
    assert (logits.grad[labels != -100] != 0).all()


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_refuses_smoothing_out_of_range(logits, labels, value):
    with pytest.raises(ValueError, match=f"got {value}"):
        token_loss(logits, labels, label_smoothing=value)


def test_pieces_add_up(logits, labels, monkeypatch):
    whole = token_loss(logits, labels, label_smoothing=0.1)
    expected = torch.autograd.grad(whole.loss, logits)[0]
    monkeypatch.setitem(losses._PIECE, True, 3 * V)  # ten rows in pieces of three
    pieces = token_loss(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces.loss, logits)[0], expected)


def test_gradient_is_the_derivative(logits, labels):
    assert torch.autograd.gradcheck(
        lambda z: token_loss(z, labels, label_smoothing=0.1).loss, (logits,)
    )


@pytest.fixture
def twice():
    return torch.randn(2 * B, T, V, dtype=torch.float64, requires_grad=True)


def _r_drop(logits, labels, *, label_smoothing, weight):
    """The same by torch: half of the paper's sum over two passes."""
    kept = labels != -100
    passes = [x[kept] for x in logits.chunk(2)]
    p, q = (x.log_softmax(-1) for x in passes)
    loss = sum(
        F.cross_entropy(x, labels[kept], label_smoothing=label_smoothing, reduction="sum")
        for x in passes
    )
    kl = sum(F.kl_div(a, b, reduction="sum", log_target=True) for a, b in ((p, q), (q, p)))
    return (loss + weight / 2 * kl) / 2


@pytest.mark.parametrize("piece", [3 * V, 1000 * V])  # ten rows in pieces of three, and at once
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1, "weight": 5.0},
                                     {"label_smoothing": 0.0, "weight": 0.7}])  # fmt: skip
def test_r_drop_equals_torch(twice, labels, monkeypatch, piece, options):
    monkeypatch.setitem(losses._PIECE, True, piece)
    loss, nll, num_tokens = r_drop_loss(twice, labels, **options)
    expected = _r_drop(twice, labels, **options)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(3 * x, twice)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs)
    assert (ours[torch.cat((labels, labels)) == -100] == 0).all()
    both = token_loss(twice, torch.cat((labels, labels)))
    torch.testing.assert_close(nll, both.nll / 2)
    assert num_tokens == 8


def test_two_equal_passes_have_the_loss_of_one(logits, labels):
    twice = torch.cat((logits, logits))
    found = r_drop_loss(twice, labels, label_smoothing=0.1, weight=5.0)
    torch.testing.assert_close(found, token_loss(logits, labels, label_smoothing=0.1))


def test_r_drop_of_half_precision_is_summed_in_float32(labels):
    twice = torch.randn(2 * B, T, V, dtype=torch.bfloat16)
    found = r_drop_loss(twice, labels, label_smoothing=0.1, weight=5.0)
    expected = r_drop_loss(twice.float(), labels, label_smoothing=0.1, weight=5.0)
    torch.testing.assert_close(found, expected)
    assert found.loss.dtype == torch.float32


def test_small_gradients_of_r_drop_survive_float16():
    """A loss scale multiplies them, as GradScaler's does, before they are cut to float16."""
    vocab_size, scale = 30_000, 2.0**16
    exact = torch.randn(2, 1, vocab_size, requires_grad=True)
    with torch.no_grad():
        exact.copy_(exact.half())
    half = exact.detach().half().requires_grad_()
    found = []
    for logits in (half, exact):
        loss = r_drop_loss(logits, torch.tensor([[3]]), label_smoothing=0.1, weight=5.0).loss
        found.append(torch.autograd.grad(scale * loss, logits)[0])
    assert found[0].dtype == torch.float16
    torch.testing.assert_close(found[0].float(), found[1], rtol=1e-3, atol=1e-6)


def test_what_torch_makes_of_odd_logits(logits, labels):
    """No probability for another token, nonsense where nothing counts, and nothing at all."""
    with torch.no_grad():
        logits[0, 0] = -torch.inf
        logits[0, 0, labels[0, 0]] = 1.0
        logits[1, 3:] = torch.nan  # padding
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert expected.isfinite()
    torch.testing.assert_close(token_loss(logits, labels).loss, expected)

    empty = torch.empty(0, T, V, requires_grad=True)
    found = token_loss(empty, torch.empty(0, T, dtype=torch.int64), label_smoothing=0.1)
    found.loss.backward()
    assert (found.loss, found.num_tokens) == (0, 0)
    none = torch.empty(0, T, dtype=torch.int64)
    assert r_drop_loss(empty, none, label_smoothing=0.1, weight=5.0).loss == 0


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_an_impossible_label_costs_infinitely_much(logits, labels, label_smoothing):
    with torch.no_grad():
        logits[0, 0, labels[0, 0]] = -torch.inf
    assert token_loss(logits, labels, label_smoothing=label_smoothing).loss == torch.inf
