"""A batch is searched in parts where it could take too much memory; nobody can tell."""

import pytest
import torch

from litseq import translator
from litseq.decoding import SearchOptions
from litseq.translator import Translator
from litseq.types import Batch
from tiny_tasks import FAMILIES, VOCAB_SIZE, tiny_batches, tiny_task


class Words:
    """Stands in for a tokenizer."""

    def decode(self, ids):
        return " ".join(map(str, ids))


def make(family):
    return Translator(
        Words(), pad_id=0, bos_id=2, eos_id=3, model=tiny_task(family).eval().double().network
    )


def one_batch(num_batches=5, *, with_ids=True):
    """Fifteen sentences of different lengths."""
    lengths = torch.randint(2, 8, (3 * num_batches,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < lengths[:, None]).long()
    rows = torch.cat(
        [torch.nn.functional.pad(b["input_ids"], (0, 7))[:, :7] for b in tiny_batches(num_batches)]
    )
    batch = Batch(input_ids=rows.clamp(min=4) * mask, attention_mask=mask)
    return Batch(**batch, id=torch.arange(100, 100 + len(rows))) if with_ids else batch


def sizes_of(found, monkeypatch):
    """Notes how many sentences are encoded at once."""
    sizes, encode = [], found.model.encode

    def noted(src, mask):
        sizes.append(len(src))
        return encode(src, mask)

    monkeypatch.setattr(found.model, "encode", noted)
    return sizes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(beam_size=1, max_len_b=5),
        SearchOptions(beam_size=3, n_best=2, max_len_b=5),
        SearchOptions(sample=True, n_best=3, seed=4, max_len_b=5),
        SearchOptions(sample=True, n_best=3, max_len_b=5),  # its seed: of torch's generator
    ],
    ids=["greedy", "beam", "sampling", "sampling without seed"],
)
@pytest.mark.parametrize("with_ids", [True, False])
def test_parts_find_what_the_whole_finds(monkeypatch, family, options, with_ids):
    found, batch = make(family), one_batch(with_ids=with_ids)
    sizes = sizes_of(found, monkeypatch)
    ends = []
    hypotheses = options.n_best if options.sample else options.beam_size
    # of 7 tokens: up to 12 come out
    for limit in (translator._MAX_POSITIONS, 4 * hypotheses * 19):
        monkeypatch.setattr(translator, "_MAX_POSITIONS", limit)
        torch.manual_seed(1)
        ends.append((found.search(batch, options), torch.get_rng_state()))
    (whole, rng), (parts, rng_of_parts) = ends
    assert sizes[:2] == [15, 4]
    assert sum(sizes[1:]) == 15
    assert max(sizes[1:]) == 4
    assert torch.equal(rng, rng_of_parts)
    for expected, got in zip(whole, parts, strict=True):
        assert [h.tokens for h in got] == [h.tokens for h in expected]
        for a, b in zip(got, expected, strict=True):
            assert a.score == pytest.approx(b.score, rel=1e-9)
    assert len({tuple(h[0].tokens) for h in whole}) > 5


def test_a_sentence_is_never_too_large(monkeypatch):
    found = make(next(iter(FAMILIES)))
    sizes = sizes_of(found, monkeypatch)
    monkeypatch.setattr(translator, "_MAX_POSITIONS", 1)
    assert len(found.translate_batch(one_batch(), SearchOptions(max_len_b=5))) == 15
    assert sizes == [1] * 15


def test_attention_belongs_to_its_sentence(monkeypatch):
    found, batch = make(list(FAMILIES)[-1]), one_batch()
    options = SearchOptions(beam_size=2, max_len_b=5, attention=True)
    whole = found.search(batch, options)
    monkeypatch.setattr(translator, "_MAX_POSITIONS", 3 * 2 * 19)
    for expected, got in zip(whole, found.search(batch, options), strict=True):
        torch.testing.assert_close(got[0].attention, expected[0].attention)


def test_many_short_sources_are_searched_in_parts(monkeypatch):
    """2,048 sources of one word and EOS fill a batch of 4,096 tokens."""
    found = make(next(iter(FAMILIES)))
    sizes = sizes_of(found, monkeypatch)
    src = torch.randint(4, VOCAB_SIZE, (2048, 2))
    src[:, 1] = 3
    batch = Batch(input_ids=src, attention_mask=torch.ones_like(src))
    options = SearchOptions(beam_size=5, max_len_b=50)
    monkeypatch.setattr(
        translator,
        "generate_all",
        lambda _, sources, **__: [
            [] for some in sources for _, max_len, _ in some.parts() for _ in max_len
        ],
    )
    assert len(found.search(batch, options)) == 2048
    assert sizes == [970, 970, 108]
    assert max(sizes) * 5 * (2 + 52) <= translator._MAX_POSITIONS


def test_ordinary_batches_stay_whole():
    """Of max_tokens=4096, in a beam of 5, with the default length limit."""
    for length in range(5, 257):
        at_once = translator._rows_at_once(length, SearchOptions(beam_size=5))
        assert at_once >= 4096 // length, length
