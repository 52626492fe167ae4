import multiprocessing

import numpy as np
import pytest
import torch

from litseq.data import TranslationTokenizer, encoding
from litseq.data.arrow import ArrowRows
from litseq.data.corpora import cache_files
from litseq.data.encoding import EncodedSplit, SubwordSampling, cache_tokens
from litseq.data.readers import Columns

PAIRS = [
    (f"number {i} is " + "very " * (i % 4) + "good", f"{i}号很好，" + "很" * (i % 5))
    for i in range(23)
]
PAIRS += [("", "空"), ("😀😀", "😀"), ("a" * 50, "b")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tokenizer():
    sides = zip(*PAIRS[:23], strict=True)
    return TranslationTokenizer.train(*sides, vocab_size=60, src_lang="en", tgt_lang="zh")


@pytest.fixture(scope="module")
def texts(cache):
    (cache / "a.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in PAIRS))
    columns = Columns("en", "zh", None, None, True)
    return cache_files(str(cache / "a.tsv"), columns=columns, cache_dir=cache)


def encode(texts, tokenizer, cache, *, max_chars=40, num_proc=1):
    options = {"max_chars": max_chars, "num_proc": num_proc, "cache_dir": cache, "desc": "test"}
    return cache_tokens(texts, tokenizer, **options)


@pytest.fixture(scope="module")
def tokens(texts, tokenizer, cache):
    return encode(texts, tokenizer, cache)


def open_split(texts, tokens, *, max_len=99, **options):
    limits = {"max_src_len": max_len, "max_tgt_len": max_len, "pad_id": 0}
    return EncodedSplit(texts, tokens, **limits, **options)


def test_each_side_is_cut_to_its_own_limit(texts, tokens):
    longest = open_split(texts, tokens).load_batch(np.arange(len(PAIRS)), 0)
    split = EncodedSplit(texts, tokens, max_src_len=7, max_tgt_len=4, pad_id=0)
    batch = split.load_batch(np.arange(len(PAIRS)), 0)
    assert (longest["input_ids"].size(1), longest["labels"].size(1)) == (9, 6)
    assert (batch["input_ids"].size(1), batch["labels"].size(1)) == (7, 4)


def test_rows_are_the_tokenizers_ids_and_counts(texts, tokens, tokenizer):
    rows = ArrowRows(tokens).table.to_pydict()
    sources, targets = zip(*PAIRS, strict=True)
    assert list(rows["src"]) == tokenizer.encode_source([text[:40] for text in sources])
    assert list(rows["tgt"]) == tokenizer.encode_target(targets)
    assert list(rows["src_len"]) == [len(ids) for ids in rows["src"]]
    assert list(rows["src_chars"]) == [len(text) for text in sources]
    assert list(rows["tgt_unk"]) == [ids.count(1) for ids in rows["tgt"]]
    assert rows["src_len"][23] == 1
    assert rows["src_unk"][24] > 0
    assert [rows["src_known"][i] for i in (23, 24)] == [0, 0]
    assert rows["src_known"][0] == rows["src_len"][0] - 1


def test_processes_change_nothing(texts, tokens, tokenizer, tmp_path, monkeypatch):
    folder = encode(texts, tokenizer, tmp_path, num_proc=2)
    assert len(list(folder.glob("*.arrow"))) == 2
    assert ArrowRows(folder).table == ArrowRows(tokens).table
    monkeypatch.setattr(encoding, "_ROWS_PER_PROCESS", 5)
    assert encoding._choose_num_proc(3) == 1
    assert 1 <= encoding._choose_num_proc(100) <= multiprocessing.cpu_count()


def test_the_cache_is_used_and_follows_tokenizer_and_limit(texts, tokens, tokenizer, cache):
    before = (tokens / "tokens.arrow").stat().st_mtime_ns
    assert encode(texts, tokenizer, cache) == tokens
    assert (tokens / "tokens.arrow").stat().st_mtime_ns == before
    other = TranslationTokenizer.train(["ab"] * 9, ["ba"] * 9, vocab_size=8)
    assert encode(texts, other, cache) != tokens
    assert encode(texts, tokenizer, cache, max_chars=39) != tokens


def test_batches(texts, tokens, tokenizer):
    split = open_split(texts, tokens)
    ids = np.array([7, 2, 22])
    batch = split.load_batch(ids, 0)
    assert batch["id"].tolist() == [7, 2, 22]
    for row, i in enumerate(ids):
        source, target = PAIRS[i]
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == tokenizer.encode_source([source])[0]
        labels = batch["labels"][row]
        assert labels[labels != -100].tolist() == tokenizer.encode_target([target])[0]
    assert split.texts([7, 2]) == ([PAIRS[7][0], PAIRS[2][0]], [PAIRS[7][1], PAIRS[2][1]])


def test_an_empty_source_is_eos_alone(texts, tokens):
    batch = open_split(texts, tokens).load_batch(np.array([23]), 0)
    assert batch["input_ids"].tolist() == [[3]]
    assert batch["attention_mask"].tolist() == [[1]]


def test_long_sequences_are_cut_before_eos(texts, tokens):
    whole, cut = open_split(texts, tokens), open_split(texts, tokens, max_len=4)
    ids = np.arange(23)
    expected = whole.load_batch(ids, 0)["input_ids"][:, :3]
    found = cut.load_batch(ids, 0)
    assert torch.equal(found["input_ids"][:, :3], expected)
    assert found["input_ids"][:, 3].tolist() == [3] * 23
    assert found["labels"].size(1) == 4
    assert cut.lengths("src").max() == 4


def test_without_target(texts, tokens):
    split = open_split(texts, tokens, with_target=False)
    assert "labels" not in split.load_batch(np.array([1]), 0)


def test_sampling_is_a_function_of_seed_epoch_and_example(texts, tokens, tokenizer):
    def sampled(epoch, seed=5, max_len=99):
        sampling = SubwordSampling(tokenizer, alpha=0.3, nbest_size=-1, seed=seed, max_chars=40)
        split = open_split(texts, tokens, sampling=sampling, max_len=max_len)
        return split.load_batch(np.arange(23), epoch)

    first, again, later = sampled(0), sampled(0), sampled(1)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert torch.equal(first["labels"], again["labels"])
    assert first["input_ids"].tolist() != later["input_ids"].tolist()
    assert first["input_ids"].tolist() != sampled(0, seed=6)["input_ids"].tolist()
    for row, (source, target) in enumerate(PAIRS[:23]):
        assert tokenizer.decode_source(first["input_ids"][row]) == source
        labels = first["labels"][row]
        assert tokenizer.decode(labels[labels != -100]) == target
    assert sampled(0, max_len=9)["input_ids"].size(1) <= 9
