from typing import get_args

import pytest
import torch
from torch import nn

from litseq.layers.recurrent import (
    Bridge,
    RecurrentEncoder,
    RnnType,
    make_embeddings,
    make_output,
    make_rnn,
    run_rnn,
)

B, S, E, H, L, V = 3, 7, 4, 5, 2, 23
LENGTHS = [4, 7, 1]
TYPES = get_args(RnnType)


def make_embedded() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    padding = torch.arange(S)[None] >= torch.tensor(LENGTHS)[:, None]
    return torch.randn(B, S, E, dtype=torch.float64), padding


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rnn_type", TYPES)
def test_encoder_equals_torch_row_by_row(rnn_type, bidirectional):
    torch.manual_seed(0)
    encoder = RecurrentEncoder(
        rnn_type, E, hidden_size=H, num_layers=L, bidirectional=bidirectional
    ).double()
    embedded, padding = make_embedded()
    output, state = encoder(embedded, padding)
    assert output.shape == (B, S, encoder.output_size)
    assert len(state) == (2 if rnn_type == "lstm" else 1)
    for b, length in enumerate(LENGTHS):
        expected, final = encoder.rnn(embedded[b, :length])
        torch.testing.assert_close(output[b, :length], expected)
        assert output[b, length:].eq(0).all()
        final = final if isinstance(final, tuple) else (final,)
        for part, row in zip(state, final, strict=True):
            for layer in range(L):  # torch stacks layer 0 forward, layer 0 backward, layer 1 ...
                directions = row[2 * layer : 2 * layer + 2] if bidirectional else row[layer][None]
                torch.testing.assert_close(part[b, layer], directions.flatten())


@pytest.mark.parametrize("rnn_type", TYPES)
def test_encoder_never_reads_padding(rnn_type):
    torch.manual_seed(0)
    encoder = RecurrentEncoder(rnn_type, E, hidden_size=H, bidirectional=True).double()
    embedded, padding = make_embedded()
    output, state = encoder(embedded, padding)
    changed, changed_state = encoder(embedded.masked_fill(padding[..., None], torch.nan), padding)
    assert changed.equal(output)
    assert all(a.equal(b) for a, b in zip(changed_state, state, strict=True))


@pytest.mark.parametrize("rnn_type", TYPES)
def test_packed_equals_unpacked(rnn_type):
    torch.manual_seed(0)
    encoder = RecurrentEncoder(rnn_type, E, hidden_size=H, num_layers=L).double()
    embedded, _ = make_embedded()
    full = torch.zeros(B, S, dtype=torch.bool)
    output, state = encoder(embedded, full)
    longer = torch.cat([embedded, torch.ones(B, 1, E, dtype=torch.float64)], dim=1)
    packed, packed_state = encoder(longer, torch.cat([full, ~full[:, :1]], dim=1))
    torch.testing.assert_close(packed[:, :S], output)
    torch.testing.assert_close(packed_state, state)


@pytest.mark.parametrize("rnn_type", TYPES)
def test_run_rnn_can_be_cut_anywhere(rnn_type):
    torch.manual_seed(0)
    rnn = make_rnn(rnn_type, E, hidden_size=H, num_layers=L).double()
    embedded, _ = make_embedded()
    start = tuple(
        torch.randn(B, L, H, dtype=torch.float64) for _ in range(1 + (rnn_type == "lstm"))
    )
    output, final = run_rnn(rnn, embedded, start)
    first, between = run_rnn(rnn, embedded[:, :3], start)
    second, last = run_rnn(rnn, embedded[:, 3:], between)
    torch.testing.assert_close(torch.cat([first, second], dim=1), output)
    torch.testing.assert_close(last, final)


def test_bridge_passes_what_fits():
    bridge = Bridge("lstm", encoder_size=H, hidden_size=H, num_layers=L)
    state = (torch.randn(B, L, H), torch.randn(B, L, H))
    assert bridge(state) is state
    assert not list(bridge.parameters())


def test_bridge_gives_each_layer_and_part_its_own_map():
    bridge = Bridge("lstm", encoder_size=2 * H, hidden_size=H, num_layers=L)
    state = (torch.randn(B, L, 2 * H), torch.randn(B, L, 2 * H))
    mapped = bridge(state)
    linears = iter(bridge.linears)
    for part, result in zip(state, mapped, strict=True):
        for layer in range(L):
            torch.testing.assert_close(result[:, layer], next(linears)(part[:, layer]).tanh())


@pytest.mark.parametrize("rnn_type", TYPES)
def test_recurrent_matrices_start_orthogonal_per_gate(rnn_type):
    rnn = make_rnn(rnn_type, E, hidden_size=H, num_layers=L, bidirectional=True)
    for name, parameter in rnn.named_parameters():
        gates = parameter.detach().split(H)
        if name.startswith("weight_hh"):
            for gate in gates:
                torch.testing.assert_close(gate @ gate.T, torch.eye(H))
        if name.startswith("bias"):
            forget = rnn_type == "lstm" and name.startswith("bias_ih")
            for number, gate in enumerate(gates):
                assert gate.eq(1.0 if forget and number == 1 else 0.0).all()


def test_one_layer_has_no_dropout_between_layers(recwarn):
    assert make_rnn("gru", E, hidden_size=H, dropout=0.5).dropout == 0.0
    assert make_rnn("gru", E, hidden_size=H, num_layers=2, dropout=0.5).dropout == 0.5
    assert not recwarn


def test_embeddings_are_apart_or_one():
    kwargs = {"src_vocab_size": None, "embedding_dim": E, "pad_id": 2}
    src, tgt = make_embeddings(V, share=False, **kwargs)
    assert src is not tgt
    assert src.weight[2].eq(0).all()
    assert tgt.weight[2].eq(0).all()
    assert 0.09 < tgt.weight.abs().max() <= 0.1
    src, tgt = make_embeddings(V, share=True, **kwargs)
    assert src is tgt


def test_output_is_tied_or_not():
    embedding = nn.Embedding(V, H)
    assert make_output(H, embedding, tie=True).weight is embedding.weight
    assert make_output(H, embedding, tie=False).weight is not embedding.weight


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rnn_type": "sru"}, "rnn_type must be one of gru, lstm, tanh, got 'sru'"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"num_layers": -1}, "num_layers must be at least 1, got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_layers_are_refused(change, match):
    kwargs = {"rnn_type": "gru", "input_size": E, "hidden_size": H} | change
    with pytest.raises(ValueError, match=match):
        make_rnn(**kwargs)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vocab_size": 0}, "^vocab_size must be at least 1, got 0"),
        ({"src_vocab_size": 0}, "src_vocab_size must be at least 1, got 0"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"pad_id": V}, "got pad_id=23 with 23 source and 23 target ids"),
        ({"pad_id": -1}, "got pad_id=-1 with 23 source"),
        ({"src_vocab_size": 19, "share": True}, "got 19 source and 23 target ids"),
    ],
)
def test_impossible_embeddings_are_refused(change, match):
    kwargs = {
        "vocab_size": V, "src_vocab_size": None, "embedding_dim": E, "pad_id": 0, "share": False
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        make_embeddings(**(kwargs | change))


def test_tied_output_needs_the_embedding_size():
    with pytest.raises(ValueError, match="embedding_dim == hidden_size, got 4 and 5"):
        make_output(H, nn.Embedding(V, E), tie=True)
