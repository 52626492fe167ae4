"""What every model promises, whatever is inside of it."""

from dataclasses import dataclass, fields
from functools import partial
from typing import get_args

import pytest
import torch

from litseq.decoding.contract import reorder_beams
from litseq.layers.recurrent import RnnType
from litseq.layers.score import Score
from litseq.models import Rnn, RnnAttention, Transformer

B, S, T, V = 3, 7, 5, 23
RECURRENT = {"embedding_dim": 10, "hidden_size": 12}
MODELS = {
    "rnn": lambda: Rnn(V, **RECURRENT, num_layers=2, rnn_type="lstm", bidirectional=True),
    "bahdanau": lambda: RnnAttention(V, **RECURRENT),
    "luong": lambda: RnnAttention(V, **RECURRENT, score="general", input_feeding=True),
    "transformer": lambda: Transformer(
        V, d_model=12, num_heads=3, num_encoder_layers=2, num_decoder_layers=3, dim_feedforward=20
    ),
    "pre-norm transformer": lambda: Transformer(
        V, d_model=12, num_heads=3, num_encoder_layers=2, num_decoder_layers=3,
        dim_feedforward=20, norm_first=True, positions="learned",
    ),
    "rotary transformer": lambda: Transformer(
        V, d_model=12, num_heads=3, num_encoder_layers=2, num_decoder_layers=3,
        dim_feedforward=20, positions="rotary", max_positions=4,  # shorter than the sequences
    ),
    "gated transformer": lambda: Transformer(
        V, d_model=12, num_heads=3, num_encoder_layers=2, num_decoder_layers=3,
        dim_feedforward=20, activation="swish", gated=True,
    ),
    "ablated transformer": lambda: Transformer(
        V, d_model=12, num_heads=3, num_encoder_layers=2, num_decoder_layers=3,
        dim_feedforward=20, positions="none", cross_attention="last_layer", scale_scores=False,
    ),
}  # fmt: skip

BFLOAT16 = {
    **MODELS,
    **{
        f"rnn {cell} {bidirectional}": partial(
            Rnn, V, **RECURRENT, rnn_type=cell, bidirectional=bidirectional
        )
        for cell in get_args(RnnType)
        for bidirectional in (False, True)
    },
    **{
        f"rnn_attention {cell} {score} {feeding}": partial(
            RnnAttention, V, **RECURRENT, rnn_type=cell, score=score, input_feeding=feeding,
            bidirectional=score != "dot",
        )
        for cell in get_args(RnnType)
        for score in get_args(Score)
        for feeding in ((False,) if score == "additive" else (False, True))
    },
}  # fmt: skip


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    torch.manual_seed(0)
    return request.param().double().eval()


@pytest.fixture
def src():
    return torch.randint(4, V, (B, S))


@pytest.fixture
def padding():
    return torch.arange(S) >= torch.tensor([[S], [4], [1]])


@pytest.fixture
def tgt():
    return torch.randint(4, V, (B, T))


def test_step_equals_decode(model, src, padding, tgt):
    memory = model.encode(src, padding)
    expected = model.decode(tgt, memory)
    state = model.init_state(memory)
    for t in range(T):
        logits, state = model.step(tgt[:, t], state)
        torch.testing.assert_close(logits, expected[:, t])


def test_reordered_state_is_that_of_the_other_rows(model, src, padding, tgt):
    state = model.init_state(model.encode(src, padding))
    _, state = model.step(tgt[:, 0], state)
    rows = torch.tensor([2, 0, 0, 1])
    logits, _ = model.step(tgt[rows, 1], state.reorder(rows))
    expected, _ = model.step(tgt[:, 1], state)
    torch.testing.assert_close(logits, expected[rows])


def test_beams_that_share_their_source_are_those_that_do_not(model, src, padding, tgt):
    shared = apart = model.init_state(model.encode(src, padding))

    def both(token):
        nonlocal shared, apart
        found, shared = model.step(token, shared)
        expected, apart = model.step(token, apart)
        torch.testing.assert_close(found, expected)

    def take(index, sentences):
        nonlocal shared, apart
        index = torch.tensor(index)
        sentences = None if sentences is None else torch.tensor(sentences)
        shared, apart = reorder_beams(shared, index, sentences), apart.reorder(index.flatten())

    both(tgt[:, 0])
    take([[0, 0], [1, 1], [2, 2]], None)  # a beam of two for each of three sentences
    both(torch.tensor([4, 9, 5, 8, 7, 6]))
    take([[1, 1], [4, 5]], [0, 2])  # the second sentence is done
    both(torch.tensor([9, 4, 5, 8]))
    shared, apart = (state.reorder(torch.tensor([3, 0, 1])) for state in (shared, apart))
    both(torch.tensor([7, 5, 4]))


def advanced(model, src, padding, tgt, *, rows, steps, beam):
    """The state of some sentences, each with as many targets as the beam is wide."""
    src, padding = src[rows], padding[rows]
    length = int((~padding).sum(1).max())
    state = model.init_state(model.encode(src[:, :length], padding[:, :length]))
    state = reorder_beams(state, torch.arange(len(rows))[:, None].expand(-1, beam))
    tokens = tgt[rows].repeat_interleave(beam, 0)
    tokens[1::2] = (tokens[1::2] + 1) % V  # the beams differ
    for t in range(steps):
        _, state = model.step(tokens[:, t], state)
    return state


@pytest.mark.parametrize("beam", [1, 2])
def test_joined_states_go_on_as_each_by_itself(model, src, padding, tgt, beam):
    """Sentences that have come three, one and no token far, of sources of different lengths."""
    kinds = ((3, [0]), (1, [1, 2]), (0, [0, 2]))
    apart = [
        advanced(model, src, padding, tgt, rows=rows, steps=steps, beam=beam)
        for steps, rows in kinds
    ]
    joined = apart[0].join(apart[1]).join(apart[2])

    def go_on(token):
        nonlocal joined, apart
        logits, joined = model.step(token, joined)
        expected = [
            model.step(part, state)
            for part, state in zip(token.split([beam, 2 * beam, 2 * beam]), apart, strict=True)
        ]
        torch.testing.assert_close(logits, torch.cat([logits for logits, _ in expected]))
        apart = [state for _, state in expected]

    go_on(torch.arange(5 * beam) % 7 + 4)
    go_on(torch.arange(5 * beam) % 5 + 4)
    # the first sentence leaves, the beams of the others change places
    index = torch.arange(beam, 5 * beam).view(4, beam).flip(1)
    joined = reorder_beams(joined, index, torch.arange(1, 5))
    again = [
        reorder_beams(state, torch.arange(2 * beam).view(2, beam).flip(1)) for state in apart[1:]
    ]
    token = torch.arange(4 * beam) % 6 + 4
    logits, joined = model.step(token, joined)
    expected = [model.step(part, x)[0] for part, x in zip(token.chunk(2), again, strict=True)]
    torch.testing.assert_close(logits, torch.cat(expected))


def test_joining_leaves_out_what_nobody_needs(src, padding, tgt):
    model = MODELS["transformer"]().double().eval()
    long, short = (
        advanced(model, src, padding, tgt, rows=rows, steps=steps, beam=1)
        for steps, rows in ((4, [0, 1]), (2, [1, 2]))
    )
    both = long.join(short)
    assert both.own.tolist() == [[True] * 4] * 2 + [[True, True, False, False]] * 2
    assert both.read.tolist() == [4, 4, 2, 2]
    late = both.reorder(torch.tensor([2, 3])).join(short)
    assert late.own.tolist() == [[True] * 2] * 4
    assert [x.size(2) for pair in late.past for x in pair] == [2] * 6
    assert late.memory_mask.size(-1) == int((~padding[[1, 2]]).sum(1).max())


def test_joining_leaves_out_what_beams_that_are_gone_have_read(src, padding, tgt):
    model = MODELS["transformer"]().double().eval()
    state = advanced(model, src, padding, tgt, rows=[0, 1], steps=3, beam=2)
    assert state.own.tolist() == [[True, False] * 3, [False, True] * 3] * 2
    first = torch.tensor([[0, 0], [3, 3]])  # one beam of each sentence goes on twice
    joined = reorder_beams(state, first).join(state)
    assert joined.own.tolist()[:4] == [[True] * 3 + [False] * 3] * 4
    token = torch.tensor([4, 5, 6, 7])
    expected, _ = model.step(token, reorder_beams(state, first))
    torch.testing.assert_close(model.step(token.repeat(2), joined)[0][:4], expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("beam", [1, 2])
def test_a_state_stays_as_it_is_while_others_go_on_from_it(src, padding, tgt, mode, beam):
    """Keys and values are written where there is room; of those who share it one alone may."""
    model = MODELS["transformer"]().double().eval()
    with mode():
        state = advanced(model, src, padding, tgt, rows=[0, 1], steps=2, beam=beam)
        before = [x.clone() for pair in state.past for x in pair]
        tokens = torch.arange(2 * beam).add(4), torch.arange(2 * beam).add(9)
        ways = [model.step(token, state)[1] for token in tokens]
        for x, y in zip(before, (x for pair in state.past for x in pair), strict=True):
            assert torch.equal(x, y)
        for token, way in zip(tokens, ways, strict=True):
            fresh = advanced(model, src, padding, tgt, rows=[0, 1], steps=2, beam=beam)
            _, fresh = model.step(token, fresh)
            torch.testing.assert_close(model.step(token, way)[0], model.step(token, fresh)[0])


def test_steps_of_either_mode_follow_one_another(src, padding, tgt):
    model = MODELS["transformer"]().double().eval()
    with torch.no_grad():
        memory = model.encode(src, padding)
        state, expected = model.init_state(memory), model.decode(tgt, memory)
        for t in range(4):
            with torch.inference_mode() if t % 2 else torch.no_grad():
                logits, state = model.step(tgt[:, t], state)
            torch.testing.assert_close(logits, expected[:, t])


@pytest.mark.parametrize("name", ["transformer", "bahdanau"])
def test_states_of_a_kind_of_ones_own_are_taken_whole(name, src, padding, tgt):
    model = MODELS[name]().double().eval()
    state = model.init_state(model.encode(src, padding))

    @dataclass(frozen=True)
    class Counting(type(state)):
        count: torch.Tensor | None = None

    values = {field.name: getattr(state, field.name) for field in fields(state)}
    state = Counting(**values, count=torch.arange(B)).reorder(torch.tensor([2, 0, 0, 1]))
    assert state.count.tolist() == [2, 0, 0, 1]
    state = state.reorder_beams(torch.tensor([[3, 3], [0, 0]]), torch.tensor([3, 0]))
    assert isinstance(state, Counting)
    assert state.count.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("name", [name for name in MODELS if "transformer" in name])
@pytest.mark.parametrize("trains", [True, False])
def test_no_sentence_is_a_batch_too(name, tgt, trains):
    model = MODELS[name]().double().eval()
    none = torch.empty(0, S, dtype=torch.int64)
    with torch.set_grad_enabled(trains):
        state = model.init_state(model.encode(none, none == 0))
        logits, state = model.step(tgt[:0, 0], state)
        assert logits.shape == (0, V)
        assert model.step(tgt[:0, 1], state.reorder(tgt[:0, 0]))[0].shape == (0, V)


def test_padding_changes_nothing(model, src, padding, tgt):
    expected = model(src, padding, tgt)
    torch.testing.assert_close(model(src.masked_fill(padding, 0), padding, tgt), expected)
    torch.testing.assert_close(model(src.masked_fill(padding, 9), padding, tgt), expected)
    more = torch.nn.functional.pad(src, (0, 3), value=11)
    mask = torch.nn.functional.pad(padding, (0, 3), value=True)
    torch.testing.assert_close(model(more, mask, tgt), expected)
    for row, length in enumerate((~padding).sum(1).tolist()):
        alone = model(src[row : row + 1, :length], padding[row : row + 1, :length], tgt[[row]])
        torch.testing.assert_close(alone, expected[[row]])


def test_order_of_the_batch_changes_nothing(model, src, padding, tgt):
    rows = torch.tensor([1, 2, 0])
    torch.testing.assert_close(
        model(src[rows], padding[rows], tgt[rows]), model(src, padding, tgt)[rows]
    )


def test_the_future_does_not_change_the_past(model, src, padding, tgt):
    expected = model(src, padding, tgt)
    for t in range(1, T):
        other = tgt.clone()
        other[:, t:] = torch.randint(4, V, (B, T - t))
        found = model(src, padding, other)
        torch.testing.assert_close(found[:, :t], expected[:, :t])
        assert not torch.allclose(found[:, t:], expected[:, t:])


def test_the_source_matters(model, src, padding, tgt):
    other = src.clone()
    other[:, 0] = (other[:, 0] - 3) % (V - 4) + 4
    assert not torch.allclose(model(other, padding, tgt), model(src, padding, tgt))


def test_gradients_reach_every_parameter(model, src, padding, tgt):
    model.train()(src, padding, tgt).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_nothing_stays_on_the_module(model, src, padding, tgt):
    before = {name: id(value) for name, value in vars(model).items()}
    state = model.init_state(model.encode(src, padding))
    model.step(tgt[:, 0], state)
    assert {name: id(value) for name, value in vars(model).items()} == before


@pytest.fixture
def default_bfloat16():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("make", BFLOAT16.values(), ids=BFLOAT16)
def test_builds_and_trains_in_bfloat16(default_bfloat16, make, src, padding, tgt):
    model = make()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    logits = model(src, padding, tgt)
    assert logits.dtype == torch.bfloat16
    logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_bfloat16_autocast_is_close(model, src, padding, tgt):
    model.float()
    expected = model(src, padding, tgt)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(src, padding, tgt)
    # eight bits of mantissa, a dozen layers: a tenth of the logits' spread is generous, a wrong
    # mask or scale is far outside
    assert (logits - expected).abs().max() < 0.1 * expected.std() * 3
