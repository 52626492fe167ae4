import math

import pytest
import torch

from litseq.layers.positions import (
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    rotate,
    sinusoids,
)

B, H, T, D = 2, 3, 7, 12


def test_every_cell_equals_the_papers_formula():
    table = sinusoids(50, D)
    for pos in range(50):
        for i in range(D // 2):
            angle = pos / 10000 ** (2 * i / D)
            assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_products_depend_on_distance_alone():
    table = sinusoids(200, 64).double()
    products = table @ table.T
    for distance in (0, 1, 7, 50):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)


def test_beyond_the_table_equals_a_longer_table():
    x = torch.randn(2, 9, D)
    short, long = SinusoidalPositions(D, max_positions=4), SinusoidalPositions(D)
    torch.testing.assert_close(short(x), long(x), rtol=0, atol=0)
    torch.testing.assert_close(short(x[:, 6:7], start=6), long(x)[:, 6:7], rtol=0, atol=0)


@pytest.mark.parametrize("cls", [SinusoidalPositions, RotaryPositions])
def test_sinusoids_are_no_part_of_a_checkpoint(cls):
    assert not cls(D).state_dict()


def test_the_table_is_computed_on_the_cpu_and_kept_on_the_default_device():
    expected = sinusoids(5, D)
    with torch.device("meta"):  # stands for a device without float64
        assert sinusoids(5, D).equal(expected)
        assert SinusoidalPositions(D).table.is_meta


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="must be even for sinusoidal positions, got 7"):
        sinusoids(3, 7)


def test_learned_positions():
    layer = LearnedPositions(D, max_positions=5)
    x = torch.randn(2, 3, D)
    torch.testing.assert_close(layer(x, start=2), x + layer.weight[2:5])
    with pytest.raises(ValueError, match="sequence of 6 tokens is longer than the 5 learned"):
        layer(x, start=3)


# ---- rotary positions ----


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(B, H, T, D, dtype=torch.float64)


def test_every_pair_is_turned_as_in_the_paper(x):
    turned = rotate(x, RotaryPositions(D)(T, start=3))
    assert turned.shape == x.shape
    for pos in range(T):
        for i in range(D // 2):
            angle = (pos + 3) / 10000 ** (2 * i / D)
            c, s = math.cos(angle), math.sin(angle)
            matrix = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)  # equation 13
            pair = slice(2 * i, 2 * i + 2)
            expected = x[:, :, pos, pair] @ matrix.T
            torch.testing.assert_close(turned[:, :, pos, pair], expected, atol=1e-6, rtol=0)


def test_rotation_is_a_product_of_complex_numbers(x):
    angle = torch.arange(T)[:, None] / 10000 ** (torch.arange(0, D, 2).double() / D)
    numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    expected = numbers * torch.polar(torch.ones_like(angle), angle)
    found = rotate(x, RotaryPositions(D)(T))
    torch.testing.assert_close(found, torch.view_as_real(expected).flatten(-2), atol=1e-6, rtol=0)


def test_rotation_equals_that_of_roformer(x):
    roformer = pytest.importorskip("transformers.models.roformer.modeling_roformer")
    table = roformer.RoFormerSinusoidalPositionalEmbedding(20, D)
    table.weight.data = table.create_weight()
    q, k = roformer.RoFormerSelfAttention.apply_rotary_position_embeddings(
        table((B, T), past_key_values_length=4)[None, None], x, x.flip(0)
    )
    rotation = RotaryPositions(D)(T, start=4)
    torch.testing.assert_close(rotate(x, rotation), q, atol=1e-6, rtol=0)
    torch.testing.assert_close(rotate(x.flip(0), rotation), k, atol=1e-6, rtol=0)


def test_scores_of_rotated_queries_and_keys_depend_on_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, D, dtype=torch.float64)
    rotary = RotaryPositions(D).double()
    q, k = (rotate(vector.expand(1, 1, 300, D), rotary(300))[0, 0] for vector in (q, k))
    scores = q @ k.T
    for distance in (-50, -1, 0, 1, 7, 200):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert scores.diagonal(1)[0] != pytest.approx(scores.diagonal(-1)[0].item())  # signed


def test_rotation_keeps_lengths_and_leaves_the_first_position(x):
    turned = rotate(x, RotaryPositions(D)(T))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rotations_beyond_the_table_equal_a_longer_table(dtype):
    short, long = RotaryPositions(D, max_positions=4).to(dtype), RotaryPositions(D).to(dtype)
    torch.testing.assert_close(short(9), long(9), rtol=0, atol=0)
    torch.testing.assert_close(short(1, start=6), long(9)[6:7], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("whole", [False, True], ids=["mixed", "true"])
def test_a_rotated_tensor_keeps_its_dtype(x, dtype, whole):
    rotary = RotaryPositions(D).to(dtype if whole else torch.float32)
    turned = rotate(x.to(dtype), rotary(T))
    assert turned.dtype == dtype
    expected = rotate(x.to(dtype).double(), RotaryPositions(D).double()(T))
    # mixed: one rounding at the end; true: of sines and cosines, products and sums, too
    limit = torch.finfo(dtype).eps * x.abs().max().item() * (4 if whole else 1)
    assert (turned.double() - expected).abs().max() <= limit


def test_gradients_turn_back(x):
    rotation = RotaryPositions(D).double()(T)
    x.requires_grad_()
    upstream = torch.randn_like(x)
    rotate(x, rotation).backward(upstream)
    back = rotation * torch.tensor([-1, 1]).repeat(D // 2)  # the opposite angle
    torch.testing.assert_close(x.grad, rotate(upstream, back))


def test_odd_heads_cannot_be_turned():
    with pytest.raises(ValueError, match=r"num_heads, must be even for rotary .*, got 3; choose"):
        RotaryPositions(3)
