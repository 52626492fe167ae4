import copy
import math

import pytest
import torch
from torch import nn

from litseq.decoding import SearchOptions, generate
from litseq.layers.positions import sinusoids
from litseq.models.transformer import FeedForward, Transformer

B, S, T, D, H, V = 2, 7, 5, 12, 3, 23
SIZES = {
    "d_model": D,
    "num_heads": H,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "dim_feedforward": 20,
}
VARIANTS = {
    "paper": {},
    "norm_first": {"norm_first": True},
    "learned": {"positions": "learned"},
    "gelu": {"activation": "gelu"},
    "swish": {"activation": "swish", "norm_first": True},
    "gated": {"activation": "swish", "gated": True},
    "separate": {"src_vocab_size": 17, "tie_output": False},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def model(request):
    torch.manual_seed(0)
    model = Transformer(V, **SIZES, **request.param).double().eval()
    for parameter in model.parameters():  # no parameter may sit at a special value
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def src():
    return torch.randint(1, 17, (B, S))


@pytest.fixture
def padding():
    return torch.arange(S) >= torch.tensor([[S], [4]])


@pytest.fixture
def tgt():
    return torch.randint(1, V, (B, T))


def copy_layer(theirs, ours):
    theirs.self_attn.load_state_dict(ours.self_attn.state_dict())
    theirs.linear1 = copy.deepcopy(ours.feed_forward.linear1)  # of twice the width where gated
    theirs.linear2.load_state_dict(ours.feed_forward.linear2.state_dict())
    norms = [ours.self_attn_residual.norm]
    if hasattr(ours, "cross_attn"):
        theirs.multihead_attn.load_state_dict(ours.cross_attn.state_dict())
        norms.append(ours.cross_attn_residual.norm)
    norms.append(ours.feed_forward_residual.norm)
    for number, norm in enumerate(norms, 1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())


def test_logits_equal_torch_transformer(model, src, tgt, padding, request):
    options = request.node.callspec.params["model"]
    name = options.get("activation", "relu")
    activation = nn.functional.silu if name == "swish" else name
    if options.get("gated"):
        activation = lambda x: nn.functional.silu(x[..., :20]) * x[..., 20:]  # noqa: E731
    norm_first = model.encoder_layers[0].self_attn_residual.norm_first
    theirs = nn.Transformer(
        D, H, 2, 3, 20, dropout=0.0, batch_first=True, norm_first=norm_first,
        activation=activation,
    ).double()  # fmt: skip
    for ours, layer in zip(model.encoder_layers, theirs.encoder.layers, strict=True):
        copy_layer(layer, ours)
    for ours, layer in zip(model.decoder_layers, theirs.decoder.layers, strict=True):
        copy_layer(layer, ours)
    if norm_first:
        theirs.encoder.norm.load_state_dict(model.encoder_norm.state_dict())
        theirs.decoder.norm.load_state_dict(model.decoder_norm.state_dict())
    else:  # torch adds a norm that the paper does not have
        theirs.encoder.norm = theirs.decoder.norm = None
    positions = getattr(model.positions, "weight", sinusoids(9, D).double())
    x = model.src_embedding(src) * math.sqrt(D) + positions[:S]
    y = model.tgt_embedding(tgt) * math.sqrt(D) + positions[:T]
    causal = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    with torch.no_grad():
        hidden = theirs.train()(  # train: torch's own fast path is not under test
            x,
            y,
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        expected = hidden @ model.output.weight.T + model.output.bias
        torch.testing.assert_close(model(src, padding, tgt), expected)


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [((512, 8, 2048), 63.1), ((1024, 16, 4096), 214.3)],
    ids=["base", "big"],
)
def test_parameter_count_of_the_paper(sizes, millions):
    d_model, num_heads, dim_feedforward = sizes
    with torch.device("meta"):
        model = Transformer(
            37000,
            d_model=d_model,
            num_heads=num_heads,
            num_encoder_layers=6,
            num_decoder_layers=6,
            dim_feedforward=dim_feedforward,
        )
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 1) == millions
    # by hand: one embedding, 6 + 6 layers, the bias of the last linear map
    attention = 4 * (d_model * d_model + d_model)
    feed_forward = 2 * d_model * dim_feedforward + dim_feedforward + d_model
    norm = 2 * d_model
    encoder = 6 * (attention + feed_forward + 2 * norm)
    decoder = 6 * (2 * attention + feed_forward + 3 * norm)
    assert count == 37000 * d_model + encoder + decoder + 37000


FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "swish": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_a_gated_feed_forward_is_the_paper_s_formula(activation):
    torch.manual_seed(0)
    layer = FeedForward(D, 20, activation=activation, gated=True).double()
    w, v, w2 = (torch.randn(*shape).double() for shape in ((D, 20), (D, 20), (20, D)))
    b, c, b2 = (torch.randn(size).double() for size in (20, 20, D))  # which the paper leaves out
    layer.load_state_dict({
        "linear1.weight": torch.cat((w, v), 1).T, "linear1.bias": torch.cat((b, c)),
        "linear2.weight": w2.T, "linear2.bias": b2,
    })  # fmt: skip
    x = torch.randn(B, T, D).double()
    inner = FORMULAS[activation](x @ w + b) * (x @ v + c)
    dropped = []
    layer.dropout.register_forward_pre_hook(lambda _, args: dropped.append(args[0]))
    torch.testing.assert_close(layer(x), inner @ w2 + b2)
    torch.testing.assert_close(dropped, [inner])


def test_a_gate_takes_half_as_many_weights_again():
    def weights(*args, **options):
        layer = FeedForward(*args, **options)
        return layer.linear1.weight.numel() + layer.linear2.weight.numel()

    assert weights(D, 24) == 2 * D * 24
    assert weights(D, 24, gated=True) == 3 * D * 24
    assert weights(D, 16, gated=True) == weights(D, 24)
    plain, gated = (
        sum(p.numel() for p in Transformer(V, **SIZES, gated=gate).parameters())
        for gate in (False, True)
    )
    assert gated - plain == (2 + 3) * (D * 20 + 20)  # in every layer one more matrix and bias


def test_both_matrices_of_a_gate_begin_as_one_alone():
    torch.manual_seed(0)
    layer = FeedForward(40, 300, gated=True)
    bound = math.sqrt(6 / (40 + 300))  # Glorot and Bengio (2010), of one matrix
    for matrix in (*layer.linear1.weight.chunk(2), layer.linear2.weight):
        assert 0.99 * bound < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not layer.linear1.bias.any()


def test_whoever_watches_the_first_map_sees_what_is_before_relu():
    layer, x = FeedForward(D, 20).eval(), torch.randn(5, D)
    expected = layer(x)
    seen = []
    layer.linear1.register_forward_hook(lambda _, args, output: seen.append(output))
    torch.testing.assert_close(layer(x), expected)
    assert (seen[0] < 0).any()


def test_without_a_gate_names_shapes_and_draws_are_those_of_one_matrix():
    torch.manual_seed(0)
    layer = FeedForward(D, 20)
    torch.manual_seed(0)
    one, two = nn.Linear(D, 20), nn.Linear(20, D)
    for linear in (one, two):
        nn.init.xavier_uniform_(linear.weight)
    assert layer.state_dict().keys() == FeedForward(D, 20, gated=True).state_dict().keys()
    assert layer.linear1.weight.equal(one.weight)
    assert layer.linear2.weight.equal(two.weight)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_any_length_is_welcome(positions):
    model = Transformer(V, positions=positions, **SIZES).eval()
    src = torch.randint(1, V, (1, 1030))
    logits = model(src, torch.zeros_like(src, dtype=torch.bool), src[:, :2])
    assert logits.isfinite().all()


def test_one_matrix_embeds_and_predicts():
    model = Transformer(V, **SIZES)
    assert model.src_embedding is model.tgt_embedding
    assert model.output.weight is model.tgt_embedding.weight
    model = Transformer(V, src_vocab_size=17, **SIZES)
    assert model.src_embedding.num_embeddings == 17
    assert model.output.weight is model.tgt_embedding.weight


def test_without_positions_the_encoder_sees_a_bag_of_tokens(src):
    model = Transformer(V, positions="none", **SIZES).double().eval()
    order = torch.randperm(S)
    nothing = torch.zeros(B, S, dtype=torch.bool)
    shuffled = model.encode(src[:, order], nothing).output
    torch.testing.assert_close(shuffled, model.encode(src, nothing).output[:, order])


def make_rotary(**sizes):
    torch.manual_seed(0)
    # its table is shorter than the source
    options = {**SIZES, "positions": "rotary", "max_positions": 6, **sizes}
    model = Transformer(V, **options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def rotary():
    return make_rotary()


def rotated(x):
    """The paper's rotation of float (B, H, T, d_k), once more, in complex numbers."""
    count, width = x.shape[-2:]
    angle = torch.arange(count)[:, None] / 10000 ** (torch.arange(0, width, 2).double() / width)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * angle)
    return torch.view_as_real(turned).flatten(-2)


def test_rotary_positions_turn_queries_and_keys_of_self_attention_alone(rotary, src, padding, tgt):
    made, used, embedded = {}, {}, []
    for name, module in rotary.named_modules():
        if name.endswith("_attn"):
            made[name] = []
            project = module._project
            module._project = lambda *args, project=project, seen=made[name]: (
                seen.extend(found := project(*args)) or found
            )
            module.product.register_forward_pre_hook(
                lambda _, args, name=name: used.update({name: args})
            )
    rotary.dropout.register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
    rotary(src, padding, tgt)
    assert len(used) == 2 + 2 * 3
    for name, (q, k, v) in used.items():
        if "self_attn" in name:
            before = made[name]
            expected = (rotated(before[0]), rotated(before[1]), before[2])
        else:  # keys and values are made before queries
            expected = (made[name][2], *made[name][:2])
        for found, tensor in zip((q, k, v), expected, strict=True):
            torch.testing.assert_close(found, tensor, atol=1e-6, rtol=0)
    for x, ids in zip(embedded, (src, tgt), strict=True):
        torch.testing.assert_close(x, rotary.src_embedding(ids) * math.sqrt(D), rtol=0, atol=0)


def test_rotated_keys_are_kept(rotary, src, padding, tgt):
    keys = []
    for layer in rotary.decoder_layers:
        layer.self_attn.product.register_forward_pre_hook(lambda _, args: keys.append(args[1]))
    memory = rotary.encode(src, padding)
    rotary.decode(tgt, memory)
    state = rotary.init_state(memory)
    for t in range(T):
        _, state = rotary.step(tgt[:, t], state)
    for (kept, _), expected in zip(state.past, keys, strict=False):
        torch.testing.assert_close(kept, expected)


def test_a_common_shift_of_rotary_positions_changes_nothing(rotary, src, padding):
    expected = rotary.encode(src, padding).output
    at_zero = rotary.rotary.forward
    rotary.rotary.forward = lambda length, *, start=0: at_zero(length, start=start + 100)
    torch.testing.assert_close(rotary.encode(src, padding).output, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(rotary.encode(src.flip(1), padding).output.flip(1), expected)


def test_a_rotary_model_is_loaded_without_its_table(rotary, src, padding, tgt):
    plain = Transformer(V, positions="none", **SIZES)
    assert rotary.state_dict().keys() == plain.state_dict().keys()
    other = Transformer(V, positions="rotary", **SIZES).double().eval()
    other.load_state_dict(rotary.state_dict())
    torch.testing.assert_close(other(src, padding, tgt), rotary(src, padding, tgt), rtol=0, atol=0)


def test_a_compiled_rotary_model_computes_the_same(src, padding, tgt):
    # more layers would be compiled as one is
    rotary = make_rotary(num_encoder_layers=1, num_decoder_layers=1)
    # aot_eager traces both passes as inductor does, and needs no compiler of C++
    compiled = torch.compile(rotary, backend="aot_eager", fullgraph=True)
    for length in (S, 5):  # beyond the table, and within
        args = src[:, :length], padding[:, :length], tgt[:, : length - 2]
        torch.testing.assert_close(compiled(*args), rotary(*args))


def test_the_last_layer_alone_can_look_at_the_source(src, padding, tgt):
    model = Transformer(V, cross_attention="last_layer", **SIZES).double().eval()
    assert [layer.cross_attn is None for layer in model.decoder_layers] == [True, True, False]
    inputs = []
    model.decoder_layers[-1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    logits = [model(source, padding, tgt) for source in (src, src.flip(1))]
    torch.testing.assert_close(inputs[0], inputs[1], rtol=0, atol=0)
    assert not torch.allclose(logits[0], logits[1])


def test_unscaled_scores_are_sqrt_of_d_k_times_larger(src, padding, tgt):
    scaled = Transformer(V, **SIZES).double().eval()
    unscaled = Transformer(V, scale_scores=False, **SIZES).double().eval()
    unscaled.load_state_dict(scaled.state_dict())
    for name, parameter in unscaled.named_parameters():
        if "in_proj" in name:  # smaller queries make up for it
            parameter.data[:D] /= math.sqrt(D / H)
    torch.testing.assert_close(unscaled(src, padding, tgt), scaled(src, padding, tgt))


def test_sharing_needs_one_vocabulary():
    with pytest.raises(ValueError, match="src_vocab_size=17, vocab_size=23"):
        Transformer(V, src_vocab_size=17, share_embeddings=True, **SIZES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"positions": "relative"},
            "positions must be one of sinusoidal, learned, rotary, none, got 'relative'",
        ),
        (
            {"positions": "rotary", "num_heads": 4},
            r"must be even for rotary positions, got 3; choose num_heads so that it is even",
        ),
        ({"activation": "tanh"}, "activation must be one of relu, gelu, swish, got 'tanh'"),
        ({"cross_attention": "first"}, "cross_attention must be one of every_layer, last_layer"),
        ({"dropout": -0.1}, r"^dropout must be in \[0, 1\), got -0.1; 0 switches it off"),
        ({"attention_dropout": 1.0}, r"dropout on attention weights must be in \[0, 1\), got 1.0"),
        ({"activation_dropout": 1.5}, r"activation_dropout must be in \[0, 1\), got 1.5"),
    ],
)
def test_refuses_what_it_does_not_know(options, message):
    with pytest.raises(ValueError, match=message):
        Transformer(V, **{**SIZES, **options})


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_the_cache_is_of_one_dtype_under_autocast(src, padding, tgt, positions):
    model = Transformer(V, positions=positions, **SIZES).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = model.init_state(model.encode(src, padding))
        for t in range(2):
            for past, source in zip(state.past, state.memory_keys_values, strict=True):
                assert [x.dtype for x in (*past, *source)] == [torch.bfloat16] * 4
                assert past[0].shape == (B, H, t, D // H)
            _, state = model.step(tgt[:, t], state)


def test_every_decoder_layer_asks_the_last_encoder_output(src, padding):
    model = Transformer(V, **SIZES).double().eval()
    memory = model.encode(src, padding)
    keys = [k for k, _ in model.init_state(memory).memory_keys_values]
    for layer, seen in zip(model.decoder_layers, keys, strict=True):
        torch.testing.assert_close(seen, layer.cross_attn.keys_values(memory.output)[0])
    assert not torch.allclose(keys[0], keys[1])  # one memory, each layer's own projection


def test_learned_positions_end_a_search_and_no_run():
    model = Transformer(
        23, d_model=12, num_heads=3, num_encoder_layers=1, num_decoder_layers=1,
        dim_feedforward=20, positions="learned", max_positions=6,
    ).eval()  # fmt: skip
    src = torch.randint(4, 23, (2, 5))
    memory = model.encode(src, torch.zeros_like(src, dtype=torch.bool))
    for options in ({}, {"beam_size": 1}, {"sample": True, "seed": 1}, {"attention": True}):
        found = generate(
            model, memory, src_lengths=torch.tensor([5, 5]), options=SearchOptions(**options),
            bos_id=2, eos_id=3, suppress=(0, 2, 3),
        )  # fmt: skip
        assert [len(best.tokens) for best, *_ in found] == [6, 6]
