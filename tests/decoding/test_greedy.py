import pytest
import torch
from table_model import BOS, EOS, NEVER, TableModel, V, assert_same, random_model

from litseq.decoding import greedy_search

SENTENCES = torch.tensor([5, 17, 230, 4, 88, 411])


def search(model, memory, max_len, **options):
    return greedy_search(
        model, memory, bos_id=BOS, eos_id=EOS, max_len=max_len, suppress=NEVER, **options
    )


def plain_greedy(model, sentence, *, max_len):
    tokens = ()
    while len(tokens) < max_len and EOS not in tokens:
        log_probs = model.log_probs(sentence, tokens)
        tokens += (max(range(V), key=lambda i: log_probs[i] if i not in NEVER else -1e9),)
    return tokens


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_takes_the_best_token_each_time(seed, alpha):
    model = random_model(seed)
    max_len = torch.tensor([1, 2, 3, 9, 20, 40])
    found = search(model, SENTENCES, max_len, length_penalty=alpha)
    expected = [
        model.score(sentence, plain_greedy(model, sentence, max_len=limit), alpha=alpha)
        for sentence, limit in zip(SENTENCES.tolist(), max_len.tolist(), strict=True)
    ]
    assert_same(found, expected)


def test_neighbours_and_order_change_nothing():
    model = random_model(1)
    max_len = torch.tensor([7, 2, 30, 9, 4, 12])
    together = search(model, SENTENCES, max_len)
    alone = [
        search(model, SENTENCES[i : i + 1], max_len[i : i + 1])[0] for i in range(len(SENTENCES))
    ]
    assert together == alone
    order = torch.tensor([3, 0, 5, 5, 1])
    assert search(model, SENTENCES[order], max_len[order]) == [together[i] for i in order]


def test_finished_sentences_leave_the_batch():
    model = random_model(1)
    max_len = torch.tensor([7, 2, 30, 9, 4, 12])
    lengths = torch.tensor([len(h.tokens) for h in search(model, SENTENCES, max_len)])
    assert lengths.unique().numel() > 2  # so that something leaves at different times
    assert model.rows == [int((lengths >= t).sum()) for t in range(1, int(lengths.max()) + 1)]


def test_no_eos_is_forced_at_the_limit():
    table = torch.zeros(1, V, dtype=torch.float64)
    table[0, 5] = 1.0
    (found,) = search(TableModel(table), torch.tensor([0]), torch.tensor([4]))
    assert found.tokens == (5, 5, 5, 5)


def test_ties_go_to_the_lowest_id():
    (found,) = search(TableModel(torch.zeros(1, V)), torch.tensor([0]), torch.tensor([9]))
    assert found.tokens == (EOS,)


def test_an_empty_batch_has_no_hypotheses():
    empty = torch.tensor([], dtype=torch.int64)
    assert search(random_model(0), empty, empty) == []


def test_a_limit_below_one_is_an_error():
    with pytest.raises(ValueError, match=r"max_len must be at least 1 token .* got 0; EOS counts"):
        search(random_model(0), torch.tensor([1, 2]), torch.tensor([3, 0]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_model_is_an_error(bad):
    table = torch.zeros(11, V)
    table[:, 5] = bad
    with pytest.raises(ValueError, match="no next token has a finite log-probability"):
        search(TableModel(table), torch.tensor([1, 2]), torch.tensor([3, 3]))


def test_bad_options_are_errors():
    memory, max_len = torch.tensor([1]), torch.tensor([3])
    with pytest.raises(ValueError, match=r"length_offset must be .* at least 0, got -1\.0"):
        search(random_model(0), memory, max_len, length_penalty=1.0, length_offset=-1.0)
    with pytest.raises(ValueError, match=r"length_penalty must be .* at least 0, got -0\.5"):
        search(random_model(0), memory, max_len, length_penalty=-0.5)
