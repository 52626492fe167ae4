import itertools

import pytest
import torch
from torch import Tensor, nn

from litseq.models.rnn_attention import RnnAttention

B, S, T, E, H, V_SRC, V = 3, 7, 5, 4, 6, 23, 19
LENGTHS = [4, 7, 2]
LUONG = list(itertools.product(("dot", "general", "concat"), (False, True)))
STYLES = [("additive", False), *LUONG]  # score, input_feeding
OPTIONS = [
    {
        "rnn_type": rnn_type,
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "score": score,
        "input_feeding": input_feeding,
    }
    for rnn_type, num_layers, bidirectional, (score, input_feeding) in itertools.product(
        ("gru", "lstm", "tanh"), (1, 2), (False, True), STYLES
    )
    if not (score == "dot" and bidirectional)
]
every_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: "-".join(str(value) for value in options.values())
)
every_style = pytest.mark.parametrize(("score", "input_feeding"), STYLES)


def make(**options) -> RnnAttention:
    torch.manual_seed(0)
    kwargs = {"vocab_size": V, "src_vocab_size": V_SRC, "embedding_dim": E, "hidden_size": H}
    return RnnAttention(**(kwargs | options)).double().eval()


def make_style(score: str, input_feeding: bool, **options) -> RnnAttention:
    return make(score=score, input_feeding=input_feeding, bidirectional=score != "dot", **options)


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    padding = torch.arange(S)[None] >= torch.tensor(LENGTHS)[:, None]
    src = torch.randint(4, V_SRC, (B, S)).masked_fill(padding, 0)
    return src, padding, torch.randint(4, V, (B, T))


class DecoderByHand:
    """One row, one step at a time, from torch's cells and the papers' formulas."""

    def __init__(self, model: RnnAttention, src: Tensor) -> None:
        cells = {nn.GRU: nn.GRUCell, nn.LSTM: nn.LSTMCell, nn.RNN: nn.RNNCell}
        self.model = model
        self.cell = cells[type(model.decoder)](model.decoder.input_size, H).double()
        self.cell.load_state_dict(
            {name.removesuffix("_l0"): value for name, value in model.decoder.state_dict().items()}
        )
        self.h, final = model.encoder.rnn(model.src_embedding(src))  # (S, D)
        parts = final if isinstance(final, tuple) else (final,)
        self.state = [part.flatten() for part in parts]
        if model.encoder.rnn.bidirectional:
            linears = model.bridge.linears
            self.state = [f(part).tanh() for f, part in zip(linears, self.state, strict=True)]
        self.feed = torch.zeros(H, dtype=torch.float64)

    def attend(self, s: Tensor) -> tuple[Tensor, Tensor]:
        attend = self.model.attend
        if attend.score == "dot":
            scores = torch.stack([s.dot(h) for h in self.h])
        elif attend.score == "general":
            scores = torch.stack([s.dot(attend.key_projection.weight.mv(h)) for h in self.h])
        else:
            v = attend.energy.weight[0]
            w = torch.cat([attend.query_projection.weight, attend.key_projection.weight], dim=1)
            scores = torch.stack([v.dot(w.mv(torch.cat([s, h])).tanh()) for h in self.h])
        weights = scores.softmax(0)
        return sum(a * h for a, h in zip(weights, self.h, strict=True)), weights

    def recur(self, x: Tensor) -> Tensor:
        if isinstance(self.cell, nn.LSTMCell):
            self.state = list(self.cell(x, tuple(self.state)))
        else:
            self.state = [self.cell(x, self.state[0])]
        return self.state[0]

    def step(self, token: Tensor) -> tuple[Tensor, Tensor]:
        y = self.model.tgt_embedding.weight[token]
        if self.model.attend.score == "additive":  # Bahdanau et al. (2015)
            context, weights = self.attend(self.state[0])
            s = self.recur(torch.cat([y, context]))
            read = torch.cat([context, s, y])
        else:  # Luong et al. (2015)
            s = self.recur(torch.cat([y, self.feed]) if self.model.input_feeding else y)
            context, weights = self.attend(s)
            read = torch.cat([context, s])
        self.feed = self.model.readout(read).tanh()
        return self.model.output(self.feed), weights


@pytest.mark.parametrize("rnn_type", ["gru", "lstm", "tanh"])
@every_style
def test_equals_the_formulas(score, input_feeding, rnn_type):
    model = make_style(score, input_feeding, rnn_type=rnn_type)
    src, padding, tgt_in = make_batch()
    memory = model.encode(src, padding)
    logits, weights = model.decode(tgt_in, memory), model.attention(tgt_in, memory)
    for b, length in enumerate(LENGTHS):
        by_hand = DecoderByHand(model, src[b, :length])
        for t in range(T):
            expected_logits, expected_weights = by_hand.step(tgt_in[b, t])
            torch.testing.assert_close(logits[b, t], expected_logits)
            torch.testing.assert_close(weights[b, t, :length], expected_weights)


@pytest.mark.parametrize(
    ("rnn_type", "module"), [("gru", nn.GRU), ("lstm", nn.LSTM), ("tanh", nn.RNN)]
)
def test_luong_dot_equals_torch_with_copied_weights(rnn_type, module):
    model = make(rnn_type=rnn_type, num_layers=2, bidirectional=False, score="dot")
    encoder, decoder = (module(E, H, num_layers=2, batch_first=True).double() for _ in range(2))
    encoder.load_state_dict(model.encoder.rnn.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    src, _, tgt_in = make_batch()
    src = src.clamp(min=4)  # no padding
    memory, final = encoder(model.src_embedding.weight[src])
    hidden, _ = decoder(model.tgt_embedding.weight[tgt_in], final)
    context = nn.functional.scaled_dot_product_attention(hidden, memory, memory, scale=1.0)
    readout = (torch.cat([context, hidden], dim=-1) @ model.readout.weight.T).tanh()
    expected = readout @ model.output.weight.T + model.output.bias
    logits = model(src, torch.zeros_like(src, dtype=torch.bool), tgt_in)
    torch.testing.assert_close(logits, expected)


@every_option
def test_step_matches_decode(options):
    model = make(**options)
    src, padding, tgt_in = make_batch()
    memory = model.encode(src, padding)
    expected = model.decode(tgt_in, memory)
    state = model.init_state(memory)
    for t in range(T):
        logits, state = model.step(tgt_in[:, t], state)
        torch.testing.assert_close(logits, expected[:, t])


@every_option
def test_weights_sum_to_one_and_padding_gets_exactly_nothing(options):
    model = make(**options)
    src, padding, tgt_in = make_batch()
    weights = model.attention(tgt_in, model.encode(src, padding))
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T, dtype=torch.float64))
    hidden = padding[:, None].expand(B, T, S)
    assert weights[hidden].eq(0).all()
    assert weights[~hidden].gt(0).all()


@every_option
def test_padding_and_batch_order_change_nothing(options):
    model = make(**options)
    src, padding, tgt_in = make_batch()
    expected = model(src, padding, tgt_in)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(src[order], padding[order], tgt_in[order]), expected[order])
    for b, length in enumerate(LENGTHS):
        alone = model(src[b : b + 1, :length], padding[b : b + 1, :length], tgt_in[b : b + 1])
        torch.testing.assert_close(alone[0], expected[b])
    junk = model(src.masked_fill(padding, 5), padding, tgt_in)
    assert junk.equal(expected)


@every_option
def test_future_tokens_change_nothing(options):
    model = make(**options)
    src, padding, tgt_in = make_batch()
    memory = model.encode(src, padding)
    expected, expected_weights = model.decode(tgt_in, memory), model.attention(tgt_in, memory)
    changed = tgt_in.clone()
    changed[:, 3:] = 1
    logits, weights = model.decode(changed, memory), model.attention(changed, memory)
    torch.testing.assert_close(logits[:, :3], expected[:, :3], rtol=0, atol=0)
    torch.testing.assert_close(weights[:, :3], expected_weights[:, :3], rtol=0, atol=0)
    assert not logits[:, 3].equal(expected[:, 3])


@every_option
def test_gradients_reach_every_parameter(options):
    model = make(**options)
    src, padding, tgt_in = make_batch()
    model(src, padding, tgt_in).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.ne(0).any(), name


@every_style
def test_reordered_state_goes_on_as_the_rows_it_took(score, input_feeding):
    model = make_style(score, input_feeding, rnn_type="lstm", num_layers=2)
    src, padding, tgt_in = make_batch()
    index = torch.tensor([2, 2, 0, 1])
    _, state = model.step(tgt_in[:, 0], model.init_state(model.encode(src, padding)))
    expected, _ = model.step(tgt_in[:, 1], state)
    logits, _ = model.step(tgt_in[index, 1], state.reorder(index))
    torch.testing.assert_close(logits, expected[index])


@every_style
def test_the_first_tokens_change_the_weights_only_through_the_state(score, input_feeding):
    model = make_style(score, input_feeding)
    src, padding, tgt_in = make_batch()
    memory = model.encode(src, padding)
    changed = tgt_in.clone()
    changed[:, 2] = 1
    before, after = model.attention(tgt_in, memory), model.attention(changed, memory)
    # Bahdanau's query is the state before the token is read, Luong's the state after it.
    assert before[:, 2].equal(after[:, 2]) == (score == "additive")
    assert not before[:, 3].equal(after[:, 3])


@every_style
def test_keys_are_projected_once_per_source(score, input_feeding):
    model = make_style(score, input_feeding)
    src, padding, tgt_in = make_batch()
    calls = []
    if score != "dot":
        model.attend.key_projection.register_forward_hook(lambda *_: calls.append(1))
    state = model.init_state(model.encode(src, padding))
    for t in range(T):
        _, state = model.step(tgt_in[:, t], state)
    assert len(calls) == (0 if score == "dot" else 1)


def test_memory_keeps_every_state():
    model = make(rnn_type="lstm", num_layers=2)
    src, padding, _ = make_batch()
    memory = model.encode(src, padding)
    assert memory.output.shape == (B, S, 2 * H)
    assert memory.key_padding_mask.equal(padding)
    assert [part.shape for part in memory.state] == [(B, 2, 2 * H)] * 2


def test_tables_are_shared_and_tied():
    model = make(src_vocab_size=None, embedding_dim=H, share_embeddings=True, tie_output=True)
    assert model.src_embedding is model.tgt_embedding
    assert model.output.weight is model.tgt_embedding.weight


def test_dropout_acts_in_training_alone():
    model = make(num_layers=2, dropout=0.5)
    batch = make_batch()
    assert model(*batch).equal(model(*batch))
    model.train()
    assert not model(*batch).equal(model(*batch))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"score": "mlp"}, "score must be one of additive, dot, general, concat, got 'mlp'"),
        ({"score": "dot"}, "got decoder states of 6 and encoder states of 12; use 'general'"),
        ({"input_feeding": True}, "input_feeding belongs to the scores dot, general and concat"),
        ({"rnn_type": "sru"}, "rnn_type must be one of gru, lstm, tanh, got 'sru'"),
        ({"share_embeddings": True}, "got 23 source and 19 target ids"),
        ({"tie_output": True}, "embedding_dim == hidden_size, got 4 and 6"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)
