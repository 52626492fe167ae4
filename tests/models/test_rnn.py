import itertools

import pytest
import torch
from torch import nn

from litseq.models.rnn import Rnn, reverse_tokens

B, S, T, E, H, V_SRC, V = 3, 7, 5, 4, 6, 23, 19
LENGTHS = [4, 7, 2]
OPTIONS = [
    {
        "rnn_type": rnn_type,
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "context_at_every_step": context_at_every_step,
    }
    for rnn_type, num_layers, bidirectional, context_at_every_step in itertools.product(
        ("gru", "lstm", "tanh"), (1, 2), (False, True), (False, True)
    )
]
every_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: "-".join(str(value) for value in options.values())
)


def make(**options) -> Rnn:
    torch.manual_seed(0)
    kwargs = {"vocab_size": V, "src_vocab_size": V_SRC, "embedding_dim": E, "hidden_size": H}
    return Rnn(**(kwargs | options)).double().eval()


def make_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    padding = torch.arange(S)[None] >= torch.tensor(LENGTHS)[:, None]
    src = torch.randint(4, V_SRC, (B, S)).masked_fill(padding, 0)
    return src, padding, torch.randint(4, V, (B, T))


@pytest.mark.parametrize(
    ("rnn_type", "module"), [("gru", nn.GRU), ("lstm", nn.LSTM), ("tanh", nn.RNN)]
)
def test_equals_torch_with_copied_weights(rnn_type, module):
    model = make(rnn_type=rnn_type, num_layers=2)
    encoder, decoder = (module(E, H, num_layers=2, batch_first=True).double() for _ in range(2))
    encoder.load_state_dict(model.encoder.rnn.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    src, _, tgt_in = make_batch()
    src = src.clamp(min=4)  # no padding
    _, final = encoder(model.src_embedding.weight[src])
    hidden, _ = decoder(model.tgt_embedding.weight[tgt_in], final)
    expected = hidden @ model.output.weight.T + model.output.bias
    logits = model(src, torch.zeros_like(src, dtype=torch.bool), tgt_in)
    torch.testing.assert_close(logits, expected)


def test_equals_a_bidirectional_lstm_of_two_layers_row_by_row():
    model = make(rnn_type="lstm", num_layers=2, bidirectional=True)
    encoder = nn.LSTM(E, H, num_layers=2, bidirectional=True).double()
    decoder = nn.LSTM(E, H, num_layers=2).double()
    encoder.load_state_dict(model.encoder.rnn.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    src, padding, tgt_in = make_batch()
    logits = model(src, padding, tgt_in)
    hidden_0, hidden_1, cell_0, cell_1 = model.bridge.linears
    for b, length in enumerate(LENGTHS):
        _, (h, c) = encoder(model.src_embedding(src[b, :length]))  # (4, H) each
        first_h = torch.stack([hidden_0(h[:2].flatten()), hidden_1(h[2:].flatten())]).tanh()
        first_c = torch.stack([cell_0(c[:2].flatten()), cell_1(c[2:].flatten())]).tanh()
        hidden, _ = decoder(model.tgt_embedding(tgt_in[b]), (first_h, first_c))
        torch.testing.assert_close(logits[b], model.output(hidden))


def test_context_enters_every_input_and_every_output():
    model = make(context_at_every_step=True)
    src, padding, tgt_in = make_batch()
    logits = model(src, padding, tgt_in)
    for b, length in enumerate(LENGTHS):
        _, context = model.encoder.rnn(model.src_embedding(src[b, :length]))  # (1, H)
        hidden = context
        for t in range(T):
            token = model.tgt_embedding(tgt_in[b, t])[None]
            _, hidden = model.decoder(torch.cat([token, context], dim=1), hidden)
            readout = model.readout(torch.cat([hidden, token, context], dim=1)).tanh()
            torch.testing.assert_close(logits[b, t], model.output(readout)[0])


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
def test_padding_and_batch_order_change_nothing(options):
    model = make(**options, reverse_source=True)
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
    expected = model(src, padding, tgt_in)
    changed = tgt_in.clone()
    changed[:, 3:] = 1
    logits = model(src, padding, changed)
    torch.testing.assert_close(logits[:, :3], expected[:, :3], rtol=0, atol=0)
    assert not logits[:, 3].equal(expected[:, 3])


@every_option
def test_gradients_reach_every_parameter(options):
    model = make(**options)
    src, padding, tgt_in = make_batch()
    model(src, padding, tgt_in).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.ne(0).any(), name


@pytest.mark.parametrize("context_at_every_step", [False, True])
def test_reordered_state_goes_on_as_the_rows_it_took(context_at_every_step):
    model = make(rnn_type="lstm", bidirectional=True, context_at_every_step=context_at_every_step)
    src, padding, tgt_in = make_batch()
    index = torch.tensor([2, 2, 0, 1])
    _, state = model.step(tgt_in[:, 0], model.init_state(model.encode(src, padding)))
    expected, _ = model.step(tgt_in[:, 1], state)
    logits, _ = model.step(tgt_in[index, 1], state.reorder(index))
    torch.testing.assert_close(logits, expected[index])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_memory_is_one_vector(bidirectional):
    model = make(rnn_type="lstm", num_layers=2, bidirectional=bidirectional)
    src, padding, _ = make_batch()
    memory = model.encode(src, padding)
    size = 2 * H if bidirectional else H
    assert memory.output.shape == (B, 1, size)
    assert memory.key_padding_mask.equal(torch.zeros(B, 1, dtype=torch.bool))
    assert [part.shape for part in memory.state] == [(B, 2, size)] * 2
    assert memory.output[:, 0].equal(memory.state[0][:, -1])


def test_reverse_source_equals_reversing_by_hand():
    src, padding, tgt_in = make_batch()
    by_hand = src.clone()
    for b, length in enumerate(LENGTHS):
        by_hand[b, :length] = src[b, :length].flip(0)
    assert reverse_tokens(src, padding).equal(by_hand)
    plain, reverse = make(), make(reverse_source=True)
    assert reverse(src, padding, tgt_in).equal(plain(by_hand, padding, tgt_in))


def test_tables_are_shared_and_tied():
    model = make(src_vocab_size=None, embedding_dim=H, share_embeddings=True, tie_output=True)
    assert model.src_embedding is model.tgt_embedding
    assert model.output.weight is model.tgt_embedding.weight
    alone = make(src_vocab_size=None, embedding_dim=H)
    count, count_alone = (sum(p.numel() for p in m.parameters()) for m in (model, alone))
    assert count_alone - count == 2 * V * H


def test_dropout_acts_in_training_alone():
    model = make(num_layers=2, dropout=0.5)
    batch = make_batch()
    assert model(*batch).equal(model(*batch))
    model.train()
    assert not model(*batch).equal(model(*batch))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rnn_type": "sru"}, "rnn_type must be one of gru, lstm, tanh, got 'sru'"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\), got 1.5"),
        ({"share_embeddings": True}, "got 23 source and 19 target ids"),
        ({"tie_output": True}, "embedding_dim == hidden_size, got 4 and 6"),
        ({"pad_id": 19}, "got pad_id=19 with 23 source and 19 target ids"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)
