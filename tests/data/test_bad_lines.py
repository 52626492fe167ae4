import re

import pytest

from litseq.data.arrow import ArrowRows
from litseq.data.corpora import BAD_LINES, cache_files
from litseq.data.demo import load_demo
from litseq.data.drift import Drift
from litseq.data.readers import Columns, find_file, read_file

COLUMNS = Columns("en", "de", None, None, True)


def cache(folder, limit):
    return cache_files(
        str(folder / "a"), columns=COLUMNS, max_bad_lines=limit, cache_dir=folder / "cache"
    )


@pytest.fixture
def faulty(tmp_path):
    """Six pairs, of which the second, the fourth and the fifth cannot be read."""
    (tmp_path / "a.en").write_bytes(b"one\n\xff\nthree\nfour\nfi\0ve\nsix\n")
    (tmp_path / "a.de").write_bytes(b"eins\nzwei\ndrei\n\xe9\nf\xfcnf\nsechs\n")
    return tmp_path


def test_bad_lines_leave_with_their_partners(faulty):
    folder = cache(faulty, 3)
    data = ArrowRows(folder)
    assert list(zip(data.iter_texts("source"), data.iter_texts("target"), strict=True)) == [
        ("one", "eins"), ("three", "drei"), ("six", "sechs"),
    ]  # fmt: skip
    listed = (folder / BAD_LINES).read_text(encoding="utf-8").splitlines()
    places = [re.match(r".*/(a\.\w\w:\d+): byte \d+ of the line is", line)[1] for line in listed]
    assert places == ["a.en:2", "a.de:4", "a.en:5"]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            0,
            r"a\.en:2: byte 1 of the line is 0xff, which is not UTF-8; convert the file to [^ ]*$",
        ),
        (
            2,
            r"a\.en:5: byte 3 of the line is NUL; remove it\. \(2 bad lines before it were skipped",
        ),
    ],
)
def test_one_more_is_an_error(limit, message, faulty):
    with pytest.raises(ValueError, match=message):
        cache(faulty, limit)
    assert not [path for path in faulty.rglob("cache/**/*") if path.is_file()]


def test_the_limit_is_part_of_what_is_cached(faulty):
    assert cache(faulty, 3) != cache(faulty, 4)
    (faulty / "a.en").write_text("one\n")
    (faulty / "a.de").write_text("eins\n")
    assert not (cache(faulty, 3) / BAD_LINES).exists()


@pytest.mark.parametrize("place", [300, 700])
def test_where_a_line_is_missing(place, tmp_path):
    pairs = load_demo("en", "de", split="train")[:1000]
    for side, lang in enumerate(("en", "de")):
        lines = [f"{pair[side]}\n" for pair in pairs]
        if lang == "de":
            del lines[place]
        (tmp_path / f"a.{lang}").write_text("".join(lines), encoding="utf-8")
    message = r"a\.en has 1,000 lines and \S+a\.de has 999; .*stop fitting near line ([\d,]+)\."
    with pytest.raises(ValueError, match=message) as error:
        list(read_file(find_file(str(tmp_path / "a"), COLUMNS), COLUMNS))
    found = int(re.search(message, str(error.value))[1].replace(",", ""))
    assert abs(found - place) < 50


def test_no_place_where_nothing_says_so():
    assert Drift().hint() == ""
    even = Drift()
    for i in range(200):
        even.see(10 + i % 7, 11 + i % 7)
    assert even.hint() == ""
