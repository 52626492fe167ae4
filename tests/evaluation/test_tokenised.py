import logging

import pytest

from litseq.evaluation import compare, corpus_scores, legacy_bleu, texts
from sacrebleu_command import DATA, needs_data, read, wmt17

RAW = [
    "Ein Hund läuft über die Wiese.",
    "Bonjour !",
    "Où vas-tu ? Voici : un, deux ; trois…",
    "Rock & Roll @ home, 50 % <b>",
    "他在北京工作了5年。",
    "Er sagte: „Nein.“",
    "and so on . . . or not",
    "",
]
TOKENISED = {
    "the mark @@ of subword-nmt": "ein Hu@@ nd läuft",
    "the mark ▁ of SentencePiece": "▁Ein ▁Hund ▁läuft",
    "the mark ##AT## of split compounds": "ein grün ##AT##-##AT## blaues Haus",
    "the mark @-@ of Moses": "ein grün @-@ blaues Haus",
    "an escape of Moses": "that &apos;s it",
    "a space before its last full stop": "Ein Hund läuft .",
}


@pytest.fixture(autouse=True)
def said_nothing(monkeypatch, caplog):
    monkeypatch.setattr(texts, "_said", set())
    caplog.set_level(logging.WARNING, logger="litseq.evaluation")


def test_raw_text_is_no_cause_of_warning(caplog):
    corpus_scores(RAW, RAW, tgt_lang="fr")
    assert not caplog.records


@pytest.mark.parametrize("mark", TOKENISED)
def test_tokenised_text_is_said_with_its_first_line(mark, caplog):
    line = TOKENISED[mark]
    corpus_scores([*RAW, line, line], [*RAW, "a", "b"])
    assert caplog.messages == [
        f"the hypotheses look tokenised: 2 of 10 lines have {mark}, the first is line 9, {line!r}; "
        f"scores compare with others on raw text only."
    ]


def test_it_is_said_once(caplog):
    for _ in range(3):
        corpus_scores(["a b ."], ["a b ."])
    assert [message[:27] for message in caplog.messages] == [
        "the hypotheses look tokenis",
        "the references look tokenis",
    ]


def test_rare_accidents_are_none(caplog):
    lines = ["A b."] * 200
    corpus_scores(["A b .", "Rock &amp; Roll", *lines], ["A b .", "c", *lines])
    assert not caplog.records
    corpus_scores(["Rock &amp; Roll"] * 2 + lines[:150], lines[:152])
    assert len(caplog.records) == 1


def test_sacrebleus_own_warning_does_not_come_on_top(caplog):
    caplog.set_level(logging.WARNING)
    corpus_scores(["A b ."] * 200, ["A b."] * 200)
    assert len(caplog.records) == 1


def test_comparison_names_the_system(caplog):
    compare({"one": ["a b ."], "two": ["a b."]}, ["a b."], metrics=["chrf"])
    [message] = caplog.messages
    assert message.startswith("the hypotheses of one look tokenised: 1 of 1 lines have a space")


def test_legacy_wants_raw_text_too(caplog):
    pytest.importorskip("sacremoses")
    legacy_bleu(["a b c d ."], ["a b c d."], name="tokenised", tgt_lang="en")
    assert "the hypotheses look tokenised" in caplog.text


@needs_data
def test_real_raw_text_is_no_cause_of_warning(caplog):
    corpora = [wmt17(), *map(wmt17, "ABFG"), read(DATA / "tatoeba-en-fr/test.fr.gz")]
    corpora += [read(DATA / f"multi30k/{name}.de.gz") for name in ("val", "test_2016_flickr")]
    for lines in corpora:
        texts.warn_if_tokenised("they", lines)
    assert not caplog.records
