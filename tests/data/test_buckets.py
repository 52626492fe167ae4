import io
import logging

import numpy as np
import pytest
import torch

from litseq.data import TokenBucketLoader, collate, plan_batches

N = 97


@pytest.fixture(scope="module")
def lengths():
    rng = np.random.default_rng(5)
    src = rng.integers(2, 20, size=N)
    return src, np.clip(src + rng.integers(-4, 5, size=N), 2, None)


def all_batches(plan):
    return [batch for rank in range(plan.world_size) for batch in plan.batches(rank)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("max_tokens", "max_sentences"), [(60, None), (60, 3), (10, None)])
def test_every_example_once_within_the_budget(
    lengths, shuffle, world_size, max_tokens, max_sentences
):
    src, tgt = lengths
    for epoch in range(3):
        plan = plan_batches(
            src,
            tgt,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            shuffle=shuffle,
            epoch=epoch,
            world_size=world_size,
        )
        batches = all_batches(plan)
        assert sorted(np.concatenate(batches)) == list(range(N))
        assert len({len(plan.batches(rank)) for rank in range(world_size)}) == 1
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


def test_ranks_get_neighbours_in_length_at_each_step(lengths):
    plan = plan_batches(*lengths, max_tokens=60, world_size=3)
    longest = np.maximum(*lengths)
    steps = zip(*(plan.batches(rank) for rank in range(3)), strict=True)
    spread = [np.ptp([longest[batch].mean() for batch in step]) for step in steps]
    assert max(spread) < np.ptp(longest) / 2


def test_single_sentence_batches_that_ranks_cannot_share_evenly():
    plan = plan_batches([9, 8, 7, 6, 5], max_tokens=9, world_size=2)
    assert [len(plan.batches(rank)) for rank in (0, 1)] == [2, 2]
    assert sorted(np.concatenate(all_batches(plan))) == [0, 1, 2, 3, 4]
    joined = next(batch for batch in all_batches(plan) if len(batch) == 2)
    assert sorted(joined) == [3, 4]  # the two shortest


def test_evaluation_of_fewer_examples_than_ranks():
    plan = plan_batches([4, 2], max_tokens=9, shuffle=False, world_size=3)
    assert sorted(np.concatenate(all_batches(plan))) == [0, 1]


def test_training_on_fewer_examples_than_ranks():
    with pytest.raises(ValueError, match="2 training pairs cannot feed 3 processes"):
        plan_batches([4, 2], max_tokens=9, world_size=3)


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
        ({"max_tokens": 8, "world_size": 0}, "world_size must be at least 1, got 0"),
        ({"max_tokens": 8, "tgt_lengths": [3]}, r"equal size, got shapes \(2,\) and \(1,\)"),
        ({"max_tokens": 8, "tgt_lengths": [3, 0]}, "lengths must be at least 1, got 0"),
    ],
)
def test_refuses_wrong_limits_and_lengths(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_batches([3, 4], **arguments)


def load_batch(ids, epoch):
    return collate([[epoch + 4] * (i % 5 + 1) for i in ids], ids=ids)


def make_loader(**options):
    lengths = np.arange(N) % 5 + 1
    return TokenBucketLoader(load_batch, lengths, **{"max_tokens": 24, "seed": 1} | options)


def ids_of(batches):
    return [tuple(batch["id"].tolist()) for batch in batches]


def test_loader_yields_the_planned_batches():
    loader = make_loader()
    batches = list(loader)
    assert ids_of(batches) == [tuple(b) for b in loader.plan(epoch=0).batches()]
    assert len(batches) == len(loader)
    assert all(set(b["input_ids"].unique().tolist()) <= {0, 4} for b in batches)  # epoch 0


def test_loader_uses_only_the_given_examples():
    chosen = np.arange(3, N, 4)
    seen = [i for batch in make_loader(ids=chosen) for i in batch["id"].tolist()]
    assert sorted(seen) == chosen.tolist()


@pytest.mark.parametrize("shuffle", [True, False])
def test_loader_ranks_share_the_work(shuffle):
    seen = []
    for rank in range(3):
        loader = make_loader(shuffle=shuffle, world_size=3, rank=rank)
        batches = list(loader)
        assert len(batches) == len(loader)
        seen += [i for batch in ids_of(batches) for i in batch]
    assert sorted(seen) == list(range(N))


def test_loader_asks_torch_distributed_when_first_needed(monkeypatch):
    loader = make_loader()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert ids_of(loader) == ids_of(make_loader(world_size=2, rank=1))


def test_a_full_pass_leads_to_the_next_epoch():
    loader, other = make_loader(), make_loader()
    first, second = ids_of(loader), ids_of(loader)
    assert first != second
    other.set_epoch(1)
    assert ids_of(other) == second


def test_a_broken_off_pass_starts_anew():
    loader = make_loader()
    start = ids_of(batch for batch, _ in zip(loader, range(2), strict=False))
    assert ids_of(loader)[:2] == start


def test_the_epoch_may_be_set_after_the_iterator_is_made():
    loader, other = make_loader(), make_loader()
    batches = iter(loader)
    loader.batch_sampler.sampler.set_epoch(2)
    other.set_epoch(2)
    assert ids_of(batches) == ids_of(other)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumes_with_the_very_next_batch(num_workers):
    """At every position of two epochs, both edges among them."""
    whole = make_loader()
    expected = ids_of(whole) + ids_of(whole)
    running = make_loader()
    steps = len(running)
    positions = range(2 * steps) if num_workers == 0 else (0, 3, steps, steps + 2)
    states = [running.state_dict()]
    for _ in range(2):
        for _ in running:
            states.append(running.state_dict())
    for position in positions:
        resumed = make_loader(num_workers=num_workers, persistent_workers=True)
        resumed.load_state_dict(states[position])
        rest = ids_of(resumed)
        assert rest == expected[position : position + len(rest)]
        assert len(rest) == steps - position % steps


def test_an_exhausted_state_is_the_next_epochs_start():
    loader = make_loader()
    state = loader.state_dict()
    loader.load_state_dict({**state, "batches": len(loader)})
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (1, 0)


def test_the_state_of_one_rank_fits_the_others():
    first, second = (make_loader(world_size=2, rank=rank) for rank in (0, 1))
    expected = ids_of(make_loader(world_size=2, rank=1))
    for _ in zip(first, range(3), strict=False):
        pass
    second.load_state_dict(first.state_dict())
    assert ids_of(second) == expected[first.state_dict()["batches"] :]


def test_the_state_survives_a_safe_load():
    file = io.BytesIO()
    state = make_loader().state_dict()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == state


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"max_tokens": 25},
        {"world_size": 2, "rank": 0},
        {"data_fingerprint": "other"},
        {"ids": range(N - 1)},
    ],
)
def test_other_batches_are_not_resumed(change, caplog):
    running = make_loader()
    for _ in zip(running, range(3), strict=False):
        pass
    other = make_loader(**change)
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(running.state_dict())
    assert "starts anew" in caplog.text
    assert ids_of(other) == ids_of(make_loader(**change))


def test_a_trainer_leaves_the_loader_alone():
    loader = make_loader()
    assert not isinstance(loader, torch.utils.data.DataLoader)
    assert not hasattr(loader, "dataset")
    assert not hasattr(loader, "sampler")
    assert loader.batch_sampler.sampler is loader


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    list(make_loader())
    assert torch.equal(torch.rand(2), expected)


def test_refuses_half_a_place():
    with pytest.raises(ValueError, match="both or none of world_size=2 and rank=None"):
        make_loader(world_size=2)


def test_refuses_to_train_on_nothing():
    with pytest.raises(ValueError, match="no example to train on"):
        make_loader(ids=[])
