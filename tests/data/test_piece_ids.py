"""A vocabulary beside SentencePiece, whose ids are its own."""

import io
import pickle
import random

import pytest
import sentencepiece
import torch

from litseq.data import TranslationTokenizer
from litseq.data.piece_ids import PieceIds

EN = [
    f"the {a} {b} has {n} legs"
    for n, a in enumerate("red old big new".split())
    for b in "dog cat bird horse table chair".split()
]
DE = [
    f"der {a} {b} hat {n} Füße"
    for n, a in enumerate("rote alte große neue".split())
    for b in "Hund Kater Vogel Hengst Tisch Stuhl".split()
]


def sentencepiece_model(texts, model_type="unigram"):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=60, minloglevel=3,
        model_type=model_type, hard_vocab_limit=model_type != "unigram",
    )  # fmt: skip
    return model.getvalue()


def pieces_of(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(3, processor.vocab_size())]  # without special


def numbered(pieces, target=None):
    ids = {"pad_id": len(pieces) + 2, "unk_id": 1, "bos_id": len(pieces) + 2, "eos_id": 0}
    source, target = (
        ("</s>", "<unk>", *side, "<pad>") for side in (pieces, pieces if target is None else target)
    )
    return PieceIds(source, target, **ids)


@pytest.fixture(params=["unigram", "bpe"])
def models(request):
    return sentencepiece_model(EN, request.param), sentencepiece_model(DE, request.param)


@pytest.fixture
def pieces(models):
    both = sorted({*pieces_of(models[0]), *pieces_of(models[1]), ">>de<<"})
    random.Random(0).shuffle(both)
    return both


@pytest.fixture
def tokenizer(models, pieces):
    return TranslationTokenizer(*models, src_lang="en", tgt_lang="de", piece_ids=numbered(pieces))


def test_ids_are_places_in_the_list(tokenizer, models, pieces):
    assert tokenizer.shared
    assert tokenizer.src_vocab_size == tokenizer.tgt_vocab_size == len(pieces) + 3
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)
    assert ids == (len(pieces) + 2, 1, len(pieces) + 2, 0)
    for model, texts, encode in zip(
        models, (EN, DE), (tokenizer.encode_source, tokenizer.encode_target), strict=True
    ):
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        for text, found in zip(texts, encode(texts), strict=True):
            cut = processor.encode(text, out_type=str)
            assert found == [*(pieces.index(piece) + 2 for piece in cut), 0]
    assert tokenizer.source_pieces([0, 1, 2, len(pieces) + 2]) == [
        "</s>", "<unk>", pieces[0], "<pad>",
    ]  # fmt: skip


def test_round_trip(tokenizer):
    assert [tokenizer.decode_source(ids) for ids in tokenizer.encode_source(EN)] == EN
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_target(DE)] == DE


def test_a_piece_that_is_not_listed_is_unknown(models, pieces):
    processor = sentencepiece.SentencePieceProcessor(model_proto=models[0])
    *_, last = cut = processor.encode(EN[0], out_type=str)
    left_out = [piece for piece in pieces if piece != last]
    tokenizer = TranslationTokenizer(*models, piece_ids=numbered(left_out))
    [ids] = tokenizer.encode_source([EN[0]])
    assert tokenizer.source_pieces(ids) == [
        *("<unk>" if piece == last else piece for piece in cut), "</s>",
    ]  # fmt: skip
    assert tokenizer.encode_source(["the §§"])[0][-2:] == [1, 0]
    assert (
        tokenizer.decode(tokenizer.encode_target(["der §"])[0]) == "der  ⁇"
    )  # as SentencePiece writes it


def test_pieces_of_the_other_side_are_text(tokenizer, models, pieces):
    known = set(pieces_of(models[1]))
    foreign = next(p for p in pieces if p.startswith("▁") and p not in known and len(p) > 2)
    ids = [*tokenizer.encode_target(["der"])[0][:-1], pieces.index(foreign) + 2]
    assert tokenizer.decode(ids) == f"der {foreign[1:]}"
    assert tokenizer.decode(ids[-1:]) == foreign[1:]


@pytest.mark.parametrize("text", [">>de<<the dog", ">>de<< the dog"])
def test_a_language_token_is_one_piece(tokenizer, pieces, text):
    [plain] = tokenizer.encode_source(["the dog"])
    assert tokenizer.encode_source([text]) == [[pieces.index(">>de<<") + 2, *plain]]
    assert tokenizer.sample_source([text], alpha=0.0, nbest_size=1, seed=1) == [
        [pieces.index(">>de<<") + 2, *plain]
    ]


def test_other_angles_are_what_marian_makes_of_them(tokenizer, pieces):
    [plain] = tokenizer.encode_source(["the dog"])
    assert tokenizer.encode_source([">>fr<< the dog"]) == [[1, *plain]]
    assert tokenizer.encode_source([">> the dog"])[0] != [1, *plain]
    inside = tokenizer.encode_source(["the >>de<< dog"])[0]
    assert pieces.index(">>de<<") + 2 not in inside


def test_sampling_cuts_into_the_same_pieces(tokenizer, models):
    assert tokenizer.sample_source(EN, alpha=0.0, nbest_size=1, seed=1) == (
        tokenizer.encode_source(EN)
    )
    sampled = tokenizer.sample_target(DE, alpha=0.3, seed=1)
    assert [tokenizer.decode(ids) for ids in sampled] == DE
    assert sampled != tokenizer.encode_target(DE)


def test_two_vocabularies(models):
    source, target = (sorted(pieces_of(model)) for model in models)
    ids = PieceIds(
        ("</s>", "<unk>", "<pad>", *source), ("</s>", "<unk>", "<pad>", *target, "§"), 2, 1, 2, 0
    )
    tokenizer = TranslationTokenizer(*models, piece_ids=ids)
    assert not tokenizer.shared
    assert tokenizer.tgt_vocab_size == len(target) + 4 != tokenizer.src_vocab_size
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_target(DE)] == DE


def test_they_are_kept(tokenizer, models, tmp_path):
    file = io.BytesIO()
    torch.save(tokenizer.state_dict(), file)
    file.seek(0)
    tokenizer.save(tmp_path)
    plain = TranslationTokenizer(
        *models, piece_ids=numbered(sorted(tokenizer.source_pieces(range(2, 40))))
    )
    for kept in (
        TranslationTokenizer.from_state_dict(torch.load(file, weights_only=True)),
        TranslationTokenizer.load(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert kept.fingerprint == tokenizer.fingerprint != plain.fingerprint
        assert kept.encode_target(DE) == tokenizer.encode_target(DE)
        assert (kept.shared, kept.bos_id) == (True, tokenizer.bos_id)


def test_a_tokenizer_without_them_is_of_the_former_format(tokenizer):
    plain = TranslationTokenizer.train(EN, DE, vocab_size=60)
    assert plain.state_dict()["format"] == 1
    assert "piece_ids" not in plain.state_dict()
    assert tokenizer.state_dict()["format"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "abc"}, "here holds damaged piece ids"),
        ({"source": ["a", 1]}, "here holds damaged piece ids"),
        ({"pad_id": 1.0}, "here holds damaged piece ids"),
        ({"source": ["a", "b", "a"]}, "here: 'a' stands twice among the source pieces"),
        ({"eos_id": 500}, r"here: eos_id must be an id of both sides.*, got 500"),
        ({"unk_id": -1}, r"here: unk_id must be an id of both sides.*, got -1"),
    ],
)
def test_refuses_damaged_ones(tokenizer, change, message):
    state = tokenizer.state_dict()
    state["piece_ids"] = {**state["piece_ids"], **change}
    with pytest.raises(ValueError, match=message):
        TranslationTokenizer.from_state_dict(state, origin="here")


def test_refuses_what_is_no_table(tokenizer):
    state = {**tokenizer.state_dict(), "piece_ids": [1]}
    with pytest.raises(ValueError, match="here holds damaged piece ids"):
        TranslationTokenizer.from_state_dict(state, origin="here")
