"""Texts that are not what they should be: pairs, tables, records, archives."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

from bad_inputs_tried.case import WORKS, Case, Outcome, World, obey_permissions

__all__ = ["CASES"]


def corpus(lang: str) -> Callable[[World], bytes]:
    return lambda world: world.text(f"train.{lang}")


EN, DE = corpus("en"), corpus("de")


def writer(files: dict[str, bytes | Callable[[World], bytes]]) -> Callable[[World], None]:
    def make(world: World) -> None:
        for name, content in files.items():
            Path(name).write_bytes(content if isinstance(content, bytes) else content(world))

    return make


def trains(pairs: int, kept: int) -> Callable[[World, Outcome], str]:
    """All pairs are read, and so many are trained on."""

    def check(world: World, outcome: Outcome) -> str:
        found = re.search(r"train: ([\d,]+) pairs, kept ([\d,]+)[^;]*", outcome.err)
        assert found, outcome.err
        assert [int(found[i].replace(",", "")) for i in (1, 2)] == [pairs, kept], found[0]
        assert [path for path in outcome.new if path.endswith("last.ckpt")]
        return found[0]

    return check


def skips(world: World, outcome: Outcome) -> str:
    """Both lines are left out with their partners, and listed."""
    said = trains(300, 300)(world, outcome)
    found = re.search(r"2 bad lines were skipped, see (\S+)", outcome.err)
    assert found, outcome.err
    listed = Path(found[1]).read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == ["bad.en:1", "bad.de:302"]
    return f"{said}; 2 bad lines were skipped and are listed"


def as_many_lines(world: World, outcome: Outcome) -> str:
    """Lines in, lines out."""
    num = Path("bad.en").read_bytes().count(b"\n")
    assert outcome.out.count(b"\n") == num
    return f"{num} lines in, {num} lines out"


def predicted(world: World, outcome: Outcome) -> str:
    """Each line has its prediction, under its number, with its text unchanged."""
    lines = Path("bad.en").read_bytes().decode("utf-8").split("\n")[:-1]
    [name] = [path for path in outcome.new if path.endswith("predictions.jsonl")]
    records = [json.loads(line) for line in Path(name).read_text(encoding="utf-8").split("\n")[:-1]]
    assert [record["source"] for record in records] == lines
    assert [record["id"] for record in records] == list(range(len(lines)))
    assert Path(name).with_suffix(".txt").read_bytes().count(b"\n") == len(lines)
    return f"{len(lines)} lines in, {len(lines)} predictions, texts unchanged"


def pair(
    name: str,
    wrong: str,
    expect: str = WORKS,
    *,
    en: bytes | Callable[[World], bytes] | None = EN,
    de: bytes | Callable[[World], bytes] | None = DE,
    check: Callable[[World, Outcome], str] | None = None,
    more: str = "",
    keeps: str = "",
) -> Case:
    files = {f"bad.{lang}": text for lang, text in (("en", en), ("de", de)) if text is not None}
    words = f"fit {{data}} --data.train bad {more}"
    return Case(name, "text", wrong, words, expect, make=writer(files), check=check, keeps=keeps)


def translated(name: str, wrong: str, text: bytes, expect: str = WORKS) -> Case:
    words = "translate --ckpt {ckpt} --input bad.en"
    return Case(
        name, "text", wrong, words, expect, make=writer({"bad.en": text}), check=as_many_lines
    )


def predict(name: str, wrong: str, text: bytes) -> Case:
    words = "predict -c {home}/data.yaml --ckpt_path {ckpt} --data.predict bad.en"
    return Case(name, "text", wrong, words, WORKS, make=writer({"bad.en": text}), check=predicted)


def file(name: str, wrong: str, content: bytes, expect: str = WORKS, *, more: str = "") -> Case:
    """A table or a file of records named ``name``, to train on."""
    words = f"fit {{data}} --data.train {name} {more}"
    check = trains(2, 2) if not expect else None
    return Case(name, "table", wrong, words, expect, make=writer({name: content}), check=check)


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def without_line(lang: str, number: int) -> Callable[[World], bytes]:
    """The corpus without a line of one side: from there on the pairs do not fit."""

    def content(world: World) -> bytes:
        lines = world.text(f"train.{lang}").splitlines(keepends=True)
        return b"".join(lines[: number - 1] + lines[number:])

    return content


def plus(lang: str, text: bytes) -> Callable[[World], bytes]:
    return lambda world: world.text(f"train.{lang}") + text


def folder(name: str) -> Callable[[World], None]:
    return lambda world: os.mkdir(name)


def fifo(world: World) -> None:
    os.mkfifo("bad.en")
    Path("bad.de").write_bytes(world.text("train.de"))


def unreadable(world: World) -> None:
    writer({"bad.en": EN, "bad.de": DE})(world)
    os.chmod("bad.en", 0)


def no_network() -> None:
    """No name is known, as on a machine without a network; nobody waits between attempts."""
    import socket

    from huggingface_hub.utils import _http

    def fail(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    socket.getaddrinfo = fail  # type: ignore[assignment]
    _http.time = SimpleNamespace(sleep=lambda seconds: None, time=time.time)


FIT = "fit {data} --data.train "
ONE = b"one dog\n"
RECORD = {"en": "one dog", "de": "hund eins"}
GOOD = b"".join(json.dumps(RECORD).encode() + b"\n" for _ in range(2))
ZIPPED = gzip.compress(b"one dog\tein hund\n" * 500)
SIZES = "--data.vocab_size 40"

CASES = [
    pair(
        "unequal",
        "one side has one line more",
        r"bad\.en has 300 lines and bad\.de has 301; line N of one must translate line",
        de=plus("de", "übrig\n".encode()),
    ),
    pair(
        "shifted",
        "a line is missing in the middle of one side",
        r"bad\.en has 300 lines and bad\.de has 299; line N of one must translate line",
        de=without_line("de", 100),
    ),
    pair(
        "empty",
        "both files have no byte",
        r"bad\.en, bad\.de: 0 pairs; there is nothing to read\.",
        en=b"",
        de=b"",
    ),
    pair(
        "blank",
        "only empty lines",
        "the en and de training text is empty: there is nothing to train a",
        en=b"\n" * 30,
        de=b"\n" * 30,
    ),
    pair(
        "spaces",
        "only white space: spaces, tabs, no-break and ideographic ones",
        "the en and de training text is empty: there is nothing to train a",
        en=" \t\u00a0\u3000\n".encode() * 30,
        de=b"  \n" * 30,
    ),
    pair(
        "no-last-end",
        "the last line of one side has no line feed",
        en=lambda w: EN(w)[:-1],
        check=trains(300, 300),
    ),
    pair(
        "crlf",
        "Windows line ends on one side",
        en=lambda w: EN(w).replace(b"\n", b"\r\n"),
        check=trains(300, 300),
    ),
    pair(
        "bom",
        "a byte order mark before the first line of one side",
        en=lambda w: b"\xef\xbb\xbf" + EN(w),
        check=trains(300, 300),
    ),
    pair(
        "utf16",
        "UTF-16",
        r"bad\.en looks like UTF-16; convert it to UTF-8\.",
        en=lambda w: EN(w).decode().encode("utf-16"),
    ),
    pair(
        "utf16-no-bom",
        "UTF-16 without a byte order mark",
        r"bad\.en:1: byte 2 of the line is NUL; is the file UTF-16\?",
        en=lambda w: EN(w).decode().encode("utf-16-le"),
    ),
    pair(
        "latin1",
        "Latin-1, a byte that is not UTF-8",
        r"bad\.en:301: byte 4 of the line is 0xe9, which is not UTF-8; convert the",
        en=plus("en", b"caf\xe9\n"),
        de=plus("de", b"x\n"),
    ),
    pair(
        "nul",
        "a NUL byte in a line",
        r"bad\.de:300: byte 36 of the line is NUL; remove it\.",
        de=lambda w: DE(w)[:-1] + b"\0\n",
    ),
    pair(
        "half-emoji",
        "half the bytes of an emoji",
        r"bad\.en:301: byte 5 of the line is 0xf0, which is not UTF-8; convert the",
        en=plus("en", b"dog \xf0\x9f\n"),
        de=plus("de", b"hund\n"),
    ),
    pair(
        "surrogate",
        "a surrogate written as UTF-8",
        r"bad\.en:301: byte 5 of the line is 0xed, which is not UTF-8; convert the",
        en=plus("en", b"dog \xed\xa0\xbd\n"),
        de=plus("de", b"hund\n"),
    ),
    pair(
        "one-empty-line",
        "one line is empty on one side",
        en=plus("en", b"\n"),
        de=plus("de", b"hund\n"),
        check=trains(301, 300),
    ),
    pair(
        "one-pair",
        "a corpus of one pair",
        en=ONE,
        de=b"hund eins\n",
        more=SIZES,
        check=trains(1, 1),
    ),
    pair(
        "one-pair-val",
        "a validation set of one pair",
        check=trains(300, 300),
        more="--data.val {home}/corpus/one",
    ),
    pair(
        "filtered",
        "every pair is longer than max_chars",
        r"no training pair is left: 300 pairs, kept 0: 300 longer than 2 characters\.",
        more="--data.max_chars 2",
    ),
    pair(
        "megabyte",
        "a line of 1 MB",
        en=plus("en", b"dog " * 250_000 + b"\n"),
        de=plus("de", b"hund\n"),
        check=trains(301, 300),
    ),
    pair(
        "too-long",
        "pairs longer than max_src_len",
        en=plus("en", b"dog " * 300 + b"\n"),
        de=plus("de", b"hund\n"),
        check=trains(301, 300),
    ),
    pair(
        "train-is-test",
        "the test pairs stand in the training text too",
        en=lambda w: EN(w) + w.text("test.en"),
        de=lambda w: DE(w) + w.text("test.de"),
        check=trains(330, 330),
    ),
    pair(
        "skip",
        "bytes that are not UTF-8 and a NUL, with max_bad_lines 2",
        check=skips,
        en=lambda w: b"caf\xe9\n" + EN(w) + b"one\n",
        de=lambda w: b"x\n" + DE(w) + b"\0\n",
        more="--data.max_bad_lines 2",
    ),
    pair(
        "skip-too-many",
        "one bad line more than max_bad_lines",
        r"bad\.en:3: byte 4 of the line is 0xe9, which is not UTF-8; convert the file",
        en=lambda w: b"caf\xe9\n" * 3 + EN(w),
        de=lambda w: b"x\n" * 3 + DE(w),
        more="--data.max_bad_lines 2",
    ),
    pair(
        "streamed",
        "streaming: bytes that are not UTF-8",
        r"bad\.en:301: byte 4 of the line is 0xe9, which is not UTF-8; convert the file",
        en=lambda w: EN(w) + b"caf\xe9\n",
        de=lambda w: DE(w) + b"x\n",
        more="--data.streaming true",
    ),
    pair(
        "streamed-known",
        "streaming with a tokenizer: bytes that are not UTF-8, found while one trains",
        r"bad\.en:301: byte 4 of the line is 0xe9, which is not UTF-8; convert the file",
        en=lambda w: EN(w) + b"caf\xe9\n",
        de=lambda w: DE(w) + b"x\n",
        more="--data.streaming true --data.tokenizer {ckpt} --data.num_workers 1",
        keeps="runs/tiny/",  # it has begun
    ),
    pair(
        "streamed-drift",
        "streaming with a tokenizer: a line too few, found at the end",
        r"bad\.en has 300 lines and bad\.de has 299; line N of one must translate line N",
        de=lambda w: DE(w).partition(b"\n")[2],
        more="--data.streaming true --data.tokenizer {ckpt}",
        keeps="runs/tiny/",
    ),
    pair(
        "twice",
        "every pair twice, with drop_duplicates",
        en=lambda w: EN(w) * 2,
        de=lambda w: DE(w) * 2,
        more="--data.drop_duplicates true",
        check=trains(600, 254),
    ),
    translated(
        "separators",
        "line and paragraph separators, NEL, FF, VT, FS within a line",
        "one\u2028two\u2029three\u0085four\x0cfive\x0bred\x1cdog\nblue\n".encode(),
    ),
    translated("cr", "a carriage return within a line", b"one\rdog\ntwo\n"),
    translated(
        "invisible",
        "no-break space, zero-width space and joiner, soft hyphen",
        "one\u00a0dog\u200b\n\u200d\nre\u00add\n\ufeffcat\n".encode(),
    ),
    translated("bidi", "a right-to-left override", "one \u202edog\u202c red\n".encode()),
    translated(
        "scripts",
        "scripts that the vocabulary does not hold",
        "犬 猫\nСобака\nكلب\n🐕\U0001f468\u200d\U0001f469\u200d\U0001f467\n".encode(),
    ),
    translated(
        "control",
        "control tokens and SentencePiece's space, as text",
        "<s> one </s>\n</s>\n<pad><pad>\n<unk>\n\u2581\n\u2581one\u2581\n".encode(),
    ),
    translated(
        "escapes", "escape sequences of a terminal", b"\x1b[31mred\x1b[0m dog\x07\n\x1b]0;x\x07\n"
    ),
    translated("only-blank", "nothing but blank lines", b"\n \n\t\n\n"),
    translated("nothing", "an empty input", b""),
    translated("no-line-end", "a megabyte without a line end", b"dog " * 250_000 + b"\n"),
    translated(
        "bytes",
        "bytes that are not UTF-8",
        b"one\n\xff\xfe\n",
        r"bad\.en, line 2: byte 0xff at position 1 is not UTF-8; convert the text to",
    ),
    translated("nul-in", "a NUL byte in a line to translate", b"one\0two\n"),
    translated(
        "utf16-in",
        "UTF-16 to translate",
        "one\n".encode("utf-16"),
        r"bad\.en, line 1: byte 0xff at position 1 is not UTF-8; convert the text to",
    ),
    predict("same-lines", "the same line many times", b"one dog\n" * 20),
    predict(
        "mixed",
        "blank, unknown, long and odd lines among good ones",
        "one\n\n犬\n \u3000\n".encode() + b"dog " * 400 + "\n</s>\ntwo\u2028three\n".encode(),
    ),
    predict("one-line", "a single line", b"one dog\n"),
    file(
        "tabs.tsv",
        "a row with two tabs",
        b"one\teins\na\tb\tc\n",
        r"tabs\.tsv:2: expected source and target with one tab between, found 2 tabs\.",
    ),
    file(
        "no-tab.tsv",
        "a row without a tab",
        b"one\teins\ntwo zwei\n",
        r"no-tab\.tsv:2: expected source and target with one tab between, found 0",
    ),
    file(
        "quotes.tsv",
        "quotes in a row, which mean nothing",
        b'"one\teins"\n""two\tzwei\n',
        more="--data.vocab_size 35",
    ),
    file(
        "cut.jsonl",
        "a JSON line cut short",
        GOOD + b'{"en": "one", "de',
        r"cut\.jsonl:3: not JSON \(Unterminated string starting at: line 1 column 15",
    ),
    file(
        "list.jsonl",
        "a JSON line that is a list",
        GOOD + b'["one", "eins"]\n',
        r"list\.jsonl:3: expected a JSON object, found list\.",
    ),
    file(
        "array.json",
        "one JSON array in place of lines",
        b'[\n{"en": "one", "de": "eins"}\n]\n',
        r"array\.json:1: an array begins; give one JSON object a line\.",
    ),
    file(
        "number.jsonl",
        "a number in place of text",
        GOOD + b'{"en": "one", "de": 5}\n',
        r"number\.jsonl:3: 'de' must be text, found int\.",
    ),
    file(
        "null.jsonl",
        "null in place of text",
        GOOD + b'{"en": null, "de": "eins"}\n',
        r"null\.jsonl:3: 'en' must be text, found NoneType\.",
    ),
    file(
        "key.jsonl",
        "a key is missing",
        GOOD + b'{"en": "one"}\n',
        r"key\.jsonl:3: key 'de' is missing\.",
    ),
    file(
        "nested.jsonl",
        "a key holds another object",
        GOOD + b'{"en": {"text": "one"}, "de": "eins"}\n',
        r"nested\.jsonl:3: key 'en' is missing\.",
    ),
    file(
        "half.jsonl",
        "half a surrogate pair",
        GOOD + b'{"en": "\\ud83d", "de": "eins"}\n',
        r"half\.jsonl:3: 'en' holds half a surrogate pair at character 1\.",
    ),
    file(
        "deep.jsonl",
        "a hundred thousand brackets",
        GOOD + b"[" * 100_000 + b"\n",
        r"deep\.jsonl:3: not JSON \(maximum recursion depth exceeded while decoding a",
    ),
    file(
        "digits.jsonl",
        "a number of ten thousand digits",
        GOOD + b'{"en": "one", "de": "eins", "n": ' + b"9" * 10_000 + b"}\n",
        r"digits\.jsonl:3: not JSON \(Exceeds the limit \(4300 digits\) for integer",
    ),
    file(
        "twice.jsonl",
        "a key twice in one line",
        GOOD + b'{"en": "a", "en": "b", "de": "c"}\n',
        r"twice\.jsonl:3: not JSON \(the key 'en' stands there twice\)\.",
    ),
    file(
        "columns.parquet",
        "other columns than the languages",
        parquet([{"a": "one", "b": "eins"}]),
        r"columns\.parquet: no column 'translation\.en' or 'en' or 'source' or 'src'",
    ),
    file(
        "numbers.parquet",
        "a column of numbers",
        parquet([{"en": 1, "de": "eins"}]),
        r"numbers\.parquet, row 0: 'en' must be text, found int\.",
    ),
    file(
        "null.parquet",
        "an empty cell",
        parquet([RECORD, {"en": None, "de": "eins"}]),
        r"null\.parquet, row 1: 'en' must be text, found NoneType\.",
    ),
    file(
        "cut.parquet",
        "a Parquet file cut short",
        parquet([RECORD] * 99)[:-100],
        r"cut\.parquet is not Parquet, or is damaged \(Parquet magic bytes not found",
    ),
    file(
        "text.parquet",
        "a text named .parquet",
        ONE,
        r"text\.parquet is not Parquet, or is damaged \(Parquet magic bytes not found",
    ),
    file(
        "cut.tsv.gz",
        "a gzip file cut short",
        ZIPPED[:-20],
        r"cut\.tsv\.gz is truncated: its gzip data end early; copy it again\.",
    ),
    file(
        "tail.tsv.gz",
        "a gzip file with something after its end",
        ZIPPED + b"more",
        r"tail\.tsv\.gz is damaged or not gzip \(Not a gzipped file \(b'mo'\)\); copy it",
    ),
    file(
        "plain.tsv.gz",
        "a text named .gz",
        ONE,
        r"plain\.tsv\.gz is damaged or not gzip \(Not a gzipped file \(b'on'\)\); copy it",
    ),
    file(
        "bomb.jsonl.gz",
        "a gzip file of a single line of 200 MB",
        gzip.compress(b" " * 200_000_000),
        r"bomb\.jsonl\.gz: 0 pairs; there is nothing to read\.",
    ),
    Case(
        "missing",
        "file",
        "a file that is not there",
        FIT + "{home}/corpus/trian",
        r"corpus/trian\.en is missing, with and without \.gz; nearest: train\.en,",
    ),
    Case(
        "no-folder",
        "file",
        "a folder that is not there",
        FIT + "no/where",
        r"no/where\.en is missing: there is no folder no\.",
    ),
    Case(
        "no-name",
        "file",
        "an empty name",
        FIT + "{home}/corpus/",
        r"corpus is a directory; give a file, or the prefix of text files\.",
    ),
    Case(
        "one-side",
        "file",
        "only one side of a pair",
        FIT + "bad",
        r"bad\.de is missing, with and without \.gz; nearest: bad\.en\.",
        make=writer({"bad.en": EN}),
    ),
    Case(
        "folder",
        "file",
        "a folder in place of a file",
        FIT + "bad.tsv",
        r"bad\.tsv is a directory; give a file, or the prefix of text files\.",
        make=folder("bad.tsv"),
    ),
    Case(
        "unknown-kind",
        "file",
        "a single file of no known kind",
        FIT + "bad.docx",
        r"bad\.docx is a single file of unknown kind; give the prefix of a text pair,",
        make=writer({"bad.docx": b"PK"}),
    ),
    Case(
        "fifo",
        "file",
        "a named pipe in place of a file",
        FIT + "bad",
        r"bad\.en is no regular file; write it to disk first\.",
        make=fifo,
    ),
    Case(
        "device",
        "file",
        "a device in place of a file",
        "translate --ckpt {ckpt} --input /dev/null",
        WORKS,
        check=lambda world, outcome: f"{outcome.out.count(10)} lines",
    ),
    Case(
        "unreadable",
        "file",
        "a file without the right to read it",
        FIT + "bad",
        r"bad\.en: permission denied; get the right to it, or give another path\.",
        make=unreadable,
        child=obey_permissions,
    ),
    Case(
        "later",
        "file",
        "the test file is missing, as the training would show at its end",
        "fit {data} --data.test {home}/corpus/none",
        r"corpus/none\.en is missing, with and without \.gz; nearest: one\.en, one\.de,",
    ),
    Case(
        "input-missing",
        "file",
        "nothing to translate at that name",
        "translate --ckpt {ckpt} --input none.en",
        r"no input file at none\.en\.",
    ),
    Case(
        "input-folder",
        "file",
        "a folder to translate",
        "translate --ckpt {ckpt} --input .",
        r"\. is a folder; give a text file\.",
    ),
    Case(
        "long-name",
        "file",
        "a name of 300 characters",
        FIT + "a" * 300,
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ),
    Case(
        "hub",
        "file",
        "a data set of the Hub without a network",
        "fit {data} --data.dataset nobody/nothing-there --data.train null --data.val null "
        "--data.test null",
        "cannot load dataset nobody/nothing-there: Couldn't reach",
        child=no_network,
    ),
]
