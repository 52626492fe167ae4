import numpy as np
import pytest

from litseq.data import plan_batches
from litseq.data.plans import deal_batches

N = 97


@pytest.fixture(scope="module")
def lengths():
    rng = np.random.default_rng(5)
    src = rng.integers(2, 20, size=N)
    return src, np.clip(src + rng.integers(-4, 5, size=N), 2, None)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("max_tokens", "max_sentences"), [(60, None), (60, 3), (10, None)])
def test_every_example_once_within_the_budget(lengths, shuffle, max_tokens, max_sentences):
    src, tgt = lengths
    for epoch in range(3):
        batches = plan_batches(
            src,
            tgt,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            shuffle=shuffle,
            epoch=epoch,
        ).batches()
        assert sorted(np.concatenate(batches)) == list(range(N))
        for batch in batches:
            longest = max(src[batch].max(), tgt[batch].max())
            assert len(batch) == 1 or len(batch) * longest <= max_tokens
            assert max_sentences is None or len(batch) <= max_sentences


def test_batches_are_as_full_as_the_budget_lets_them_be():
    plan = plan_batches([2, 2, 3, 3, 3, 9, 4], max_tokens=8, shuffle=False)
    found = sorted(sorted(batch.tolist()) for batch in plan.batches())
    assert found == [[0, 1], [2, 3], [4, 6], [5]]  # lengths 2 2 | 3 3 | 3 4 | 9


def test_epochs_differ_in_composition_and_order_but_not_in_number(lengths):
    plans = [plan_batches(*lengths, max_tokens=60, epoch=epoch) for epoch in range(20)]
    assert len({len(plan) for plan in plans}) == 1
    compositions = {frozenset(frozenset(b.tolist()) for b in plan.batches()) for plan in plans}
    assert len(compositions) == 20
    assert len({tuple(plan.batches()[0]) for plan in plans}) > 10


def test_the_plan_is_a_function_of_seed_and_epoch(lengths):
    def plan(seed, epoch):
        batches = plan_batches(*lengths, max_tokens=60, seed=seed, epoch=epoch).batches()
        return [batch.tolist() for batch in batches]

    assert plan(3, 1) == plan(3, 1)
    assert plan(3, 1) != plan(3, 2)
    assert plan(3, 1) != plan(4, 1)


def test_without_shuffling_all_epochs_are_alike(lengths):
    plans = [
        plan_batches(*lengths, max_tokens=60, shuffle=False, epoch=e).batches() for e in (0, 7)
    ]
    assert [b.tolist() for b in plans[0]] == [b.tolist() for b in plans[1]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_ranks_get_equally_many_and_nothing_is_lost(lengths, world_size):
    batches = plan_batches(*lengths, max_tokens=60).batches()
    dealt = deal_batches(batches, world_size)
    assert len(dealt) == -(-len(batches) // world_size) * world_size
    assert sorted(np.concatenate(dealt)) == list(range(N))


@pytest.mark.parametrize("count", range(1, 13))
def test_a_step_of_four_ranks_is_two_of_two_and_four_of_one(lengths, count):
    batches = plan_batches(*lengths, max_tokens=60).batches()[:count]

    def steps(world_size, parts):
        dealt, size = deal_batches(batches, world_size), world_size * parts
        return [sorted(np.concatenate(dealt[i : i + size])) for i in range(0, len(dealt), size)]

    assert steps(4, 1) == steps(2, 2) == steps(1, 4)


def test_the_largest_batches_of_the_last_step_are_halved():
    batches = [np.array(b) for b in ([9], [8], [0, 1, 2, 3, 4], [5, 6])]
    dealt = [batch.tolist() for batch in deal_batches(batches, 6)]
    assert dealt == [[9], [8], [0, 1], [2], [3, 4], [5, 6]]
    dealt = [batch.tolist() for batch in deal_batches(batches, 3)]
    assert dealt == [[9], [8], [0, 1, 2, 3, 4], [5], [6], []]


def test_efficiency_counts_real_tokens():
    plan = plan_batches([2, 3, 5], [4, 3, 5], max_tokens=8, shuffle=False)
    assert [b.tolist() for b in plan.batches()] in ([[1, 0], [2]], [[2], [1, 0]])
    assert plan.efficiency([2, 3, 5]) == 10 / 11
    assert plan.efficiency([4, 3, 5]) == 12 / 13


def test_an_empty_evaluation_has_no_batches():
    plan = plan_batches([], max_tokens=8, shuffle=False)
    assert plan.batches() == []
    assert plan.efficiency([]) == 1.0


def test_both_sides_are_dense_on_text_like_lengths():
    rng = np.random.default_rng(0)
    src = np.clip(rng.lognormal(2.6, 0.5, 100_000), 2, 100).astype(int)
    tgt = np.clip(src * rng.lognormal(0, 0.2, 100_000), 2, 100).astype(int)
    plan = plan_batches(src, tgt, max_tokens=4096)
    assert min(plan.efficiency(src), plan.efficiency(tgt)) > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 8, "max_sentences": 0}, "max_sentences must be at least 1, got 0"),
        ({"max_tokens": 8, "tgt_lengths": [3]}, r"equal size, got shapes \(2,\) and \(1,\)"),
        ({"max_tokens": 8, "tgt_lengths": [3, 0]}, "lengths must be at least 1, got 0"),
    ],
)
def test_refuses_wrong_limits_and_lengths(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_batches([3, 4], **arguments)
