import random

import pytest

from litseq.evaluation import Interval, SystemScore, compare, corpus_scores
from litseq.evaluation.significance import Comparison
from sacrebleu_command import needs_data, paired, wmt17

WORDS = "eins zwei drei vier fünf sechs sieben acht neun zehn".split()


def corpus(size=60):
    """References, and systems that change words as often, and more often, as the baseline."""
    rng = random.Random(3)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(size)]

    def changed(rate):
        return [
            " ".join(w if rng.random() > rate else "falsch" for w in line.split())
            for line in references
        ]

    return {"base": changed(0.18), "near": changed(0.18), "far": changed(1 / 2)}, references


def assert_equal(found, expected, tolerance):
    for metric, rows in expected.items():
        mine = [row for row in found.rows if row.metric == metric]
        assert [row.system for row in mine] == ["base", "near", "far"][: len(mine)]
        for row, (score, *numbers) in zip(mine, rows, strict=True):
            assert row.score == pytest.approx(score, abs=tolerance)
            p_value = numbers.pop() if row.p_value is not None else None
            if p_value is not None:
                assert round(row.p_value, 4) == p_value
            if numbers:
                mean, margin = numbers
                assert row.confidence.mean == pytest.approx(mean, abs=tolerance)
                assert row.confidence.margin == pytest.approx(margin, abs=tolerance)


@pytest.mark.parametrize("method", ["bs", "ar"])
def test_it_equals_sacrebleus_command(tmp_path, method):
    systems, references = corpus()
    found = compare(systems, references, method=method)
    assert_equal(found, paired(tmp_path, systems, references, f"--paired-{method}"), 6e-5)
    p_values = [row.p_value for row in found.rows if row.metric == "bleu"]
    assert p_values[0] is None
    assert p_values[1] > 0.05 > p_values[2]
    assert found.num_samples == {"bs": 1000, "ar": 10000}[method]
    assert f"|{method}:{found.num_samples}|" in found.signatures["bleu"]
    assert found.num_sentences == 60


@pytest.mark.parametrize("method", ["bs", "ar"])
def test_scores_and_intervals_are_those_of_a_test(method):
    systems, references = corpus()
    found = compare(systems, references, method=method, metrics=["bleu", "chrf", "ter"])
    for row in found.rows:
        alone = corpus_scores(systems[row.system], references, confidence=True)
        assert row.score == pytest.approx(getattr(alone, row.metric))
        interval = alone.confidence[row.metric]
        # sacreBLEU averages the resamples of a paired test in float32
        assert row.confidence.mean == pytest.approx(interval.mean, rel=1e-6)
        assert row.confidence.margin == pytest.approx(interval.margin, rel=1e-5)


@needs_data
@pytest.mark.parametrize(("size", "letters"), [(600, "AGF"), (60, "AG")])
def test_real_systems_equal_sacrebleus_command(tmp_path, size, letters):
    names = ("base", "near", "far")
    systems = {n: wmt17(letter)[:size] for n, letter in zip(names, letters, strict=False)}
    found = compare(systems, wmt17()[:size])
    assert_equal(found, paired(tmp_path, systems, wmt17()[:size], "--paired-bs"), 6e-5)


def test_legacy_bleu_is_tested_beside():
    pytest.importorskip("sacremoses")
    systems, references = corpus()
    found = compare(systems, references, metrics=["bleu"], legacy=["multi30k"], tgt_lang="de")
    by_metric = {
        name: [(row.system, row.p_value) for row in found.rows if row.metric == name]
        for name in ("bleu", "legacy:multi30k")
    }
    # lower-case words without punctuation are the same to both
    assert by_metric["bleu"] == by_metric["legacy:multi30k"]
    assert found.signatures["legacy:multi30k"].startswith("legacy:multi30k|case:lc-first|")
    assert found.signatures["legacy:multi30k"].endswith("|bs:1000|seed:12345")


def test_of_equal_scores_no_difference_holds():
    texts = ["a cat sat there", "two dogs ran home", "the birds fly south now"]
    found = compare({"a": texts, "b": list(texts)}, [t.upper() for t in texts])
    assert [row.holds for row in found.rows] == [None, False, None, False]


def test_words_say_whether_the_difference_holds():
    span = Interval(20.0, 1.0)
    rows = (
        SystemScore("a", "bleu", 20.0, span),
        SystemScore("b", "bleu", 21.5, span, 1.5, 0.004),
        SystemScore("c", "bleu", 19.9, span, -0.1, 0.3),
        SystemScore("d", "bleu", 20.0, span, 0.0, 1.0),
        SystemScore("b", "ter", 50.0, span, -2.0, 0.05),
    )
    found = Comparison("a", "bs", 1000, 10, {"bleu": "x", "ter": "y"}, rows)
    assert found.sentences() == [
        "BLEU: b is 1.50 better than a, and the difference holds (p = 0.0040, paired bootstrap).",
        "BLEU: c is 0.10 worse than a, but the difference may be chance (p = 0.3000, paired "
        "bootstrap).",
        "BLEU: d and a have the same score.",
        "TER: b is 2.00 better than a, but the difference may be chance (p = 0.0500, paired "
        "bootstrap).",
    ]
    assert [row.holds for row in rows] == [None, True, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "t"}, "there is no method 't'; choose among bs, ar"),
        ({"metrics": []}, "a comparison needs a metric, got none"),
        ({"metrics": ["wer"]}, "there is no metric 'wer'; choose among bleu, chrf, ter"),
        ({"legacy": ["wmt15"], "tgt_lang": "de"}, "there is no legacy BLEU 'wmt15'; choose among"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compare({"a": ["a"], "b": ["b"]}, ["c"], **options)


def test_one_system_and_other_lengths_are_refused():
    with pytest.raises(ValueError, match="needs two systems or more, got 1"):
        compare({"a": ["a"]}, ["a"])
    with pytest.raises(ValueError, match="got 2 hypotheses and 1 references"):
        compare({"a": ["a"], "b": ["b", "c"]}, ["a"])
    with pytest.raises(TypeError, match="got one string"):
        compare({"a": "a", "b": ["b"]}, ["a"])


def test_a_seed_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "abc")
    with pytest.raises(
        ValueError, match="SACREBLEU_SEED must be a whole number or 'none', got 'abc'"
    ):
        corpus_scores(["a b"], ["a b"], confidence=True)


def test_a_seed_that_is_none_is_refused_by_comparisons_too(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "abc")
    with pytest.raises(ValueError, match="SACREBLEU_SEED must be a whole number or 'none'"):
        compare({"a": ["a b"], "b": ["a c"]}, ["a b"])


def test_a_seed_of_zero_is_none_to_comparisons(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "0")
    with pytest.raises(ValueError, match=r"SACREBLEU_SEED is 0, .* no seed; give another number"):
        compare({"a": ["a b"], "b": ["a c"]}, ["a b"])
