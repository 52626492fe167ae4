import math

import pytest

from litseq.layers.sizes import check_dropouts, check_finite, check_sizes


def test_what_is_fine():
    check_sizes(d_model=1, num_layers=1000, vocab_size=10_000_000)
    check_dropouts(dropout=0.0)
    check_finite(lr=1e-3, eps=0.0)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("d_model", 0, "d_model must be at least 1, got 0; give a positive number"),
        ("d_model", 10**12, "d_model must be at most 10,000,000, got 1,000,000,000,000"),
        ("num_layers", 1001, "num_layers must be at most 1,000, got 1,001"),
    ],
)
def test_sizes(name, size, message):
    with pytest.raises(ValueError, match=message):
        check_sizes(**{name: size})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers(value):
    with pytest.raises(ValueError, match="lr must be a finite number, got"):
        check_finite(lr=value)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got"):
        check_dropouts(dropout=value)
