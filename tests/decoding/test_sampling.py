import math
from collections import Counter

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
    random_model,
)

from litseq.decoding import greedy_search, sample_search
from litseq.decoding.sampling import _draw
from litseq.decoding.turns import places_that_stay

SENTENCES = torch.tensor([5, 17, 230, 4, 88, 411])
MAX_LEN = torch.tensor([7, 2, 30, 9, 4, 12])

# 99.9 % quantiles of the chi-square distribution, by degrees of freedom.
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 12: 32.91}


def search(model, memory, max_len, **options):
    defaults = {"n_best": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1}
    return sample_search(
        model,
        memory,
        **{**defaults, **options},
        bos_id=BOS,
        eos_id=EOS,
        max_len=max_len,
        suppress=NEVER,
    )


def assert_drawn_from(counts, probabilities):
    """Chi-square test of the counts; nothing of probability 0 may occur."""
    assert set(counts) <= {key for key, p in probabilities.items() if p > 0}
    expected = {key: p * counts.total() for key, p in probabilities.items() if p > 0}
    assert min(expected.values()) > 5  # below, the statistic is no longer chi-square
    statistic = sum((counts[key] - n) ** 2 / n for key, n in expected.items())
    assert statistic < CHI_SQUARE[len(expected) - 1]


def first_token_distribution(model, sentence, *, temperature=1.0):
    log_probs = torch.tensor(model.log_probs(sentence, ())) / temperature
    log_probs[list(NEVER)] = -torch.inf
    return log_probs.softmax(-1)


def first_tokens(model, sentence, **options):
    (drawn,) = search(model, torch.tensor([sentence]), torch.tensor([1]), n_best=4000, **options)
    return Counter(h.tokens[0] for h in drawn)


def share_of(log_probs, token):
    """Probability of a token when those of NEVER are left out."""
    return math.exp(log_probs[token]) / sum(
        math.exp(log_prob) for i, log_prob in enumerate(log_probs) if i not in NEVER
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_from_the_distribution(temperature):
    model = random_model(0, sharpness=0.7)
    probs = first_token_distribution(model, 5, temperature=temperature)
    counts = first_tokens(model, 5, temperature=temperature)
    assert_drawn_from(counts, dict(enumerate(probs.tolist())))


def test_draws_whole_sequences_from_the_distribution():
    model = random_model(1, sharpness=0.3)
    (drawn,) = search(model, torch.tensor([5]), torch.tensor([2]), n_best=4000)
    weights = {}
    for sequence in all_sequences(2):
        weights[sequence] = math.prod(
            share_of(model.log_probs(5, sequence[:i]), token) for i, token in enumerate(sequence)
        )
    assert sum(weights.values()) == pytest.approx(1.0, rel=1e-12)
    assert_drawn_from(Counter(h.tokens for h in drawn), weights)


def test_sentences_are_drawn_independently():
    # The same sentence again and again under other ids: the draws must spread like those of one.
    model = random_model(0, sharpness=0.7)
    memory, max_len = torch.full((4000,), 5), torch.ones(4000, dtype=torch.int64)
    counts = Counter(drawn[0].tokens[0] for drawn in search(model, memory, max_len))
    assert_drawn_from(counts, dict(enumerate(first_token_distribution(model, 5).tolist())))


def test_top_k_keeps_the_most_probable():
    model = random_model(0, sharpness=0.7)
    probs = first_token_distribution(model, 5)
    kept = probs.topk(3).indices.tolist()
    share = {i: float(probs[i] / probs[kept].sum()) for i in kept}
    assert_drawn_from(first_tokens(model, 5, top_k=3), share)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.6, 2), (0.9, 3), (1e-9, 1)])
def test_top_p_keeps_the_nucleus(top_p, kept):
    table = torch.full((1, V), -torch.inf, dtype=torch.float64)
    table[0, EOS:] = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.float64).log()
    share = {4: 0.5, 6: 0.3, 3: 0.15}
    share = dict(list(share.items())[:kept])
    share = {token: p / sum(share.values()) for token, p in share.items()}
    counts = first_tokens(TableModel(table), 0, top_p=top_p)
    if kept == 1:
        assert counts == {4: 4000}
    else:
        assert_drawn_from(counts, share)


def test_top_p_is_taken_of_what_top_k_and_temperature_leave():
    table = torch.full((1, V), -torch.inf, dtype=torch.float64)
    table[0, EOS:] = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    # Of 0.4 and 0.3 the first has a share of 0.57, which the nucleus of 0.5 needs alone.
    assert set(first_tokens(TableModel(table), 0, top_k=2, top_p=0.5)) == {EOS}
    assert set(first_tokens(TableModel(table), 0, top_p=0.5)) == {EOS, 4}
    assert set(first_tokens(TableModel(table), 0, top_p=0.5, temperature=0.3)) == {EOS}


def test_inverting_the_distribution_never_hits_a_token_without_probability():
    probs = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]])  # need not add up to 1
    uniform = [0.0, 0.5 - 2**-24, 0.5, 1 - 2**-24]
    drawn = [int(_draw(probs, torch.tensor([u], dtype=torch.float64))) for u in uniform]
    assert drawn == [1, 1, 3, 3]


def test_the_nucleus_may_need_most_of_a_large_vocabulary():
    logits = torch.linspace(0, 1e-3, 5000, dtype=torch.float64)  # nearly uniform, rising

    class Wide:
        def init_state(self, memory):
            return self

        def reorder(self, index):
            return self

        def step(self, token, state):
            return logits.expand(len(token), -1), state

    (drawn,) = sample_search(
        Wide(),
        None,
        n_best=2000,
        temperature=1.0,
        top_k=0,
        top_p=0.75,
        seed=1,
        bos_id=BOS,
        eos_id=EOS,
        max_len=torch.tensor([1]),
    )
    least = 5000 - int((logits.softmax(-1).flip(0).cumsum(0) < 0.75).sum()) - 1
    tokens = {h.tokens[0] for h in drawn}
    assert 0 <= min(tokens) - least < 20  # 2,000 draws of 3,750 tokens hit the lowest 20 of them
    assert max(tokens) >= 4980


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}])
def test_the_sharpest_sampling_is_greedy_search(options):
    model = random_model(3)
    greedy = greedy_search(
        model, SENTENCES, bos_id=BOS, eos_id=EOS, max_len=MAX_LEN, suppress=NEVER
    )
    assert search(model, SENTENCES, MAX_LEN, **options) == [[h] for h in greedy]


def test_log_probs_are_those_of_the_model():
    model = random_model(3)
    found = search(
        model,
        SENTENCES,
        MAX_LEN,
        n_best=5,
        temperature=1.7,
        top_k=3,
        top_p=0.9,
        length_penalty=0.6,
    )
    for sentence, hypotheses in zip(SENTENCES.tolist(), found, strict=True):
        assert_same(hypotheses, [model.score(sentence, h.tokens, alpha=0.6) for h in hypotheses])


def test_the_best_sample_comes_first_and_the_unfinished_last():
    (found,) = search(random_model(0, sharpness=0.5), SENTENCES[:1], torch.tensor([4]), n_best=40)
    keys = [(h.tokens[-1] != EOS, -h.score) for h in found]
    assert keys == sorted(keys)
    assert {unfinished for unfinished, _ in keys} == {False, True}


def test_a_seed_can_be_repeated():
    model = random_model(0, sharpness=0.5)
    first = search(model, SENTENCES, MAX_LEN, n_best=3, seed=8)
    assert search(model, SENTENCES, MAX_LEN, n_best=3, seed=8) == first
    assert search(model, SENTENCES, MAX_LEN, n_best=3, seed=9) != first


def test_without_a_seed_the_global_generator_decides():
    model = random_model(0, sharpness=0.5)
    torch.manual_seed(4)
    first = search(model, SENTENCES, MAX_LEN, seed=None)
    assert search(model, SENTENCES, MAX_LEN, seed=None) != first
    torch.manual_seed(4)
    assert search(model, SENTENCES, MAX_LEN, seed=None) == first


def test_a_seed_leaves_the_global_generator_alone():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    search(random_model(0), SENTENCES, MAX_LEN, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_neighbours_order_and_batch_size_change_nothing():
    model = random_model(2, sharpness=0.5)
    ids = [30, 31, 32, 33, 34, 35]
    together = search(model, SENTENCES, MAX_LEN, n_best=2, ids=ids)
    for i in range(len(SENTENCES)):
        rows = slice(i, i + 1)
        alone = search(model, SENTENCES[rows], MAX_LEN[rows], n_best=2, ids=ids[rows])
        assert alone == together[rows]
    order = [3, 0, 5, 1]
    shuffled = search(
        model, SENTENCES[order], MAX_LEN[order], n_best=2, ids=[ids[i] for i in order]
    )
    assert shuffled == [together[i] for i in order]


def test_finished_samples_leave_the_batch():
    model = random_model(2)
    found = search(model, SENTENCES, MAX_LEN, n_best=3)
    lengths = torch.tensor([len(h.tokens) for hypotheses in found for h in hypotheses])
    limits = MAX_LEN.repeat_interleave(3)
    there, expected = list(range(len(lengths))), []
    for t in range(1, int(lengths.max()) + 1):
        expected.append(len(there))
        ended = [int(lengths[i]) <= t for i in there]
        stay = places_that_stay(ended, must=any(limits[i] <= t for i in there))
        there = there if stay is None else [there[place] for place in stay]
    assert model.rows == expected


def test_an_empty_batch_has_no_hypotheses():
    empty = torch.tensor([], dtype=torch.int64)
    assert search(random_model(0), empty, empty) == []


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_model_is_an_error(bad):
    table = torch.zeros(11, V)
    table[:, 5] = bad
    with pytest.raises(ValueError, match="no next token has a finite log-probability"):
        search(TableModel(table), torch.tensor([1, 2]), torch.tensor([3, 3]), top_k=3, top_p=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_best": 0}, "n_best must be at least 1, got 0; ask for 1 or more"),
        ({"temperature": 0.0}, "temperature must be a number above 0, got 0.0; .* top_k=1"),
        ({"top_k": -1}, "top_k must be at least 0, got -1; 0 keeps"),
        ({"top_p": 0.0}, "top_p must lie above 0 .* got 0.0; 1 keeps"),
        ({"ids": [1, 2, 3]}, "ids needs one number per sentence, got 3 for 6 sentences; pass"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        search(random_model(0), SENTENCES, MAX_LEN, **options)


def test_a_limit_below_one_is_an_error():
    with pytest.raises(ValueError, match=r"max_len must be at least 1 token .* got 0; EOS counts"):
        search(random_model(0), torch.tensor([1]), torch.tensor([0]))
