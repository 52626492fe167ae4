"""The attention that comes out of a search belongs to the sequence that comes out."""

import pytest
import torch
from table_model import random_model

from litseq.attention import capture_attention
from litseq.decoding import Attending, SearchOptions, beam_search, generate, greedy_search
from litseq.models import Rnn, RnnAttention, Transformer

PAD, BOS, EOS = 0, 2, 3
B, S, V = 5, 7, 23
LENGTHS = torch.tensor([7, 1, 4, 6, 3])
RECURRENT = {"embedding_dim": 10, "hidden_size": 12}
MODELS = {
    "transformer": lambda: Transformer(
        V, d_model=12, num_heads=3, num_encoder_layers=1, num_decoder_layers=2, dim_feedforward=20
    ),
    "last layer": lambda: Transformer(
        V, d_model=12, num_heads=3, num_encoder_layers=1, num_decoder_layers=3, dim_feedforward=20,
        cross_attention="last_layer",
    ),
    "bahdanau": lambda: RnnAttention(V, **RECURRENT),
    "input feeding": lambda: RnnAttention(V, **RECURRENT, score="general", input_feeding=True),
}  # fmt: skip
SEARCHES = {
    "greedy": SearchOptions(beam_size=1, attention=True),
    "beam": SearchOptions(beam_size=4, n_best=3, attention=True),
    "sampling": SearchOptions(sample=True, n_best=2, seed=1, attention=True),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    torch.manual_seed(5)
    model = request.param().double().eval()
    for parameter in model.parameters():  # so that sequences differ and end
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def encoded(model):
    torch.manual_seed(6)
    padding = torch.arange(S) >= LENGTHS[:, None]
    return model.encode(torch.randint(4, V, (B, S)).masked_fill(padding, PAD), padding)


def search(model, options, **changes):
    return generate(
        model, encoded(model), src_lengths=LENGTHS, options=options, bos_id=BOS, eos_id=EOS,
        suppress=(PAD, BOS), **changes,
    )  # fmt: skip


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_it_is_that_of_teacher_forcing_the_hypothesis(model, options):
    found = search(model, options)
    lengths = set()
    for row, hypotheses in enumerate(found):
        assert len(hypotheses) == options.n_best
        for hypothesis in hypotheses:
            tgt_in = torch.tensor([[BOS, *hypothesis.tokens[:-1]]])
            memory = encoded(model).reorder(torch.tensor([row]))
            with torch.inference_mode(), capture_attention(model, kinds=["cross"]) as maps:
                model.decode(tgt_in, memory)
            expected = torch.stack([m.weights[0] for m in maps])  # (L, H, T, S)
            torch.testing.assert_close(hypothesis.attention, expected)
            lengths.add(len(hypothesis.tokens))
    assert len(lengths) > 1, "too easy"


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_to_watch_changes_nothing(model, options):
    watched = search(model, options)
    unwatched = search(model, SearchOptions(**{**vars(options), "attention": False}))
    assert watched == unwatched  # the attention itself is not compared
    assert all(h.attention is None for row in unwatched for h in row)


def test_by_the_searches_themselves(model):
    options = {"bos_id": BOS, "eos_id": EOS, "max_len": torch.full((B,), 6)}
    greedy = greedy_search(Attending(model), encoded(model), **options)
    beam = beam_search(
        Attending(model), encoded(model), beam_size=1, length_penalty=0.0, n_best=1, **options
    )
    for one, (other,) in zip(greedy, beam, strict=True):
        assert one == other
        assert one.attention.shape[2:] == (len(one.tokens), S)
        torch.testing.assert_close(one.attention, other.attention)


def test_a_model_without_attention():
    model = Rnn(V, **RECURRENT).eval()
    with pytest.raises(ValueError, match="Rnn has no attention that a search could keep"):
        search(model, SEARCHES["beam"])


def test_a_model_that_is_no_module():
    with pytest.raises(ValueError, match="TableModel has no attention that a search could keep"):
        Attending(random_model(0))
