"""Packed weights give what plain ones give, and only where nothing else would notice."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from litseq.layers import linear as module
from litseq.layers.linear import Linear, Packing, linear, packed_weights, unpacked_product

K, N = 40, 56


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Weights are packed when they are first used."""
    torch.manual_seed(0)
    monkeypatch.setattr(module, "_ROWS_TO_PACK", 0)
    if not module._has_onednn():
        pytest.skip("no such kernels here")


def is_packed(packing):
    return len(packing._packed) > 0


def run(layer, x, packing=None):
    packing = packing or Packing()
    with torch.inference_mode(), packed_weights(packing):
        return layer(x), packing


@pytest.mark.parametrize("shape", [(1, K), (7, K), (8, K), (3, 5, K), (2, 3, 101, K), (300, K)])
@pytest.mark.parametrize("bias", [True, False])
def test_float32_is_the_same_to_rounding(shape, bias):
    layer, x = Linear(K, N, bias=bias), torch.randn(shape)
    found, packing = run(layer, x)
    assert is_packed(packing)
    assert found.is_contiguous()
    torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias).detach())


def test_rows_of_a_weight_and_inputs_of_any_layout():
    weight, bias = nn.Parameter(torch.randn(N, K)), nn.Parameter(torch.randn(N))
    x = torch.randn(5, K, 6).transpose(1, 2)
    with torch.inference_mode(), packed_weights():
        for rows in (slice(0, 8), slice(8, 56), slice(0, 56), slice(0, 8)):
            found = linear(x, weight, bias, rows=rows)
            torch.testing.assert_close(found, F.linear(x, weight[rows], bias[rows]).detach())
    torch.testing.assert_close(
        linear(x, weight, bias, rows=slice(0, 8)), F.linear(x, weight[:8], bias[:8])
    )


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [None, slice(8, 40)])
def test_relu_in_the_same_kernel(int8, rows):
    weight, bias = nn.Parameter(torch.randn(N, K)), nn.Parameter(torch.randn(N))
    x = torch.randn(3, 7, K)
    with torch.inference_mode(), packed_weights(Packing(int8=int8)):
        plain = linear(x, weight, bias, rows=rows)
        together = linear(x, weight, bias, rows=rows, relu=True)
    assert (plain < 0).any()
    torch.testing.assert_close(together, plain.relu())


@pytest.mark.parametrize("num_rows", [5, 320])  # by torch's product, and by oneDNN's
def test_relu_in_training(num_rows):
    weight, bias = nn.Parameter(torch.randn(N, K)), nn.Parameter(torch.randn(N))
    x = torch.randn(num_rows, K, requires_grad=True)
    y, expected = linear(x, weight, bias, relu=True), F.linear(x, weight, bias).relu()
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    for found, wanted in zip(
        torch.autograd.grad(y, (x, weight, bias), grad),
        torch.autograd.grad(expected, (x, weight, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_relu_before_a_weight_is_packed(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_TO_PACK", 100)
    layer, x, packing = Linear(K, N), torch.randn(4, K), Packing()
    with torch.inference_mode(), packed_weights(packing):
        found = linear(x, layer.weight, layer.bias, relu=True)
    assert not is_packed(packing)
    torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias).relu().detach())


@pytest.mark.parametrize(
    "case",
    [
        "grad",
        "float64",
        "float16",
        "int8 of bfloat16",
        "int8 in autocast",
        "no parameter",
        "empty",
        "switched off",
    ],
)
def test_elsewhere_nothing_is_packed(case):
    layer, x, packing = Linear(K, N), torch.randn(4, K), Packing(int8="int8" in case)
    weight = layer.weight
    dtype = torch.float16 if case == "float16" else torch.bfloat16
    if case == "float64":
        layer, x = layer.double(), x.double()
        weight = layer.weight
    elif case == "int8 of bfloat16":
        layer, x = layer.bfloat16(), x.bfloat16()
        weight = layer.weight
    elif case == "no parameter":
        weight = weight.detach()
    elif case == "empty":
        x = x[:0]
    with (
        packed_weights(packing),
        torch.set_grad_enabled(case == "grad"),
        torch.autocast("cpu", dtype, enabled=case in ("float16", "int8 in autocast")),
        torch.backends.mkldnn.flags(enabled=case != "switched off"),
    ):
        assert torch.equal(linear(x, weight, layer.bias), F.linear(x, weight, layer.bias))
    assert not is_packed(packing)


@pytest.mark.parametrize("shape", [(1, K), (8, K), (2, 3, 101, K)])
@pytest.mark.parametrize("kind", ["mixed", "mixed, of bfloat16", "true"])
def test_bfloat16_is_the_same_to_rounding(shape, kind):
    layer, x, packing = Linear(K, N), torch.randn(shape), Packing()
    expected = F.relu(F.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16()))
    if kind != "mixed":
        x = x.bfloat16()
    if kind == "true":
        layer = layer.bfloat16()
    with (
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16, enabled=kind != "true"),
        packed_weights(packing),
    ):
        found = linear(x, layer.weight, layer.bias, relu=True)
    assert is_packed(packing) == module._has_bfloat16()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.detach(), rtol=2**-7, atol=2**-9)


def test_each_precision_has_its_own_weights():
    layer, x, packing = Linear(K, N), torch.randn(4, K), Packing()
    full = F.linear(x, layer.weight, layer.bias).detach()
    for mixed in (True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found, _ = run(layer, x, packing)
        assert found.dtype == (torch.bfloat16 if mixed else torch.float32)
        torch.testing.assert_close(
            found.float(), full, **({"rtol": 0, "atol": 0.03} if mixed else {})
        )


def test_few_rows_are_not_worth_packing(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_TO_PACK", 10)
    layer, packing = Linear(K, N), Packing()
    for number, packed in ((4, False), (4, False), (4, False), (1, True), (4, True)):
        x = torch.randn(number, K)
        found, _ = run(layer, x, packing)
        torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias).detach())
        assert is_packed(packing) == packed
    rough = Packing(int8=True)
    run(layer, torch.randn(1, K), rough)
    assert is_packed(rough)


def test_one_weight_with_several_biases():
    weight, x = nn.Parameter(torch.randn(N, K)), torch.randn(4, K)
    with torch.inference_mode(), packed_weights():
        for bias in (nn.Parameter(torch.zeros(N)), nn.Parameter(torch.ones(N)), None):
            found = linear(x, weight, bias)
            torch.testing.assert_close(found, F.linear(x, weight, bias).detach())


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("copy", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_packs_for_itself(copy, int8):
    layer, x = Linear(K, N), torch.randn(4, K)
    expected, packing = run(layer, x, Packing(int8=int8))
    other = copy(packing)
    assert other.int8 == int8
    assert not is_packed(other)
    assert torch.equal(run(layer, x, other)[0], expected)


def test_a_vector_is_taken_as_it_is():
    layer, x = Linear(K, N), torch.randn(K)
    found, packing = run(layer, x)
    assert not is_packed(packing)
    torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias).detach())


def test_each_search_packs_anew():
    layer, x = Linear(K, N), torch.randn(4, K)
    before, _ = run(layer, x)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.bias.mul_(2)
    torch.testing.assert_close(run(layer, x)[0], 2 * before)


def test_the_one_in_use_stays_unless_another_is_given():
    layer, x = Linear(K, N), torch.randn(4, K)
    outer, given = Packing(), Packing(int8=True)
    with torch.inference_mode(), packed_weights(outer):
        with packed_weights():
            layer(x)
        assert len(outer._packed) == 1
        with packed_weights(given):
            rough = layer(x)
        fine = layer(x)
    assert is_packed(given)
    assert not torch.equal(rough, fine)
    assert module._in_use.get() is None


def test_int8_is_off_by_what_rounding_to_its_scales_makes():
    layer, x = Linear(K, N), torch.randn(3, 9, K)
    found, packing = run(layer, x, Packing(int8=True))
    assert is_packed(packing)
    exact = F.linear(x, layer.weight, layer.bias).detach()
    of_weight = layer.weight.detach().abs().amax(1) / 127 / 2  # (N,)
    of_input = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 127
    bound = (
        of_input * layer.weight.detach().abs().sum(1)
        + of_weight * x.abs().sum(-1, keepdim=True)
        + of_input * of_weight * K
    )
    assert ((found - exact).abs() <= bound + 1e-5).all()
    assert (found - exact).abs().max() > 1e-4


def test_int8_takes_weights_that_are_zero():
    layer = Linear(K, N)
    nn.init.zeros_(layer.weight)
    found, _ = run(layer, torch.randn(4, K), Packing(int8=True))
    torch.testing.assert_close(found, layer.bias.detach().expand(4, N))


def test_int8_says_where_it_does_not_work(monkeypatch):
    monkeypatch.setattr(module, "_has_int8", lambda: False)
    with pytest.raises(ValueError, match="int8 needs torch's quantised kernels"):
        Packing(int8=True)


def test_a_layer_is_torchs_in_all_else():
    layer = Linear(K, N)
    plain = nn.Linear(K, N)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, K, requires_grad=True)
    assert torch.equal(layer(x), plain(x))
    assert isinstance(layer, nn.Linear)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), plain(x))


# ---- training ----


def gradients(function, *inputs):
    y = function(*inputs)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    return (y, *torch.autograd.grad((y * weights).sum(), wanted))


@pytest.fixture(params=[False, True], ids=["oneDNN", "MKL"])
def trained(request, monkeypatch):
    monkeypatch.setattr(module, "_prefers_mkl", lambda: request.param)
    calls, apply = [], module._Trained.apply
    monkeypatch.setattr(module._Trained, "apply", lambda *x: calls.append(x) or apply(*x))
    monkeypatch.setattr(module, "_ROWS_TO_PACK", 256)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", ["nothing", "x", "weight", "bias"])
@pytest.mark.parametrize("rows", [None, slice(0, 16), slice(16, 56), slice(0, 56)])
def test_a_step_of_training_is_the_same_to_rounding(trained, bias, frozen, rows):
    x, weight = torch.randn(320, K), nn.Parameter(torch.randn(N, K))
    b = nn.Parameter(torch.randn(N)) if bias else None
    for name, tensor in (("x", x), ("weight", weight), ("bias", b)):
        if tensor is not None:
            tensor.requires_grad_(name != frozen)
    found = gradients(lambda x, w, b: linear(x, w, b, rows=rows), x, weight, b)
    assert len(trained) == 1
    part = slice(None) if rows is None else rows
    expected = gradients(
        lambda x, w, b: F.linear(x, w[part], None if b is None else b[part]), x, weight, b
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", ["nothing", "x", "weight", "bias"])
@pytest.mark.parametrize(
    ("autocast", "given", "kept"),
    [
        (True, torch.float32, torch.float32),
        (True, torch.bfloat16, torch.float32),
        (False, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_step_in_bfloat16_is_the_same_to_rounding(trained, autocast, given, kept, frozen, bias):
    x = torch.randn(320, K).to(given)
    weight, b = (nn.Parameter(torch.randn(*shape).to(kept)) for shape in ((N, K), (N,)))
    for name, tensor in (("x", x), ("weight", weight), ("bias", b)):
        tensor.requires_grad_(name != frozen)
    b = b if bias else None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = gradients(linear, x, weight, b)
        assert len(trained) == module._has_bfloat16()
        expected = gradients(F.linear, x, weight, b)
    for ours, torchs in zip(found, expected, strict=True):
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs, rtol=1 / 64, atol=1 / 16)


def test_an_input_and_a_gradient_of_any_layout(trained):
    x = torch.randn(K, 256, requires_grad=True)
    layer = Linear(K, N)
    found = gradients(lambda x: layer(x.t()).t(), x)
    expected = gradients(lambda x: F.linear(x.t(), layer.weight, layer.bias).t(), x)
    assert len(trained) == 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case", ["few", "odd", "3 dims", "no grad", "float64", "float16", "switched off", "no bfloat16"]
)
def test_elsewhere_training_is_torchs(trained, case, monkeypatch):
    monkeypatch.setattr(module, "_has_bfloat16", lambda: False)
    layer = Linear(K, N)
    x = torch.randn({"few": 192, "odd": 320 + 1}.get(case, 320), K)
    if case == "float64":
        layer, x = layer.double(), x.double()
    x = x[None] if case == "3 dims" else x
    half = torch.float16 if case == "float16" else torch.bfloat16
    with (
        torch.set_grad_enabled(case != "no grad"),
        torch.autocast("cpu", half, enabled="float16" in case),
        torch.backends.mkldnn.flags(enabled=case != "switched off"),
    ):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not trained


@pytest.mark.parametrize(
    ("processor", "in_file", "prefers"),
    [
        ("x86_64", "vendor_id\t: GenuineIntel\n", True),
        ("x86_64", "vendor_id\t: AuthenticAMD\n", False),
        ("Intel64 Family 6 Model 158 Stepping 10, GenuineIntel", None, True),
        ("", None, False),
    ],
)
def test_mkl_is_for_intels_processors(processor, in_file, prefers, tmp_path, monkeypatch):
    about = tmp_path / "cpuinfo"
    if in_file is not None:
        about.write_text(in_file)
    monkeypatch.setattr(module, "Path", lambda name: about)
    monkeypatch.setattr(module.platform, "processor", lambda: processor)
    found = module._prefers_mkl.__wrapped__()
    assert found == (prefers and torch.backends.mkl.is_available())


@pytest.mark.parametrize("num_rows", [64, 100])
def test_an_unpacked_product(num_rows):
    x, weight = torch.randn(num_rows, K), nn.Parameter(torch.randn(N, K))
    with torch.no_grad():
        torch.testing.assert_close(unpacked_product(x, weight), F.linear(x, weight))
