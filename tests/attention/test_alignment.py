import pytest
import torch

from litseq.attention.alignment import (
    align_words,
    alignment_error_rate,
    alignment_weights,
    hard_alignment,
)
from litseq.types import WordAlignment


def test_each_target_word_takes_its_strongest_source_word():
    weights = torch.tensor([[0.1, 0.8, 0.1], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]])
    pairs = hard_alignment(weights)
    assert pairs == [(1, 0), (0, 1), (2, 2)]
    assert hard_alignment(torch.rand(0, 3)) == []
    assert hard_alignment(torch.rand(3, 0)) == []


@pytest.mark.parametrize(("num_layers", "expected"), [(1, 0), (2, 0), (3, 1), (6, 4)])
def test_the_layer_before_the_last_aligns(num_layers, expected):
    attention = torch.rand(num_layers, 3, 5, 7)
    assert alignment_weights(attention).equal(attention[expected].mean(0))


def test_words_and_not_pieces_are_aligned():
    src, tgt = ["▁A", "▁ca", "t", "▁sat"], ["▁", "猫", "坐", "着"]
    attention = torch.zeros(1, 1, 5, 6)  # the ends of both sentences, and padding of the source
    for t, looks_at in enumerate([{0: 0.4, 3: 0.6}, {1: 0.5, 2: 0.3, 0: 0.2}, {3: 1.0}, {3: 1.0}]):
        for s, weight in looks_at.items():
            attention[0, 0, t, s] = weight
    attention[..., 4, 4] = 1
    attention[0, 0, 3, 4] = 2  # the end of the source is no word
    found = align_words(attention, src, tgt)
    assert found == WordAlignment(("A", "cat", "sat"), ("猫", "坐", "着"), ((1, 0), (2, 1), (2, 2)))
    assert str(found) == "1-0 2-1 2-2"
    assert str(WordAlignment(("a", "b"), ("c", "d"), ((1, 0), (0, 1)))) == "0-1 1-0"
    empty = align_words(attention, src, [])
    assert (empty.pairs, str(empty)) == ((), "")


def test_alignment_error_rate():
    sure, possible = {(0, 0), (1, 1)}, {(2, 1)}
    assert alignment_error_rate(sure, sure) == 0
    assert alignment_error_rate([(5, 5)], sure) == 1
    # one of two sure links, one possible, one wrong: 1 - (1 + 2) / (3 + 2)
    found = [(0, 0), (2, 1), (3, 3)]
    assert alignment_error_rate(found, sure, possible) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no link to compare"):
        alignment_error_rate([], [])
