import json
import logging

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF, TER

from litseq.evaluation import (
    Evaluation,
    bleu_tokenizer,
    corpus_scores,
    sentence_chrf,
)
from litseq.evaluation import scores as scores_module
from litseq.types import ScoredText, Translation
from sacrebleu_command import WMT17, command_line, needs_data, wmt17

GERMAN = (
    ["Ein Hund läuft über die Wiese.", "Zwei Männer sitzen am Tisch.", "Das kostet 3,50 €!"],
    ["Ein Hund rennt über die grüne Wiese.", "Zwei Männer sitzen am Tisch.", "Es kostet 3,50 €."],
)
CHINESE = (
    ["我昨天买了三本书。", "他在北京工作了5年", "会议从上午9:30开始,到中午结束。", ""],
    ["我昨天买了两本书。", "他在北京工作了5年", "会议上午9:30开始,中午结束。", "好。"],
)


@pytest.mark.parametrize(
    ("texts", "tgt_lang", "options"),
    [
        (GERMAN, "de", ()),
        (GERMAN, None, ()),
        (CHINESE, "zh", ("-tok", "zh", "--ter-normalized", "--ter-asian-support")),
    ],
)
def test_scores_and_signatures_equal_sacrebleus_command(tmp_path, texts, tgt_lang, options):
    scores = corpus_scores(*texts, tgt_lang=tgt_lang)
    expected = command_line(tmp_path, texts, *options)
    assert [row["name"] for row in expected] == ["BLEU", "chrF2", "TER"]
    for row, name in zip(expected, ("bleu", "chrf", "ter"), strict=True):
        assert round(getattr(scores, name), 4) == row["score"]
        assert scores.signatures[name] == row["signature"]
        assert f"version:{sacrebleu.__version__}" in row["signature"]


def test_ter_may_be_left_out():
    whole, quick = corpus_scores(*GERMAN), corpus_scores(*GERMAN, ter=False)
    assert quick.ter is None
    assert (quick.bleu, quick.chrf) == (whole.bleu, whole.chrf)
    assert quick.signatures == {name: whole.signatures[name] for name in ("bleu", "chrf")}


def test_chinese_without_spaces_is_not_one_word():
    hypotheses, references = ["我昨天买了三本书。"], ["我昨天买了两本书。"]
    as_words = corpus_scores(hypotheses, references)
    as_characters = corpus_scores(hypotheses, references, tgt_lang="zh")
    assert as_words.bleu == 0
    assert as_words.ter == 100
    assert as_characters.bleu > 0
    assert as_characters.ter == pytest.approx(100 / 9)  # one of nine characters


def test_equal_texts_have_the_best_scores():
    scores = corpus_scores(GERMAN[1], GERMAN[1], tgt_lang="de")
    assert (scores.bleu, scores.chrf) == (pytest.approx(100), pytest.approx(100))
    assert (scores.ter, scores.exact_match, scores.num_sentences) == (0, 100, 3)


def test_exact_match_ignores_outer_white_space_alone():
    scores = corpus_scores([" a b\n", "a  b", "A b", "c"], ["a b", "a b", "a b", "c"])
    assert scores.exact_match == 50


@pytest.mark.parametrize(
    ("tgt_lang", "tokenizer"),
    [
        *((code, "zh") for code in ("zh", "ZH", "zh-CN", "zh_Hans", "zh-hans", "zho_Hans", "cmn")),
        *((code, "13a") for code in ("de", "en_US", "deu_Latn", "", None, "zza")),
    ],
)
def test_language_decides_the_tokenizer(tgt_lang, tokenizer):
    assert bleu_tokenizer(tgt_lang) == tokenizer


@pytest.mark.parametrize("code", ["ja", "ko"])
def test_missing_segmenter_is_said_once_and_characters_count(code, monkeypatch, caplog):
    monkeypatch.setitem(scores_module._SEGMENTERS, code, ("litseq_no_such_segmenter",))
    bleu_tokenizer.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="litseq.evaluation"):
            scores = corpus_scores(["漢字かな"], ["漢字かな"], tgt_lang=code)
            corpus_scores(["漢字"], ["漢字"], tgt_lang=code)
    finally:
        bleu_tokenizer.cache_clear()
    assert "tok:char" in scores.signatures["bleu"]
    assert [record.message for record in caplog.records] == [
        f"BLEU for {code} counts characters (tok:char) as its word segmenter is not installed; "
        f"install sacrebleu[{code}] for scores that compare with published ones."
    ]


@pytest.mark.parametrize(("code", "extra"), [("ja-JP", "ja-mecab"), ("kor", "ko-mecab")])
def test_installed_segmenter_is_used(code, extra, monkeypatch):
    monkeypatch.setitem(scores_module._SEGMENTERS, extra[:2], ("json",))
    bleu_tokenizer.cache_clear()
    try:
        assert bleu_tokenizer(code) == extra
    finally:
        bleu_tokenizer.cache_clear()


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="got 2 hypotheses and 1 references"):
        corpus_scores(["a", "b"], ["a"])


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to score, got 0 hypotheses"):
        corpus_scores([], [])


def test_one_string_is_not_a_corpus():
    with pytest.raises(TypeError, match="lists of sentences, got one string"):
        corpus_scores("ab", ["a", "b"])


def test_sentence_chrf_equals_the_corpus_of_one():
    for hypothesis, reference in zip(*GERMAN, strict=True):
        assert sentence_chrf(hypothesis, reference) == corpus_scores([hypothesis], [reference]).chrf


def test_evaluation_is_a_record():
    item = Translation(0, "a", (ScoredText("b", -0.5, -1.0, 2),), "b")
    evaluation = Evaluation("test", (item,), corpus_scores(["b"], ["b"]))
    with pytest.raises(AttributeError, match="split"):
        evaluation.split = "val"


# ---- confidence ----


def test_intervals_equal_sacrebleus_own():
    hypotheses, references = [line * 3 for line in GERMAN[0]] * 5, GERMAN[1] * 5
    scores = corpus_scores(hypotheses, references, tgt_lang="de", confidence=True)
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())):
        expected = metric.corpus_score(hypotheses, [references], n_bootstrap=1000)
        assert getattr(scores, name) == expected.score
        interval = scores.confidence[name]
        assert (interval.mean, interval.margin) == (expected._mean, expected._ci)
        assert (interval.low + interval.high) / 2 == pytest.approx(interval.mean)
        assert scores.signatures[name] == str(metric.get_signature())
        assert "|bs:1000|seed:12345|" in scores.signatures[name]


def test_resamples_without_any_match_have_an_interval():
    # sacreBLEU 2.6 itself fails here: it adds Python's 0 to numpy's numbers
    scores = corpus_scores(["a", "b", "xyz"], ["a", "c", "uvw"], confidence=True)
    assert scores.confidence["chrf"].low == 0
    with pytest.raises(TypeError, match="coerce float"):
        CHRF().corpus_score(["a", "b", "xyz"], [["a", "c", "uvw"]], n_bootstrap=1000)


def test_the_seed_is_sacrebleus(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    hypotheses, references = GERMAN[0] * 5, GERMAN[1] * 5
    scores = corpus_scores(hypotheses, references, ter=False, confidence=True)
    expected = BLEU().corpus_score(hypotheses, [references], n_bootstrap=1000)
    assert scores.confidence["bleu"].mean == expected._mean
    assert "|seed:7|" in scores.signatures["bleu"]


def test_the_interval_of_exact_matches_covers_as_many_as_it_says():
    hypotheses, references = ["a", "b", "c", "x"] * 100, ["a", "b", "c", "d"] * 100
    scores = corpus_scores(hypotheses, references, ter=False, confidence=True)
    interval = scores.confidence["exact_match"]
    deviation = 100 * (0.75 * 0.25 / 400) ** 0.5  # of a binomial share
    assert interval.mean == pytest.approx(75, abs=0.2 * deviation)
    assert interval.margin == pytest.approx(1.96 * deviation, rel=0.1)


# ---- real systems ----


@needs_data
@pytest.mark.parametrize("letter", "ABFG")
def test_published_systems_have_their_published_scores(letter, tmp_path):
    hypotheses, references = wmt17(letter), wmt17()
    name = f"newstest2017.online-{letter}.0.en-de"
    expected = json.loads((WMT17 / "expected.json").read_text("utf-8"))["systems"][name]

    scores = corpus_scores(hypotheses, references, tgt_lang="de", ter=False, confidence=True)
    assert scores.num_sentences == 3004
    assert round(scores.bleu, 1) == expected["published_bleu_1dp"]
    assert round(scores.chrf, 1) == expected["published_chrf2_1dp"]
    assert round(scores.bleu, 4) == expected["bleu_13a"]
    assert round(scores.chrf, 4) == expected["chrf2"]
    assert scores.exact_match == pytest.approx(100 * expected["exact_match"] / 3004)

    rows = command_line(
        tmp_path, (hypotheses, references), "--confidence", metrics=("bleu", "chrf"), digits=10
    )
    for row, key in zip(rows, ("bleu", "chrf"), strict=True):
        interval = scores.confidence[key]
        assert row["score"] == round(getattr(scores, key), 10)
        assert row["signature"] == scores.signatures[key]
        assert row["confidence_mean"] == round(interval.mean, 10)
        assert row["confidence_var"] == round(interval.margin, 10)


@needs_data
@pytest.mark.parametrize("letter", "AF")
def test_published_systems_have_their_ter(letter):
    name = f"newstest2017.online-{letter}.0.en-de"
    expected = json.loads((WMT17 / "expected.json").read_text("utf-8"))["systems"][name]
    first = corpus_scores(wmt17(letter)[:300], wmt17()[:300], tgt_lang="de")
    assert round(first.ter, 4) == expected["ter_first300"]
