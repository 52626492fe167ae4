import importlib
import json

import pytest

from command_line import error_of, litseq
from litseq.evaluation import compare, corpus_scores
from sacrebleu_command import write

REFERENCES = [f"Satz {i} hat nun genau {i % 7} Worte." for i in range(40)]
GOOD = [line.replace("genau", "etwa") if i % 5 == 0 else line for i, line in enumerate(REFERENCES)]
BAD = [line.replace("hat nun", "nun hat") for line in REFERENCES]


@pytest.fixture
def run(elsewhere):
    """Writes what ``litseq test`` leaves, and gives the folder of the run."""

    def make(name, hypotheses, references=REFERENCES, tgt_lang="de", **scores):
        folder = elsewhere / name / "test"
        folder.mkdir(parents=True)
        write(folder / "hypotheses.txt", hypotheses)
        write(folder / "references.txt", references)
        signature = {"signatures": {"bleu": "nrefs:1|case:mixed|eff:no|tok:13a|version:2"}}
        record = {"tgt_lang": tgt_lang, **signature, **scores}
        (folder / "scores.json").write_text(json.dumps(record))
        return name

    return make


def test_runs_are_compared(run, elsewhere):
    run("one", GOOD)
    run("two", BAD)
    outcome = litseq("compare", "one", "two", "--json", "found.json")
    assert outcome.status == 0, outcome.err
    expected = compare({"one": GOOD, "two": BAD}, REFERENCES, tgt_lang="de")
    assert "40 sentences; paired bootstrap, 1,000 resamples" in outcome.out
    for sentence in expected.sentences():
        assert f"{sentence}\n" in outcome.out
    assert f"BLEU|{expected.signatures['bleu']}\n" in outcome.out
    assert f"chrF2|{expected.signatures['chrf']}\n" in outcome.out
    first = expected.rows[0]
    [line] = [line for line in outcome.out.splitlines() if "one (baseline)" in line][:1]
    interval = f"{first.confidence.low:.2f} to {first.confidence.high:.2f}"
    assert line.split("(baseline)")[1].split() == [f"{first.score:.2f}", *interval.split()]

    record = json.loads((elsewhere / "found.json").read_text())
    assert [row["score"] for row in record["rows"]] == [row.score for row in expected.rows]
    assert [row["holds"] for row in record["rows"]] == [None, True, None, True]
    assert record["sentences"] == expected.sentences()
    assert (record["baseline"], record["method"]) == ("one", "bs")
    assert "found.json holds the comparison" in outcome.err


def test_text_files_and_other_metrics(elsewhere):
    for name, lines in (("ref", REFERENCES), ("one", GOOD), ("two", BAD)):
        write(elsewhere / name, lines)
    words = ("--references", "ref", "--metrics", "ter", "chrf", "--method", "ar")
    outcome = litseq("compare", "one", "two", *words)
    assert outcome.status == 0, outcome.err
    assert "approximate randomisation, 10,000 trials" in outcome.out
    assert "TER (lower is better)" in outcome.out
    assert "BLEU" not in outcome.out
    assert "TER: two is" in outcome.out
    assert "worse than one, and the difference holds (p = " in outcome.out


def test_a_run_and_a_text_file_with_the_same_references(run, elsewhere):
    run("one", GOOD)
    write(elsewhere / "ref", REFERENCES)
    write(elsewhere / "two", BAD)
    assert litseq("compare", "one", "two", "--references", "ref").status == 0
    write(elsewhere / "ref", [*REFERENCES[:-1], "Anders."])
    assert "test/references.txt and ref differ in line 40" in error_of(
        "compare", "one", "two", "--references", "ref"
    )


def test_legacy_bleu_takes_the_language_of_the_runs(run):
    pytest.importorskip("sacremoses")
    run("one", GOOD)
    run("two", BAD)
    outcome = litseq("compare", "one", "two", "--legacy", "multi30k", "tokenised")
    assert "BLEU, legacy:multi30k" in outcome.out
    assert "|tok:moses-de|" in outcome.out


def test_a_byte_order_mark_counts_as_in_sacrebleu(elsewhere):
    marked = ["\ufeff" + GOOD[0], *GOOD[1:]]
    for name, lines in (("ref", REFERENCES), ("one", marked), ("two", GOOD)):
        write(elsewhere / name, lines)
    litseq("compare", "one", "two", "--references", "ref", "--json", "o")
    rows = json.loads((elsewhere / "o").read_text())["rows"]
    assert rows[0]["score"] == corpus_scores(marked, REFERENCES).bleu
    assert rows[0]["score"] < rows[1]["score"]


def test_chinese_is_cut_as_in_the_runs(run):
    chinese = {"tgt_lang": "zh", "signatures": {"bleu": "tok:zh|version:2"}}
    run("one", ["我昨天买了两本书。"], ["我昨天买了两本书。"], **chinese)
    run("two", ["我昨天买了三本书。"], ["我昨天买了两本书。"], **chinese)
    assert "|tok:zh|" in litseq("compare", "one", "two").out


# ---- errors ----


def test_other_references_are_refused(run):
    run("one", GOOD)
    run("two", BAD, [*REFERENCES[:3], "Etwas anderes.", *REFERENCES[4:]])
    assert error_of("compare", "one", "two") == (
        "one/test/references.txt and two/test/references.txt differ in line 4: "
        f"{REFERENCES[3]!r} and 'Etwas anderes.'; compare systems on the same test set."
    )
    run("three", BAD[:9], REFERENCES[:9])
    assert "one/test/references.txt has 40 lines and three/test/references.txt has 9" in error_of(
        "compare", "one", "three"
    )


def test_unequal_lengths_are_refused(run):
    run("one", GOOD)
    run("two", BAD[:-1])
    message = error_of("compare", "one", "two")
    assert "two/test/hypotheses.txt has 39 lines and two/test/references.txt has 40" in message


def test_missing_files_are_named(run, elsewhere):
    run("one", GOOD)
    (elsewhere / "two").mkdir()
    assert "there is no two/test/hypotheses.txt; make it: litseq test --ckpt_path two/c" in (
        error_of("compare", "one", "two")
    )
    assert "there is no three; give the folder of a run" in error_of("compare", "one", "three")
    write(elsewhere / "text", BAD)
    assert "text is a text file; give its references by --references FILE" in error_of(
        "compare", "one", "text"
    )
    assert "no input file at nowhere" in error_of(
        "compare", "text", "one", "--references", "nowhere"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("one",), "one alone: a comparison needs two systems, baseline first"),
        (("one", "two", "one/"), "one/ is given twice"),
        (
            ("one", "two", "--json", "two/test/hypotheses.txt"),
            "two/test/hypotheses.txt is compared itself; write to another file",
        ),
        (("one", "two", "--method", "t"), "--method: method must be one of 'bs', 'ar', got 't'"),
        (("one", "two", "--metrics", "wer"), "--metrics: invalid choice: 'wer'"),
        (("one", "two", "--legacy", "x"), "--legacy: invalid choice: 'x'"),
        (("one", "two", "--json", "no/a.json"), "there is no folder no to write a.json in"),
        (("one", "two", "--json", "one"), "one is a folder; give a file to write"),
    ],
)
def test_unusable_options_are_refused(run, words, message):
    run("one", GOOD)
    run("two", BAD)
    assert message in error_of("compare", *words)


def test_lines_that_are_not_utf8_are_named(run, elsewhere):
    run("one", GOOD)
    run("two", BAD)
    (elsewhere / "two/test/hypotheses.txt").write_bytes(b"a\n\xff\n")
    assert "two/test/hypotheses.txt, line 2: byte 0xff" in error_of("compare", "one", "two")


def test_nothing_is_refused(elsewhere):
    for name in ("ref", "one", "two"):
        write(elsewhere / name, [])
    message = error_of("compare", "one", "two", "--references", "ref")
    assert message == "ref is empty; there is nothing to compare."


def test_languages_and_tokenizers_must_agree(run, elsewhere):
    run("one", GOOD)
    run("two", BAD, tgt_lang="nl")
    message = error_of("compare", "one", "two")
    assert "one/test/scores.json is of language de and two/test/scores.json of nl" in message
    assert litseq("compare", "one", "two", "--tgt_lang", "de").status == 0
    old = {"tgt_lang": None, "signatures": {"bleu": "nrefs:1|tok:zh|version:2"}}
    run("three", GOOD, **old)
    run("four", BAD, **old)
    assert "has BLEU by tok:zh, and this would be tok:13a; give the language by --tgt_lang" in (
        error_of("compare", "three", "four")
    )
    (elsewhere / "one/test/scores.json").write_text("{")
    assert "one/test/scores.json is no JSON" in error_of("compare", "one", "two")
    (elsewhere / "one/test/scores.json").write_text("[]")
    assert "one/test/scores.json holds no scores" in error_of("compare", "one", "two")


def test_missing_sacremoses_is_one_line(run, monkeypatch):
    real = importlib.import_module

    def missing(name, *args):
        if name == "sacremoses":
            raise ModuleNotFoundError("No module named 'sacremoses'", name="sacremoses")
        return real(name, *args)

    run("one", GOOD)
    run("two", BAD)
    monkeypatch.setattr(importlib, "import_module", missing)
    message = error_of("compare", "one", "two", "--legacy", "multi30k")
    assert message.endswith("is not installed: pip install 'litseq[legacy]'.")
