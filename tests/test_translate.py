import copy
import json
import os
import select
import subprocess
import sys
import time

import pytest
import torch

from command_line import error_of, litseq
from litseq import Seq2Seq, translate, translator
from litseq.layers import linear

TEXTS = ["one red house", "dog", "two green trees", "five", "blue cat three"]


@pytest.fixture(scope="module")
def model(fitted):
    return Seq2Seq.load_from_checkpoint(fitted.ckpt)


@pytest.fixture
def run(fitted, elsewhere):
    """Translates standard input, with further words, and gives the lines that come out."""

    def run(text, *words):
        data = text if isinstance(text, bytes) else text.encode()
        outcome = litseq("translate", "--ckpt", fitted.ckpt, *words, stdin=data)
        assert outcome.status == 0, outcome.err
        assert outcome.out.endswith("\n") or not outcome.out
        return outcome.out.split("\n")[:-1]

    return run


def joined(texts):
    return "".join(f"{text}\n" for text in texts)


# ---- lines ----


def test_says_what_the_model_says(run, model):
    expected = model.translate(TEXTS)
    assert len(set(expected)) > 1
    assert run(joined(TEXTS)) == expected


def test_int8_says_nearly_the_same(fitted, run, model, monkeypatch):
    weights = []
    pack = linear._pack_int8
    monkeypatch.setattr(linear, "_pack_int8", lambda *args: weights.append(args) or pack(*args))
    exact, rough = model.translations(TEXTS), model.translations(TEXTS, int8=True)
    assert weights
    assert [a.text for a in rough] == run(joined(TEXTS), "--int8", "true")
    assert sum(a.text == b.text for a, b in zip(exact, rough, strict=True)) >= 3
    scores = [[t.hypotheses[0].score for t in found] for found in (exact, rough)]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.3)


def test_bfloat16_says_nearly_the_same(fitted, run, model):
    exact = model.translations(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.translations(TEXTS)
    said = run(joined(TEXTS), "--precision", "bf16-mixed", "--device", "cpu", "--format", "jsonl")
    assert [json.loads(line)["text"] for line in said] == [t.text for t in rough]
    scores = [[t.hypotheses[0].score for t in found] for found in (exact, rough)]
    scores.append([json.loads(line)["score"] for line in said])
    assert scores[2] == pytest.approx(scores[1], abs=1e-6)
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "16-mixed"], "this device (CPU) cannot run in precision 16-mixed; set pr"),
        (["--precision", "bf16-mixed", "--int8", "true"], "--int8 multiplies in 8 bits; leave it"),
    ],
)
def test_precisions_that_are_refused(fitted, words, said):
    words = ("translate", "--ckpt", fitted.ckpt, "--device", "cpu", *words)
    outcome = litseq(*words, stdin=b"one dog\n")
    assert (outcome.status, outcome.out) == (2, "")
    assert said in outcome.err


def test_int8_is_for_a_cpu(model):
    with pytest.raises(ValueError, match="int8 is for a CPU, the model is on meta"):
        copy.deepcopy(model).to("meta").translator(int8=True)


def test_says_nothing_else(fitted, elsewhere):
    outcome = litseq("translate", "--ckpt", fitted.ckpt, stdin=b"one dog\n")
    assert (outcome.status, outcome.err) == (0, "")
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        b"one dog\nfive\n",
        b"one dog\nfive",  # without a last line feed
        b"one dog\r\nfive\r\n",
        b"\xef\xbb\xbfone dog\nfive\n",  # with a byte order mark
    ],
)
def test_ends_of_lines_and_byte_order_mark(text, run, model):
    assert run(text) == model.translate(["one dog", "five"])


def test_a_carriage_return_or_a_separator_ends_no_line(run):
    assert len(run("one\rdog\x0bfive\x0c\u2028two\x85three\nfour\n")) == 2


def test_blank_lines_stay(run, model):
    [first, last] = model.translate(["one dog", "five"])
    assert run("\none dog\n\n  \nfive\n\n") == ["", first, "", "", last, ""]


def test_nothing_gives_nothing(run):
    assert run("") == []


def test_order_and_count_of_many_lines(run, model, corpus, monkeypatch):
    texts = (corpus / "train.en").read_text().splitlines()
    together = run(joined(texts))
    assert together == model.translate(texts)
    monkeypatch.setattr(translate, "_CHUNK", 7)  # 300 lines are 42 chunks and a rest
    assert run(joined(texts), "--max_tokens", "40") == together
    monkeypatch.setattr(translator, "_SENTENCES", 5)
    assert run(joined(texts), "--max_tokens", "40") == together


# ---- formats ----


def test_jsonl(run, model):
    records = [json.loads(line) for line in run(joined([*TEXTS, ""]), "--format", "jsonl")]
    expected = model.translations([*TEXTS, ""])
    assert [record["id"] for record in records] == list(range(6))
    assert [record["source"] for record in records] == [*TEXTS, ""]
    assert [record["text"] for record in records] == [t.text for t in expected]
    for record, translation in zip(records, expected, strict=True):
        [found], [wanted] = record["hypotheses"], translation.hypotheses
        assert found == {key: record[key] for key in found}
        assert found["num_tokens"] == wanted.num_tokens
        assert found["score"] == pytest.approx(wanted.score)
        assert found["log_prob"] == pytest.approx(wanted.log_prob)


def test_jsonl_keeps_its_letters(run):
    [line] = run("grün\n", "--format", "jsonl")
    assert '"source": "grün"' in line


def test_alignment(run, model):
    texts = [*TEXTS, ""]
    plain = run(joined(texts), "--n_best", "2")
    records = [
        json.loads(line)
        for line in run(joined(texts), "--alignment", "true", "--format", "jsonl", "--n_best", "2")
    ]
    for record in records:
        for found in record["hypotheses"]:
            assert found["src_words"] == record["source"].split()
            assert found["tgt_words"] == found["text"].split()
            pairs = [tuple(map(int, pair.split("-"))) for pair in found["alignment"].split()]
            # each target word has one source word
            assert [t for _, t in sorted(pairs, key=lambda p: p[1])] == list(
                range(len(found["tgt_words"]))
            )
            assert all(s < len(found["src_words"]) for s, _ in pairs)
    lines = run(joined(texts), "--alignment", "true")
    assert lines == [f"{record['text']} ||| {record['alignment']}" for record in records]
    assert lines[-1] == " ||| "
    lines = run(joined(texts), "--alignment", "true", "--n_best", "2")
    aligned = [found["alignment"] for record in records for found in record["hypotheses"]]
    assert lines == [f"{line} ||| {pairs}" for line, pairs in zip(plain, aligned, strict=True)]


def test_n_best(run, monkeypatch):
    records = [
        json.loads(line) for line in run(joined(TEXTS), "--format", "jsonl", "--n_best", "3")
    ]
    assert [len(record["hypotheses"]) for record in records] == [3] * 5
    for record in records:
        scores = [hypothesis["score"] for hypothesis in record["hypotheses"]]
        assert scores == sorted(scores, reverse=True)
        assert record["text"] == record["hypotheses"][0]["text"]
    monkeypatch.setattr(translate, "_CHUNK", 2)  # numbers go on from chunk to chunk
    rows = [line.split(" ||| ") for line in run(joined(TEXTS), "--n_best", "3")]
    assert rows == [
        [str(record["id"]), hypothesis["text"], f"{hypothesis['score']:.4f}"]
        for record in records
        for hypothesis in record["hypotheses"]
    ]


def test_more_translations_widen_the_beam(run):
    assert len(run("one dog\n", "--n_best", "6")) == 6  # the checkpoint's beam is 4


# ---- search ----


def test_options_of_the_search(run, model):
    options = model.search_options
    for words, changed in (
        (("--beam_size", "1"), {"beam_size": 1}),
        (("--length_penalty", "3", "--beam_size", "6"), {"length_penalty": 3.0, "beam_size": 6}),
        (("--length_offset", "0"), {"length_offset": 0.0}),
        (("--max_len_a", "0", "--max_len_b", "1"), {"max_len_a": 0.0, "max_len_b": 1}),
    ):
        chosen = type(options)(**{**vars(options), **changed})
        assert run(joined(TEXTS), *words) == model.translate(TEXTS, options=chosen)
        found = [json.loads(line) for line in run(joined(TEXTS), *words, "--format", "jsonl")]
        expected = model.translations(TEXTS, options=chosen)
        scores = [translation.hypotheses[0].score for translation in expected]
        assert [record["hypotheses"][0]["score"] for record in found] == pytest.approx(scores)
        others = model.translations(TEXTS)
        assert scores != [translation.hypotheses[0].score for translation in others], words


def test_samples_follow_from_the_seed_alone(run, monkeypatch):
    words = ("--sample", "true", "--temperature", "2", "--n_best", "2")
    text = joined([*TEXTS, *TEXTS])
    first, again, other = (run(text, *words, "--seed", seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    texts = [line.split(" ||| ")[1] for line in first]
    assert texts[:10] != texts[10:]  # the same source draws anew
    monkeypatch.setattr(translate, "_CHUNK", 3)
    assert run(text, *words, "--seed", 3) == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--n_best 5 --beam_size 2", "n_best must lie between 1 and beam_size, got n_best=5, "
         "beam_size=2; raise beam_size or ask for fewer."),
        ("--beam_size 0", "beam_size must be at least 1, got 0; 1 is greedy search."),
        ("--sample true --temperature 0", "temperature must be a number above 0, got 0.0; to take "
         "the most probable token always, use top_k=1 or greedy search."),
        ("--sample true --top_p 2", "top_p must lie above 0 and at most at 1, got 2.0; 1 keeps "
         "every token."),
        ("--max_tokens 0", "max_tokens must be at least 1, got 0."),
        ("--device magic", "cannot compute on device 'magic'; give auto, cpu, or an accelerator "
         "that is here, such as cuda or cuda:0."),
        ("--device meta", "cannot compute on device 'meta'; give auto, cpu, or an accelerator "
         "that is here, such as cuda or cuda:0."),
        ("--format xml", "--format: format must be one of 'text', 'jsonl', got 'xml'."),
        ("--beam 3", "--beam: unknown key 'beam'; did you mean 'beam_size'?"),
        ("--beam_size many", "--beam_size: beam_size must be int or null, got 'many'."),
        ("more", "unexpected word 'more'; 'litseq translate --help' lists the options."),
    ],
)  # fmt: skip
def test_options_that_cannot_be(words, message, fitted):
    found = error_of("translate", "--ckpt", fitted.ckpt, *words.split(), stdin=b"one dog\n")
    assert found == message


def test_no_checkpoint():
    assert error_of("translate") == (
        "--ckpt is missing: give a checkpoint, or by --model a folder that litseq export made."
    )
    assert error_of("translate", "--ckpt").startswith("--ckpt needs a value")


# ---- files ----


def test_files(fitted, elsewhere, model):
    (elsewhere / "in.txt").write_text(joined(TEXTS))
    (elsewhere / "out.txt").write_text("old\n")
    words = ("--ckpt", fitted.ckpt, "--input", "in.txt", "--output", "out.txt")
    assert litseq("translate", *words) == (0, "", "")
    assert (elsewhere / "out.txt").read_bytes() == joined(model.translate(TEXTS)).encode()
    assert sorted(p.name for p in elsewhere.iterdir()) == ["in.txt", "out.txt"]


def test_the_output_may_be_the_input(fitted, elsewhere, model):
    (elsewhere / "text").write_text(joined(TEXTS))
    words = ("--ckpt", fitted.ckpt, "--input", "text", "--output", "text")
    assert litseq("translate", *words).status == 0
    assert (elsewhere / "text").read_text(encoding="utf-8") == joined(model.translate(TEXTS))


@pytest.mark.parametrize("old", [None, "old\n"])
def test_an_error_in_the_middle_leaves_no_half_file(old, fitted, elsewhere, monkeypatch):
    monkeypatch.setattr(translate, "_CHUNK", 2)
    (elsewhere / "in.txt").write_bytes(b"one\ntwo\nthree\ncaf\xe9 five\nsix\n")
    if old is not None:
        (elsewhere / "out.txt").write_text(old)
    before = sorted(p.name for p in elsewhere.iterdir())
    words = ("--ckpt", fitted.ckpt, "--input", "in.txt", "--output", "out.txt")
    assert error_of("translate", *words) == (
        "in.txt, line 4: byte 0xe9 at position 4 is not UTF-8; convert the text to UTF-8."
    )
    assert sorted(p.name for p in elsewhere.iterdir()) == before
    if old is not None:
        assert (elsewhere / "out.txt").read_text() == old


def test_an_interrupt_leaves_no_half_file(fitted, elsewhere, monkeypatch):
    def lines(file, name):
        yield "one dog"
        raise KeyboardInterrupt

    monkeypatch.setattr(translate, "read_lines", lines)
    (elsewhere / "out.txt").write_text("old\n")
    words = ("--ckpt", fitted.ckpt, "--output", "out.txt")
    assert litseq("translate", *words) == (130, "", "")
    assert [p.read_text() for p in elsewhere.iterdir()] == ["old\n"]


def test_invalid_standard_input(fitted):
    found = error_of("translate", "--ckpt", fitted.ckpt, stdin=b"one\n\xff\n")
    assert found == (
        "standard input, line 2: byte 0xff at position 1 is not UTF-8; convert the text to UTF-8."
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--input nowhere", "no input file at nowhere."),
        ("--input folder", "folder is a folder; give a text file."),
        ("--output no/where", "there is no folder no to write where in."),
        ("--output folder", "folder is a folder; give a file to write."),
    ],
)
def test_files_that_cannot_be(words, message, fitted, elsewhere):
    (elsewhere / "folder").mkdir()
    assert error_of("translate", "--ckpt", fitted.ckpt, *words.split()) == message
    assert [p.name for p in elsewhere.iterdir()] == ["folder"]


def test_unknown_characters_are_counted(fitted, monkeypatch):
    monkeypatch.setattr(translate, "_CHUNK", 2)
    text = "one dog\nfive\ntwo\n犬 猫\n".encode()
    outcome = litseq("translate", "--ckpt", fitted.ckpt, stdin=text)
    assert outcome.status == 0
    assert outcome.err.count("\n") == 1
    assert "1 of 2 sources hold only unknown characters (first: line 4)" in outcome.err


# ---- processes ----


def start(fitted, *words, **options):
    command = [sys.executable, "-m", "litseq", "translate", "--ckpt", str(fitted.ckpt), *words]
    return subprocess.Popen(command, **options)


def test_a_closed_pipe_ends_quietly(fitted):
    # more output than a pipe holds, so that writing is still going on when the reader leaves
    words = ("--format", "jsonl", "--beam_size", "1", "--max_len_a", "0", "--max_len_b", "1")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(fitted, *words, **pipes) as process:
        process.stdin.write(b"one red house\n" * 1500)
        process.stdin.close()
        assert json.loads(process.stdout.readline())["id"] == 0
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_terminal_is_answered_line_by_line(fitted):
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    import termios

    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[3] &= ~termios.ECHO  # what is typed would come back
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PYTHON"))}
    # a terminal that knows ASCII alone must not end the session
    env = {**plain, "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

    def answer():
        found, end = b"", time.monotonic() + 60
        while not found.endswith(b"\n") and time.monotonic() < end:
            if select.select([ours], [], [], 1)[0]:
                found += os.read(ours, 4096)
        return json.loads(found)

    pipes = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.PIPE}
    with start(fitted, "--format", "jsonl", env=env, **pipes) as process:
        for number, text in enumerate(["one dog", "grün"]):
            os.write(ours, f"{text}\n".encode())
            record = answer()
            assert (record["id"], record["source"]) == (number, text)
        os.write(ours, b"\x04")  # the end of the file, as Ctrl-D gives it
        assert process.stderr.read() == b""
    assert process.returncode == 0
    os.close(ours)
    os.close(theirs)
