import io
import json
from pathlib import Path

import pytest
import sentencepiece
import torch

from litseq.data import TranslationTokenizer

EN = [
    f"the {a} {b} has {n} legs"
    for n, a in enumerate("red old big new".split())
    for b in "dog cat bird horse table chair".split()
]
ZH = [
    f"{a}的{b}有{n}条腿，对吗？"
    for n, a in enumerate("红老大新")
    for b in "狗 猫 鸟 马 桌子 椅子".split()
]


def train(**options):
    defaults = {"vocab_size": 90, "src_lang": "en", "tgt_lang": "zh"}
    return TranslationTokenizer.train(EN, ZH, **(defaults | options))


@pytest.fixture(scope="module")
def shared():
    return train()


@pytest.fixture(scope="module")
def separate():
    return train(vocab_size=60, shared=False)


@pytest.fixture(params=["shared", "separate"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_special_ids(tokenizer):
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)
    assert ids == (0, 1, 2, 3)


def test_sizes_and_languages(shared, separate):
    assert shared.shared
    assert not separate.shared
    assert (shared.src_vocab_size, shared.tgt_vocab_size) == (90, 90)
    assert (separate.src_vocab_size, separate.tgt_vocab_size) == (60, 60)
    assert (shared.src_lang, shared.tgt_lang) == ("en", "zh")


def test_round_trip(tokenizer):
    for text, ids in zip(EN, tokenizer.encode_source(EN), strict=True):
        assert tokenizer.decode_source(ids) == text
    for text, ids in zip(ZH, tokenizer.encode_target(ZH), strict=True):
        assert tokenizer.decode(ids) == text  # full-width punctuation included


def test_sequences_end_with_eos_and_hold_no_other(tokenizer):
    for ids in [*tokenizer.encode_source(EN), *tokenizer.encode_target(ZH)]:
        assert ids[-1] == 3
        assert ids.count(3) == 1


@pytest.mark.parametrize("text", ["", "  ", "\t\n", "\u3000", "\xa0"])
def test_a_blank_text_is_eos_alone(tokenizer, text):
    assert tokenizer.encode_source([text]) == [[3]]
    assert tokenizer.encode_target([text]) == [[3]]


def test_a_line_feed_is_a_space(tokenizer):
    """Training reads lines, so none has a piece; a record of JSON may hold one."""
    lines, line = (tokenizer.encode_source([f"a cat{space}a dog\n"]) for space in ("\n", " "))
    assert lines == line


@pytest.mark.parametrize("text", ["<s>", "</s>", "<pad>", "<unk>", "the <s> dog </s><pad>"])
def test_special_pieces_in_a_text_stay_text(tokenizer, text):
    for encode in (tokenizer.encode_source, tokenizer.encode_target):
        assert not {0, 2, 3} & set(encode([text])[0][:-1])


def test_decode_skips_special_ids(shared):
    ids = shared.encode_target([ZH[0]])[0]
    assert shared.decode([2, *ids, 0, 0]) == ZH[0]
    assert shared.decode(torch.tensor([2, *ids])) == ZH[0]
    assert shared.decode([]) == ""


def test_unknown_characters(shared):
    ids = shared.encode_source(["the 😀"])[0]
    assert 1 in ids
    assert shared.decode_source(ids) == "the  ⁇ "


def test_byte_fallback_knows_every_character():
    tokenizer = train(vocab_size=360, byte_fallback=True)
    ids = tokenizer.encode_target(["狗 😀 龘 <s>"])[0]
    assert 1 not in ids
    assert tokenizer.decode(ids) == "狗 😀 龘 <s>"
    assert "\ufffd" in tokenizer.decode(ids[:4])  # half an emoji does not crash


def test_user_symbols_are_one_piece():
    tokenizer = train(user_symbols=["<2zh>"])
    ids = tokenizer.encode_source(["<2zh> the dog"])[0]
    assert "<2zh>" in tokenizer.source_pieces(ids)
    assert tokenizer.decode_source(ids) == "<2zh> the dog"


def test_normalization_replaces_full_width_punctuation():
    text = "猫有条腿，对吗？"
    assert train().decode(train().encode_target([text])[0]) == text
    other = train(normalization="nmt_nfkc")
    assert other.decode(other.encode_target([text])[0]) == "猫有条腿,对吗?"


def test_case_folding_makes_one_piece_of_two():
    tokenizer = train(normalization="nmt_nfkc_cf")
    upper, lower = tokenizer.encode_source(["THE Dog", "the dog"])
    assert upper == lower
    assert tokenizer.decode_source(upper) == "the dog"


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_training_is_deterministic(model_type):
    options = {"model_type": model_type, "vocab_size": 59}
    assert train(**options).fingerprint == train(**options).fingerprint


def test_words_are_pieces():
    tokenizer = TranslationTokenizer.train(EN, EN, vocab_size=17, model_type="word")
    assert {"▁has", "▁legs"} <= set(tokenizer.target_pieces(range(17)))


def test_char_takes_a_larger_vocabulary_as_a_limit():
    assert train(model_type="char", vocab_size=5000).src_vocab_size < 100


def test_sampling_varies_with_the_seed_alone(shared):
    def sample(seed):
        return shared.sample_source(EN, alpha=0.3, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert [shared.decode_source(ids) for ids in sample(1)] == EN
    assert [shared.decode(ids) for ids in shared.sample_target(ZH, alpha=0.3, seed=1)] == ZH


def test_sampling_without_dropout_is_encoding(shared):
    assert shared.sample_source(EN, alpha=0.0, seed=1) == shared.encode_source(EN)


def same(a, b):
    return (a.fingerprint, a.src_lang, a.tgt_lang) == (b.fingerprint, b.src_lang, b.tgt_lang)


def test_state_survives_a_safe_load(tokenizer):
    file = io.BytesIO()
    torch.save(tokenizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    loaded = TranslationTokenizer.from_state_dict(state)
    assert same(loaded, tokenizer)
    assert loaded.encode_target(ZH) == tokenizer.encode_target(ZH)


def test_folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    assert same(TranslationTokenizer.load(tmp_path / "tokenizer"), tokenizer)


def test_model_file(shared, tmp_path):
    shared.save(tmp_path)
    loaded = TranslationTokenizer.load(tmp_path / "shared.model")
    assert loaded.fingerprint == shared.fingerprint
    assert loaded.shared


def test_checkpoint(tokenizer, tmp_path):
    checkpoint = {"state_dict": {}, "litseq": {"tokenizer": tokenizer.state_dict()}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert same(TranslationTokenizer.load(tmp_path / "last.ckpt"), tokenizer)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_the_weights_of_a_checkpoint_are_not_read(shared, tmp_path):
    def num_read():
        return int(Path("/proc/self/io").read_text().split()[1])  # rchar: a mapped page is no read

    weights = torch.zeros(1_000_000)
    state = {"state_dict": {"w": weights}, "litseq": {"tokenizer": shared.state_dict()}}
    torch.save(state, tmp_path / "a.ckpt")
    before = num_read()
    assert same(TranslationTokenizer.load(tmp_path / "a.ckpt"), shared)
    assert num_read() - before < weights.nbytes / 2


def test_fingerprint_tells_models_apart(shared, separate):
    assert len({shared.fingerprint, separate.fingerprint, train(vocab_size=91).fingerprint}) == 3


def foreign_model(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(EN), model_writer=model, vocab_size=30, minloglevel=3, **options
    )
    return model.getvalue()


def test_other_special_ids_are_kept():
    tokenizer = TranslationTokenizer(foreign_model(unk_id=0, bos_id=1, eos_id=2, pad_id=5))
    ids = (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert ids == (0, 1, 2, 5)
    assert tokenizer.encode_source(["the dog"])[0][-1] == 2


def test_refuses_a_model_without_padding():
    with pytest.raises(ValueError, match=r"m\.model defines no pad piece; train it with"):
        TranslationTokenizer(foreign_model(), origin="m.model")


def test_refuses_models_that_number_differently(shared, tmp_path):
    shared.save(tmp_path)
    model = (tmp_path / "shared.model").read_bytes()
    with pytest.raises(ValueError, match=r"\[0, 1, 2, 3\], the target model \[5, 0, 1, 2\]"):
        TranslationTokenizer(model, foreign_model(unk_id=0, bos_id=1, eos_id=2, pad_id=5))


def test_refuses_a_model_whose_texts_could_hold_control_ids():
    options = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "user_defined_symbols": ["<s>"]}
    with pytest.raises(ValueError, match="defines no bos piece"):
        TranslationTokenizer(foreign_model(**options))


@pytest.mark.parametrize("content", [b"", b"just text\n", None])
def test_refuses_a_file_that_is_no_model(shared, tmp_path, content):
    path = tmp_path / "spm.model"
    if content is None:  # truncated
        shared.save(tmp_path)
        content = (tmp_path / "shared.model").read_bytes()[:700]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"spm\.model is not a SentencePiece model \(\d+ bytes"):
        TranslationTokenizer.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 9000}, r"vocab_size=9000 is too large .* at most \d+ for this corpus"),
        ({"vocab_size": 20}, r"vocab_size=20 is smaller than the \d+ single characters"),
        ({"vocab_size": 3}, "vocab_size=3 leaves no room"),
        ({"user_symbols": ["<a>", "<a>"]}, "user_symbols holds '<a>' more than once"),
        ({"user_symbols": ["<s>"]}, "must not hold '<s>'"),
        ({"user_symbols": [" "]}, "must not be empty"),
        ({"character_coverage": 7.0}, r"character_coverage must lie between 0\.98 and 1, got 7\.0"),
    ],
)
def test_explains_what_training_refuses(options, message):
    with pytest.raises(ValueError, match=message) as error:
        train(**options)
    assert "\n" not in str(error.value)


def test_the_vocabulary_size_that_an_error_names_works():
    with pytest.raises(ValueError, match="at most") as error:
        train(vocab_size=9000)
    most = int(str(error.value).split("at most ")[1].split()[0])
    assert train(vocab_size=most).src_vocab_size == most


@pytest.mark.parametrize("texts", [[], [""], ["  ", "\t"]])
def test_refuses_an_empty_text(texts):
    with pytest.raises(ValueError, match="the src and tgt training text is empty"):
        TranslationTokenizer.train(texts, texts, vocab_size=50)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*none\.model"):
        TranslationTokenizer.load(tmp_path / "none.model")


def test_refuses_a_folder_without_tokenizer(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json \(it holds notes\.txt\)"):
        TranslationTokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"models": ["shared.model"]})])
def test_refuses_a_damaged_description(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        TranslationTokenizer.load(tmp_path)


def test_refuses_a_description_that_leads_elsewhere(shared, tmp_path):
    shared.save(tmp_path)
    about = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**about, "models": ["../x.model"]}))
    with pytest.raises(ValueError, match="unexpected model files"):
        TranslationTokenizer.load(tmp_path)


def test_refuses_a_folder_whose_model_is_gone_or_replaced(shared, tmp_path):
    shared.save(tmp_path)
    (tmp_path / "shared.model").write_bytes(foreign_model(pad_id=0, unk_id=1, bos_id=2, eos_id=3))
    with pytest.raises(ValueError, match=r"have fingerprint \w+, but its tokenizer\.json says"):
        TranslationTokenizer.load(tmp_path)
    (tmp_path / "shared.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"shared\.model is missing"):
        TranslationTokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_refuses_an_unreadable_checkpoint(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt is no checkpoint, is damaged, or holds"):
        TranslationTokenizer.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("checkpoint", [{"state_dict": {}}, {"litseq": {}}, torch.zeros(2)])
def test_refuses_a_foreign_checkpoint(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt holds no tokenizer"):
        TranslationTokenizer.load(tmp_path / "a.ckpt")


def test_refuses_an_incomplete_or_newer_state(shared):
    state = shared.state_dict()
    with pytest.raises(ValueError, match="holds no litseq tokenizer: source_model missing"):
        TranslationTokenizer.from_state_dict(
            {k: v for k, v in state.items() if k != "source_model"}
        )
    with pytest.raises(ValueError, match="has tokenizer format 99, this litseq reads up to 2"):
        TranslationTokenizer.from_state_dict({**state, "format": 99})


def test_split_digits_spells_numbers():
    pieces = train(split_digits=True).source_pieces
    texts = ["the red dog has 1987 legs"]
    [ids] = train(split_digits=True).encode_source(texts)
    assert not [piece for piece in pieces(ids) if len(piece.strip("▁")) > 1 and piece[-1].isdigit()]
