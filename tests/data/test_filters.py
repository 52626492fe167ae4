import numpy as np
import pytest

from litseq.data.filters import SideCounts, duplicate_rows, filter_pairs, review_pairs


def counts(tokens, *, unknown=None, known=None, chars=None):
    tokens = np.array(tokens)
    return SideCounts(
        tokens=tokens,
        unknown=np.zeros_like(tokens) if unknown is None else np.array(unknown),
        known=tokens - 1 if known is None else np.array(known),
        chars=tokens * 4 if chars is None else np.array(chars),
    )


LIMITS = {"max_src_len": 9, "max_tgt_len": 9, "max_chars": 100}


def test_keeps_what_is_right():
    kept, report = filter_pairs(counts([5, 9, 2]), counts([9, 2, 2]), **LIMITS)
    assert kept.tolist() == [0, 1, 2]
    assert str(report) == "3 pairs, kept 3"


def test_counts_each_pair_under_its_first_reason():
    src = counts([5, 1, 10, 3, 9, 4, 4], chars=[4, 4, 4, 101, 4, 4, 4], known=[4, 0, 9, 2, 8, 0, 3])
    tgt = counts([5, 10, 5, 1, 2, 5, 5])
    kept, report = filter_pairs(
        src,
        tgt,
        **LIMITS,
        max_length_ratio=3,
        duplicate=np.array([0, 1, 1, 1, 0, 0, 1], dtype=bool),
    )
    assert kept.tolist() == [0]
    assert (report.num_pairs, report.num_kept) == (7, 1)
    assert str(report) == (
        "7 pairs, kept 1: 1 longer than 100 characters, 1 empty, 1 of unknown characters alone, "
        "1 longer than 9 tokens, 1 of length ratio above 3, 1 repeated"
    )


def test_length_ratio_does_not_count_the_end_symbol():
    kept, _ = filter_pairs(counts([3, 2, 7]), counts([7, 7, 2]), **LIMITS, max_length_ratio=3)
    assert kept.tolist() == [0]  # 6 to 2; the others are 6 to 1


def test_names_both_limits_where_they_differ():
    _, report = filter_pairs(counts([9]), counts([9]), max_src_len=5, max_tgt_len=8, max_chars=100)
    assert str(report) == "1 pairs, kept 0: 1 longer than 5 or 8 tokens"


def test_each_side_has_its_own_limit():
    src, tgt = counts([3, 7, 3]), counts([7, 3, 9])
    kept, _ = filter_pairs(src, tgt, max_src_len=5, max_tgt_len=8, max_chars=100)
    assert kept.tolist() == [0]


def test_large_numbers_are_grouped():
    _, report = filter_pairs(counts([5] * 1200 + [1] * 1100), counts([5] * 2300), **LIMITS)
    assert str(report) == "2,300 pairs, kept 1,200: 1,100 empty"


def test_review_counts_what_is_odd():
    src = counts([1, 3, 12, 5], known=[0, 0, 11, 4], chars=[0, 1, 50, 101])
    assert review_pairs(src, counts([1, 10, 10, 3]), **LIMITS) == {
        "empty sources": 1,
        "sources of unknown characters alone": 1,
        "sources cut to 100 characters": 1,
        "sources cut to 9 tokens": 1,
        "targets cut to 9 tokens": 2,
    }
    assert review_pairs(counts([4]), None, **LIMITS) == {}


def test_unknown_rate():
    assert counts([4, 4], unknown=[2, 0]).unknown_rate == 0.25


def test_duplicates_are_pairs_that_repeat_both_sides():
    src = np.array([5, 5, 5, 6, 2**62, 2**62], dtype=np.int64)
    tgt = np.array([7, 8, 7, 7, -3, -3], dtype=np.int64)
    assert duplicate_rows(src, tgt).tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize("check", [filter_pairs, review_pairs])
def test_refuses_lengths_that_hold_nothing(check):
    with pytest.raises(ValueError, match="must be at least 2, got 9 and 1"):
        check(counts([3]), counts([3]), max_src_len=9, max_tgt_len=1, max_chars=9)


def test_refuses_a_ratio_below_one():
    with pytest.raises(ValueError, match=r"max_length_ratio must be at least 1, got 0\.5"):
        filter_pairs(counts([3]), counts([3]), **LIMITS, max_length_ratio=0.5)
