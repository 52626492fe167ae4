import importlib
import math
import subprocess
import sys

import pytest
from sacrebleu.metrics import BLEU

from litseq.evaluation import LEGACY, legacy_bleu
from litseq.evaluation.legacy import legacy_metric
from sacrebleu_command import DATA, needs_data, read, wmt17

sacremoses = pytest.importorskip("sacremoses")


def prepared(name, text, tgt_lang="de"):
    return legacy_metric(name, tgt_lang=tgt_lang)[0].tokenizer(text)


@pytest.mark.parametrize(
    ("name", "lang", "raw", "expected"),
    [
        ("tokenised", "de", "Das z.B. kostet 3,50 €!", "Das z.B. kostet 3,50 € !"),
        # abbreviations and ordinals of the language
        ("tokenised", "de", "Am 3. Mai, Nr. 5 usw.", "Am 3. Mai , Nr. 5 usw."),
        ("tokenised", "en", "Am 3. Mai.", "Am 3 . Mai ."),
        ("tokenised", "fr", "L'homme d'ici.", "L' homme d' ici ."),
        ("tokenised", "en", "It's A&B here.", "It 's A & B here ."),  # not escaped
        ("tokenised", "de", "grün-blau", "grün-blau"),  # not split
        ("multi30k", "de", "Ein „Hund“ – (er) läuft…", 'ein " hund " - ( er ) läuft ...'),
        ("multi30k", "de", "Zwei Männer.", "zwei männer ."),
        # case goes first, so that a full stop before a capital is kept as before an abbreviation
        ("multi30k", "de", "Ein Hund. Er läuft.", "ein hund. er läuft ."),
        ("iwslt14", "en", "Ein Hund. Er läuft.", "ein hund . er läuft ."),
        ("iwslt14", "en", "It’s “so” – Mr. Be.", "it 's “ so ” – mr. be ."),
        ("wmt14-compound-split", "de", "Der Rich-Text.", "Der Rich ##AT##-##AT## Text ."),
        ("pretokenised", "xx", "it &apos;s well @-@ known .", "it &apos;s well @-@ known ."),
        # as Perl's substitution: a letter between two hyphens belongs to the first
        ("wmt14-compound-split", "de", "A-b-c - ab-cd-e", "A ##AT##-##AT## b-c - ab ##AT##-##AT## "
         "cd ##AT##-##AT## e"),
    ],
)  # fmt: skip
def test_text_is_prepared_as_the_variant_says(name, lang, raw, expected):
    assert prepared(name, raw, lang) == expected


def multi_bleu(hypotheses, references):
    """BLEU as multi-bleu.perl computes it, from tokens to the formula."""

    def grams(line, n):
        words = line.split()
        found = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return {gram: found.count(gram) for gram in found}

    correct, total, hyp_len, ref_len = [0] * 4, [0] * 4, 0, 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        hyp_len, ref_len = hyp_len + len(hypothesis.split()), ref_len + len(reference.split())
        for n in range(4):
            ours, theirs = grams(hypothesis, n + 1), grams(reference, n + 1)
            total[n] += sum(ours.values())
            correct[n] += sum(min(count, theirs.get(gram, 0)) for gram, count in ours.items())
    penalty = math.exp(1 - ref_len / hyp_len) if hyp_len < ref_len else 1
    precisions = [c / t for c, t in zip(correct, total, strict=True)]
    mean = math.exp(sum(map(math.log, precisions)) / 4) if all(correct) else 0
    return 100 * penalty * mean, precisions, penalty, hyp_len, ref_len


HYPOTHESES = [
    "Ein Hund läuft über eine",
    "Der Rich-Text ist „neu“.",
    "Zwei Männer.",
    "Und noch ein gleicher Satz.",
]
REFERENCES = [
    "Ein Hund rennt über eine Wiese.",
    "Der Rich-Text ist neu.",
    "Zwei Männer sitzen da.",
    "Und noch ein gleicher Satz.",
]


@pytest.mark.parametrize("name", LEGACY)
def test_counting_is_that_of_multi_bleu(name):
    metric, _ = legacy_metric(name, tgt_lang="de")
    texts = [[metric.tokenizer(line) for line in lines] for lines in (HYPOTHESES, REFERENCES)]
    bleu, precisions, penalty, hyp_len, ref_len = multi_bleu(*texts)
    found = legacy_bleu(HYPOTHESES, REFERENCES, name=name, tgt_lang="de")
    assert found.bleu == pytest.approx(bleu)
    assert found.precisions == pytest.approx([100 * p for p in precisions])
    assert (found.hyp_len, found.ref_len) == (hyp_len, ref_len)
    assert found.brevity_penalty == pytest.approx(penalty)
    assert found.brevity_penalty < 1
    assert found.bleu > 0
    assert found.confidence is None
    # and that of sacreBLEU over the same words
    assert found.bleu == BLEU(tokenize="none", force=True).corpus_score(texts[0], [texts[1]]).score


def test_nothing_is_smoothed():
    assert legacy_bleu(["a b c x"], ["a b c d"], name="tokenised", tgt_lang="en").bleu == 0


def test_signature_is_not_sacrebleus():
    options = {"tgt_lang": "de-AT", "confidence": True}
    signatures = {
        name: legacy_bleu(HYPOTHESES, REFERENCES, name=name, **options).signature for name in LEGACY
    }
    assert len(set(signatures.values())) == len(LEGACY)
    assert signatures["multi30k"] == (
        "legacy:multi30k|case:lc-first|norm:moses|tok:moses-de|compounds:whole|smooth:none|"
        f"sacremoses:{sacremoses.__version__}|bs:1000|seed:12345"
    )
    for name, signature in signatures.items():
        assert signature.startswith(f"legacy:{name}|")
        assert "version:" not in signature


def test_every_variant_says_what_it_does():
    for variant in LEGACY.values():
        assert "BLEU" in variant.description


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="no legacy BLEU 'x'; choose among pretokenised, t"):
        legacy_bleu(["a"], ["a"], name="x", tgt_lang="de")


@pytest.mark.parametrize("code", [None, "", "zh-CN", "xx"])
def test_unknown_language_is_refused(code):
    with pytest.raises(ValueError, match=f"Moses knows, got {code!r}; give as tgt_lang one of as,"):
        legacy_bleu(["a"], ["a"], name="multi30k", tgt_lang=code)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="got 2 hypotheses and 1 references"):
        legacy_bleu(["a", "b"], ["a"], name="multi30k", tgt_lang="de")


def test_missing_sacremoses_is_said(monkeypatch):
    real = importlib.import_module

    def missing(name, *args):
        if name == "sacremoses":
            raise ModuleNotFoundError("No module named 'sacremoses'", name="sacremoses")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'litseq\[legacy\]'"):
        legacy_bleu(["a"], ["a"], name="multi30k", tgt_lang="de")


def test_optional_packages_are_imported_only_when_asked():
    program = """
import sys
from litseq.evaluation import comet_score, compare, corpus_scores, legacy_bleu
corpus_scores(["a b"], ["a b"], confidence=True)
compare({"a": ["a b"], "b": ["a c"]}, ["a b"])
assert not {"sacremoses", "comet"} & set(sys.modules)
legacy_bleu(["a b"], ["a b"], name="tokenised", tgt_lang="en")
assert "sacremoses" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- real text ----


@needs_data
def test_multi30k_has_the_words_that_the_paper_prints():
    references = read(DATA / "multi30k/test_2016_flickr.de.gz")
    found = legacy_bleu(references, references, name="multi30k", tgt_lang="de")
    assert (found.ref_len, found.bleu) == (12103, pytest.approx(100))


@needs_data
@pytest.mark.parametrize("name", LEGACY)
def test_real_systems_count_as_in_multi_bleu(name):
    hypotheses, references = wmt17("A")[:500], wmt17()[:500]
    metric, _ = legacy_metric(name, tgt_lang="de")
    texts = [[metric.tokenizer(line) for line in lines] for lines in (hypotheses, references)]
    found = legacy_bleu(hypotheses, references, name=name, tgt_lang="de", confidence=True)
    assert found.bleu == pytest.approx(multi_bleu(*texts)[0])
    assert found.confidence.low < found.bleu < found.confidence.high
