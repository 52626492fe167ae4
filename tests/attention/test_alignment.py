import pytest
import torch

from litseq.attention import AttentionMap, AttentionMaps
from litseq.attention.alignment import (
    alignment_error_rate,
    alignment_weights,
    hard_alignment,
    pharaoh,
)


def maps_of(num_layers):
    maps = AttentionMaps()
    for layer in range(num_layers):
        weights = torch.rand(2, 3, 5, 7)
        maps._maps.append(AttentionMap("cross", layer, weights, f"layer {layer}"))
    return maps


def test_each_target_word_takes_its_strongest_source_word():
    weights = torch.tensor([[0.1, 0.8, 0.1], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]])
    pairs = hard_alignment(weights)
    assert pairs == [(1, 0), (0, 1), (2, 2)]
    assert pharaoh(pairs) == "0-1 1-0 2-2"
    assert hard_alignment(torch.rand(0, 3)) == []
    assert hard_alignment(torch.rand(3, 0)) == []
    assert pharaoh([]) == ""


@pytest.mark.parametrize(("num_layers", "expected"), [(1, 0), (2, 0), (3, 1), (6, 4)])
def test_the_layer_before_the_last_aligns(num_layers, expected):
    maps = maps_of(num_layers)
    assert alignment_weights(maps).equal(maps[expected].weights.mean(1))
    assert alignment_weights(maps, 0).equal(maps[0].weights.mean(1))


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"there is no map cross.4; there are: cross.0, cross.1"):
        alignment_weights(maps_of(2), 4)


def test_alignment_error_rate():
    sure, possible = {(0, 0), (1, 1)}, {(2, 1)}
    assert alignment_error_rate(sure, sure) == 0
    assert alignment_error_rate([(5, 5)], sure) == 1
    # one of two sure links, one possible, one wrong: 1 - (1 + 2) / (3 + 2)
    found = [(0, 0), (2, 1), (3, 3)]
    assert alignment_error_rate(found, sure, possible) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no link to compare"):
        alignment_error_rate([], [])
