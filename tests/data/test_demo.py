import gzip
import importlib.util
import itertools
import re
import sys
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest

from litseq.data.demo import DEFAULT_PAIR, LANGUAGES, PAIRS, load_demo

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_demo.py"
SIZES = {"train": 12_500, "val": 500, "test": 1_000}
TEXTS = {  # language: split: texts
    language: {
        split: [text for text, _ in load_demo(language, other, split=split)] for split in SIZES
    }
    for language, other in zip(LANGUAGES, LANGUAGES[1:] + LANGUAGES[:1], strict=True)
}


def every_text(language: str) -> list[str]:
    return [text for texts in TEXTS[language].values() for text in texts]


# The corpus


@pytest.mark.parametrize("language", LANGUAGES)
def test_split_sizes(language: str) -> None:
    assert {split: len(texts) for split, texts in TEXTS[language].items()} == SIZES


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_occurs_twice_in_a_language(language: str) -> None:
    # Hence no split shares a source or a target with another, and every pair is one-to-one.
    assert len(set(every_text(language))) == sum(SIZES.values())


def test_no_text_is_the_same_in_two_languages() -> None:
    for texts in zip(*(every_text(language) for language in LANGUAGES), strict=True):
        assert len(set(texts)) == len(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_clean(language: str) -> None:
    text = "\n".join(every_text(language))
    kinds = {unicodedata.category(character) for character in set(text) - {"\n"}}
    assert not kinds & {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
    assert [c for c in set(text) if unicodedata.category(c) == "Zs"] == [" "]
    assert not re.search(r"  |^ | $|^$", text, flags=re.MULTILINE)
    assert unicodedata.normalize("NFKC", text) == text


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_bare_unit_ids(language: str) -> None:
    kinds = (
        "angle|area|consumption|digital|duration|electric|energy|force|frequency|graphics|length"
    )
    bare = re.compile(rf"\b({kinds}|mass|power|pressure|speed|temperature|volume)-[a-z]")
    assert [text for text in every_text(language) if bare.search(text)] == []


def test_no_disputed_names() -> None:
    text = "\n".join(every_text("en"))
    names = "Crimea|Falkland|Hong Kong|Jerusalem|Kosovo|Maca[ou]|Palestin|Sahara|Taiwan|Tibet"
    assert not re.search(names, text)


def test_chinese_has_no_latin_words() -> None:
    text = "\n".join(every_text("zh"))
    assert set(re.findall("[A-Za-z]+", text)) <= {"US", "JP", "CA", "AU", "MX", "NZ", "R"}  # money


def test_years_agree_across_languages() -> None:
    year = re.compile(r"(?<![\d,.])(?:19|20)\d\d(?![\d,.]\d)")
    for texts in zip(*(every_text(language) for language in LANGUAGES), strict=True):
        years = {tuple(dict.fromkeys(year.findall(text))) for text in texts if "/" not in text}
        assert len(years) <= 1, texts


def test_some_sources_are_long() -> None:
    lengths = [len(re.findall(r"\w+|[^\w\s]", text)) for text in every_text("en")]
    assert sum(length > 12 for length in lengths) > len(lengths) // 4
    assert max(lengths) > 25


@pytest.mark.parametrize(
    ("language", "first"),
    [
        ("en", "Saturday, July 18, 1987, 7:25 AM Singapore Standard Time"),
        ("de", "Samstag, 18. Juli 1987, 07:25 Singapurische Normalzeit"),
        ("fr", "samedi 18 juillet 1987, 07:25 heure de Singapour"),
        ("zh", "1987年7月18日星期六 新加坡标准时间 07:25"),
    ],
)
def test_first_test_texts(language: str, first: str) -> None:
    assert TEXTS[language]["test"][0] == first


# Loading


def test_named_pairs_load() -> None:
    assert DEFAULT_PAIR in PAIRS
    for pair in PAIRS:
        src_lang, tgt_lang = pair.split("-")
        expected = list(zip(TEXTS[src_lang]["val"], TEXTS[tgt_lang]["val"], strict=True))
        assert load_demo(src_lang, tgt_lang, split="val") == expected


def test_any_two_languages_load_in_either_direction() -> None:
    for src_lang, tgt_lang in itertools.combinations(LANGUAGES, 2):
        there = load_demo(src_lang, tgt_lang, split="val")
        assert load_demo(tgt_lang, src_lang, split="val") == [(tgt, src) for src, tgt in there]


@pytest.mark.parametrize(("src_lang", "tgt_lang"), [("en", "ja"), ("ja", "en"), ("en", "en")])
def test_unknown_pair(src_lang: str, tgt_lang: str) -> None:
    message = f"no pair '{src_lang}' to '{tgt_lang}'; choose one of en-zh, en-fr, en-de, or any two"
    with pytest.raises(ValueError, match=message) as caught:
        load_demo(src_lang, tgt_lang, split="test")
    assert "\n" not in str(caught.value)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="no split 'dev'; choose one of train, val, test"):
        load_demo("en", "zh", split="dev")  # type: ignore[arg-type]


# The generator


@pytest.fixture(scope="module")
def make_demo() -> ModuleType:
    babel = pytest.importorskip("babel")
    spec = importlib.util.spec_from_file_location("make_demo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if babel.__version__ != module.BABEL_VERSION:
        pytest.skip(f"the corpus is Babel {module.BABEL_VERSION}, this is {babel.__version__}")
    return module


def test_generator_gives_the_test_split_first(make_demo: ModuleType) -> None:
    for texts, expected in zip(
        itertools.islice(make_demo.generate(), 300),
        zip(*(TEXTS[language]["test"] for language in make_demo.LOCALES), strict=True),
        strict=False,
    ):
        assert texts == expected


def test_another_seed_gives_other_texts(make_demo: ModuleType) -> None:
    assert next(make_demo.generate(1)) != next(make_demo.generate(2))


def test_check_accepts_the_files(
    make_demo: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_demo.py", "--check"])
    with caplog.at_level("INFO"):
        make_demo.main()
    assert "12 files of demo_corpus are what this script generates" in caplog.text


def test_written_files_hold_their_text_alone(
    make_demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(make_demo, "CORPUS", tmp_path)
    monkeypatch.setattr(make_demo, "SPLITS", {"test": 5})
    monkeypatch.setattr(sys, "argv", ["make_demo.py"])
    make_demo.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"test.{language}.gz" for language in sorted(LANGUAGES)
    ]
    for language in LANGUAGES:
        data = (tmp_path / f"test.{language}.gz").read_bytes()
        assert data[3] == 0  # flags: no file name
        assert data[4:8] == bytes(4)  # no time
        assert gzip.decompress(data).decode().split("\n") == [*TEXTS[language]["test"][:5], ""]

    monkeypatch.setattr(sys, "argv", ["make_demo.py", "--check"])
    (tmp_path / "test.fr.gz").write_bytes(make_demo.compress("autre chose\n"))
    (tmp_path / "test.zh.gz").unlink()
    with pytest.raises(SystemExit, match=r"other text in test\.fr\.gz, test\.zh\.gz; run python"):
        make_demo.main()


def test_another_version_writes_nothing(
    make_demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(make_demo, "CORPUS", tmp_path)
    monkeypatch.setattr(make_demo, "CLDR_VERSION", "46")
    monkeypatch.setattr(sys, "argv", ["make_demo.py"])
    with pytest.raises(SystemExit, match=r"CLDR 46, found Babel 2\.18\.0 with CLDR 47; run pip"):
        make_demo.main()
    assert list(tmp_path.iterdir()) == []
