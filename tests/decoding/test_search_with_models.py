from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from litseq.decoding import (
    SearchOptions,
    Sources,
    beam_search,
    generate,
    generate_all,
    greedy_search,
    length_norm,
    sample_search,
)
from litseq.layers import linear
from litseq.models.base import Seq2SeqModel
from litseq.models.rnn import Rnn
from litseq.models.rnn_attention import RnnAttention
from litseq.models.transformer import Transformer
from litseq.types import DecoderState, Memory

PAD, UNK, BOS, EOS = 0, 1, 2, 3
B, S, V = 5, 7, 23
LENGTHS = torch.tensor([7, 1, 4, 6, 3])
MAX_LEN = torch.tensor([12, 3, 9, 1, 20])


@dataclass(frozen=True)
class GruState(DecoderState):
    hidden: Tensor


class TinyGru(Seq2SeqModel):
    """The smallest model of the contract, written here so that nothing else can be at fault."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, 12)
        self.cell = nn.GRUCell(12, 12)
        self.output = nn.Linear(12, V)

    def encode(self, src, src_key_padding_mask):
        weights = (~src_key_padding_mask).to(self.output.weight).unsqueeze(-1)
        mean = (self.embedding(src) * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        return Memory(mean, src_key_padding_mask)

    def init_state(self, memory):
        return GruState(memory.output[:, 0])

    def step(self, token, state):
        hidden = self.cell(self.embedding(token), state.hidden)
        return self.output(hidden), GruState(hidden)

    def decode(self, tgt_in, memory):
        state, steps = self.init_state(memory), []
        for token in tgt_in.unbind(1):
            logits, state = self.step(token, state)
            steps.append(logits)
        return torch.stack(steps, dim=1)


def make_rnn():
    return Rnn(V, embedding_dim=12, hidden_size=10, num_layers=2, rnn_type="lstm")


def make_rnn_attention():
    return RnnAttention(V, embedding_dim=12, hidden_size=10, score="general", input_feeding=True)


def make_transformer():
    return Transformer(
        V,
        d_model=12,
        num_heads=3,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dim_feedforward=17,
    )


@pytest.fixture(params=[TinyGru, make_rnn, make_rnn_attention, make_transformer])
def model(request):
    torch.manual_seed(3)
    model = request.param().double().eval()
    # As they are initialised, models are nearly indifferent; sharper ones disagree and end.
    for parameter in model.parameters():
        parameter.data.mul_(2.0)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(4, V, (B, S), generator=generator)
    mask = torch.arange(S) >= LENGTHS.unsqueeze(1)
    return src.masked_fill(mask, PAD), mask


SEARCHES = {
    "greedy": lambda model, memory, ids, **shared: [
        [found] for found in greedy_search(model, memory, length_penalty=0.6, **shared)
    ],
    "beam": lambda model, memory, ids, **shared: beam_search(
        model, memory, beam_size=4, n_best=3, length_penalty=0.6, **shared
    ),
    "sample": lambda model, memory, ids, **shared: sample_search(
        model,
        memory,
        n_best=3,
        temperature=1.2,
        top_k=9,
        top_p=0.9,
        seed=3,
        length_penalty=0.6,
        ids=ids,
        **shared,
    ),
}


@pytest.fixture(params=list(SEARCHES))
def search(request, model):
    def run(memory, max_len, ids):
        return SEARCHES[request.param](
            model,
            memory,
            ids,
            bos_id=BOS,
            eos_id=EOS,
            max_len=max_len,
            suppress=(PAD, UNK, BOS),
        )

    return run


def test_scores_equal_teacher_forcing(model, batch, search):
    memory = model.encode(*batch)
    found = search(memory, MAX_LEN, list(range(B)))
    assert len({len(h.tokens) for hypotheses in found for h in hypotheses}) > 2
    for i, hypotheses in enumerate(found):
        one = memory.reorder(torch.tensor([i]))
        for hypothesis in hypotheses:
            tokens = torch.tensor(hypothesis.tokens)
            tgt_in = torch.cat([torch.tensor([BOS]), tokens[:-1]]).unsqueeze(0)
            log_probs = model.decode(tgt_in, one).log_softmax(-1)[0]
            expected = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
            given = torch.tensor(hypothesis.token_log_probs, dtype=torch.float64)
            torch.testing.assert_close(given, expected.detach())
            assert hypothesis.log_prob == pytest.approx(expected.sum().item(), rel=1e-9)
            norm = length_norm(len(tokens), 0.6)
            assert hypothesis.score == pytest.approx(expected.sum().item() / norm, rel=1e-9)


def test_a_batch_of_one_finds_what_a_batch_of_many_finds(model, batch, search):
    src, mask = batch
    together = search(model.encode(src, mask), MAX_LEN, list(range(B)))
    for i in range(B):
        length = int(LENGTHS[i])  # without the neighbours there is no padding either
        memory = model.encode(src[i : i + 1, :length], mask[i : i + 1, :length])
        (alone,) = search(memory, MAX_LEN[i : i + 1], [i])
        assert [h.tokens for h in alone] == [h.tokens for h in together[i]]
        torch.testing.assert_close([h.score for h in alone], [h.score for h in together[i]])


def test_packed_weights_find_what_plain_ones_find(model, batch, search, monkeypatch):
    model.float()
    src, mask = batch
    packings = []
    monkeypatch.setattr(linear, "_ROWS_TO_PACK", 0)
    pack = linear._pack
    monkeypatch.setattr(linear, "_pack", lambda *a: packings.append(1) or pack(*a))
    memory = model.encode(src, mask)
    packed = search(memory, MAX_LEN, list(range(B)))
    assert bool(packings) == (not isinstance(model, TinyGru))
    monkeypatch.setattr(linear.Packing, "takes", lambda *args: False)
    plain = search(memory, MAX_LEN, list(range(B)))
    for ours, theirs in zip(packed, plain, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        scores = (torch.tensor([h.score for h in found]) for found in (ours, theirs))
        torch.testing.assert_close(*scores)


def test_a_beam_of_one_is_greedy_search(model, batch):
    memory = model.encode(*batch)
    shared = {"bos_id": BOS, "eos_id": EOS, "max_len": MAX_LEN, "length_penalty": 0.6}
    greedy = greedy_search(model, memory, **shared)
    assert beam_search(model, memory, beam_size=1, n_best=1, **shared) == [[h] for h in greedy]


OPTIONS = {
    "greedy": SearchOptions(beam_size=1, max_len_a=2, max_len_b=3),
    "beam": SearchOptions(beam_size=3, n_best=2, max_len_a=2, max_len_b=3),
    "patience": SearchOptions(beam_size=3, patience=1, max_len_a=2, max_len_b=3),
    "sample": SearchOptions(sample=True, n_best=2, seed=1, max_len_a=2, max_len_b=3),
    "attention": SearchOptions(beam_size=2, attention=True, max_len_a=2, max_len_b=3),
}


def many(model):
    """Four batches of sentences of different lengths: their sources and what there is of them."""
    generator = torch.Generator().manual_seed(2)
    for size, length in ((9, 7), (5, 4), (1, 2), (8, 9)):
        src = torch.randint(4, V, (size, length), generator=generator)
        lengths = torch.randint(1, length + 1, (size,), generator=generator)
        lengths[0] = length
        mask = torch.arange(length) >= lengths[:, None]
        yield src.masked_fill(mask, PAD), mask, lengths


@pytest.mark.parametrize("room", [None, 3])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_many_batches_find_what_each_finds(model, name, room, monkeypatch):
    options, shared = OPTIONS[name], {"bos_id": BOS, "eos_id": EOS, "suppress": (PAD, UNK)}
    if options.attention and isinstance(model, (TinyGru, Rnn)):
        with pytest.raises(ValueError, match="has no attention"):
            generate_all(model, [], options=options, **shared)
        return
    rows, step = [], model.step
    monkeypatch.setattr(model, "step", lambda *args: rows.append(len(args[0])) or step(*args))

    def sources():
        for src, mask, lengths in many(model):
            yield Sources(
                lambda rows, src=src, mask=mask: model.encode(src[rows], mask[rows]),
                options.max_len(lengths),
                room=room,
            )

    found = generate_all(model, sources(), options=options, **shared)
    steps_together = len(rows)
    rows.clear()
    expected = []
    for src, mask, lengths in many(model):
        for part in torch.arange(len(src)).split(room or len(src)):
            memory = model.encode(src[part], mask[part])
            expected += generate(
                model, memory, src_lengths=lengths[part], options=options,
                ids=part.tolist(), **shared,
            )  # fmt: skip
    assert len(found) == len(expected) == 23
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        scores = ([h.score for h in hypotheses] for hypotheses in (ours, theirs))
        torch.testing.assert_close(*scores)
        if options.attention:
            torch.testing.assert_close(ours[0].attention, theirs[0].attention)
    assert len({len(h.tokens) for hypotheses in found for h in hypotheses}) > 3
    waits = not isinstance(model, TinyGru) and not options.sample and not options.attention
    if waits and room is None:
        assert steps_together < len(rows)
    elif not waits:
        assert steps_together == len(rows)


def test_no_batch_and_empty_ones(model):
    shared = {"bos_id": BOS, "eos_id": EOS}
    assert generate_all(model, [], options=OPTIONS["greedy"], **shared) == []
    src, mask, lengths = next(many(model))
    none = Sources(lambda rows: pytest.fail("encoded"), lengths[:0], room=4)
    some = Sources.of(model.encode(src, mask), lengths)
    for options in (OPTIONS["greedy"], OPTIONS["beam"], OPTIONS["sample"]):
        found = generate_all(model, [none, some, none], options=options, **shared)
        assert len(found) == len(src)
