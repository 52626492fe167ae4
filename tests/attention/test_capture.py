"""Capture: the weights that the model used, at no cost and without a trace."""

import contextlib
import math
import threading

import pytest
import torch
from torch import nn

from litseq.attention import Seen, capture_attention
from litseq.decoding import beam_search
from litseq.models import Rnn, RnnAttention, Transformer

B, S, T, D, H, V = 2, 7, 5, 12, 3, 23
RECURRENT = {"embedding_dim": 10, "hidden_size": 12}


def transformer(**options):
    torch.manual_seed(0)
    return Transformer(
        V, d_model=D, num_heads=H, num_encoder_layers=2, num_decoder_layers=3, dim_feedforward=20,
        **options,
    ).eval()  # fmt: skip


MODELS = {
    "transformer": transformer,
    "pre-norm": lambda: transformer(norm_first=True),
    "rotary": lambda: transformer(positions="rotary"),
    "gated": lambda: transformer(activation="swish", gated=True),
    "ablated": lambda: transformer(scale_scores=False, cross_attention="last_layer"),
    "bahdanau": lambda: RnnAttention(V, **RECURRENT).eval(),
    "luong": lambda: RnnAttention(V, **RECURRENT, score="general").eval(),
    "input feeding": lambda: RnnAttention(V, **RECURRENT, score="dot", bidirectional=False,
                                          input_feeding=True).eval(),
}  # fmt: skip


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    torch.manual_seed(0)
    return request.param()


@pytest.fixture
def src():
    return torch.randint(4, V, (B, S))


@pytest.fixture
def padding():
    return torch.arange(S) >= torch.tensor([[S], [4]])


@pytest.fixture
def tgt():
    return torch.randint(4, V, (B, T))


def traces(model):
    """Everything about modules that a capture could leave behind."""
    tables = [name for name in vars(nn.Module()) if name.endswith("_hooks") or "hooks_" in name]
    return [
        (name, sorted(vars(m)), [len(getattr(m, table) or ()) for table in tables])
        for name, m in model.named_modules()
    ]


# ---- litseq's models ----


def test_it_changes_nothing(model, src, padding, tgt):
    before, clean = model(src, padding, tgt), traces(model)
    with capture_attention(model) as maps:
        inside = model(src, padding, tgt)
    assert len(maps) > 0
    assert traces(model) == clean
    assert inside.equal(before)
    assert model(src, padding, tgt).equal(before)
    count = len(maps)
    model(src, padding, tgt)
    assert len(maps) == count, "closed"


def test_rows_are_distributions_over_what_may_be_seen(model, src, padding, tgt):
    with capture_attention(model) as maps:
        model(src, padding, tgt)
    for found in maps:
        sizes = {"encoder": (S, S), "decoder": (T, T), "cross": (T, S)}
        assert found.weights.shape[2:] == sizes[found.kind]
        assert found.weights.shape[0] == B
        assert found.weights.dtype == torch.float32
        torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:3]))
        if found.kind == "decoder":
            assert found.weights.triu(1).eq(0).all()
        else:
            hidden = padding[:, None, None].expand_as(found.weights)
            assert found.weights[hidden].eq(0).all()


def test_the_transformer_s_maps_have_names(src, padding, tgt):
    with capture_attention(transformer()) as maps:
        transformer_ = transformer()
    assert len(maps) == 0, "another model"
    with capture_attention(transformer_) as maps:
        transformer_(src, padding, tgt)
    assert [m.name for m in maps] == [
        "encoder.0", "encoder.1",
        "decoder.0", "cross.0", "decoder.1", "cross.1", "decoder.2", "cross.2",
    ]  # fmt: skip
    assert maps.find("cross").module == "decoder_layers.2.cross_attn.product"
    assert maps.find("cross", -3) is maps.find("cross", 0)
    assert maps[0].weights.shape == (B, H, S, S)
    assert maps[:2] == [maps.find("encoder", 0), maps.find("encoder", 1)]
    assert "cross.2 (2, 3, 5, 7)" in repr(maps)
    for wrong in (3, -4):
        with pytest.raises(ValueError, match=rf"there is no map cross.{wrong}; there are: encoder"):
            maps.find("cross", wrong)


@pytest.mark.parametrize("options", [{"norm_first": True}, {"positions": "rotary"}], ids=str)
def test_weights_times_values_are_what_the_layer_used(src, padding, tgt, options):
    model = transformer(**options)
    used = {}
    for name, module in model.named_modules():
        if name.endswith(".product"):
            module.register_forward_hook(
                lambda _, args, output, name=name: used.update({name: (args[2], output)})
            )
    with torch.no_grad(), capture_attention(model) as maps:
        model(src, padding, tgt)
    assert len(used) == len(maps)
    for found in maps:
        values, output = used[found.module]
        torch.testing.assert_close(found.weights @ values, output)


def test_need_weights_agrees(src, padding):
    """The layer's own plain path is another way to the same weights."""
    model = transformer()
    layer = model.encoder_layers[0].self_attn
    x = torch.randn(B, S, D)
    mask = ~padding[:, None, None]
    with capture_attention(model) as maps:
        layer.attend(*layer.queries_keys_values(x), attn_mask=mask)
    _, weights = layer(x, x, attn_mask=mask, need_weights=True)
    torch.testing.assert_close(maps[0].weights, weights)


def test_recurrent_attention_is_the_model_s_own(src, padding, tgt):
    for options in ({}, {"score": "general"}, {"score": "concat", "input_feeding": True}):
        model = RnnAttention(V, **RECURRENT, **options).eval()
        memory = model.encode(src, padding)
        with capture_attention(model) as maps:
            model.decode(tgt, memory)
        (found,) = maps
        assert found.name == "cross.0"
        assert found.weights[:, 0].equal(model.attention(tgt, memory))
        with capture_attention(model) as maps:  # two sentences' steps are not joined
            model.decode(tgt, model.encode(src, padding))
            model.decode(tgt, model.encode(src.flip(0), padding))
        assert [tuple(m.weights.shape) for m in maps] == [(B, 1, T, S)] * 2


@pytest.mark.parametrize("make", [transformer, lambda: RnnAttention(V, **RECURRENT).eval()])
def test_beams_of_a_sentence_are_no_steps(make, src, padding):
    """They look at the same keys together, and each of them has a row at every step."""
    model = make()
    options = {"length_penalty": 0.6, "n_best": 1, "bos_id": 2, "eos_id": 3}
    with capture_attention(model, kinds=["cross"]) as maps:
        beam_search(
            model, model.encode(src, padding), beam_size=3, max_len=torch.full((B,), 4), **options
        )
    assert {found.weights.size(2) for found in maps} == {1, 3}


def test_steps_see_what_decode_sees(model, src, padding, tgt):
    memory = model.encode(src, padding)
    with capture_attention(model, kinds=["cross"]) as expected:
        model.decode(tgt, memory)
    with capture_attention(model, kinds=["cross"]) as maps:
        state = model.init_state(memory)
        for t in range(T):
            _, state = model.step(tgt[:, t], state)
    assert len(maps) == len(expected)
    for ours, theirs in zip(maps, expected, strict=True):
        assert ours.module == theirs.module
        torch.testing.assert_close(ours.weights, theirs.weights)


def test_what_is_kept_can_be_chosen(src, padding, tgt):
    model = transformer()
    with capture_attention(model, kinds={"cross"}, layers=[0, 2], max_examples=1) as maps:
        model(src, padding, tgt)
    assert [m.name for m in maps] == ["cross.0", "cross.2"]
    assert all(m.weights.shape == (1, H, T, S) for m in maps)
    with capture_attention(model) as whole:
        model(src, padding, tgt)
    assert maps[1].weights.equal(whole.find("cross", 2).weights[:1])


def test_training_mode_shows_weights_without_dropout(src, padding, tgt):
    model = transformer(dropout=0.0, attention_dropout=0.5)
    with capture_attention(model) as expected:
        model(src, padding, tgt)
    model.train()
    first = model.encoder_layers[0]
    with capture_attention(model, kinds=["encoder"], layers=[0]) as maps:
        torch.manual_seed(1)
        logits = model(src, padding, tgt)
    assert maps[0].weights.equal(expected[0].weights)
    torch.manual_seed(1)
    assert model(src, padding, tgt).equal(logits), "the draws of dropout are the same"
    assert first.training


def test_half_precision_and_autocast(src, padding, tgt):
    model = transformer()
    with torch.autocast("cpu", torch.bfloat16):
        before = model(src, padding, tgt)
        with capture_attention(model) as maps:
            inside = model(src, padding, tgt)
    assert inside.equal(before)
    for found in maps:
        assert found.weights.dtype == torch.float32
        torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:3]))
    model = transformer().bfloat16()
    with capture_attention(model) as maps:
        model(src, padding, tgt)
    assert maps[0].weights.dtype == torch.float32


def test_gradients_are_the_same(src, padding, tgt):
    def gradients(context):
        model = transformer()
        with context(model):
            model(src, padding, tgt).square().sum().backward()
        return [p.grad for p in model.parameters()]

    plain = gradients(lambda model: contextlib.nullcontext())
    for ours, theirs in zip(gradients(capture_attention), plain, strict=True):
        assert ours.equal(theirs)


def test_nothing_is_left_after_an_error(src, padding, tgt):
    model = transformer()
    clean, fast = traces(model), torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(IndexError, match="out of range"), capture_attention(model):
        model(src + V, padding, tgt)
    assert traces(model) == clean
    assert torch.backends.mha.get_fastpath_enabled() is fast


def test_compiled_models_stay_compiled(src, padding, tgt):
    model = transformer()
    compiled = torch.compile(model, backend="eager")
    before = compiled(src, padding, tgt)
    torch._dynamo.utils.counters.clear()
    with capture_attention(compiled) as maps:
        inside = compiled(src, padding, tgt)
    assert maps.find("cross").module == "decoder_layers.2.cross_attn.product"
    assert inside.equal(before)
    assert compiled(src, padding, tgt).equal(before)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0, "compiled again"
    assert torch._dynamo.eval_frame._stance.stance == "default"


# ---- modules that litseq did not write ----


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 9, "vdim": 11}], ids=["one size", "own sizes"])
@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_torch_s_own_attention(batch_first, sizes, extra, padding):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(D, H, batch_first=batch_first, **sizes, **extra).eval()
    query = torch.randn(B, T, D)
    key, value = torch.randn(B, S, sizes.get("kdim", D)), torch.randn(B, S, sizes.get("vdim", D))
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    masks = {"key_padding_mask": padding, "attn_mask": torch.rand(B * H, T, S) < 0.3}
    for mask in ({}, {"key_padding_mask": padding}, {"attn_mask": torch.rand(T, S)}, masks):
        output, weights = layer(query, key, value, average_attn_weights=False, **mask)
        for asked in (True, False):
            with capture_attention(layer) as maps:
                inside, _ = layer(query, key, value, need_weights=asked, **mask)
            torch.testing.assert_close(inside, output, equal_nan=True)
            assert maps[0].kind == "cross"
            torch.testing.assert_close(maps[0].weights, weights.nan_to_num(0.0))


def test_torch_s_own_attention_without_a_batch():
    layer = nn.MultiheadAttention(D, H).eval()
    x = torch.randn(T, D)
    with capture_attention(layer) as maps:
        layer(x, x, x)
        layer(x, x, x, attn_mask=torch.ones(T, T).triu(1).bool(), is_causal=True)
    assert [m.kind for m in maps] == ["encoder", "decoder"]
    assert maps[0].weights.shape == (1, H, T, T)


def test_a_query_that_may_see_nothing_has_weights_of_zero():
    layer = nn.MultiheadAttention(D, H, batch_first=True).eval()
    x = torch.randn(B, T, D)
    with capture_attention(layer) as maps:
        layer(x, x, x, key_padding_mask=torch.tensor([[False] * T, [True] * T]))
    assert maps[0].weights[1].eq(0).all()
    torch.testing.assert_close(maps[0].weights[0].sum(-1), torch.ones(H, T))


@pytest.mark.parametrize("training", [True, False])
def test_torch_s_transformer_hides_nothing(training, padding):
    torch.manual_seed(0)
    model = nn.Transformer(D, 4, 2, 3, 20, dropout=0.0, batch_first=True).train(training)
    x, y = torch.randn(B, S, D), torch.randn(B, T, D)
    causal = nn.Transformer.generate_square_subsequent_mask(T)
    masks = {
        "tgt_mask": causal, "src_key_padding_mask": padding, "memory_key_padding_mask": padding,
        "tgt_is_causal": True,
    }  # fmt: skip
    expected, clean = model(x, y, **masks), traces(model)
    with capture_attention(model) as maps:
        inside = model(x, y, **masks)
    assert traces(model) == clean
    torch.testing.assert_close(inside, expected)  # the fast path rounds otherwise
    assert model(x, y, **masks).equal(expected)
    assert [m.name for m in maps] == [
        "encoder.0", "encoder.1",
        "decoder.0", "cross.0", "decoder.1", "cross.1", "decoder.2", "cross.2",
    ]  # fmt: skip
    for found in maps:
        torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:3]))


def test_torch_s_encoder_on_its_fast_path(padding):
    layer = nn.TransformerEncoderLayer(D, 4, 20, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(B, S, D)
    with torch.inference_mode():
        expected = encoder(x, src_key_padding_mask=padding)
        with capture_attention(encoder) as maps:
            inside = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(inside[~padding], expected[~padding])
    assert [m.name for m in maps] == ["encoder.0", "encoder.1"]
    assert maps[0].weights[padding[:, None, None].expand(B, 4, S, S)].eq(0).all()


class Gate(nn.Module):
    """Attention of somebody else's making."""

    def forward(self, query, memory):
        weights = (query @ memory.transpose(1, 2) / math.sqrt(D)).softmax(-1)
        return weights @ memory, weights


def test_a_reader_for_somebody_else_s_attention():
    model = nn.Sequential(nn.Linear(D, D))
    model.gate = Gate()
    query, memory = torch.randn(B, T, D), torch.randn(B, S, D)
    readers = {Gate: lambda module, args, kwargs, output: iter([Seen("cross", output[1])])}
    with capture_attention(model, readers=readers) as maps:
        _, weights = model.gate(query, memory)
    assert maps.find("cross").module == "gate"
    assert maps[0].weights[:, 0].equal(weights)


class Renamed(nn.MultiheadAttention):
    """Attention whose forward has other arguments."""

    def forward(self, x, mask=None):
        return super().forward(x, x, x, attn_mask=mask)


def test_a_subclass_with_other_arguments_needs_a_reader():
    layer, x = Renamed(D, H).eval(), torch.randn(T, B, D)
    message = "Renamed is called with x instead of query, key and value; give a reader for it"
    with pytest.raises(ValueError, match=message), capture_attention(layer):
        layer(x)


def test_captures_in_threads_do_not_meet(src, padding, tgt):
    """Two captures overlap and end in the order of their beginning; each sees its own thread."""
    model = transformer()
    torch.compile(model, backend="eager")(src, padding, tgt)
    clean = traces(model)
    first_is_in, second_is_in = threading.Event(), threading.Event()
    found = {}

    def first():
        with capture_attention(model) as found["first"]:
            model(src, padding, tgt)
            first_is_in.set()
            second_is_in.wait()

    def second():
        first_is_in.wait()
        with capture_attention(model, kinds=["cross"]) as found["second"]:
            second_is_in.set()
            threads[0].join()
            model(src, padding, tgt)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found["first"]), len(found["second"])] == [8, 3]
    assert traces(model) == clean
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_where_there_is_no_attention():
    with pytest.raises(ValueError, match="Rnn holds no attention: looked for DotProductAttention"):
        with capture_attention(Rnn(V, **RECURRENT)):
            pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["self"]}, "kinds are encoder, decoder, cross, got 'self'"),
        ({"layers": [-1]}, "layers are numbered from 0, got -1"),
        ({"max_examples": 0}, "max_examples must be at least 1, got 0"),
    ],
)
def test_impossible_arguments(options, message):
    with pytest.raises(ValueError, match=message), capture_attention(transformer(), **options):
        pass
