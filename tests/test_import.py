"""What comes from other programs does here what it does there."""

import json
import os
import sys

import lightning.pytorch as pl
import pytest
import torch

from command_line import error_of, litseq
from litseq import Seq2Seq, TranslationDataModule, TranslationTokenizer
from litseq.checkpoints import check_contents
from litseq.data.collate import collate
from litseq.decoding import SearchOptions
from litseq.export import read_marian, write_marian

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from opus_folder import AWKWARD, SOURCES, TARGETS, edit, make_folder  # noqa: E402

VARIANTS = {
    "swish": {"activation_function": "swish"},
    "relu": {"activation_function": "relu"},
    "gelu": {},
    "BPE": {"model_type": "bpe", "activation_function": "silu"},
    "an output of its own": {"tie_word_embeddings": False},
    "embeddings apart": {"share_encoder_decoder_embeddings": False},
    "all apart": {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
    "two vocabularies": {"separate": True},
    "two vocabularies, an output of its own": {"separate": True, "tie_word_embeddings": False},
    "other sizes": {
        "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 72, "decoder_ffn_dim": 72,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 12,
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path / "opus", activation_function="swish")
    return tmp_path / "opus"


def theirs(folder):
    model, info = transformers.MarianMTModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval(), transformers.MarianTokenizer.from_pretrained(folder)


def search(model, texts, **options):
    """Tokens that our search finds, with EOS where it is reached."""
    options = SearchOptions(length_offset=0, max_len_a=0, max_len_b=30, **options)
    translator = model.translator()
    batch = collate(model.tokenizer.encode_source(texts), pad_id=translator.pad_id)
    return [list(best.tokens) for best, *_ in translator.search(batch, options)]


def generate(model, reader, texts, **options):
    """Tokens that theirs finds, without the first one and what follows EOS."""
    inputs = reader(texts, return_tensors="pt", padding=True)
    options = {"max_length": 31, "early_stopping": "never", **options}
    model.generation_config.forced_eos_token_id = None
    found = []
    for ids in model.generate(**inputs, **options)[:, 1:].tolist():
        end = ids.index(0) + 1 if 0 in ids else len(ids)
        found.append(ids[:end])
    return found


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_we_say_what_marian_says(options, tmp_path):
    make_folder(tmp_path / "opus", **options)
    ours = read_marian(tmp_path / "opus")
    other, reader = theirs(tmp_path / "opus")

    encoded = ours.tokenizer.encode_source(AWKWARD)
    assert encoded == [reader(text).input_ids for text in AWKWARD]
    assert len(set(map(tuple, encoded))) > 15
    targets = [*TARGETS, *AWKWARD]
    expected = [reader(text_target=text).input_ids for text in targets]
    assert ours.tokenizer.encode_target(targets) == expected

    inputs = reader(AWKWARD, return_tensors="pt", padding=True)
    tgt = torch.randint(other.config.decoder_vocab_size, (len(AWKWARD), 9))
    tgt[:, 0] = ours.tokenizer.bos_id
    with torch.no_grad():
        memory = ours.network.encode(inputs.input_ids, inputs.attention_mask == 0)
        logits = ours.network.decode(tgt, memory)
        expected = other(**inputs, decoder_input_ids=tgt).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        memory = ours.double().network.encode(inputs.input_ids, inputs.attention_mask == 0)
        logits = ours.network.decode(tgt, memory)
        expected = other.double()(**inputs, decoder_input_ids=tgt).logits
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)

    said = search(ours, AWKWARD, beam_size=1)
    assert said == generate(other, reader, AWKWARD, num_beams=1)
    assert len(set(map(tuple, said))) > 2, "always the same proves nothing"
    for ids in said:
        text = reader.decode([i for i in ids if i != 1], skip_special_tokens=True)
        assert ours.tokenizer.decode(i for i in ids if i != 1) == text
    ended = 0
    for penalty in (0.6, 1.0):
        mine = search(ours, AWKWARD, beam_size=4, length_penalty=penalty)
        its = generate(other, reader, AWKWARD, num_beams=4, length_penalty=penalty)
        for one, two in zip(mine, its, strict=True):
            if two[-1] == 0:  # at the limit theirs takes what is more probable
                assert one == two
                ended += 1
    assert ended >= 10


def test_padding_is_never_said_and_never_counts(tmp_path):
    make_folder(tmp_path / "opus", generation={"renormalize_logits": True, "length_penalty": 0.5})
    weights = safetensors.load_file(tmp_path / "opus/model.safetensors")
    weights["final_logits_bias"][0, -1] = 6.0  # where there is something to share out
    safetensors.save_file(weights, tmp_path / "opus/model.safetensors", {"format": "pt"})
    ours = read_marian(tmp_path / "opus")
    assert ours.hparams.length_penalty == 0.5
    other, reader = theirs(tmp_path / "opus")
    mine = search(ours, AWKWARD, beam_size=4, length_penalty=0.5)
    its = generate(other, reader, AWKWARD)
    ended = [number for number, ids in enumerate(its) if ids[-1] == 0]
    assert [mine[i] for i in ended] == [its[i] for i in ended]
    assert len(ended) > 10
    inputs = reader(SOURCES, return_tensors="pt", padding=True)
    tgt = torch.tensor([[38, 5, 7, 9]] * len(SOURCES))
    with torch.no_grad():
        logits = other(**inputs, decoder_input_ids=tgt).logits
        memory = ours.network.encode(inputs.input_ids, inputs.attention_mask == 0)
        log_probs = ours.network.decode(tgt, memory).log_softmax(-1)[..., :-1]
    assert (logits.softmax(-1)[..., -1] > 0.1).any(), "there was nothing to share out"
    torch.testing.assert_close(log_probs, logits[..., :-1].log_softmax(-1))


def test_the_search_is_that_of_the_folder(tmp_path):
    generation = {"length_penalty": 0.8}
    make_folder(tmp_path / "opus", generation=generation)
    options = read_marian(tmp_path / "opus").search_options
    assert (options.beam_size, options.length_penalty, options.length_offset) == (4, 0.8, 0)
    (tmp_path / "opus/generation_config.json").unlink()
    edit(tmp_path / "opus/config.json", num_beams=6, bad_words_ids=[[38]])
    options = read_marian(tmp_path / "opus").search_options
    assert (options.beam_size, options.length_penalty, options.length_offset) == (6, 1.0, 0)


@pytest.mark.parametrize("zipped", [True, False])
def test_older_files(zipped, folder):
    expected = read_marian(folder)
    model, _ = theirs(folder)
    weights = model.state_dict()
    assert "model.encoder.embed_positions.weight" in weights
    torch.save(
        weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped
    )  # fmt: skip
    (folder / "model.safetensors").unlink()
    found = read_marian(folder).state_dict()
    for name, weight in expected.state_dict().items():
        assert torch.equal(found[name], weight)

    weights = {name: weight.half() for name, weight in weights.items()}
    torch.save(weights, folder / "pytorch_model.bin")
    found = read_marian(folder).state_dict()
    for name, weight in expected.state_dict().items():
        assert torch.equal(found[name], weight.half().float())


@pytest.mark.parametrize(
    "options", [VARIANTS[name] for name in ("swish", "all apart", "two vocabularies", "BPE")]
)
def test_there_and_back(options, tmp_path):
    make_folder(tmp_path / "opus", **options)
    (tmp_path / "out").mkdir()
    write_marian(read_marian(tmp_path / "opus"), tmp_path / "out")
    before, after = (
        safetensors.load_file(tmp_path / name / "model.safetensors") for name in ("opus", "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "opus" / name).read_bytes()
    for name in (
        "vocab.json", "target_vocab.json", "tokenizer_config.json", "config.json",
        "generation_config.json",
    ):  # fmt: skip
        if not (tmp_path / "opus" / name).exists():
            assert not (tmp_path / "out" / name).exists()
            continue
        one, two = (
            json.loads((tmp_path / folder / name).read_text(encoding="utf-8"))
            for folder in ("opus", "out")
        )
        same = one.keys() & two.keys() - {
            "max_position_embeddings", "max_length", "forced_eos_token_id", "bos_token_id",
            "activation_function",
        }  # fmt: skip
        assert {key: one[key] for key in same} == {key: two[key] for key in same}
        assert len(same) >= 3


def test_our_own_export_comes_back(tmp_path):
    from random_models import make

    model = make(activation="gelu")
    (tmp_path / "out").mkdir()
    write_marian(model, tmp_path / "out")
    back = read_marian(tmp_path / "out")
    assert back.tokenizer.encode_source(SOURCES) == model.tokenizer.encode_source(SOURCES)
    assert (back.hparams.pad_id, back.hparams.bos_id, back.hparams.eos_id) == (0, 2, 3)
    state = model.network.state_dict()
    assert state.keys() == back.network.state_dict().keys()
    assert all(torch.equal(w, state[name]) for name, w in back.network.state_dict().items())


# ---- what is refused ----


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "bart"}, 'model_type is "bart"; litseq reads models with'),
        ("config.json", {"scale_embedding": False}, "scale_embedding is false; litseq reads"),
        ("config.json", {"normalize_before": True}, "normalize_before is true"),
        ("config.json", {"static_position_embeddings": False}, "static_position_embeddings is fa"),
        ("config.json", {"encoder_layerdrop": 0.1}, r"encoder_layerdrop is 0\.1"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config is"),
        ("config.json", {"activation_function": "gelu_new"}, 'activation_function is "gelu_new"'),
        ("config.json", {"decoder_ffn_dim": 48}, "decoder_ffn_dim is 48; .* the encoder, 24"),
        ("config.json", {"decoder_attention_heads": 2}, "decoder_attention_heads is 2"),
        ("config.json", {"encoder_layers": 10**9}, "from 1 to 1,048,576"),
        ("config.json", {"encoder_layers": 10**6}, "has 2 layers in its encoder, and encoder_la"),
        ("config.json", {"decoder_layers": 4}, "has 3 layers in its decoder"),
        ("config.json", {"d_model": 15}, "d_model is 15; it must be even"),
        ("config.json", {"d_model": 2**20}, r"is \(16, 16\), and by config.json it would be"),
        ("config.json", {"d_model": "16"}, 'd_model is "16"; it must be a whole number'),
        ("config.json", {"d_model": True}, "d_model is true; it must be a whole number"),
        ("config.json", {"d_model": None}, "has no d_model"),
        ("config.json", {"vocab_size": 40}, "vocab.json has 39 pieces, and vocab_size in config"),
        ("config.json", {"decoder_vocab_size": 40}, "decoder_vocab_size is 40"),
        ("config.json", {"pad_token_id": 5}, "vocab.json: <pad> must be a piece that has the id 5"),
        ("config.json", {"eos_token_id": [0, 1]}, r"eos_token_id is \[0, 1\]"),
        ("config.json", {"decoder_start_token_id": 39}, "decoder_start_token_id is 39"),
        ("config.json", {"max_position_embeddings": 10**7}, "max_position_embeddings is"),
        ("config.json", {"dropout": 1}, "dropout is 1; it must be a number of at least 0 and belo"),
        ("config.json", {"dropout": float("nan")}, "dropout is NaN"),
        ("config.json", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is"),
        ("config.json", {"tie_word_embeddings": False}, "has no lm_head.weight"),
        ("config.json", {"share_encoder_decoder_embeddings": False}, "has no model.encoder.embed_"),
        ("generation_config.json", {"num_beams": 0}, "num_beams is 0"),
        ("generation_config.json", {"length_penalty": -1.0}, r"length_penalty is -1\.0"),
        ("generation_config.json", {"bad_words_ids": [[38], [5, 6]]}, "bad_words_ids is"),
        ("generation_config.json", {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3; litse"),
        ("generation_config.json", {"do_sample": True}, "do_sample is true; litseq has no such"),
        ("generation_config.json", {"eos_token_id": 7}, "eos_token_id is 7; config.json says 0"),
        ("tokenizer_config.json", {"separate_vocabs": True}, "separate_vocabs is true"),
        ("tokenizer_config.json", {"source_lang": 5}, "source_lang is 5; it must be a text"),
        ("tokenizer_config.json", {"sp_model_kwargs": {"alpha": 1}}, "sp_model_kwargs is"),
        ("tokenizer_config.json", {"unk_token": "<no>"}, "json: <no> must be a piece that is"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"99": {"content": "<new>"}}},
            "added_tokens_decoder is",
        ),
        ("vocab.json", {"<pad>": 37}, "vocab.json must give its 39 pieces the ids 0 to 38, each"),
        ("vocab.json", {"<pad>": 38.0}, "vocab.json must give its 39 pieces the ids 0 to 38, each"),
        ("vocab.json", {"one more": 39}, "vocab.json has 40 pieces"),
    ],
)  # fmt: skip
def test_what_we_have_not_is_refused(file, changes, message, folder):
    edit(folder / file, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_marian(folder)
    assert "\n" not in str(caught.value)


def damage_weights(folder, **changes):
    path = folder / "model.safetensors"
    weights = {**safetensors.load_file(path), **changes}
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    safetensors.save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.encoder.layers.1.fc1.bias": None}, "has no model.encoder.layers.1.fc1.bias"),
        ({"model.shared.weight": torch.zeros(39, 17)}, r"is \(39, 17\), and by config.json it"),
        ({"model.shared.weight": torch.full((39, 16), torch.nan)}, "weight is not finite"),
        ({"model.shared.weight": torch.zeros(39, 16, dtype=torch.int8)}, "weight is torch.int8"),
        ({"lm_head.weight": torch.zeros(39, 16)}, "shared.weight and lm_head.weight differ"),
        ({"model.encoder.layer_norm.weight": torch.zeros(16)}, "holds model.encoder.layer_norm.w"),
        ({"model.encoder.embed_positions.weight": torch.zeros(128, 16)}, "are not the sinusoids"),
        ({"final_logits_bias": torch.zeros(39)}, r"final_logits_bias is \(39,\)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_belong(changes, message, folder):
    damage_weights(folder, **changes)
    with pytest.raises(ValueError, match=message):
        read_marian(folder)


def test_a_bias_may_be_missing(folder):
    damage_weights(folder, final_logits_bias=None)
    assert not read_marian(folder).network.output.bias.any()


@pytest.mark.parametrize(
    "name", ["config.json", "source.spm", "target.spm", "vocab.json", "model.safetensors"]
)
def test_missing_files(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_marian(folder)


def test_without_what_may_be_missing(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "generation_config.json").unlink()
    model = read_marian(folder)
    assert (model.tokenizer.src_lang, model.hparams.beam_size) == ("src", 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[" * 100_000, "config.json is not JSON"),
        ("config.json", b"\xff", "config.json is not JSON"),
        ("config.json", b"[]", "config.json holds a list; it needs keys"),
        ("vocab.json", b'{"a": "b"}', "vocab.json has 1 pieces"),
        ("source.spm", b"no", "source.spm is not a SentencePiece model"),
        ("target.spm", b"", "target.spm is not a SentencePiece model"),
        ("model.safetensors", b"\xff" * 100, "model.safetensors is damaged"),
        ("model.safetensors", b"", "model.safetensors is damaged"),
        ("added_tokens.json", b'{"<new>": 39}', 'added_tokens.json adds "<new>"'),
    ],
)
def test_damaged_files(name, content, message, folder):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_marian(folder)


class Code:
    def __reduce__(self):
        return os.mkdir, ("the-code-ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(zipped, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"a": Code()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged, or holds more than tens"):
        read_marian(folder)
    assert not (tmp_path / "the-code-ran").exists()
    path.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged"):
        read_marian(folder)
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"pytorch_model.bin holds a list in place of weights"):
        read_marian(folder)
    torch.save({"a": torch.zeros(9)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged"):
        read_marian(folder)


def test_a_tensor_larger_than_its_storage_is_refused(folder):
    weights = safetensors.load_file(folder / "model.safetensors")
    weights["model.shared.weight"] = torch.zeros(1).expand(39, 16)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.shared.weight is not finite, or less than its"):
        read_marian(folder)


# ---- the command ----


def test_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = litseq("import", folder, "-o", "model.ckpt")
    assert outcome.status == 0, outcome.err
    assert "compared with transformers on 64 sentences: logits differ by" in outcome.err
    assert "equal are 64 greedy translations" in outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {"opus", "model.ckpt"}
    saved = torch.load("model.ckpt", weights_only=True)
    check_contents(tmp_path / "model.ckpt", saved)
    model = Seq2Seq.load_from_checkpoint("model.ckpt")

    texts = tmp_path / "in.txt"
    texts.write_text("\n".join(SOURCES) + "\n")
    words = ("--input", texts, "--output", "out.txt", "--beam_size", "2")
    assert litseq("translate", "--ckpt", "model.ckpt", *words).status == 0
    expected = model.translate(SOURCES, options=SearchOptions(
        beam_size=2, length_penalty=1.0, length_offset=0
    ))  # fmt: skip
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines() == expected

    outcome = litseq("explain", "--ckpt", "model.ckpt", "a red house", "--out", "page.html")
    assert outcome.status == 0, outcome.err
    outcome = litseq("export", "--ckpt", "model.ckpt", "-o", "out", "--input", texts)
    assert outcome.status == 0, outcome.err
    ids = json.loads((tmp_path / "out/config.json").read_text())
    assert ids["pad_token_id"] == ids["decoder_start_token_id"] == 38
    assert json.loads((tmp_path / "out/report.json").read_text())["equal_greedy"] == len(SOURCES)


@pytest.mark.parametrize("separate", [False, True])
def test_training_goes_on(separate, tmp_path):
    make_folder(tmp_path / "opus", separate=separate)
    litseq("import", tmp_path / "opus", "-o", tmp_path / "model.ckpt")
    for name, texts in (("train.en", SOURCES), ("train.de", TARGETS)):
        (tmp_path / name).write_text("\n".join(texts * 4) + "\n", encoding="utf-8")
    data = TranslationDataModule(
        src_lang="en", tgt_lang="de", train=str(tmp_path / "train"), val=str(tmp_path / "train"),
        tokenizer=str(tmp_path / "model.ckpt"), cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    hparams = {"lr": 1e-2, "warmup_steps": 0, "val_decode": False}
    model = Seq2Seq.load_from_checkpoint(tmp_path / "model.ckpt", hparams=hparams).train()
    before = {name: weight.clone() for name, weight in model.network.named_parameters()}
    trainer = pl.Trainer(
        max_steps=40, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    [first] = trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    [last] = trainer.validate(model, data, verbose=False)
    assert last["val/nll"] < 0.7 * first["val/nll"]
    changed = {n for n, w in model.network.named_parameters() if not torch.equal(w, before[n])}
    assert changed == before.keys()
    trainer.save_checkpoint(tmp_path / "later.ckpt")
    again = TranslationTokenizer.load(tmp_path / "later.ckpt")
    assert again.fingerprint == model.tokenizer.fingerprint


def test_a_wrong_import_is_not_kept(folder, tmp_path, monkeypatch):
    import litseq.export.from_marian as from_marian

    monkeypatch.setattr(from_marian, "halves", torch.arange)  # as if the order were ours
    message = error_of("import", folder, "-o", tmp_path / "model.ckpt")
    assert "opus does not do in transformers what it does here" in message
    assert {path.name for path in tmp_path.iterdir()} == {"opus"}


def test_without_transformers(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    outcome = litseq("import", folder, "-o", tmp_path / "model.ckpt")
    assert outcome.status == 0
    assert "nothing was compared, as transformers is not installed: pip install" in outcome.err
    assert (tmp_path / "model.ckpt").is_file()


def test_without_safetensors(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    message = error_of("import", folder, "-o", tmp_path / "model.ckpt")
    assert "is read by safetensors, which is not installed: pip install" in message
    assert not (tmp_path / "model.ckpt").exists()


def test_short_models_are_not_compared(tmp_path):
    make_folder(tmp_path / "opus", max_position_embeddings=20)
    outcome = litseq("import", tmp_path / "opus", "-o", tmp_path / "model.ckpt")
    assert "nothing was compared: max_position_embeddings in" in outcome.err
    assert (tmp_path / "model.ckpt").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none", "-o", "new"], "there is no folder none; give one with config.json"),
        (["opus", "-o", "."], ". is a folder; give a file to write."),
        (["opus", "-o", "no/such"], "there is no folder no to write such in."),
        (["opus", "-o", "new", "--input", "none.txt"], "no input file at none.txt"),
        (["opus", "-o", "new", "--input", "blank.txt"], "blank.txt holds no sentence to compare"),
        (["opus", "-o", "new", "--format", "t5"], "format must be one of 'marian', got 't5'"),
        (["opus", "-o", "new", "--input", "special.txt"], "has other ids in MarianTokenizer"),
    ],
)
def test_bad_arguments(words, said, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "special.txt").write_text("a </s> b\n")
    assert said in error_of("import", *words)
    assert not (tmp_path / "new").exists()
