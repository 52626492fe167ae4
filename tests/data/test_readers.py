import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from litseq.data.readers import Columns, find_file, read_file

PAIRS = [("one dog", "ein Hund"), ("", "leer"), ("two  cats ", "zwei Katzen")]


def columns(**changes):
    defaults = {"src_column": None, "tgt_column": None, "need_target": True}
    return Columns(**({"src_lang": "en", "tgt_lang": "de"} | defaults | changes))


def read(name, **changes):
    chosen = columns(**changes)
    return list(read_file(find_file(str(name), chosen), chosen))


def write_pair(folder, source, target):
    (folder / "train.en").write_bytes(source)
    (folder / "train.de").write_bytes(target)
    return folder / "train"


def text(side, end="\n"):
    return "".join(pair[side] + end for pair in PAIRS).encode()


def test_text_pair(tmp_path):
    assert read(write_pair(tmp_path, text(0), text(1))) == PAIRS


def test_windows_line_ends_give_the_same_text(tmp_path):
    assert read(write_pair(tmp_path, text(0, "\r\n"), text(1))) == PAIRS


def test_a_last_line_needs_no_end(tmp_path):
    assert read(write_pair(tmp_path, text(0)[:-1], text(1))) == PAIRS


@pytest.mark.parametrize("character", "\u2028\u2029\u0085\v\f\x1c\r")
def test_no_other_character_ends_a_line(tmp_path, character):
    line = f"a{character}b"
    assert read(write_pair(tmp_path, f"{line}\n".encode(), b"c\n")) == [(line, "c")]


def test_byte_order_mark_is_dropped(tmp_path):
    assert read(write_pair(tmp_path, b"\xef\xbb\xbf" + text(0), text(1))) == PAIRS


@pytest.mark.parametrize("zipped", [(True, True), (True, False)])
def test_gzip_of_either_side(tmp_path, zipped):
    for side, lang in enumerate(("en", "de")):
        if zipped[side]:
            (tmp_path / f"train.{lang}.gz").write_bytes(gzip.compress(text(side)))
        else:
            (tmp_path / f"train.{lang}").write_bytes(text(side))
    assert read(tmp_path / "train") == PAIRS


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_other_formats(tmp_path, suffix):
    records = [{"de": target, "id": 7, "en": source} for source, target in PAIRS]
    nested = [{"translation": record} for record in records]
    table = io_bytes(pa.Table.from_pylist(nested))
    contents = {
        "a.tsv": "".join(f"{s}\t{t}\n" for s, t in PAIRS).encode(),
        "b.jsonl": "".join(json.dumps(r) + "\n" for r in records).encode(),
        "c.jsonl": "".join(json.dumps(r) + "\n\n" for r in nested).encode(),
        "d.parquet": table,
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
        assert read(path) == PAIRS
        assert read(path, need_target=False) == [(source, None) for source, _ in PAIRS]


def io_bytes(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_named_columns(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": {"y": "hi"}, "z": "hallo", "en": "no"}\n')
    assert read(path, src_column="x.y", tgt_column="z") == [("hi", "hallo")]


def test_source_alone(tmp_path):
    prefix = write_pair(tmp_path, text(0), text(1))
    expected = [(source, None) for source, _ in PAIRS]
    assert read(prefix, need_target=False) == expected
    assert read(f"{prefix}.en", need_target=False) == expected
    (tmp_path / "a.tsv").write_text("one\ntwo\tzwei\n")
    assert read(tmp_path / "a.tsv", need_target=False) == [("one", None), ("two", None)]


def test_unequal_line_counts(tmp_path):
    prefix = write_pair(tmp_path, b"a\nb\nc\n", b"a\nb\n")
    with pytest.raises(ValueError, match=r"train\.en has 3 lines and \S+train\.de has 2;"):
        read(prefix)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xffc\n", r"train\.en:2: byte 2 of the line is 0xff, which is not UTF-8"),
        (b"a\nb\x00\n", r"train\.en:2: byte 2 of the line is NUL"),
        ("a\nb\n".encode("utf-16"), r"train\.en looks like UTF-16"),
    ],
)
def test_faulty_text(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(write_pair(tmp_path, content, b"a\nb\n"))


@pytest.mark.parametrize(("line", "tabs"), [("a", 0), ("a\tb\tc", 2)])
def test_wrong_number_of_tabs(tmp_path, line, tabs):
    (tmp_path / "a.tsv").write_text(f"a\tb\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.tsv:2: .* found {tabs} tabs"):
        read(tmp_path / "a.tsv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2: not JSON"),
        ("[1]", r"a\.jsonl:2: expected a JSON object, found list"),
        ('{"en": "a"}', r"a\.jsonl:2: key 'de' is missing"),
        ('{"en": "a", "de": 5}', r"a\.jsonl:2: 'de' must be text, found int"),
        ('{"en": "a", "de": null}', r"a\.jsonl:2: 'de' must be text, found NoneType"),
        ('{"en": "a", "de": "b\\u0000"}', r"a\.jsonl:2: 'de' holds NUL at character 2"),
        ('{"en": "a", "de": "\\ud83d"}', r"a\.jsonl:2: 'de' holds half a surrogate pair"),
    ],
)
def test_faulty_jsonl(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"en": "x", "de": "y"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl")


def test_missing_column(tmp_path):
    pq.write_table(pa.table({"en": ["a"], "nl": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column .*'de'.* among 'en', 'nl'; .* tgt_column"):
        read(tmp_path / "a.parquet")


def test_faulty_row_of_a_table(tmp_path):
    pq.write_table(pa.table({"en": ["a", None], "de": ["b", "c"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: 'en' must be text, found NoneType"):
        read(tmp_path / "a.parquet")


def test_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"just text")
    with pytest.raises(ValueError, match=r"a\.parquet is not Parquet"):
        read(tmp_path / "a.parquet")


def test_truncated_and_false_gzip(tmp_path):
    zipped = gzip.compress(os.urandom(5000))
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"a\tb\n" * 5000)[:-20])
    with pytest.raises(ValueError, match=r"a\.tsv\.gz is truncated"):
        read(tmp_path / "a.tsv.gz")
    (tmp_path / "b.tsv.gz").write_bytes(b"a\tb\n")
    with pytest.raises(ValueError, match=r"b\.tsv\.gz is damaged or not gzip"):
        read(tmp_path / "b.tsv.gz")
    (tmp_path / "c.tsv.gz").write_bytes(zipped[:10] + b"\xff" * 40 + zipped[50:])
    with pytest.raises(ValueError, match=r"c\.tsv\.gz is damaged or not gzip"):
        read(tmp_path / "c.tsv.gz")


def test_missing_file_names_the_nearest(tmp_path):
    write_pair(tmp_path, text(0), text(1))
    with pytest.raises(FileNotFoundError, match=r"train\.fr is missing.*nearest: train\.en"):
        read(tmp_path / "train", tgt_lang="fr")
    with pytest.raises(FileNotFoundError, match=r"trian\.en is missing.*nearest: train\.en"):
        read(tmp_path / "trian")
    with pytest.raises(FileNotFoundError, match="no name in that folder is like it"):
        read(tmp_path / "0123456789")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        read(tmp_path / "nowhere" / "train")


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder is a directory; give a file"):
        read(tmp_path / "folder")
    (tmp_path / "x.en").mkdir()
    with pytest.raises(ValueError, match=r"x\.en is a directory; give a file"):
        read(tmp_path / "x")
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(ValueError, match=r"pipe\.tsv is no regular file"):
        read(tmp_path / "pipe.tsv")
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"a\.csv is a single file of unknown kind"):
        read(tmp_path / "a.csv")
