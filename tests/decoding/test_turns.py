"""Who leaves a search when."""

import itertools
from dataclasses import replace

import pytest
import torch
from table_model import BOS, EOS, NEVER, TableModel, V

from litseq.decoding import SearchOptions, generate
from litseq.decoding.turns import places_that_stay


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("number", [1, 2, 7, 8, 9, 37, 64])
def test_whoever_goes_on_stays_and_few_others(number, width):
    generator = torch.Generator().manual_seed(number)
    for num_ended, must in itertools.product(range(number), [False, True]):
        ended = [False] * number
        for place in torch.randperm(number, generator=generator)[:num_ended].tolist():
            ended[place] = True
        places = places_that_stay(ended, must=must, width=width)
        stay = list(range(number)) if places is None else places
        assert stay == sorted(set(stay))
        assert all(place in stay for place, end in enumerate(ended) if not end)
        idle = sum(ended[place] for place in stay)
        assert idle < number / 4
        if must:
            assert idle == 0
        if places is not None and not must:
            assert number - len(stay) >= number / 8
            assert len(stay) * width % 8 == 0 or idle == 0


def test_leaves_in_eights():
    ended = [False] * 64
    for place in range(7):
        ended[place] = True
        assert places_that_stay(ended, must=False) is None
    ended[40] = True
    assert places_that_stay(ended, must=False) == [*range(7, 40), *range(41, 64)]
    ended[63] = True  # eight of the nine leave, so that 56 rows are left
    assert places_that_stay(ended, must=False) == [0, *range(7, 40), *range(41, 63)]
    assert places_that_stay(ended, must=True) == [*range(7, 40), *range(41, 63)]


@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(beam_size=1),
        SearchOptions(beam_size=3, n_best=2),
        SearchOptions(beam_size=4, patience=1.0, length_penalty=0.6),
        SearchOptions(sample=True, n_best=2, seed=3),
    ],
)
def test_who_has_ended_and_stays_changes_nothing(options):
    """Limits of all kinds, which nobody passes; sentences end one by one."""
    table = 3 * torch.randn(997, V, generator=torch.Generator().manual_seed(1))
    table[:, EOS] -= 2
    model = TableModel(table)
    sentences = torch.arange(70)
    limits = 3 + sentences * 7 % 23
    options = replace(options, max_len_a=1.0, max_len_b=0)
    special = {"bos_id": BOS, "eos_id": EOS, "suppress": NEVER, "options": options}
    found = generate(model, sentences, src_lengths=limits, ids=range(70), **special)
    together = len(model.rows)
    assert any(one == other for one, other in itertools.pairwise(model.rows[1:]))
    for i in range(70):
        alone = generate(
            model,
            sentences[i : i + 1],
            src_lengths=limits[i : i + 1],
            ids=range(i, i + 1),
            **special,
        )
        assert found[i] == alone[0]
        assert max(len(hypothesis.tokens) for hypothesis in found[i]) <= limits[i]
    assert together <= int(limits.max())
