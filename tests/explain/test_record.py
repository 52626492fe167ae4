import base64
import hashlib
import json
import math
import random

import pytest
import torch

from custom_models import CUSTOM, task_of
from litseq import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq
from litseq.attention import capture_attention
from litseq.attention.words import word_numbers
from litseq.data import TranslationTokenizer
from litseq.decoding import SearchOptions
from litseq.explain.arrays import array, as_bytes, digest, numbers, picture, size, tensor_of
from litseq.explain.forward import forward, watch
from litseq.explain.record import explain_translations
from litseq.explain.transformer import Head
from litseq.layers.positions import sinusoids

SOURCES = [
    "one red house", "two blue trees and a dog", "the cat", "three green houses", "a red dog sat",
    "five cats", "two dogs in the house", "a blue cat in a tree",
]  # fmt: skip
TARGETS = [
    "ein rotes haus", "zwei blaue bäume und ein hund", "die katze", "drei grüne häuser",
    "ein roter hund saß", "fünf katzen", "zwei hunde im haus", "eine blaue katze im baum",
]  # fmt: skip
TEXT = "two red dogs in the house"
OPTIONS = SearchOptions(beam_size=3, max_len_b=6)


@pytest.fixture(scope="module", params=["shared", "separate"])
def tokenizer(request):
    return make_tokenizer(shared=request.param == "shared")


def make_tokenizer(*, shared=True):
    return TranslationTokenizer.train(
        SOURCES, TARGETS, vocab_size=60 if shared else 44, shared=shared, src_lang="en"
    )


@pytest.fixture(scope="module")
def one_vocabulary():
    return make_tokenizer()


def make(cls, tokenizer, *, seed=1, **options):
    """A module with random weights, larger than at the start, so that it is sure of something."""
    torch.manual_seed(seed)
    module = cls(
        vocab_size=tokenizer.tgt_vocab_size,
        src_vocab_size=None if tokenizer.shared else tokenizer.src_vocab_size,
        **options,
    )
    module.tokenizer = tokenizer
    module.configure_model()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" not in name and parameter.dim() > 1:
                parameter.mul_(1.7)
    return module.eval()


def transformer(tokenizer, **options):
    sizes = {
        "d_model": 12, "num_heads": 3, "num_encoder_layers": 2, "num_decoder_layers": 3,
        "dim_feedforward": 20,
    }  # fmt: skip
    return make(TransformerSeq2Seq, tokenizer, **{**sizes, **options})


def rnn_attention(tokenizer, **options):
    return make(RnnAttentionSeq2Seq, tokenizer, embedding_dim=7, hidden_size=10, **options)


def rnn(tokenizer, **options):
    return make(RnnSeq2Seq, tokenizer, embedding_dim=7, hidden_size=10, **options)


MAKERS = {"transformer": transformer, "rnn_attention": rnn_attention, "rnn": rnn}
TRANSFORMERS = [
    {},
    {"norm_first": True},
    {"cross_attention": "last_layer"},
    {"positions": "learned", "max_positions": 64},
    {"positions": "rotary"},
    {"positions": "none"},
    {"scale_scores": False},
    {"tie_output": False, "share_embeddings": False},
    {"activation": "swish", "gated": True},
]


def explained(module, text=TEXT, **options):
    """The only sentence of a record, which must survive JSON."""
    record = explain_translations(module, [text], **{"options": OPTIONS, **options})
    (sentence,) = json.loads(json.dumps(record, allow_nan=False))["sentences"]
    return sentence


@torch.inference_mode()
def run(module, sentence):
    """The model's own forward pass over what a record says was read; memory and logits."""
    src = torch.tensor([sentence["src"]["ids"]])
    tgt_in = torch.tensor([sentence["tgt_in"]["ids"]])
    memory = module.network.encode(src, torch.zeros_like(src, dtype=torch.bool))
    return memory, module.network.decode(tgt_in, memory)[0]


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def close(actual, expected, **tolerances):
    torch.testing.assert_close(actual, torch.as_tensor(expected), **tolerances)


# ---- every architecture ----


@pytest.mark.parametrize("architecture", MAKERS)
def test_the_probabilities_are_those_of_the_model(architecture, tokenizer):
    module = MAKERS[architecture](tokenizer)
    sentence = explained(module)
    _, logits = run(module, sentence)
    tgt = sentence["tgt"]["ids"]
    assert len(sentence["steps"]) == len(tgt)
    for step, row, token in zip(sentence["steps"], logits, tgt, strict=True):
        probs = row.softmax(-1)
        best = probs.topk(5)
        assert [top["id"] for top in step["top"]] == best.indices.tolist()
        assert [top["token"] for top in step["top"]] == tokenizer.target_pieces(best.indices)
        close(torch.tensor([top["prob"] for top in step["top"]]), best.values)
        close(torch.tensor([top["logit"] for top in step["top"]]), row[best.indices])
        assert step["prob"] == pytest.approx(float(probs[token]), rel=1e-5)
        for top in step["top"]:  # what the page computes
            assert math.exp(top["logit"] - step["logsumexp"]) == pytest.approx(top["prob"], 1e-5)
    total = math.fsum(math.log(step["prob"]) for step in sentence["steps"])
    assert sentence["log_prob"] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("architecture", MAKERS)
def test_the_translation_is_the_one_that_the_search_found(architecture, tokenizer):
    module = MAKERS[architecture](tokenizer)
    (expected,) = module.translations([TEXT], options=SearchOptions(3, n_best=3, max_len_b=6))
    sentence = explained(module)
    assert sentence["output"] == expected.text
    assert sentence["search_log_prob"] == expected.hypotheses[0].log_prob
    assert sentence["log_prob"] == pytest.approx(sentence["search_log_prob"], abs=1e-4)
    assert sentence["score"] == expected.hypotheses[0].score
    assert [
        (c["text"], c["log_prob"], c["score"]) for c in sentence["candidates"]
    ] == [(h.text, h.log_prob, h.score) for h in expected.hypotheses]  # fmt: skip
    assert sentence["candidates"][0]["tokens"] == sentence["tgt"]["tokens"]
    assert sentence["finished"] == (sentence["tgt"]["ids"][-1] == tokenizer.eos_id)
    assert not sentence["forced"]


@pytest.mark.parametrize("architecture", MAKERS)
def test_the_tokens_are_those_of_the_tokenizer(architecture, tokenizer):
    sentence = explained(MAKERS[architecture](tokenizer), references=["zwei hunde"])
    src, tgt, tgt_in = (sentence[side] for side in ("src", "tgt", "tgt_in"))
    assert src["ids"] == tokenizer.encode_source([TEXT])[0]
    assert src["tokens"] == tokenizer.source_pieces(src["ids"])
    assert src["words"] == word_numbers(src["tokens"])
    assert sentence["output"] == tokenizer.decode(tgt["ids"])
    assert tgt["tokens"] == tokenizer.target_pieces(tgt["ids"])
    assert tgt["words"] == word_numbers(tgt["tokens"])
    assert tgt_in["ids"] == [tokenizer.bos_id, *tgt["ids"][:-1]]
    assert tgt_in["tokens"] == tokenizer.target_pieces(tgt_in["ids"])
    assert (sentence["source"], sentence["reference"]) == (TEXT, "zwei hunde")


@pytest.mark.parametrize("architecture", MAKERS)
def test_a_given_translation_is_explained_by_force(architecture, tokenizer):
    module = MAKERS[architecture](tokenizer)
    sentence = explained(module, translations=["zwei rote hunde"])
    (ids,) = tokenizer.encode_target(["zwei rote hunde"])
    assert sentence["tgt"]["ids"] == ids
    assert sentence["forced"]
    assert sentence["finished"]
    assert (sentence["search_log_prob"], sentence["score"]) == (None, None)
    assert sentence["candidates"] == []
    _, logits = run(module, sentence)
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
    assert sentence["log_prob"] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("architecture", MAKERS)
def test_leaves_out_one_source_token_after_the_other(architecture, one_vocabulary):
    module = MAKERS[architecture](one_vocabulary)
    sentence = explained(module)
    ids, tgt = sentence["src"]["ids"], sentence["tgt"]["ids"]
    assert len(sentence["leave_one_out"]) == len(ids)
    assert sentence["leave_one_out"][-1] is None
    for place in range(len(ids) - 1):
        without = {**sentence, "src": {"ids": ids[:place] + ids[place + 1 :]}}
        _, logits = run(module, without)
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tgt)[:, None]).sum()
        assert sentence["leave_one_out"][place] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("architecture", MAKERS)
def test_many_sentences_equal_one_by_one(architecture, one_vocabulary):
    module = MAKERS[architecture](one_vocabulary)
    record = explain_translations(module, SOURCES[:3], options=OPTIONS, references=TARGETS[:3])
    for text, reference, sentence in zip(SOURCES, TARGETS, record["sentences"], strict=False):
        (alone,) = explain_translations(
            module, [text], options=OPTIONS, references=[reference]
        )["sentences"]  # fmt: skip
        assert sentence == alone


@pytest.mark.parametrize("architecture", MAKERS)
def test_leaves_the_model_as_it_was(architecture, one_vocabulary):
    module = MAKERS[architecture](one_vocabulary).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    attributes = [set(vars(part)) for part in module.modules()]
    explained(module)
    assert module.training
    assert all(part.training for part in module.modules())
    assert hooks(module) == 0
    assert [set(vars(part)) for part in module.modules()] == attributes
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("architecture", MAKERS)
def test_leaves_nothing_behind_after_an_error(architecture, one_vocabulary):
    module = MAKERS[architecture](one_vocabulary)
    attributes = [set(vars(part)) for part in module.modules()]
    broken = module.network.output.register_forward_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))
    )
    with pytest.raises(RuntimeError, match="broken"):
        explained(module, translations=["zwei hunde"])
    broken.remove()
    assert hooks(module) == 0
    assert [set(vars(part)) for part in module.modules()] == attributes


@pytest.mark.parametrize("architecture", MAKERS)
def test_describes_the_model(architecture, tokenizer):
    module = MAKERS[architecture](tokenizer)
    record = explain_translations(module, [TEXT], options=OPTIONS)
    model = record["model"]
    assert record["format"] == 1
    assert record["search"] == {"beam_size": 3, "length_penalty": 0.6, "length_offset": 5.0}
    assert model["architecture"] == architecture
    assert model["class"] == type(module).__name__
    assert model["parameters"] == sum(p.numel() for p in module.network.parameters())
    assert (model["src_lang"], model["tgt_lang"]) == ("en", "tgt")
    assert model["src_vocab_size"] == tokenizer.src_vocab_size
    assert model["tgt_vocab_size"] == tokenizer.tgt_vocab_size
    assert model["options"].items() <= dict(module.hparams).items()
    assert "dropout" in model["options"]
    assert not model["options"].keys() & {"lr", "beam_size", "vocab_size"}


def test_an_output_without_end_has_no_eos(one_vocabulary):
    module = transformer(one_vocabulary)
    with torch.no_grad():
        module.network.output.bias[one_vocabulary.eos_id] = -1e4
    sentence = explained(module)
    assert not sentence["finished"]
    assert one_vocabulary.eos_id not in sentence["tgt"]["ids"]


@pytest.mark.parametrize("architecture", MAKERS)
@pytest.mark.parametrize("text", ["\u2581", "x", "\0", "</s>", "\u202e", "🚲" * 3])
def test_explains_the_shortest_and_the_strangest(architecture, text, one_vocabulary):
    module = MAKERS[architecture](one_vocabulary)
    sentence = explained(module, text)
    assert sentence["source"] == text
    assert len(sentence["leave_one_out"]) == len(sentence["src"]["ids"])


# ---- the Transformer ----


@pytest.mark.parametrize("options", TRANSFORMERS, ids=str)
def test_each_head_can_be_computed_again(options, one_vocabulary):
    module = transformer(one_vocabulary, **options)
    sentence = explained(module)
    detail = sentence["detail"]
    scale = 1.0 if options.get("scale_scores") is False else 0.5  # 1 / sqrt(12 / 3)
    assert (detail["d_model"], detail["d_k"], detail["scale"]) == (12, 4, scale)
    with capture_attention(module) as maps:
        run(module, sentence)
    num_cross = 1 if "cross_attention" in options else 3
    assert len(maps) == 2 + 3 + num_cross
    assert len(detail["heads"]) == 3 * len(maps)
    assert sentence["left_out"] == {}
    for head in detail["heads"]:
        kind, layer, number = head["kind"], head["layer"], head["head"]
        q, k, v, weights, output = (
            tensor_of(head[name]) for name in ("q", "k", "v", "weights", "output")
        )
        among_kind = layer - 3 + num_cross if kind == "cross" else layer
        close(weights, maps.find(kind, among_kind).weights[0, number], rtol=0, atol=1e-6)
        scores = q @ k.T * scale
        if kind == "decoder":
            visible = torch.ones(len(q), len(k)).tril().bool()
            scores = scores.masked_fill(~visible, -math.inf)
            assert not weights[~visible].any()
        close(weights, scores.softmax(-1), rtol=0, atol=1e-6)
        close(weights.sum(-1), torch.ones(len(q)))
        close(output, weights @ v)


@pytest.mark.parametrize("options", TRANSFORMERS, ids=str)
def test_the_maps_are_the_weights_in_255ths(options, one_vocabulary):
    module = transformer(one_vocabulary, **options)
    sentence = explained(module)
    with capture_attention(module) as maps:
        run(module, sentence)
    found = {(m["kind"], m["layer"]): m for m in sentence["detail"]["attention"]}
    first_cross = 2 if "cross_attention" in options else 0
    assert len(found) == len(maps)
    for map_ in maps:
        layer = map_.layer + (first_cross if map_.kind == "cross" else 0)
        kept = tensor_of(found[map_.kind, layer]["weights"])
        assert found[map_.kind, layer]["heads"] == [0, 1, 2]
        assert kept.shape == map_.weights[0].shape
        assert kept.sum(-1, dtype=torch.int64).eq(255).all()
        assert (kept / 255 - map_.weights[0]).abs().max() < 1 / 255
        if map_.kind == "decoder":
            assert not kept.triu(1).any()


def test_the_summaries_are_about_the_model_own_weights(one_vocabulary):
    module = transformer(one_vocabulary)
    sentence = explained(module)
    with capture_attention(module) as maps:
        run(module, sentence)
    for map_, entry in zip(maps, sentence["detail"]["attention"], strict=True):
        if (map_.kind, map_.layer) != (entry["kind"], entry["layer"]):
            continue
        sure = map_.weights[0].max(-1).values.mean(-1)
        close(torch.tensor(entry["summary"]["confidence"]), sure, rtol=1e-3, atol=0)


def test_the_values_have_the_lengths_that_leave_the_attention(one_vocabulary):
    module = transformer(one_vocabulary)
    detail = explained(module)["detail"]
    norms = {(m["kind"], m["layer"]): m["value_norms"] for m in detail["attention"]}
    layers = {
        "encoder": [layer.self_attn for layer in module.network.encoder_layers],
        "decoder": [layer.self_attn for layer in module.network.decoder_layers],
        "cross": [layer.cross_attn for layer in module.network.decoder_layers],
    }
    for head in detail["heads"]:
        kept = norms[head["kind"], head["layer"]]
        number, v = head["head"], tensor_of(head["v"])
        # W_O alone, with this head's value in its place and nothing beside it
        joined = torch.zeros(len(v), 12)
        joined[:, 4 * number : 4 * number + 4] = v
        out_proj = layers[head["kind"]][head["layer"]].out_proj
        expected = (out_proj(joined) - out_proj.bias).norm(dim=1)
        actual = tensor_of(kept)[number] / 255 * kept["max"]
        close(actual, expected.detach(), rtol=0, atol=kept["max"] / 500)


@pytest.mark.parametrize("options", TRANSFORMERS, ids=str)
def test_embedding_and_code_add_up(options, tokenizer):
    module = transformer(tokenizer, **{**options, "share_embeddings": None})
    sentence = explained(module)
    embedding, positions = (sentence["detail"][name] for name in ("embedding", "positions"))
    token = embedding["token"]
    vector, code, total = (tensor_of(embedding[name]) for name in ("vector", "code", "sum"))
    table = module.network.src_embedding.weight.detach()
    close(vector, table[sentence["src"]["ids"][token]] * math.sqrt(12))
    assert embedding["factor"] == math.sqrt(12)
    close(total, vector + code)
    kind = options.get("positions", "sinusoidal")
    expected = {
        "sinusoidal": sinusoids(8, 12),
        "learned": getattr(module.network.positions, "weight", torch.empty(0, 12)).detach()[:8],
        "rotary": sinusoids(8, 4),
        "none": torch.zeros(8, 12),
    }[kind]
    codes = tensor_of(positions["src"])
    assert positions["kind"] == kind
    close(codes, expected[: len(codes)])
    close(code, torch.zeros(12) if kind == "rotary" else expected[token])


def sha(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:12]


@pytest.mark.parametrize("options", TRANSFORMERS, ids=str)
def test_every_decoder_layer_gets_the_encoder_s_output(options, one_vocabulary):
    module = transformer(one_vocabulary, **options)
    sentence = explained(module)
    memory, found = run(module, sentence)[0].output[0], sentence["detail"]["memory"]
    assert found["shape"] == list(memory.shape)
    assert found["digest"] == sha(memory)
    close(torch.tensor(found["first"]), memory[0, :4])
    digests = [layer["digest"] for layer in found["layers"]]
    asked = [layer["query_digest"] for layer in found["layers"]]
    if "cross_attention" in options:
        assert digests == [None, None, sha(memory)]
        assert asked[:2] == [None, None]
    else:
        assert digests == [sha(memory)] * 3
        assert len(set(asked)) == 3  # each layer asks a question of its own


def test_a_layer_that_is_given_another_memory_shows(one_vocabulary, monkeypatch):
    module = transformer(one_vocabulary)
    layer = module.network.decoder_layers[1]
    keys_values = layer.keys_values
    monkeypatch.setattr(layer, "keys_values", lambda memory, size: keys_values(memory * 1.5, size))
    found = explained(module, translations=["zwei hunde"])["detail"]["memory"]
    first, second, third = (layer["digest"] for layer in found["layers"])
    assert first == third == found["digest"] != second


def test_keys_that_come_from_elsewhere_show(one_vocabulary):
    module = transformer(one_vocabulary)

    def other(_, args):
        x, (k, v), *rest = args
        return (x, (k + 0.5, v), *rest)

    handle = module.network.decoder_layers[1].register_forward_pre_hook(other)
    found = explained(module, translations=["zwei hunde"])["detail"]["memory"]
    handle.remove()
    first, second, third = (layer["digest"] for layer in found["layers"])
    assert first == third == found["digest"] != second


def test_the_heads_asked_for_come_first_then_the_surest(one_vocabulary):
    module = transformer(one_vocabulary)
    asked = [Head("decoder", 0, 2), Head("cross", 1, 0)]
    detail = explained(module, heads=asked)["detail"]
    found = [Head(h["kind"], h["layer"], h["head"]) for h in detail["heads"]]
    assert found[:2] == asked
    for head, (kind, layer) in zip(
        found[2:], [("cross", 2), ("encoder", 1), ("decoder", 2)], strict=False
    ):
        (summary,) = (
            entry["summary"]
            for entry in detail["attention"]
            if (entry["kind"], entry["layer"]) == (kind, layer)
        )
        sure = summary["confidence"]
        assert head == Head(kind, layer, sure.index(max(sure)))
    assert len(set(found)) == len(found) == 24


def test_the_last_row_is_about_the_last_prediction(one_vocabulary):
    module = transformer(one_vocabulary)
    sentence = explained(module, translations=["zwei hunde"])
    (cross,) = (
        m for m in sentence["detail"]["attention"] if (m["kind"], m["layer"]) == ("cross", 2)
    )
    assert cross["weights"]["shape"] == [
        3, len(sentence["tgt"]["ids"]), len(sentence["src"]["ids"]),
    ]  # fmt: skip


# ---- size ----


def words(count):
    """A text of at least as many tokens, without a pattern that could be compressed."""
    rng = random.Random(count)
    return " ".join(rng.choices(" ".join(SOURCES).split(), k=count))


def test_thirty_tokens_of_the_base_model_leave_room_for_the_page(one_vocabulary):
    module = transformer(
        one_vocabulary, d_model=512, num_heads=8, num_encoder_layers=6, num_decoder_layers=6,
        dim_feedforward=64,
    )  # fmt: skip
    record = explain_translations(module, [words(30)], translations=[words(30)], max_src_len=30)
    (sentence,) = record["sentences"]
    assert len(sentence["src"]["ids"]) == len(sentence["tgt"]["ids"]) == 30
    detail = sentence["detail"]
    assert len(detail["attention"]) == 18
    assert all(m["heads"] == list(range(8)) for m in detail["attention"])
    assert detail["heads"][0]["kind"] == "cross"
    assert sentence["left_out"] == {"heads": 144 - len(detail["heads"])}
    assert size(record) < 166_000


def test_512_tokens_are_capped(one_vocabulary, caplog):
    module = transformer(one_vocabulary, d_model=32, num_heads=8)
    text = words(600)
    record = explain_translations(module, [text], translations=[text], max_src_len=512)
    (sentence,) = record["sentences"]
    assert len(sentence["src"]["ids"]) == len(sentence["tgt"]["ids"]) == 512
    assert sentence["tgt"]["ids"][-1] == one_vocabulary.eos_id
    detail = sentence["detail"]
    shown = sum(len(m["heads"]) for m in detail["attention"])
    assert 0 < shown < 64
    assert len(detail["heads"]) == 1
    for m in detail["attention"]:
        assert tensor_of(m["weights"]).shape == (len(m["heads"]), 512, 512)
        assert tensor_of(m["value_norms"]).shape == (len(m["heads"]), 512)
        assert len(m["summary"]["confidence"]) == 8
    assert sentence["left_out"] == {"leave_one_out": True, "maps": 64 - shown, "heads": 63}
    assert sentence["leave_one_out"] == []
    assert size(record) < 2_700_000
    (src,), (tgt,) = one_vocabulary.encode_source([text]), one_vocabulary.encode_target([text])
    assert caplog.messages == [
        f"sentence 1 has {len(src)} tokens and was cut to max_src_len=512.",
        f"translation 1 has {len(tgt)} tokens and was cut to max_src_len=512.",
    ]


def test_many_long_sentences_share_the_room(one_vocabulary):
    module = transformer(one_vocabulary)
    text = words(150)
    record = explain_translations(module, [text] * 8, translations=[text] * 8)
    assert size(record) < 2_700_000
    assert record["sentences"][0]["detail"]["heads"] == []
    assert record["sentences"][0]["left_out"]["heads"] == 24


@pytest.mark.parametrize(
    ("length", "has_queries", "has_step"),
    [(20, True, True), (150, False, True), (500, False, False)],
)
def test_rnn_attention_shows_as_much_as_fits(length, has_queries, has_step, one_vocabulary):
    module = make(RnnAttentionSeq2Seq, one_vocabulary, embedding_dim=8, hidden_size=300)
    # twice, so that the room is too small for 500 tokens
    texts = [words(length)] * (2 if length == 500 else 1)
    record = explain_translations(module, texts, translations=texts, max_src_len=length)
    sentence = record["sentences"][0]
    detail = sentence["detail"]
    assert (detail["queries"] is not None) == (detail["contexts"] is not None) == has_queries
    assert (detail["step"] is not None) == (detail["scores"] is not None) == has_step
    assert detail["weights"]["dtype"] == ("float32" if has_step else "uint8")
    left_out = {k: v for k, v in sentence["left_out"].items() if k != "leave_one_out"}
    if has_queries:
        assert left_out == {}
    elif has_step:
        assert left_out == {"steps": length - 1}
    else:
        assert left_out == {"steps": length, "scores": True}
    assert size(record) < 2_700_000


def test_a_long_source_has_no_influence_of_each_token(one_vocabulary):
    sentence = explained(rnn(one_vocabulary), words(150), translations=["katze"])
    assert sentence["detail"]["influence"] == []
    assert sentence["detail"]["lengths"][-1]["source_tokens"] == 128
    assert sentence["left_out"] == {"influence": True}


# ---- the recurrent models ----

SCORES = [
    {"score": score, "rnn_type": cell, "input_feeding": feeding, "bidirectional": both}
    for score in ("additive", "dot", "general", "concat")
    for cell, feeding, both in (("gru", False, True), ("lstm", True, False))
    if not (score == "additive" and feeding) and not (score == "dot" and both)
]


@pytest.mark.parametrize("options", [*SCORES, {"num_layers": 2, "rnn_type": "lstm"}], ids=str)
def test_each_step_of_the_attention_can_be_computed_again(options, tokenizer):
    module = rnn_attention(tokenizer, **options)
    sentence = explained(module)
    detail, network = sentence["detail"], module.network
    memory, _ = run(module, sentence)
    score = options.get("score", "additive")
    assert detail["score"] == score
    assert detail["hidden_size"] == 10
    assert detail["memory_size"] == memory.output.size(2)
    assert detail["bidirectional"] == options.get("bidirectional", True)
    assert detail["input_feeding"] == options.get("input_feeding", False)

    scores, weights, contexts, queries = (
        tensor_of(detail[name]) for name in ("scores", "weights", "contexts", "queries")
    )
    tgt_in = torch.tensor([sentence["tgt_in"]["ids"]])
    with torch.inference_mode():
        close(weights, network.attention(tgt_in, memory)[0])
    with capture_attention(module) as maps:
        run(module, sentence)
    close(weights, maps.find("cross").weights[0, 0])
    close(weights, scores.softmax(-1))
    close(contexts, (weights @ memory.output[0])[:, :16])
    close(torch.tensor(detail["entropy"]), -(weights * weights.log()).sum(-1))

    step = detail["step"]
    index = step["index"]
    assert 0 <= index < len(weights)
    keys, values, query, context = (
        tensor_of(step[name]) for name in ("keys", "values", "query", "context")
    )
    close(query, queries[index])
    close(context, contexts[index])
    close(values, memory.output[0, :, :16])
    close(context, weights[index] @ values)
    if score in ("dot", "general"):
        assert step["energy"] is None
        again = queries @ keys.T
    else:
        energy = tensor_of(step["energy"])
        again = (queries[:, None] + keys[None]).tanh() @ energy
    close(scores, again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["rnn_attention", "rnn"])
def test_the_states_are_pictures_of_the_model_s(architecture, one_vocabulary):
    module = MAKERS[architecture](one_vocabulary)
    sentence = explained(module)
    with watch([(module.network.encoder, "forward"), (module.network.decoder, "forward")]) as calls:
        run(module, sentence)
    halves = {
        "encoder_states": calls.of(module.network.encoder),
        "decoder_states": calls.of(module.network.decoder),
    }
    for name, seen in halves.items():
        states = torch.cat([call.output[0][0] for call in seen])
        shown = sentence["detail"][name]
        low, high = shown["range"]
        assert (low, high) == pytest.approx((float(states.min()), float(states.max())))
        close(tensor_of(shown) / 255 * (high - low) + low, states, rtol=0, atol=(high - low) / 500)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rnn_type": "lstm", "num_layers": 2},
        {"bidirectional": True},
        {"context_at_every_step": True, "rnn_type": "tanh"},
        {"reverse_source": True},
    ],
    ids=str,
)
def test_one_vector_is_all_that_passes(options, tokenizer):
    module = rnn(tokenizer, **options)
    sentence = explained(module)
    detail = sentence["detail"]
    memory, _ = run(module, sentence)
    context = memory.output[0, 0]
    close(tensor_of(detail["context"]), context)
    tokens = len(sentence["src"]["ids"])
    assert detail["numbers_per_token"] == context.numel() / tokens
    for name in ("context_at_every_step", "reverse_source"):
        assert detail[name] == options.get(name, False)
    ids = torch.tensor([sentence["src"]["ids"]])
    if not options.get("bidirectional"):
        shown, (low, high) = tensor_of(detail["encoder_states"]), detail["encoder_states"]["range"]
        # the token that is read last leaves the state that is handed over
        last = 0 if options.get("reverse_source") else -1
        close(shown[last] / 255 * (high - low) + low, context, rtol=0, atol=(high - low) / 500)

    def contexts(src):
        with torch.inference_mode():
            return module.network.encode(src, torch.zeros_like(src, dtype=torch.bool)).output[:, 0]

    def influence(end):
        eos = ids[:, -1:]
        whole = contexts(torch.cat((ids[:, :end], eos), 1))
        return [
            float((contexts(torch.cat((ids[:, :i], ids[:, i + 1 : end], eos), 1)) - whole).norm())
            / float(whole.norm())
            for i in range(end)
        ]

    assert detail["influence"][:-1] == pytest.approx(influence(tokens - 1), rel=1e-4)
    assert detail["influence"][-1] is None
    lengths = detail["lengths"]
    assert detail["lengths_are"] == "prefixes"
    assert lengths[-1]["source_tokens"] == tokens - 1
    assert len(lengths) == min(16, tokens - 1)
    for entry in lengths:
        count = entry["source_tokens"]
        assert entry["numbers_per_token"] == context.numel() / count
        assert entry["influence"] == pytest.approx(sum(influence(count)) / count, rel=1e-4)


# ---- errors ----


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no sentence to explain"),
        (["dog", " \t"], {}, "sentence 2 is blank"),
        (["dog"], {"translations": ["\u3000"]}, "translation 1 is blank"),
        (["dog"], {"translations": ["a", "b"]}, "2 translations do not fit 1 sentences"),
        (["dog", "cat"], {"references": ["a"]}, "1 references do not fit 2 sentences"),
        (["do\udcffg"], {}, r"sentence 1 is not UTF-8, 'do\\udcffg'"),
        (["dog"], {"heads": [Head("cross", 3, 0)]}, "no head cross:4:1; it has cross:1 .heads 1 t"),
        (["dog"], {"heads": [Head("encoder", 0, 3)]}, "no head encoder:1:4"),
    ],
    ids=str,
)
def test_refuses(texts, options, message, one_vocabulary):
    with pytest.raises(ValueError, match=message):
        explain_translations(transformer(one_vocabulary), texts, **options)


def test_a_layer_that_never_looks_has_no_heads(one_vocabulary):
    module = transformer(one_vocabulary, cross_attention="last_layer")
    with pytest.raises(ValueError, match=r"no head cross:1:1; it has cross:3 \(heads 1 to 3\)"):
        explained(module, heads=[Head("cross", 0, 0)])


@pytest.mark.parametrize("architecture", ["rnn_attention", "rnn"])
def test_only_a_transformer_has_heads(architecture, one_vocabulary):
    with pytest.raises(ValueError, match="only a Transformer has heads, got cross:1:1"):
        explained(MAKERS[architecture](one_vocabulary), heads=[Head("cross", 0, 0)])


@pytest.mark.parametrize(
    "text",
    ["cross", "cross:1", "cross:1:-2", "cross:0:1", "cross:1:0", "cros:1:2", "cross:1:2:3", ""],
)
def test_refuses_what_is_no_head(text):
    with pytest.raises(ValueError, match="kind:layer:head, such as cross:2:4, got"):
        Head.parse(text)


def test_reads_a_head():
    assert Head.parse("decoder:2:24") == Head("decoder", 1, 23)
    assert str(Head.parse("cross:1:3")) == "cross:1:3"


def test_needs_a_tokenizer(one_vocabulary):
    module = transformer(one_vocabulary)
    module.tokenizer = None
    with pytest.raises(ValueError, match="needs a litseq tokenizer"):
        explained(module)


@pytest.mark.parametrize("architecture", CUSTOM)
def test_the_attention_of_a_model_of_ones_own(architecture, tokenizer):
    module = make(task_of(CUSTOM[architecture]), tokenizer, width=12, num_heads=3)
    record = explain_translations(module, [TEXT, "five cats"], options=OPTIONS)
    assert record["model"]["architecture"] == architecture
    for sentence in record["sentences"]:
        src = torch.tensor(sentence["src"]["ids"])[None]
        tgt_in = torch.tensor(sentence["tgt_in"]["ids"])[None]
        maps = sentence["detail"]["attention"]
        if architecture == "custom":
            assert maps == []
            continue
        with torch.no_grad(), capture_attention(module.network) as expected:
            module.network(src, src == -1, tgt_in)
        assert [item["kind"] for item in maps] == [m.kind for m in expected]
        for item, found in zip(maps, expected, strict=True):
            weights = tensor_of(item["weights"]).double() / 255
            torch.testing.assert_close(weights, found.weights[0].double(), atol=1 / 255, rtol=0)
            assert len(item["summary"]["entropy"]) == 3


def test_time_steps_of_a_model_of_ones_own_are_joined(one_vocabulary):
    class StepByStep(CUSTOM["custom_cross"]):
        def decode(self, tgt_in, memory):
            state, logits = self.init_state(memory), []
            for token in tgt_in.T:
                found, state = self.step(token, state)
                logits.append(found)
            return torch.stack(logits, 1)

    modules = [
        make(task_of(network), one_vocabulary, width=12, num_heads=3)
        for network in (StepByStep, CUSTOM["custom_cross"])
    ]
    one, other = (explained(module)["detail"]["attention"] for module in modules)
    assert [item["weights"]["shape"] for item in one] == [i["weights"]["shape"] for i in other]


def test_maps_of_a_model_of_ones_own_that_do_not_fit_are_counted(one_vocabulary, monkeypatch):
    monkeypatch.setattr("litseq.explain.record._LIMIT", 1)
    sentence = explained(
        make(task_of(CUSTOM["custom_cross"]), one_vocabulary, width=12, num_heads=3)
    )
    assert (sentence["detail"]["attention"], sentence["left_out"]) == ([], {"maps": 3})


def test_notices_that_step_and_decode_disagree(one_vocabulary, monkeypatch):
    module = transformer(one_vocabulary)
    decode = module.network.decode
    monkeypatch.setattr(module.network, "decode", lambda *args: decode(*args) * 1.1)
    message = r"sentence 1: the search found .* -\d+\.\d+, teacher forcing the same tokens -\d"
    with pytest.raises(ValueError, match=message):
        explained(module)


def test_notices_damaged_weights(one_vocabulary):
    module = transformer(one_vocabulary)
    with torch.no_grad():
        module.network.output.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"sentence 1: the model gives .* log-probability of nan"):
        explained(module, translations=["katze"])


def test_no_path_of_this_machine_is_shown(one_vocabulary):
    class Named(TransformerSeq2Seq):
        def __init__(self, *, vectors: str = "", style: str = "", **options):
            super().__init__(**options)

    folder = str(__file__)
    module = transformer(one_vocabulary)
    named = make(
        Named, one_vocabulary, **{k: v for k, v in module.hparams.items() if "vocab" not in k},
        vectors=folder, style="plain",
    )  # fmt: skip
    record = explain_translations(named, ["dog"], options=OPTIONS)
    assert record["model"]["options"]["style"] == "plain"
    assert "vectors" not in record["model"]["options"]
    assert folder not in json.dumps(record)


# ---- parts ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_arrays_come_back(dtype):
    tensor = (torch.rand(3, 1, 5) * 200).to(dtype)
    written = json.loads(json.dumps(array(tensor.transpose(0, 2))))
    kept = torch.uint8 if dtype == torch.uint8 else torch.float32
    assert written["dtype"] == str(kept).removeprefix("torch.")
    close(tensor_of(written), tensor.transpose(0, 2).to(kept), rtol=0, atol=0)


def test_arrays_are_little_endian():
    assert base64.b64decode(array(torch.tensor([1.0]))["data"]) == b"\x00\x00\x80\x3f"


def test_rows_of_bytes_sum_to_255():
    torch.manual_seed(1)
    weights = (torch.randn(2, 50, 7) * 4).softmax(-1)
    weights[0, 0] = torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    weights[0, 1] = torch.tensor([0.5, 0, 0.5, 0, 0, 0, 0])
    rounded = as_bytes(weights)
    assert rounded.dtype == torch.uint8
    assert rounded.sum(-1, dtype=torch.int64).eq(255).all()
    assert (rounded / 255 - weights).abs().max() < 1 / 255
    assert not rounded[weights == 0].any()


def test_a_picture_of_one_colour():
    shown = picture(torch.full((2, 3), 0.25))
    assert shown["range"] == [0.25, 0.25]
    assert tensor_of(shown).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_picture_has_at_most_64_columns():
    shown = picture(torch.arange(140.0).view(2, 70))
    assert shown["shape"] == [2, 64]
    assert shown["range"] == [0.0, 133.0]


def test_digests_are_of_float32():
    tensor = torch.rand(2, 3, dtype=torch.float64)
    assert digest(tensor) == sha(tensor.float())
    assert digest(tensor.T) == sha(tensor.float().T)


def test_nine_digits_are_a_float32():
    values = torch.rand(100)
    assert torch.equal(torch.tensor(numbers(values)), values)


def test_size_counts_compressed_arrays():
    zeros = array(torch.zeros(1000))
    assert size({"a": [zeros]}) < 120 < len(zeros["data"])
    noise = array(torch.randn(1000))
    assert size(noise) <= len(json.dumps(noise, separators=(",", ":")))


def test_watches_methods_that_others_have_replaced():
    module = torch.nn.Linear(2, 3)
    module.extra_repr = own = lambda: "own"
    with watch([(module, "extra_repr"), (module, "forward"), (module, "forward")]) as calls:
        module.extra_repr()
        output = module(torch.ones(1, 2))
    assert module.extra_repr is own
    (call,) = calls.of(module, "extra_repr")
    assert call.output == "own"
    (call,) = calls.of(module)
    assert call.output is output
    assert calls.of(torch.nn.Identity()) == []


def test_the_forward_pass_is_the_model_s(one_vocabulary):
    module = transformer(one_vocabulary)
    src, tgt = torch.tensor([5, 6, 7, 3]), torch.tensor([8, 9, 3])
    with torch.inference_mode():
        seen = forward(module.network, src, tgt, bos_id=2)
        expected = module.network(
            src[None], torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[2, 8, 9]])
        )
    assert torch.equal(seen.logits, expected[0])
