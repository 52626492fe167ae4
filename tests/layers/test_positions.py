import math

import pytest
import torch

from litseq.layers.positions import LearnedPositions, SinusoidalPositions, sinusoids

D = 12


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


def test_sinusoids_are_no_part_of_a_checkpoint():
    assert not SinusoidalPositions(D).state_dict()


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
