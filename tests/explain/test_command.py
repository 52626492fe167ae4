import json
import logging

import pytest
import torch
from jsonargparse import ArgumentParser

from command_line import error_of, litseq
from litseq import RnnSeq2Seq, Seq2Seq
from litseq.decoding import SearchOptions
from litseq.explain.command import declare, main
from litseq.explain.page import render
from litseq.explain.record import explain_translations

TEXTS = ["one red house", "two dogs"]


def words(*given):
    """What the command makes of its words."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    declare(parser)
    return parser.parse_args([str(word) for word in given]).as_dict()


def explain(*given):
    main(**words(*given))


@pytest.fixture
def module(fitted):
    return Seq2Seq.load_from_checkpoint(fitted.ckpt)


@pytest.fixture
def run(fitted, elsewhere):
    """Runs the command in an empty folder; gives record and page."""

    def run(*given):
        explain("--ckpt", fitted.ckpt, "--device", "cpu", "--json", "data.json", *given)
        record = json.loads((elsewhere / "data.json").read_text(encoding="utf-8"))
        return record, (elsewhere / "report.html").read_text(encoding="utf-8")

    return run


def test_words_are_sentences(run, module):
    record, page = run(*TEXTS)
    expected = explain_translations(module, TEXTS)
    assert record == json.loads(json.dumps(expected))
    assert page == render(record)


def test_a_word_is_taken_as_it_is():
    texts = ["[x] : {y", "null", "1", "- a", "Äpfel 苹果", "\u202e"]
    given = words("--ckpt", "a.ckpt", *texts)
    assert given["texts"] == texts
    assert words(*texts, "--ckpt", "a.ckpt")["texts"] == texts
    translations = words("--ckpt", "a", "--translation", "null", "--translation", "[1", "x")
    assert translations["translation"] == ["null", "[1"]
    assert translations["texts"] == ["x"]


def test_a_file_has_a_sentence_a_line(run, elsewhere):
    (elsewhere / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    record, _ = run("--input", "in.txt")
    assert [sentence["source"] for sentence in record["sentences"]] == TEXTS


def test_blank_lines_are_left_out(run, elsewhere, caplog):
    (elsewhere / "in.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n \n")
    record, _ = run("--input", "in.txt")
    assert [sentence["source"] for sentence in record["sentences"]] == TEXTS
    assert "2 of 4 lines are blank and left out" in caplog.text


def test_translations_and_references_belong_to_their_sentences(run):
    record, _ = run(
        *TEXTS, "--translation", "ein haus", "--translation", "zwei", "--reference", "a",
        "--reference", "b",
    )  # fmt: skip
    found = [(s["output"], s["reference"], s["forced"]) for s in record["sentences"]]
    assert found == [("ein haus", "a", True), ("zwei", "b", True)]


def test_the_head_asked_for_comes_first(run):
    record, _ = run(TEXTS[0], "--head", "decoder:1:3", "--head", "encoder:1:2")
    heads = record["sentences"][0]["detail"]["heads"]
    assert [(h["kind"], h["head"]) for h in heads[:2]] == [("decoder", 2), ("encoder", 1)]


def test_the_beam_is_the_checkpoint_s_or_as_given(run, module):
    record, _ = run(TEXTS[0])
    assert record["search"]["beam_size"] == module.search_options.beam_size == 4
    record, _ = run(TEXTS[0], "--beam_size", "2")
    assert record["search"]["beam_size"] == len(record["sentences"][0]["candidates"]) == 2
    options = SearchOptions(beam_size=2, max_len_b=5)
    (expected,) = module.translations([TEXTS[0]], options=options)
    assert record["sentences"][0]["output"] == expected.text


def test_a_long_sentence_is_cut(run, caplog):
    record, _ = run(TEXTS[0], "--max_src_len", "3")
    assert len(record["sentences"][0]["src"]["ids"]) == 3
    assert caplog.messages[0].startswith("sentence 1 has ")
    assert caplog.messages[0].endswith("tokens and was cut to max_src_len=3.")


def test_the_page_speaks_chinese(run):
    assert 'lang="zh' in run(TEXTS[0], "--language", "zh")[1]
    assert 'lang="en' in run(TEXTS[0])[1]


def test_says_where_the_page_is_and_how_large(fitted, elsewhere, caplog):
    caplog.set_level(logging.INFO)
    explain("--ckpt", fitted.ckpt, TEXTS[0], "--out", "a.html")
    size = (elsewhere / "a.html").stat().st_size
    assert caplog.messages == [f"a.html holds {round(size / 1000)} KB."]
    assert [path.name for path in elsewhere.iterdir()] == ["a.html"]


def test_names_nothing_of_this_machine(run, fitted, elsewhere):
    record, page = run(TEXTS[0])
    for text in (page, json.dumps(record)):
        assert str(fitted.ckpt) not in text
        assert str(elsewhere) not in text
        assert str(fitted.run.parents[2]) not in text


def test_a_model_without_attention_has_a_report_too(module, elsewhere):
    other = RnnSeq2Seq(
        embedding_dim=8, hidden_size=10, vocab_size=module.tokenizer.tgt_vocab_size, max_len_b=2
    )
    other.tokenizer = module.tokenizer
    other.configure_model()
    checkpoint = {
        "state_dict": other.state_dict(),
        "hyper_parameters": dict(other.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    other.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, "rnn.ckpt")
    explain("--ckpt", "rnn.ckpt", TEXTS[0], "--json", "data.json")
    record = json.loads((elsewhere / "data.json").read_text(encoding="utf-8"))
    assert record["model"]["architecture"] == "rnn"
    assert (elsewhere / "report.html").exists()


# ---- errors ----


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "no sentence to explain; give one in quotes, or a file by --input"),
        (["a", "--input", "in.txt"], ValueError, r"from --input in.txt or .* \('a'\), not from bo"),
        (["--input", "nothing.txt"], FileNotFoundError, "no input file at nothing.txt"),
        (["--input", "folder"], ValueError, "folder is a folder"),
        (["--input", "empty.txt"], ValueError, "empty.txt is empty; it needs a sentence a line"),
        (["--input", "latin.txt"], ValueError, "latin.txt, line 2: byte 0xe4 .* is not UTF-8"),
        (["a", " "], ValueError, "sentence 2 is blank"),
        (["a", "--reference", "\udce4b"], ValueError, "reference 1 is not UTF-8"),
        (["a", "--translation", "b", "--translation", "c"], ValueError, "2 translations do not"),
        (["a", "--out", "nowhere/a.html"], FileNotFoundError, "no folder nowhere to write a.html"),
        (["a", "--out", "folder"], ValueError, "folder is a folder; give a file to write"),
        (["a", "--json", "nowhere/a.json"], FileNotFoundError, "no folder nowhere to write a.json"),
        (["a", "--out", "x", "--json", "./x"], ValueError, "x cannot be both page and JSON"),
        (["--input", "in.txt", "--out", "./in.txt"], ValueError, "in.txt is read itself; write to"),
        (["a", "--head", "cross:8:1"], ValueError, "no head cross:8:1; it has cross:1"),
        (["a", "--head", "cross"], ValueError, "a head is written kind:layer:head"),
        (["a", "--device", "abacus"], ValueError, "cannot compute on device 'abacus'"),
        (["a", "--beam_size", "0"], ValueError, "beam_size must be at least 1, got 0"),
        (["a", "--ckpt", "no.ckpt"], FileNotFoundError, "no checkpoint at no.ckpt"),
        (["a", "--max_src_len", "0"], ValueError, "max_src_len must be at least 2"),
    ],
    ids=str,
)  # fmt: skip
def test_refuses(given, error, message, fitted, elsewhere):
    (elsewhere / "folder").mkdir()
    (elsewhere / "empty.txt").touch()
    (elsewhere / "in.txt").write_text("a\n")
    (elsewhere / "latin.txt").write_bytes(b"a\n\xe4\n")
    before = sorted(elsewhere.iterdir())
    with pytest.raises(error, match=message):
        explain("--ckpt", fitted.ckpt, *given)
    assert sorted(elsewhere.iterdir()) == before


def test_nothing_is_written_where_the_page_fails(fitted, elsewhere, monkeypatch):
    (elsewhere / "report.html").write_text("before")

    def fail(*_, **__):
        raise ValueError("no page")

    monkeypatch.setattr("litseq.explain.command.render", fail)
    with pytest.raises(ValueError, match="no page"):
        explain("--ckpt", fitted.ckpt, "a", "--json", "data.json")
    assert [path.name for path in elsewhere.iterdir()] == ["report.html"]
    assert (elsewhere / "report.html").read_text() == "before"


# ---- from the command line ----


def test_the_command_line(fitted, elsewhere):
    outcome = litseq(
        "explain", "--ckpt", fitted.ckpt, *TEXTS, "--beam_size", "2", "--out", "a.html"
    )
    assert outcome.status == 0, outcome.err
    assert "a.html holds" in outcome.err
    assert (elsewhere / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in elsewhere.iterdir()] == ["a.html"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there is no sentence to explain"),
        (["a", "--ouput", "b"], "unknown key 'ouput'; did you mean 'out'?"),
        (["a", "--beam_size", "0"], "beam_size must be at least 1, got 0"),
        (["a", "--language", "de"], "'de'"),
        (["a", "--head", "cross"], "a head is written kind:layer:head"),
    ],
)
def test_its_errors_are_one_line(given, message, fitted, elsewhere):
    assert message in error_of("explain", "--ckpt", fitted.ckpt, *given)
    assert not list(elsewhere.iterdir())
