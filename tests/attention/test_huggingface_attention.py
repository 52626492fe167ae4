"""Capture on models of the transformers library: their own weights, and no trace of it."""

import pytest
import torch
from torch import nn

from litseq.attention import capture_attention

transformers = pytest.importorskip("transformers")

B, S, T, D, H, V = 2, 7, 5, 12, 3, 23
MARIAN = {
    "vocab_size": V, "decoder_vocab_size": V, "d_model": D, "encoder_layers": 2,
    "decoder_layers": 3, "encoder_attention_heads": H, "decoder_attention_heads": H,
    "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "pad_token_id": 0, "eos_token_id": 3,
    "decoder_start_token_id": 0,
}  # fmt: skip


def marian():
    torch.manual_seed(0)
    return transformers.MarianMTModel(transformers.MarianConfig(**MARIAN)).eval()


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=V, d_model=D, d_kv=4, num_heads=H, num_layers=2, num_decoder_layers=3, d_ff=20,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


def batch():
    torch.manual_seed(1)
    return {
        "input_ids": torch.randint(4, V, (B, S)),
        "attention_mask": (torch.arange(S) < torch.tensor([[S], [4]])).long(),
        "labels": torch.randint(4, V, (B, T)),
    }


@pytest.fixture(params=[marian, t5])
def model(request):
    return request.param()


def traces(model):
    tables = [name for name in vars(nn.Module()) if "hooks" in name]
    return [
        (name, sorted(vars(m)), [len(getattr(m, table) or ()) for table in tables])
        for name, m in model.named_modules()
    ]


def test_maps_are_the_library_s_own_and_nothing_is_left(model):
    clean, implementation = traces(model), model.config._attn_implementation
    before = model(**batch()).logits
    assert implementation == "sdpa", "the fused one, which gives no weights"
    with capture_attention(model) as maps:
        inside = model(**batch()).logits
    assert traces(model) == clean
    assert model.config._attn_implementation == implementation
    torch.testing.assert_close(inside, before)  # another path, other rounding
    assert model(**batch()).logits.equal(before)

    model.set_attn_implementation("eager")
    expected = model(**batch(), output_attentions=True)
    for kind, layers in (("encoder", 2), ("decoder", 3), ("cross", 3)):
        theirs = expected[f"{kind}_attentions"]
        assert len(theirs) == layers
        for layer in range(layers):
            assert maps.find(kind, layer).weights.equal(theirs[layer].float())
    assert len(maps) == 8
    assert maps.find("cross").module.endswith("decoder.cross_attentions.2")


def test_inside_of_another_module(model):
    holder = nn.Module()
    holder.model = model
    with capture_attention(holder, kinds=["cross"], layers=[1], max_examples=1) as maps:
        holder.model(**batch())
    (found,) = maps
    assert found.name == "cross.1"
    assert found.module.startswith("model.")
    assert found.weights.shape == (1, H, T, S)


def test_models_of_one_stack():
    torch.manual_seed(0)
    sizes = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H}
    bert = transformers.BertModel(
        transformers.BertConfig(vocab_size=V, intermediate_size=20, **sizes)
    ).eval()
    gpt = transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=V, n_embd=D, n_layer=2, n_head=H)
    ).eval()
    ids = batch()["input_ids"]
    for model, kind in ((bert, "encoder"), (gpt, "decoder")):
        with capture_attention(model) as maps:
            model(ids)
        assert [m.name for m in maps] == [f"{kind}.0", f"{kind}.1"]


def test_tuples_instead_of_outputs(model):
    with capture_attention(model) as maps:
        model(**batch(), return_dict=False)
    assert len(maps) == 8


def test_generation():
    """The encoder runs by itself there, and the decoder once a token."""
    model = marian()
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    expected = model.generate(**inputs, **options)
    with capture_attention(model) as maps:
        found = model.generate(**inputs, **options)
    assert found.equal(expected)
    names = [m.name for m in maps]
    assert names[:2] == ["encoder.0", "encoder.1"]
    assert {m.kind for m in maps[2:]} == {"decoder", "cross"}
    assert [names.count(f"cross.{layer}") for layer in range(3)] == [3] * 3


def test_what_the_user_does_inside_stays():
    model = marian()
    model.model.decoder.config._attn_implementation = "eager"
    calls = []
    with capture_attention(model):
        model.mine = 3
        handle = model.model.encoder.register_forward_hook(lambda *_: calls.append(1))
        model(**batch())
    model(**batch())
    assert (model.mine, len(calls)) == (3, 2)
    handle.remove()


def test_each_part_gets_its_own_implementation_back():
    sizes = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": H}
    encoder = transformers.BertConfig(
        vocab_size=V, intermediate_size=20, attn_implementation="eager", **sizes
    )
    decoder = transformers.BertConfig(
        vocab_size=V, intermediate_size=20, is_decoder=True, add_cross_attention=True, **sizes
    )
    model = transformers.EncoderDecoderModel(
        encoder=transformers.BertModel(encoder), decoder=transformers.BertLMHeadModel(decoder)
    ).eval()
    before = [part.config._attn_implementation for part in (model, model.encoder, model.decoder)]
    with capture_attention(model) as maps:
        model(input_ids=batch()["input_ids"], decoder_input_ids=batch()["labels"])
    assert [m.name for m in maps] == ["encoder.0", "decoder.0", "cross.0"]
    after = [part.config._attn_implementation for part in (model, model.encoder, model.decoder)]
    assert after == before
    assert len(set(before)) == 2


def test_a_model_without_attention_is_no_obstacle():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = transformers.ResNetModel(
                transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
            )
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, pixels):
            x = self.backbone(pixels).last_hidden_state.flatten(2).transpose(1, 2)
            return self.attention(x, x, x)[0]

    model = Both().eval()
    with capture_attention(model) as maps:
        model(torch.randn(1, 3, 16, 16))
    assert [m.module for m in maps] == ["attention"]
