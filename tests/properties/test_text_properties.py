"""Texts of any characters: nothing is lost on the way in, or into ids and back."""

import io
import json

import numpy as np
import pytest
from bounded import EXAMPLES, bounded
from hypothesis import given
from hypothesis import strategies as st

from litseq.data import TranslationTokenizer
from litseq.data.readers import Columns, find_file, read_file
from litseq.textfiles import one_line, printable, read_lines

LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), max_size=30)
# what most often breaks text tools, more often than by chance
ODD = st.text(
    st.sampled_from("a é犬\u2028\u2029\u0085\v\f\x1c\r\t\ufeff\u200b\u202e🐕\u2581</s>"),
    max_size=12,
)
LINES = st.lists(LINE | ODD, max_size=8)


def columns(need_target=True):
    return Columns("en", "de", None, None, need_target)


def read(name, need_target=True):
    chosen = columns(need_target)
    return list(read_file(find_file(str(name), chosen), chosen))


def without_end(line):
    return line.removesuffix("\r")


@EXAMPLES
def test_lines_in_are_lines_out(examples, tmp_path):
    @bounded(examples)
    @given(LINES, st.booleans(), st.sampled_from(["\n", "\r\n"]))
    def check(lines, bom, end):
        raw = (b"\xef\xbb\xbf" if bom else b"") + "".join(f"{x}{end}" for x in lines).encode()
        if not bom and raw.startswith(b"\xef\xbb\xbf"):
            lines = [lines[0].removeprefix("\ufeff"), *lines[1:]]
        if bom and not lines:
            return  # a mark alone is a line without a text
        expected = [line if end == "\r\n" else without_end(line) for line in lines]
        assert list(read_lines(io.BytesIO(raw), "-")) == expected
        (tmp_path / "a.en").write_bytes(raw)
        (tmp_path / "a.de").write_bytes(b"x\n" * len(lines))
        assert read(tmp_path / "a") == [(line, "x") for line in expected]

    check()


@EXAMPLES
def test_records_keep_their_texts(examples, tmp_path):
    @bounded(examples)
    @given(st.lists(st.tuples(LINE | ODD, LINE | ODD), min_size=1, max_size=6))
    def check(pairs):
        records = (json.dumps({"de": b, "en": a}, ensure_ascii=False) for a, b in pairs)
        (tmp_path / "a.jsonl").write_text("".join(f"{r}\n" for r in records), "utf-8", newline="\n")
        assert read(tmp_path / "a.jsonl") == pairs

    check()


@EXAMPLES
def test_rows_keep_their_texts(examples, tmp_path):
    @bounded(examples)
    @given(st.lists(st.tuples(LINE | ODD, LINE | ODD), min_size=1, max_size=6))
    def check(pairs):
        pairs = [tuple(text.replace("\t", " ").strip("\r\ufeff") for text in p) for p in pairs]
        text = "".join(f"{a}\t{b}\n" for a, b in pairs)
        (tmp_path / "a.tsv").write_text(text, "utf-8", newline="\n")
        assert read(tmp_path / "a.tsv") == pairs

    check()


@EXAMPLES
def test_what_is_shown_is_one_line_and_commands_nothing(examples):
    @bounded(examples)
    @given(st.text(max_size=50))
    def check(text):
        line = printable(one_line(text))
        assert len(line.splitlines()) <= 1
        assert not any((ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160 for c in line)
        assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

    check()


TRAINING = ["one red dog, two blue cats", "ein roter hund, zwei blaue katzen", "犬 猫 42"] * 20


@pytest.fixture(scope="module", params=["bpe", "unigram", "char"])
def tokenizer(request):
    """With bytes for what it does not know, but for characters alone."""
    return TranslationTokenizer.train(
        TRAINING,
        TRAINING,
        vocab_size={"bpe": 330, "unigram": 289, "char": 60}[request.param],
        model_type=request.param,
        byte_fallback=request.param != "char",
    )


def words(text):
    return [part for part in text.replace("\u2581", " ").split(" ") if part]


@EXAMPLES
def test_tokens_spell_the_text(examples, tokenizer):
    @bounded(examples)
    @given(LINE | ODD)
    def check(text):
        [ids] = tokenizer.encode_target([text])
        assert ids[-1] == tokenizer.eos_id
        special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
        assert not special & set(ids[:-1])  # whatever the text looks like
        if tokenizer.unk_id not in ids:
            decoded = tokenizer.decode(ids)
            # spaces at the ends go, and repeated ones; U+2581 is a space, repeated or not
            assert words(decoded) == words(text.strip())
            assert "\u2581" in text or decoded == " ".join(words(text.strip()))

    check()


@EXAMPLES
def test_known_characters_come_back(examples, tokenizer):
    @bounded(examples)
    @given(st.lists(st.sampled_from(" ".join(TRAINING[:3]).split()), max_size=8).map(" ".join))
    def check(text):
        [ids] = tokenizer.encode_source([text])
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode_source(ids) == text
        assert tokenizer.encode_source([text] * 2) == [ids, ids]

    check()


@EXAMPLES
def test_any_ids_decode(examples, tokenizer):
    @bounded(examples)
    @given(st.lists(st.integers(0, tokenizer.tgt_vocab_size - 1), max_size=20))
    def check(ids):
        text = tokenizer.decode(np.array(ids, dtype=np.int64))
        text.encode("utf-8")  # half a character's bytes too

    check()
