import io
import logging
import random

import numpy as np
import pytest
import torch

from litseq.data import TokenBucketLoader, collate

N = 97


def load_batch(ids, epoch):
    tokens = [[epoch + 4] * (i % 5 + 1) for i in ids]
    return collate(tokens, tokens, ids=ids)


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
    assert second.position == first.position
    assert ids_of(second) == expected[first.position :]


def test_the_state_survives_a_safe_load():
    file = io.BytesIO()
    state = make_loader().state_dict()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == state


def at_step(steps, **change):
    """The state after some steps of the first epoch."""
    loader = make_loader(**change)
    for _ in zip(range(steps), loader, strict=False):  # the range first: it ends without reading
        pass
    return loader.state_dict()


@pytest.mark.parametrize("change", [{"seed": 2}, {"max_tokens": 25}, {"ids": range(N - 1)}])
def test_other_batches_are_not_resumed(change, caplog):
    other = make_loader(**change)
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(at_step(3))
    assert "epoch 0 starts anew" in caplog.text
    assert other.position == 0
    assert ids_of(other) == ids_of(make_loader(**change))


@pytest.mark.parametrize("steps", [0, 3])
def test_other_data_are_refused_unless_that_is_wanted(steps, caplog):
    state = at_step(steps, data_fingerprint="a1")
    message = r"data \(b2\) are not those of the checkpoint \(a1\): use .* set allow_other_data"
    with pytest.raises(ValueError, match=message):
        make_loader(data_fingerprint="b2").load_state_dict(state)
    other = make_loader(data_fingerprint="b2", allow_other_data=True)
    other.load_state_dict(state)
    assert ("starts anew" in caplog.text) is (steps > 0)
    assert ids_of(other) == ids_of(make_loader())


def test_a_state_of_the_time_when_batches_depended_on_the_ranks(caplog):
    state = at_step(3)
    del state["data"]
    alone = make_loader()
    alone.load_state_dict(state | {"world_size": 1})
    assert ids_of(alone) == ids_of(make_loader())[3:]
    assert not caplog.text
    alone.load_state_dict(state | {"world_size": 2})
    assert "written by an older litseq): epoch 0 starts anew" in caplog.text
    assert ids_of(alone) == ids_of(make_loader())


# ---- another number of ranks


def read(loaders, steps):
    """Lets all ranks make some steps, or as many as there are; ids of each step, by rank."""
    passes = [iter(loader) for loader in loaders]
    found = []
    while len(found) != steps and loaders[0].epoch == 0:
        found.append([next(batches)["id"].tolist() for batches in passes])
    return found


def ranks(world_size, state=None, **options):
    loaders = [make_loader(world_size=world_size, rank=r, **options) for r in range(world_size)]
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(state)
    return loaders


@pytest.mark.parametrize("draw", range(60))
def test_each_example_once_however_often_the_number_of_ranks_changes(draw):
    rng = random.Random(draw)
    options = {
        "max_tokens": rng.choice([5, 24, 60]),
        "max_sentences": rng.choice([None, 3]),
        "seed": draw,
        "ids": range(rng.choice([7, 30, N])),
    }
    seen, state = [], None
    while state is None or state["epoch"] == 0:
        loaders = ranks(rng.choice([1, 2, 3, 4, 5]), state, **options)
        before = loaders[0].position
        steps = read(loaders, rng.choice([0, 1, 2, 5, -1]))
        seen += [i for step in steps for rank in step for i in rank]
        states = [loader.state_dict() for loader in loaders]
        assert all(state == states[0] for state in states)
        state = states[0]
        if state["epoch"] == 0:
            assert loaders[0].position == before + len(steps)
        else:
            assert len(loaders[0]) == before + len(steps)
    assert sorted(i for i in seen if i != -1) == list(options["ids"])


def test_two_ranks_then_one_then_three_make_the_steps_of_one():
    """Where the numbers divide, the same examples meet in the same optimizer step."""
    expected = [ids for [ids] in read(ranks(1), -1)]
    two = ranks(2)
    found = [ids for step in read(two, 3) for ids in step]
    one = ranks(1, two[0].state_dict())
    found += [ids for step in read(one, 3) for ids in step]
    three = ranks(3, one[0].state_dict())
    steps = read(three, -1)
    found += [ids for step in steps[:-1] for ids in step]
    assert found == expected[: len(found)]
    last, one_rank = np.concatenate(steps[-1]), np.concatenate(expected[len(found) :])
    assert sorted(last) == sorted(one_rank)


def test_a_resumed_segment_is_resumed_exactly():
    two = ranks(2)
    read(two, 3)
    state = two[0].state_dict()
    whole = read(ranks(3, state), -1)
    for steps in range(len(whole)):
        three = ranks(3, state)
        read(three, steps)
        assert read(ranks(3, three[1].state_dict()), -1) == whole[steps:]


def test_a_rank_for_which_nothing_is_left_gets_nothing_to_learn():
    loaders = ranks(3, at_step(8, max_tokens=1, ids=range(9)), max_tokens=1, ids=range(9))
    [[*batches]] = [[next(iter(loader)) for loader in loaders]]
    assert sorted(batch["id"].tolist() for batch in batches)[:2] == [[-1], [-1]]
    for batch in batches:
        assert (batch["labels"] == -100).all() == (batch["id"].item() == -1)
        assert batch["input_ids"].numel() > 0


def test_training_on_fewer_examples_than_ranks():
    with pytest.raises(ValueError, match="2 training pairs cannot feed 3 processes; use at most 2"):
        len(make_loader(ids=[4, 2], world_size=3, rank=0))


def test_training_in_order_has_equally_many_steps_on_each_rank():
    loaders = [make_loader(shuffle=False, even=True, world_size=3, rank=r) for r in range(3)]
    seen = [ids_of(loader) for loader in loaders]
    assert len({len(loader) for loader in loaders}) == len({len(ids) for ids in seen}) == 1
    assert ids_of(loaders[0]) == seen[0]  # no new draw


def test_evaluation_of_fewer_examples_than_ranks():
    loaders = ranks(3, ids=[4], shuffle=False)
    assert [len(loader) for loader in loaders] == [1, 1, 1]
    assert [ids_of(loader) for loader in loaders] == [[(4,)], [(-1,)], [(-1,)]]
    assert [ids_of(loader) for loader in ranks(3, ids=[], shuffle=False)] == [[], [], []]


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
