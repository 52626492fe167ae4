import dataclasses
import math

import pytest
import torch
from table_model import BOS, EOS, NEVER, random_model

from litseq.decoding import (
    SearchOptions,
    beam_search,
    generate,
    greedy_search,
    sample_search,
)

SENTENCES = torch.tensor([5, 17, 230, 4])
LENGTHS = torch.tensor([3, 1, 6, 2])
SHARED = {"bos_id": BOS, "eos_id": EOS, "suppress": NEVER}


def search(options, **more):
    return generate(
        random_model(0), SENTENCES, src_lengths=LENGTHS, options=options, **SHARED, **more
    )


def test_max_len_is_rounded_down():
    options = SearchOptions(max_len_a=1.5, max_len_b=2)
    assert options.max_len(LENGTHS).tolist() == [6, 3, 11, 5]
    assert options.max_len(LENGTHS).dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("a", "expected"), [(1.0, [257, 150, 1050]), (0.29, [110, 79, 340]), (1 / 3, [119, 83, 383])]
)
def test_max_len_is_exact_whatever_the_default_dtype(dtype, a, expected):
    lengths = torch.tensor([207, 100, 1000])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert SearchOptions(max_len_a=a, max_len_b=50).max_len(lengths).tolist() == expected
    finally:
        torch.set_default_dtype(before)


def test_max_len_is_at_least_one():
    assert SearchOptions(max_len_a=0.0, max_len_b=0).max_len(LENGTHS).tolist() == [1, 1, 1, 1]


def test_max_len_of_a_constant():
    assert SearchOptions(max_len_a=0.0, max_len_b=7).max_len(LENGTHS).tolist() == [7, 7, 7, 7]


def test_a_beam_of_one_is_dispatched_to_greedy_search():
    options = SearchOptions(beam_size=1, length_penalty=0.8, length_offset=0.5, max_len_b=5)
    greedy = greedy_search(
        random_model(0),
        SENTENCES,
        max_len=options.max_len(LENGTHS),
        length_penalty=0.8,
        length_offset=0.5,
        **SHARED,
    )
    assert search(options) == [[hypothesis] for hypothesis in greedy]


def test_wider_beams_are_dispatched_to_beam_search():
    options = SearchOptions(
        beam_size=3, length_penalty=0.8, length_offset=0.5, n_best=2, patience=0.7, max_len_b=5
    )
    assert search(options) == beam_search(
        random_model(0),
        SENTENCES,
        beam_size=3,
        length_penalty=0.8,
        length_offset=0.5,
        n_best=2,
        patience=0.7,
        max_len=options.max_len(LENGTHS),
        **SHARED,
    )


def test_sampling_is_dispatched_with_all_its_options():
    options = SearchOptions(
        sample=True,
        beam_size=1,
        n_best=3,
        temperature=1.3,
        top_k=3,
        top_p=0.95,
        seed=7,
        length_penalty=0.8,
        length_offset=0.5,
        max_len_b=5,
    )
    ids = [12, 40, 3, 9]
    assert search(options, ids=ids) == sample_search(
        random_model(0),
        SENTENCES,
        n_best=3,
        temperature=1.3,
        top_k=3,
        top_p=0.95,
        seed=7,
        length_penalty=0.8,
        length_offset=0.5,
        ids=ids,
        max_len=options.max_len(LENGTHS),
        **SHARED,
    )


@pytest.mark.parametrize("options", [{"beam_size": 1}, {"beam_size": 2}, {"sample": True}])
def test_searches_run_in_inference_mode(options):
    model = random_model(0)
    model.table.requires_grad_()
    inference = []

    class Watched:
        def init_state(self, memory):
            return model.init_state(memory)

        def step(self, token, state):
            inference.append(torch.is_inference_mode_enabled())
            return model.step(token, state)

    generate(Watched(), SENTENCES, src_lengths=LENGTHS, options=SearchOptions(**options), **SHARED)
    assert inference
    assert all(inference)
    assert not torch.is_inference_mode_enabled()


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SearchOptions().beam_size = 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, got 0; 1 is greedy search"),
        ({"length_penalty": -1.0}, "length_penalty must be .* at least 0, got -1.0; 0 ranks"),
        ({"length_offset": -1.0}, "length_offset must be .* at least 0, got -1.0; 0 divides"),
        ({"length_offset": math.inf}, "length_offset must be .* at least 0, got inf; 0 divides"),
        ({"length_penalty": math.nan}, "length_penalty must be .* at least 0, got nan; 0 ranks"),
        ({"n_best": 5}, "n_best must lie .* got n_best=5, beam_size=4; raise beam_size"),
        ({"n_best": 0}, "n_best must lie .* got n_best=0, beam_size=4"),
        ({"n_best": 0, "sample": True}, "n_best must be at least 1, got 0"),
        ({"max_len_a": -0.5}, "max_len_a must be .* at least 0, got -0.5; the default is 1.0"),
        ({"max_len_b": -1}, "max_len_b must be .* at least 0, got -1; the default is 50"),
        ({"temperature": 0.0}, "temperature must be a number above 0, got 0.0; .* top_k=1"),
        ({"temperature": math.inf}, "temperature must be a number above 0, got inf"),
        ({"top_k": -2}, "top_k must be at least 0, got -2; 0 keeps every token"),
        ({"top_p": 1.1}, "top_p must lie above 0 and at most at 1, got 1.1; 1 keeps every token"),
        ({"top_p": 0.0}, "top_p must lie above 0 and at most at 1, got 0.0"),
    ],
)
def test_bad_options_are_one_line_errors(options, message):
    with pytest.raises(ValueError, match=message) as error:
        SearchOptions(**options)
    assert "\n" not in str(error.value)


def test_sampling_may_give_more_than_a_beam_holds():
    assert SearchOptions(sample=True, beam_size=1, n_best=9).n_best == 9
