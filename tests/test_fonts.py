import logging

import pytest

pytest.importorskip("matplotlib")

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from litseq import fonts
from litseq.fonts import choose_fonts, is_wide

HAN = "猫"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No choice and no warning of other tests; matplotlib's own list comes back afterwards."""
    monkeypatch.setattr(fonts, "_said", set())
    known = list(font_manager.fontManager.ttflist)
    fonts._choose.cache_clear()
    yield
    font_manager.fontManager.ttflist[:] = known
    font_manager.fontManager._findfont_cached.cache_clear()
    fonts._choose.cache_clear()


@pytest.fixture
def bare(monkeypatch):
    """A system whose only fonts are those that come with matplotlib."""
    monkeypatch.setattr(font_manager, "_get_fontconfig_fonts", list)
    monkeypatch.setattr(font_manager, "X11FontDirectories", [])
    own = [e for e in font_manager.fontManager.ttflist if "mpl-data" in e.fname]
    font_manager.fontManager.ttflist[:] = own


def make_font(path, family, chars):
    """Writes a font that has a square for each of the characters, and nothing else."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    names = [".notdef", *(f"uni{ord(c):04X}" for c in chars)]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"uni{ord(c):04X}" for c in chars})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)


def paths(families):
    return font_manager.fontManager._find_fonts_by_props(
        font_manager.FontProperties(family=list(families))
    )


def assert_covered(text, chosen):
    """What matplotlib will open for these families has every character."""
    opened = []
    for path in paths(chosen.families):
        index = getattr(path, "face_index", 0)
        opened.append(FT2Font(str(getattr(path, "path", path)), face_index=index))
    for char in text:
        assert any(font.get_char_index(ord(char)) for font in opened), char


def test_latin_and_sentencepiece_need_no_other_font(bare):
    assert choose_fonts("▁Straße ĠТы $x$").families == ("DejaVu Sans",)


def test_font_with_the_glyphs_is_found_by_what_it_has(bare, tmp_path):
    make_font(tmp_path / "a.ttf", "Aaa Sans", "狗")  # first by name, but without the cat
    make_font(tmp_path / "z.ttf", "Zzz", HAN)
    for name in "az":
        font_manager.fontManager.addfont(tmp_path / f"{name}.ttf")
    chosen = choose_fonts(f"a{HAN}")
    assert chosen == fonts.Fonts(("DejaVu Sans", "Zzz"))
    assert_covered(f"a{HAN}", chosen)


def test_several_fonts_share_a_text(bare, tmp_path):
    for name, chars in (("One", "猫狗"), ("Two", "鸟"), ("Three", "狗")):
        make_font(tmp_path / f"{name}.ttf", name, chars)
        font_manager.fontManager.addfont(tmp_path / f"{name}.ttf")
    assert choose_fonts("猫狗鸟").families == ("DejaVu Sans", "One", "Two")


def test_font_installed_after_matplotlib_made_its_list(bare, tmp_path, monkeypatch):
    make_font(tmp_path / "fonts" / "new.ttf", "New", HAN)
    (tmp_path / "fonts" / "broken.ttf").write_bytes(b"not a font")
    monkeypatch.setattr(font_manager, "X11FontDirectories", [str(tmp_path / "fonts")])
    assert choose_fonts(HAN) == fonts.Fonts(("DejaVu Sans", "New"))


def test_font_that_was_removed_is_passed_over(bare, tmp_path):
    make_font(tmp_path / "gone.ttf", "Aaa Sans", HAN)
    make_font(tmp_path / "here.ttf", "Here", HAN)
    for name in ("gone", "here"):
        font_manager.fontManager.addfont(tmp_path / f"{name}.ttf")
    (tmp_path / "gone.ttf").unlink()
    assert choose_fonts(HAN).families == ("DejaVu Sans", "Here")


def test_without_any_font_characters_are_shown_by_number_and_one_line_says_so(bare, caplog):
    with caplog.at_level(logging.WARNING, logger="litseq"):
        chosen = choose_fonts("a猫狗")
        choose_fonts("b猫")
    assert chosen.missing == frozenset("猫狗")
    assert chosen.drawable("a猫狗b") == "a U+732B U+72D7 b"
    (record,) = caplog.records
    assert "fonts-noto-cjk" in record.message
    assert "U+72D7, U+732B" in record.message


def test_invisible_characters_are_shown_by_number():
    chosen = choose_fonts("a\u202eb\x00\ud800")
    assert chosen.missing == frozenset()
    assert chosen.drawable("a\u202eb\x00\ud800") == "a U+202E b U+0000 U+D800"
    assert chosen.drawable("two words") == "two words"


@pytest.mark.parametrize("listed", [True, False])
def test_each_language_gets_its_own_shapes(listed):
    """Whether matplotlib made its list before the fonts were installed, or after."""
    if not any("NotoSansCJK" in path for path in font_manager.findSystemFonts()):
        pytest.skip("needs fonts-noto-cjk")
    entries = font_manager.fontManager.ttflist
    entries[:] = [entry for entry in entries if "CJK" not in entry.name]
    if listed:
        fonts._new_fonts()
    for text, family in (("今天", "SC"), ("猫が好き", "JP"), ("고양이", "KR")):
        chosen = choose_fonts(text)
        assert chosen.families == ("DejaVu Sans", f"Noto Sans CJK {family}")
        assert_covered(text, chosen)


def test_square_characters():
    assert [is_wide(c) for c in "a▁猫かＡ。"] == [False, False, True, True, True, True]
