import math

import pytest
import torch
from table_model import (
    BOS,
    EOS,
    NEVER,
    TableModel,
    V,
    all_sequences,
    assert_same,
    plain_beam_search,
    random_model,
    rank,
)

from litseq.decoding import beam_search, greedy_search

SENTENCES = torch.tensor([5, 17, 230, 4, 88, 411])
MAX_LEN = torch.tensor([7, 2, 30, 9, 4, 12])


def search(
    model, memory, max_len, *, beam_size, alpha=0.6, n_best=1, suppress=NEVER, offset=5.0,
    patience=None,
):  # fmt: skip
    return beam_search(
        model,
        memory,
        beam_size=beam_size,
        length_penalty=alpha,
        length_offset=offset,
        n_best=n_best,
        bos_id=BOS,
        eos_id=EOS,
        max_len=max_len,
        suppress=suppress,
        patience=patience,
    )


NORMS = [(0.0, 5.0), (0.6, 5.0), (1.0, 5.0), (2.0, 5.0), (1.0, 0.0), (0.6, 1.5)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("alpha", "offset"), NORMS)
def test_a_beam_that_holds_everything_finds_the_best_of_all_sequences(seed, alpha, offset):
    model, norm = random_model(seed), {"alpha": alpha, "offset": offset}
    max_len = torch.tensor([4, 1, 3])
    found = search(model, SENTENCES[:3], max_len, beam_size=128, n_best=20, **norm)
    for i, limit in enumerate(max_len.tolist()):
        sentence = int(SENTENCES[i])
        everything = [model.score(sentence, s, **norm) for s in all_sequences(limit)]
        assert_same(found[i], rank(everything, 20))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("alpha", "offset"), NORMS)
@pytest.mark.parametrize(("beam_size", "n_best"), [(2, 1), (3, 3), (5, 2)])
def test_stopping_early_loses_nothing(seed, alpha, offset, beam_size, n_best):
    model, norm = random_model(seed), {"alpha": alpha, "offset": offset}
    found = search(model, SENTENCES, MAX_LEN, beam_size=beam_size, n_best=n_best, **norm)
    for i, sentence in enumerate(SENTENCES.tolist()):
        expected = plain_beam_search(
            model,
            sentence,
            beam_size=beam_size,
            n_best=n_best,
            max_len=int(MAX_LEN[i]),
            **norm,
        )
        assert_same(found[i], expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("beam_size", "n_best", "patience", "enough"),
    [(3, 1, 1.0, 3), (4, 1, 0.5, 2), (4, 3, 0.5, 3), (3, 2, 1.1, 4)],
)
def test_patience_ends_a_beam(seed, beam_size, n_best, patience, enough):
    model = random_model(seed)
    norm = {"alpha": 1.0, "offset": 0.0}
    found = search(
        model, SENTENCES, MAX_LEN, beam_size=beam_size, n_best=n_best, patience=patience, **norm
    )
    steps = len(model.rows)
    for i, sentence in enumerate(SENTENCES.tolist()):
        limits = {"beam_size": beam_size, "n_best": n_best, "max_len": int(MAX_LEN[i])}
        assert_same(found[i], plain_beam_search(model, sentence, enough=enough, **limits, **norm))
    search(model, SENTENCES, MAX_LEN, beam_size=beam_size, n_best=n_best, **norm)
    assert steps < len(model.rows) - steps, "it would have ended as early without"


def test_endless_patience_is_none():
    found = [
        search(random_model(1), SENTENCES, MAX_LEN, beam_size=3, patience=patience)
        for patience in (None, math.inf)
    ]
    assert found[0] == found[1]


def test_stops_when_nothing_alive_can_win():
    model = random_model(0, sharpness=4.0)
    search(model, SENTENCES, torch.full((6,), 60), beam_size=3)
    assert len(model.rows) < 60
    assert model.rows[0] == 6  # BOS is read once per sentence
    assert all(rows % 3 == 0 for rows in model.rows[1:])
    assert sorted(model.rows[1:], reverse=True) == model.rows[1:]
    assert len(set(model.rows[1:])) > 2  # sentences leave one after the other


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_beam_of_one_is_greedy_search(seed, alpha, dtype):
    model = random_model(seed)
    model.table = model.table.to(dtype)
    found = search(model, SENTENCES, MAX_LEN, beam_size=1, alpha=alpha)
    greedy = greedy_search(
        model,
        SENTENCES,
        bos_id=BOS,
        eos_id=EOS,
        max_len=MAX_LEN,
        suppress=NEVER,
        length_penalty=alpha,
    )
    assert found == [[hypothesis] for hypothesis in greedy]


def markov_model(transitions):
    """Probabilities of the next token by the last one alone."""

    class Markov(TableModel):
        def next_code(self, token, code):
            return token

    table = torch.zeros(V, V, dtype=torch.float64)
    for token, following in transitions.items():
        for next_token, probability in following.items():
            table[token, next_token] = probability
    return Markov(table.log())


def test_beam_search_finds_what_greedy_search_misses():
    # 4 looks best at first (0.6), but what follows is spread thin: 4 5 EOS has 0.6 * 0.4 * 0.9.
    # 5 (0.4) is followed by EOS almost surely: 5 EOS has 0.4 * 0.9.
    model = markov_model(
        {
            BOS: {4: 0.6, 5: 0.4},
            4: {4: 0.3, 5: 0.4, 6: 0.3},
            5: {EOS: 0.9, 6: 0.1},
            6: {EOS: 1.0},
        }
    )
    max_len = torch.tensor([5])
    memory = torch.tensor([0])
    (greedy,) = search(model, memory, max_len, beam_size=1, alpha=0.0)
    assert greedy[0].tokens == (4, 5, EOS)
    assert greedy[0].log_prob == pytest.approx(math.log(0.216), rel=1e-12)
    (beam,) = search(model, memory, max_len, beam_size=2, alpha=0.0, n_best=2)
    assert [h.tokens for h in beam] == [(5, EOS), (4, 5, EOS)]
    assert beam[0].log_prob == pytest.approx(math.log(0.36), rel=1e-12)


def test_length_penalty_favours_longer_sequences():
    # EOS at once has 0.5; 4 and then EOS 0.5 * 0.9.
    model = markov_model({BOS: {EOS: 0.5, 4: 0.5}, 4: {EOS: 0.9, 5: 0.1}, 5: {EOS: 1.0}})
    best = [
        search(model, torch.tensor([0]), torch.tensor([6]), beam_size=2, alpha=alpha)[0][0].tokens
        for alpha in (0.0, 0.6, 2.0)
    ]
    assert best == [(EOS,), (EOS,), (4, EOS)]


def test_neighbours_order_and_batch_size_change_nothing():
    model = random_model(2)
    together = search(model, SENTENCES, MAX_LEN, beam_size=3, n_best=3)
    for i in range(len(SENTENCES)):
        alone = search(model, SENTENCES[i : i + 1], MAX_LEN[i : i + 1], beam_size=3, n_best=3)
        assert alone == together[i : i + 1]
    order = torch.tensor([3, 0, 5, 5, 1])
    shuffled = search(model, SENTENCES[order], MAX_LEN[order], beam_size=3, n_best=3)
    assert shuffled == [together[i] for i in order]


def test_equal_log_probs_rank_by_beam_then_by_id():
    model = TableModel(torch.zeros(1, V))  # everything is equally probable
    (found,) = search(model, torch.tensor([0]), torch.tensor([2]), beam_size=3, alpha=0.0, n_best=3)
    # Of EOS, 4, 5, 6 the first ends and the others go on; of what extends those, 4's come first.
    assert [h.tokens for h in found] == [(EOS,), (4, EOS), (4, 4)]


def test_unfinished_sequences_rank_behind_finished_ones():
    model = markov_model({BOS: {4: 0.9, EOS: 0.1}, 4: {4: 1.0}})
    (found,) = search(model, torch.tensor([0]), torch.tensor([3]), beam_size=2, n_best=2)
    assert [h.tokens for h in found] == [(EOS,), (4, 4, 4)]
    assert found[0].score < found[1].score


def test_no_eos_is_forced_at_the_limit():
    model = markov_model({BOS: {4: 0.5, 5: 0.5}, 4: {4: 1.0}, 5: {5: 1.0}})
    (found,) = search(model, torch.tensor([0]), torch.tensor([3]), beam_size=2, n_best=2)
    assert [h.tokens for h in found] == [(4, 4, 4), (5, 5, 5)]


def test_gives_fewer_hypotheses_where_no_more_are_possible():
    model = markov_model({BOS: {4: 0.5, EOS: 0.5}, 4: {EOS: 1.0}})
    (found,) = search(model, torch.tensor([0]), torch.tensor([9]), beam_size=5, n_best=5)
    assert [h.tokens for h in found] == [(4, EOS), (EOS,)]  # the longer one by its length


def test_suppressed_tokens_never_appear_and_scores_stay_those_of_the_model():
    model = random_model(3)
    suppress = (*NEVER, 5)
    found = search(model, SENTENCES, MAX_LEN, beam_size=4, n_best=4, suppress=suppress)
    for sentence, hypotheses in zip(SENTENCES.tolist(), found, strict=True):
        assert_same(hypotheses, [model.score(sentence, h.tokens, alpha=0.6) for h in hypotheses])
        assert not any(token in suppress for h in hypotheses for token in h.tokens)
    unsuppressed = search(model, SENTENCES, MAX_LEN, beam_size=4, n_best=4)
    assert any(5 in h.tokens for hypotheses in unsuppressed for h in hypotheses)


def test_a_state_that_stays_in_place_is_not_copied():
    model = markov_model({BOS: {4: 0.9, 5: 0.1}, 4: {4: 1.0}, 5: {5: 1.0}})
    reorders = []

    class Watched:
        def reorder(self, index):
            reorders.append(index.tolist())
            return self

    class Watching:
        def init_state(self, memory):
            return Watched()

        def step(self, token, state):
            return model.table[token], state

    search(Watching(), torch.tensor([0]), torch.tensor([6]), beam_size=2)
    assert reorders == [[0, 0]]  # BOS's row becomes two; then both beams go on in their places


def test_one_broken_sequence_does_not_spoil_the_others():
    model = markov_model({BOS: {4: 0.6, 5: 0.4}, 5: {EOS: 1.0}})
    model.table[4] = torch.nan
    (found,) = search(model, torch.tensor([0]), torch.tensor([4]), beam_size=2, n_best=2)
    assert [h.tokens for h in found] == [(5, EOS)]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_model_is_an_error(bad):
    table = torch.zeros(11, V)
    table[:, 5] = bad
    with pytest.raises(ValueError, match="no next token has a finite log-probability"):
        search(TableModel(table), torch.tensor([1, 2]), torch.tensor([3, 3]), beam_size=2)


def test_suppressing_everything_is_an_error():
    with pytest.raises(ValueError, match=r"no next token has .* every token is suppressed"):
        search(
            random_model(0),
            torch.tensor([1]),
            torch.tensor([3]),
            beam_size=2,
            suppress=tuple(range(V)),
        )


def test_an_empty_batch_has_no_hypotheses():
    empty = torch.tensor([], dtype=torch.int64)
    assert search(random_model(0), empty, empty, beam_size=2) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, got 0; 1 is greedy search"),
        ({"beam_size": 2, "n_best": 3}, "n_best must lie .* got n_best=3, beam_size=2; raise"),
        ({"beam_size": 2, "n_best": 0}, "n_best must lie .* got n_best=0, beam_size=2; raise"),
        ({"beam_size": 2, "alpha": -0.1}, "length_penalty must be .* got -0.1; 0 ranks"),
        ({"beam_size": 2, "patience": 0}, "patience must be a number above 0, got 0; 1 ends with"),
        ({"beam_size": 2, "offset": -1.0}, "length_offset must be .* got -1.0; 0 divides"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        search(random_model(0), torch.tensor([1]), torch.tensor([3]), **options)


def test_a_limit_below_one_is_an_error():
    with pytest.raises(ValueError, match=r"max_len must be at least 1 token .* got -2; EOS counts"):
        search(random_model(0), torch.tensor([1]), torch.tensor([-2]), beam_size=2)
