import pytest
import torch

from litseq.layers.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    n = 1_000_003  # not a multiple of the draws in a word
    y = Dropout(p)(torch.ones(n))
    dropped = (y == 0).double()
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs(dropped.mean().item() - p) < 5 * deviation
    assert y[y != 0].unique().item() == pytest.approx(1 / (1 - p), rel=2e-4)
    # each of the eight bytes of a word is as random as the others, and neighbours are independent
    for place in range(8):
        assert abs(dropped[place::8].mean().item() - p) < 5 * 8**0.5 * deviation
    for apart in (1, 2, 255, 256):
        both = (dropped[apart:] * dropped[:-apart]).mean().item()
        assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / n) ** 0.5 + 5 * p * deviation


def test_a_second_byte_says_what_one_cannot():
    """A probability between two that a byte can say; runs of elements have the second together."""
    torch.manual_seed(0)
    p, runs, length = 100.75 / 256, 40_000, 256
    share = (Dropout(p)(torch.ones(runs, length)) == 0).double().mean(1)
    assert abs(share.mean().item() - p) < 5 * (p * (1 - p) / (runs * length)) ** 0.5
    # no run is further from it than chance alone would have it
    assert share.std().item() == pytest.approx((p * (1 - p) / length) ** 0.5, rel=0.05)


def test_more_than_a_byte_can_say_is_torchs():
    x = torch.randn(5_000)
    found = []
    for dropout in (Dropout(0.999), torch.nn.Dropout(0.999)):
        torch.manual_seed(0)
        found.append(dropout(x))
    assert found[0].equal(found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradient_goes_where_the_value_went(dtype):
    x = torch.randn(7, 5, 3, dtype=dtype, requires_grad=True)
    y = Dropout(0.5)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.where(y == 0, 0, 2 * x))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0, 2).to(dtype))


def test_a_byte_an_element_is_kept():
    kept, x = [], torch.randn(40, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        Dropout(0.3)(x)
    assert [(tensor.dtype, tensor.shape) for tensor in kept] == [(torch.uint8, x.shape)]


def test_draws_are_those_of_the_seed():
    dropout, x, found = Dropout(0.3), torch.randn(50), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(dropout(x))
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends_are_those_of_torch(p):
    x = torch.randn(50)
    assert Dropout(p)(x).equal(torch.nn.Dropout(p)(x))


def test_nothing_is_dropped_outside_of_training():
    x = torch.randn(50)
    assert Dropout(0.5).eval()(x) is x


def test_an_empty_tensor_and_one_out_of_order():
    assert Dropout(0.5)(torch.empty(0, 4)).shape == (0, 4)
    x = torch.randn(6, 4).T
    y = Dropout(0.5)(x)
    torch.testing.assert_close(y, torch.where(y == 0, 0, 2 * x))


def test_in_place_is_torchs():
    x = torch.ones(100)
    assert Dropout(0.5, inplace=True)(x) is x


def test_compiles():
    """To torch's own, whatever turns the graph into code."""
    x, graphs = torch.ones(10_000), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    found = []
    for dropout in (
        torch.compile(Dropout(0.25), fullgraph=True, backend=backend),
        torch.nn.Dropout(0.25),
    ):
        torch.manual_seed(0)
        found.append(dropout(x))
    assert len(graphs) == 1
    assert found[0].equal(found[1])
    assert abs((found[0] == 0).double().mean().item() - 0.25) < 0.03


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_after_relu_is_relu_and_then_dropout(training, dtype):
    dropout = Dropout(0.3).train(training)
    x = torch.randn(40, 50, dtype=dtype, requires_grad=True)
    found = []
    for together in (True, False):
        torch.manual_seed(1)
        y = dropout.after_relu(x) if together else dropout(x.relu())
        found.append((y, *torch.autograd.grad((y * torch.arange(50)).sum(), x)))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert (found[0][0] == 0).double().mean() > (0.6 if training else 0.45)


def test_after_relu_keeps_its_result_alone():
    kept = []
    dropout, x = Dropout(0.3), torch.randn(40, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = dropout.after_relu(x)
    assert [tensor.data_ptr() for tensor in kept] == [y.data_ptr()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "dtypes", [("float32", "float32"), ("float64", "float64"), ("float32", "bfloat16")]
)
def test_added_to_is_dropout_and_then_a_sum(training, dtypes):
    dropout = Dropout(0.3).train(training)
    residual, x = (
        torch.randn(40, 50, dtype=getattr(torch, dtype), requires_grad=True) for dtype in dtypes
    )
    found = []
    for together in (True, False):
        torch.manual_seed(1)
        wide = x.to(residual.dtype)
        y = dropout.added_to(residual, x) if together else residual + dropout(wide)
        found.append((y, *torch.autograd.grad((y * torch.arange(50)).sum(), (residual, x))))
    torch.testing.assert_close(*found)
    assert ((found[0][2] == 0).double().mean() > 0.2) == training


def test_added_to_spreads_a_residual_as_a_sum_does():
    x = torch.randn(4, 5, requires_grad=True)
    assert Dropout(0.5).added_to(torch.ones(5), x).shape == (4, 5)
