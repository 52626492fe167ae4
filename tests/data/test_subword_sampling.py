import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import random
import struct
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litseq.data import TranslationDataModule, TranslationTokenizer, subword_sampling
from litseq.data.demo import load_demo
from litseq.data.encoding import SubwordSampling
from litseq.data.subword_sampling import SubwordSampler

DEMO = load_demo("en", "zh", split="train")[:1500]
EN, ZH = map(list, zip(*DEMO, strict=True))


def captions(count, seed):
    """Sentences about as long as image captions, of words that share their beginnings and ends."""
    rng = random.Random(seed)
    stems = "climb snow skate garden orange kitchen window mountain bicycle photograph".split()
    ends = "s ing er ed y less ful board man men".split()
    small = "a the in on of two at with , .".split()
    words = [f"{stem}{end}" for stem in stems for end in ["", *ends]]
    return [
        " ".join(rng.choice((words, small)[rng.random() < 0.5]) for _ in range(13))
        for _ in range(count)
    ]


TEXTS = [*captions(700, seed=0), *EN[:800], *ZH[:800]]
OTHER_TEXTS = [
    *captions(100, seed=1),
    *EN[-200:],
    *ZH[-200:],
    *(
        "",
        " ",
        "  two  spaces ",
        "-" * 70,
        "<2zh> the <2 zhing of the xa 狗有狗",
        "zh>of them <2zhing",
    ),
]

OPTIONS = {
    "plain": {},
    "unknown": {"character_coverage": 0.98},
    "bytes": {"character_coverage": 0.98, "byte_fallback": True},
    "digits": {"split_digits": True},
    "symbols": {"user_defined_symbols": ["<2zh>", "<2", "zh", ">", "ing", "\u2581x", "狗有"]},
    "nfkc": {"normalization_rule_name": "nmt_nfkc"},
    "lower case": {"normalization_rule_name": "nmt_nfkc_cf"},
    "across words": {"split_by_whitespace": False},
    "space last": {"treat_whitespace_as_suffix": True},
    "all spaces": {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
    "no first space": {"add_dummy_prefix": False},
    "unused": {},
    "unused bytes": {"byte_fallback": True},
    "odd": {},  # scores and types that no training gives
}


@functools.cache
def load(model_type, name):
    """A processor and a sampler of the same model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type=model_type,
        vocab_size=900,
        hard_vocab_limit=False,
        pad_id=3,
        num_threads=2,
        minloglevel=3,
        **({"normalization_rule_name": "identity"} | OPTIONS[name]),
    )
    content = model.getvalue()
    if name.startswith("unused"):
        content = altered(content, types=[NORMAL, NORMAL, UNUSED])
    elif name == "odd":
        types = [NORMAL] * 5 + [UNUSED] * 4 + [USER_DEFINED]
        content = altered(content, types=types, scores=[0.0, -0.0, 1.0, 2.0, -1.0, -2.0])
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    return processor, SubwordSampler(processor, content)


NORMAL, USER_DEFINED, UNUSED = 1, 4, 5


def altered(model, *, types, scores=()):
    """The model with other types and scores of ordinary pieces, drawn from some."""
    rng = random.Random(0)
    fields = []
    for number, value in subword_sampling._fields(model):
        if number == 1 and dict(subword_sampling._fields(value)).get(3, NORMAL) == NORMAL:
            value += bytes([3 << 3, rng.choice(types)])  # of two fields the last counts
            if scores:
                value += bytes([2 << 3 | 5]) + struct.pack("<f", rng.choice(scores))
        fields.append(field(number, value))
    return b"".join(fields)


def handmade(model_type, pieces):
    """A model of normal pieces with scores, or with None for unused ones."""
    fields = [field(1, field(1, b"<unk>") + bytes([3 << 3, 2]))]
    for text, score in pieces.items():
        piece = field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score or 0.0)
        fields.append(field(1, piece + bytes([3 << 3, UNUSED if score is None else NORMAL])))
    fields.append(field(2, bytes([3 << 3, {"unigram": 1, "bpe": 2}[model_type]])))
    content = b"".join(fields)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    return processor, SubwordSampler(processor, content)


def field(number, value):
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(value):
    more = []
    while value >= 128:
        more.append(value % 128 | 128)
        value //= 128
    return bytes([*more, value])


def sample(sampler, texts, *, alpha, seed=1, nbest_size=-1, streams=None):
    streams = range(len(texts)) if streams is None else streams
    return sampler(texts, alpha=alpha, nbest_size=nbest_size, seed=seed, streams=streams)


every_model = pytest.mark.parametrize("name", OPTIONS)
every_trained = pytest.mark.parametrize("name", [name for name in OPTIONS if name != "odd"])


@every_model
def test_bpe_without_dropout_is_encoding(name):
    processor, sampler = load("bpe", name)
    assert sample(sampler, TEXTS + OTHER_TEXTS, alpha=0.0) == processor.encode(TEXTS + OTHER_TEXTS)


@every_model
def test_bpe_with_all_merges_left_out_is_characters(name):
    processor, sampler = load("bpe", name)
    found = sample(sampler, OTHER_TEXTS, alpha=1.0)
    assert found == processor.encode(OTHER_TEXTS, enable_sampling=True, alpha=1.0)
    if name == "plain":
        pieces = [processor.id_to_piece(i) for i in found[0]]
        assert pieces == list("\u2581" + OTHER_TEXTS[0].replace(" ", "\u2581"))


@every_trained
def test_the_sharpest_unigram_is_encoding(name):
    processor, sampler = load("unigram", name)
    texts = OTHER_TEXTS + TEXTS[::9]
    plain = processor.encode(texts)
    # Sorted, since "-" and "---" are as likely as "---" and "-".
    found = sample(sampler, texts, alpha=1e5)
    assert list(map(sorted, found)) == list(map(sorted, plain))
    assert sum(a != b for a, b in zip(found, plain, strict=True)) < 10
    assert sample(sampler, texts, alpha=0.1, nbest_size=1) == plain
    assert sample(sampler, texts, alpha=0.1, nbest_size=0) == plain


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    "<2zh>> ingof thex狗有a0１\u2581\u3000é\u0301", max_size=40
)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [*itertools.product(["bpe"], OPTIONS), *itertools.product(["unigram"], list(OPTIONS)[:-1])],
)
def test_any_text_whatsoever(model_type, name):
    processor, sampler = load(model_type, name)

    @settings(derandomize=True, max_examples=60, deadline=None, database=None)
    @given(ANY_TEXT)
    def check(text):
        plain = processor.encode(text)
        if model_type == "bpe":
            assert sample(sampler, [text], alpha=0.0) == [plain]
        else:
            assert sorted(sample(sampler, [text], alpha=1e5)[0]) == sorted(plain)
        for cut in sample(sampler, [text] * 3, alpha=0.3):
            if processor.unk_id() not in cut:
                assert processor.decode(cut) == processor.decode(plain)

    check()


def tail(ours, theirs):
    """How unlikely two samples of one distribution differ so much: a normal deviate, chi-square."""
    common = ours.total() / 2 + theirs.total() / 2
    rare = [key for key in ours | theirs if (ours[key] + theirs[key]) / 2 < 10]
    groups = [[key] for key in ours | theirs if key not in rare] + ([rare] if rare else [])
    assert len(groups) > 1
    table = np.array(
        [[sum(side[key] for key in group) for group in groups] for side in (ours, theirs)]
    )
    expected = table.sum(0) * np.array([[ours.total()], [theirs.total()]]) / (2 * common)
    statistic = ((table - expected) ** 2 / expected).sum()
    degrees = len(groups) - 1
    # Wilson and Hilferty (1931)
    width = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - (1 - width)) / math.sqrt(width)


DRAWS = 8_000
FAR = 6.0  # the library's sample is another one in each run: one in a billion fails by chance


@pytest.mark.parametrize(
    ("name", "text", "alpha"),
    [
        ("plain", "skateboarding", 0.1),
        ("plain", "skateboarding", 0.6),
        ("symbols", "climbing <2zh> x", 0.3),
        ("unused", "photographer", 0.2),
        ("unused bytes", "skateboarding", 0.2),
        ("across words", "of the garden", 0.3),
        ("odd", "photographer", 0.3),
        ("bytes", "gardens 龘", 0.3),
        ("unknown", "gardens龘龘", 0.3),
    ],
)
def test_bpe_has_the_library_s_distribution(name, text, alpha):
    processor, sampler = load("bpe", name)
    check_distribution(processor, sampler, text, alpha, nbest_size=-1)


def test_half_of_the_paper_s_probability_cuts_about_as_much():
    processor, sampler = load("bpe", "plain")
    whole = sum(map(len, processor.encode(TEXTS)))
    ours = sum(map(len, sample(sampler, TEXTS, alpha=0.05))) - whole
    rng = random.Random(1)
    theirs = sum(num_subwords(processor, text, 0.1, rng) for text in TEXTS) - whole
    assert 2 / 3 < ours / theirs < 3 / 2


def num_subwords(processor, text, probability, rng):
    """Provilkov et al. (2020), algorithm 1: each merge is drawn among the pairs that are left."""
    return sum(len(merged(processor, word, probability, rng)) for word in text.split())


def merged(processor, word, probability, rng):
    symbols = list("\u2581" + word)
    while True:
        ids = [processor.piece_to_id(a + b) for a, b in itertools.pairwise(symbols)]
        merges = [i for i in ids if i != processor.unk_id() and rng.random() >= probability]
        if not merges:
            return symbols
        i = ids.index(max(merges, key=processor.get_score))
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]


@pytest.mark.parametrize(
    ("name", "text", "alpha", "nbest_size"),
    [
        ("plain", "skateboarding", 0.0, -1),
        ("plain", "skateboarding", 0.2, -1),
        ("plain", "orangey bicycleful skateing", 1.0, -1),
        ("plain", "skateboarding", 0.0, 8),
        ("plain", "skateboarding", 0.2, 64),
        ("plain", "orangey bicycleful skateing", 1.0, 64),
        ("symbols", "<2zh> ing", 0.1, -1),
        ("symbols", "<2zh> ing", 0.1, 64),
        ("symbols", "<2zh> ing", 3.0, -1),
        ("symbols", "<2zh> ing", 3.0, 64),
        ("unused", "skateboarding", 0.2, -1),
        ("across words", "of the", 0.2, -1),
        ("bytes", "snow 龘", 0.1, -1),
        ("bytes", "snow 龘", 0.1, 64),
        ("unknown", "men龘龘", 0.2, -1),
        ("unknown", "men龘龘", 0.2, 64),
    ],
)
def test_unigram_has_the_library_s_distribution(name, text, alpha, nbest_size):
    processor, sampler = load("unigram", name)
    check_distribution(processor, sampler, text, alpha, nbest_size)


def check_distribution(processor, sampler, text, alpha, nbest_size):
    texts = [text] * DRAWS
    ours = sample(sampler, texts, alpha=alpha, nbest_size=nbest_size)
    theirs = processor.encode(
        texts, enable_sampling=True, alpha=alpha, nbest_size=nbest_size, num_threads=1
    )
    assert tail(Counter(map(tuple, ours)), Counter(map(tuple, theirs))) < FAR


def test_unused_pieces_are_taken_apart_in_one_way():
    pieces = {"a": -5.0, "b": -6.0, "c": -7.0, "ab": -1.0, "bc": -2.0, "abc": None, "-": -8.0}
    check_distribution(*handmade("bpe", pieces), "abc-abc", 0.3, -1)


def test_the_price_of_unknown_characters():
    pieces = {"\u2581": -1.5, "a": -1.0, "ab": -1.0, "bb": -3.0}
    for nbest_size in (-1, 8):
        check_distribution(*handmade("unigram", pieces), "abb", 0.3, nbest_size)


def test_unigram_probabilities_are_powers():
    processor, sampler = load("unigram", "plain")
    text, alpha = "skated", 0.5
    normal = processor.normalize(text)
    weights = {}
    for borders in itertools.product([False, True], repeat=len(normal) - 1):
        ends = [i for i, border in enumerate(borders, 1) if border] + [len(normal)]
        pieces = [normal[i:j] for i, j in itertools.pairwise([0, *ends])]
        ids = tuple(map(processor.piece_to_id, pieces))
        if processor.unk_id() not in ids:
            weights[ids] = math.exp(alpha * sum(map(processor.get_score, ids)))
    total = sum(weights.values())
    found = Counter(map(tuple, sample(sampler, [text] * DRAWS, alpha=alpha)))
    assert set(found) <= set(weights)
    for ids, weight in weights.items():
        share = weight / total
        assert abs(found[ids] / DRAWS - share) < 5 * math.sqrt(share * (1 - share) / DRAWS) + 1e-4


def test_a_cut_does_not_depend_on_what_else_was_cut():
    for model_type in ("bpe", "unigram"):
        processor, sampler = load(model_type, "plain")
        together = sample(sampler, OTHER_TEXTS, alpha=0.3)
        copy = pickle.loads(pickle.dumps(sampler))
        numbers = list(range(len(OTHER_TEXTS)))[::-1]
        alone = [sample(copy, [OTHER_TEXTS[i]], alpha=0.3, streams=[i])[0] for i in numbers]
        assert alone[::-1] == together
        assert sample(sampler, OTHER_TEXTS, alpha=0.3, seed=2) != together
        cuts = sample(sampler, [OTHER_TEXTS[0]] * 50, alpha=0.3)
        assert len(set(map(tuple, cuts))) > 25
        assert {processor.decode(cut) for cut in cuts} == {OTHER_TEXTS[0]}


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("name", ["plain", "symbols", "across words"])
def test_what_is_remembered_changes_nothing(model_type, name, monkeypatch):
    _, sampler = load(model_type, name)
    texts = OTHER_TEXTS[::3]
    remembered = [sample(sampler, texts, alpha=alpha) for alpha in (0.1, 0.5)]
    monkeypatch.setattr(subword_sampling, "_MAX_REMEMBERED_CHARS", 0)
    assert [sample(sampler, texts, alpha=alpha) for alpha in (0.1, 0.5)] == remembered


def test_streams_are_those_of_philox():
    _, sampler = load("unigram", "plain")
    text = "skateboarding"
    for seed, stream in ((3, 0), (-4, 5), (1 << 70, (1 << 63) - 1)):
        random = np.random.Philox(key=seed % (1 << 128), counter=stream << 192)
        expected = sampler._cutter.cut(f"\u2581{text}", 0.1, np.random.Generator(random))
        assert sample(sampler, [text], alpha=0.1, seed=seed, streams=[stream]) == [expected]


def test_refuses_what_cannot_be_sampled():
    _, sampler = load("bpe", "plain")
    for alpha in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"alpha must be finite and at least 0, got (-|n|i)"):
            sample(sampler, ["a"], alpha=alpha)
    with pytest.raises(ValueError, match="nbest_size must be at most 512, got 513; -1 samples"):
        sample(sampler, ["a"], alpha=0.1, nbest_size=513)


@pytest.mark.parametrize("model_type", ["char", "word"])
def test_refuses_models_that_leave_nothing_to_chance(model_type):
    texts = ["the dog sees the cat", "the cat sees the dog"]
    tokenizer = TranslationTokenizer.train(texts, texts, vocab_size=8, model_type=model_type)
    with pytest.raises(ValueError, match="a SentencePiece model of words or characters; leave"):
        SubwordSampling(tokenizer, alpha=0.1, nbest_size=-1, seed=0, max_chars=99)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders of tokenizers, one of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for model_type, shared in (("bpe", True), ("unigram", False)):
        tokenizer = TranslationTokenizer.train(
            EN, ZH, vocab_size=700, model_type=model_type, shared=shared
        )
        tokenizer.save(folder / model_type)
    return {path.name: path for path in folder.iterdir()}


def cuts_of(tokenizer):
    return [
        tokenizer.sample_source(EN[:200], alpha=0.2, seed=7),
        tokenizer.sample_target(ZH[:200], alpha=0.2, seed=7),
        tokenizer.sample_source(EN[:200], alpha=0.2, nbest_size=8, seed=7),
    ]


CHILD = """
import json, sys
from litseq.data import TranslationTokenizer
from litseq.data.demo import load_demo
pairs = load_demo("en", "zh", split="train")[:200]
EN, ZH = map(list, zip(*pairs))
found = {}
for name, path in json.loads(sys.argv[1]).items():
    tokenizer = TranslationTokenizer.load(path)
    tokenizer.sample_source(EN, alpha=0.7, seed=1)
    found[name] = [
        tokenizer.sample_source(EN, alpha=0.2, seed=7),
        tokenizer.sample_target(ZH, alpha=0.2, seed=7),
        tokenizer.sample_source(EN, alpha=0.2, nbest_size=8, seed=7),
    ]
print(json.dumps(found))
"""


def test_another_process_cuts_alike(tokenizers):
    names = json.dumps({name: str(path) for name, path in tokenizers.items()})
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, names],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(child.stdout)
    for name, path in tokenizers.items():
        assert found[name] == cuts_of(TranslationTokenizer.load(path))


def test_a_spawned_worker_cuts_alike(tokenizers):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for path in tokenizers.values():
            tokenizer = TranslationTokenizer.load(path)
            for _ in range(2):  # the second is sent with a sampler that remembers
                options = {"alpha": 0.2, "seed": 7}
                found = pool.apply(tokenizer.sample_target, (ZH[:200],), options)
                assert found == tokenizer.sample_target(ZH[:200], **options)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_workers_change_no_batch(model_type, tmp_path):
    for side, texts in (("en", EN), ("zh", ZH)):
        (tmp_path / f"train.{side}").write_text("".join(f"{text}\n" for text in texts[:300]))

    def epochs(num_workers, max_tokens=300):
        data = TranslationDataModule(
            train=str(tmp_path / "train"),
            val_size=9,
            test_size=9,
            vocab_size=600,
            model_type=model_type,
            subword_sampling=0.2,
            max_tokens=max_tokens,
            num_workers=num_workers,
            num_proc=1,
            cache_dir=str(tmp_path / "cache"),
        )
        data.prepare_data()
        data.setup()
        loader = data.train_dataloader()
        return [list(loader) for _ in range(2)]

    def rows(epoch):
        return {
            int(number): (source[source != 0].tolist(), labels[labels >= 0].tolist())
            for batch in epoch
            for number, source, labels in zip(
                batch["id"], batch["input_ids"], batch["labels"], strict=True
            )
        }

    alone, with_workers = epochs(0), epochs(2)
    for ours, theirs in zip(alone, with_workers, strict=True):
        for batch, other in zip(ours, theirs, strict=True):
            assert batch.keys() == other.keys()
            assert all(torch.equal(batch[key], other[key]) for key in batch)
    assert rows(alone[0]) != rows(alone[1])
    other_batches = epochs(0, max_tokens=120)
    assert len(other_batches[0]) > len(alone[0])
    assert [rows(epoch) for epoch in other_batches] == [rows(epoch) for epoch in alone]


def test_sides_are_cut_differently(tmp_path):
    (tmp_path / "train.tsv").write_text("".join(f"{text}\t{text}\n" for text in EN[:200]))
    data = TranslationDataModule(
        train=str(tmp_path / "train.tsv"),
        val_size=9,
        test_size=9,
        vocab_size=300,
        subword_sampling=0.5,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup()
    rows = [
        (source[source != 0].tolist(), labels[labels >= 0].tolist())
        for batch in data.train_dataloader()
        for source, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    assert sum(source != target for source, target in rows) > len(rows) / 2
