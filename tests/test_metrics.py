import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from litseq import metrics
from litseq.metrics import Evaluation, bleu_tokenizer, corpus_scores, sentence_chrf
from litseq.types import ScoredText, Translation

GERMAN = (
    ["Ein Hund läuft über die Wiese.", "Zwei Männer sitzen am Tisch.", "Das kostet 3,50 €!"],
    ["Ein Hund rennt über die grüne Wiese.", "Zwei Männer sitzen am Tisch.", "Es kostet 3,50 €."],
)
CHINESE = (
    ["我昨天买了三本书。", "他在北京工作了5年", "会议从上午9:30开始,到中午结束。", ""],
    ["我昨天买了两本书。", "他在北京工作了5年", "会议上午9:30开始,中午结束。", "好。"],
)


def command_line(folder: Path, texts: tuple[list[str], list[str]], *options: str) -> list[dict]:
    """The scores of sacreBLEU's own command, to 4 decimals."""
    hypotheses, references = folder / "hyp.txt", folder / "ref.txt"
    for path, lines in zip((hypotheses, references), texts, strict=True):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(references), "-i", str(hypotheses)]
    command += ["-m", "bleu", "chrf", "ter", "-w", "4", *options]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return json.loads(done.stdout)


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
    monkeypatch.setitem(metrics._SEGMENTERS, code, ("litseq_no_such_segmenter",))
    bleu_tokenizer.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="litseq.metrics"):
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
    monkeypatch.setitem(metrics._SEGMENTERS, extra[:2], ("json",))
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


WMT17 = Path(os.environ.get("LITSEQ_SHARED_DATA", "")) / "metrics" / "wmt17-en-de"


@pytest.mark.skipif(
    not os.environ.get("LITSEQ_SHARED_DATA"), reason="LITSEQ_SHARED_DATA names no data folder"
)
@pytest.mark.parametrize("letter", ["A", "F"])
def test_published_systems_have_their_published_scores(letter):
    def lines(name: str) -> list[str]:
        return gzip.decompress((WMT17 / name).read_bytes()).decode().split("\n")[:-1]

    system = f"newstest2017.online-{letter}.0.en-de"
    hypotheses, references = lines(f"systems/{system}.gz"), lines("ref.de.gz")
    expected = json.loads((WMT17 / "expected.json").read_text("utf-8"))["systems"][system]

    scores = corpus_scores(hypotheses, references, tgt_lang="de")
    assert scores.num_sentences == 3004
    assert round(scores.bleu, 1) == expected["published_bleu_1dp"]
    assert round(scores.chrf, 1) == expected["published_chrf2_1dp"]
    assert round(scores.bleu, 4) == expected["bleu_13a"]
    assert round(scores.chrf, 4) == expected["chrf2"]
    assert scores.exact_match == pytest.approx(100 * expected["exact_match"] / 3004)
    first = corpus_scores(hypotheses[:300], references[:300], tgt_lang="de")
    assert round(first.ter, 4) == expected["ter_first300"]
