import itertools
import warnings

import pytest
import torch

pytest.importorskip("matplotlib")

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from litseq.heatmaps import draw_attention, render, write_png

H, T, S = 3, 5, 7
ROWS = ["▁今天", "下午", "三", "点", "</s>"]
COLUMNS = ["▁at", "▁three", "▁in", "▁the", "▁afternoon", "$", "</s>"]


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return torch.randn(H, T, S).mul(3).softmax(-1)


def draw(weights, **options):
    names = {"query_tokens": ROWS, "key_tokens": COLUMNS}
    return draw_attention(weights, **{**names, **options})


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def panels(figure):
    return [image for image in figure.axes[0].images if image.get_array().shape != (101, 1)]


def test_each_head_is_a_panel_that_holds_its_weights(weights):
    shown = panels(draw(weights))
    assert len(shown) == H
    for image, expected in zip(shown, weights, strict=True):
        np.testing.assert_array_equal(image.get_array(), expected.numpy())
        assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_cells_stand_beside_their_tokens(weights):
    figure = draw(weights)
    axes = figure.axes[0]
    left, right, bottom, top = panels(figure)[0].get_extent()
    for row, token in enumerate(ROWS):
        text = next(t for t in axes.texts if t.get_text() == token and not t.get_rotation())
        middle = top + (row + 0.5) * (bottom - top) / T
        assert abs(text.get_position()[1] - middle) < 0.05  # inches
        assert text.get_position()[0] < left
    for column, token in enumerate(COLUMNS):
        text = next(
            t
            for t in axes.texts
            if t.get_text() == token
            and (t.get_rotation() == 90) == (len(token) > 2)
            and t.get_position()[0] > left
        )
        middle = left + (column + 0.5) * (right - left) / S
        assert abs(text.get_position()[0] - middle) < 0.05
        assert text.get_position()[1] < top


def test_darker_is_more_in_every_pixel():
    scale = torch.linspace(0, 1, 11)[None, None]
    figure = draw_attention(scale, query_tokens=["q"], key_tokens=list("abcdefghijk"))
    pixels = render(figure)
    left, right, bottom, top = panels(figure)[0].get_extent()
    y = int((top + bottom) / 2 * figure.dpi)
    xs = [int((left + (i + 0.5) * (right - left) / 11) * figure.dpi) for i in range(11)]
    luminance = [pixels[y, x] @ np.array([0.299, 0.587, 0.114]) for x in xs]
    assert all(a > b for a, b in itertools.pairwise(luminance))


def test_words_of_square_characters_are_written_downwards(weights):
    figure = draw(weights.transpose(1, 2), query_tokens=COLUMNS, key_tokens=ROWS)
    assert "▁\n今\n天" in texts(figure)
    assert "</s>" in texts(figure)


def test_titles(weights):
    figure = draw(weights, title="one\ntwo", panel_titles=["x", "y", "z"], query_label="the reader")
    assert {"one", "two", "x", "y", "z"} <= set(texts(figure))
    assert any("rows: the reader" in text for text in texts(figure))
    assert "head 2" in texts(draw(weights))


def test_long_titles_are_wrapped_within_the_figure(weights):
    long = "a title of many words " * 12 + "今天" * 80
    figure = draw(weights, title=long)
    lines = [text for text in figure.axes[0].texts if text.get_text() in long]
    assert "".join(t.get_text() for t in lines).replace(" ", "") == long.replace(" ", "")
    renderer = FigureCanvasAgg(figure).get_renderer()
    for line in lines:
        assert line.get_window_extent(renderer).x1 < figure.get_figwidth() * figure.dpi


def test_everything_lies_within_the_figure_and_labels_do_not_overlap(weights):
    figure = draw(weights, title="title", panel_titles=["head 0: entropy 0.10"] * H)
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    overlapping = [
        (texts(figure)[i], texts(figure)[j])
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].shrunk(0.9, 0.9).overlaps(boxes[j].shrunk(0.9, 0.9))
    ]
    assert not overlapping


def test_long_sentences_and_many_heads_are_cut_with_a_note():
    weights = torch.full((20, 50, 60), 1 / 60)
    figure = draw_attention(
        weights, query_tokens=["q"] * 50, key_tokens=["k"] * 60, max_tokens=8, max_heads=4
    )
    assert [image.get_array().shape for image in panels(figure)] == [(8, 8)] * 4
    note = "shown: the first 4 of 20 heads, the first 8 of 50 rows, the first 8 of 60 columns"
    assert note in " ".join(texts(figure))
    assert not any("shown" in text for text in texts(draw(weights[:2, :T, :S])))


def test_long_and_invisible_tokens_stay_readable(weights):
    tokens = ["x" * 10_000, " ", "", "a\u202eb", "语" * 99]
    shown = texts(draw(weights, query_tokens=tokens))
    assert {"x" * 15 + "…", "' '", "''", "a U+202E b", "语" * 7 + "…"} <= set(shown)


def test_no_glyph_is_missing_and_no_dollar_is_mathematics(weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(draw(weights, key_tokens=["$a$", "$", "\\frac{", "_x^", "▁", "%", "&"]))


def test_settings_of_the_user_change_nothing_and_stay(weights):
    pixels = render(draw(weights, title="t"))
    ours = {"font.family": "monospace", "image.cmap": "jet", "text.color": "red",
            "font.style": "italic", "figure.autolayout": True}  # fmt: skip
    with matplotlib.rc_context(ours):
        before = dict(matplotlib.rcParams)
        again = render(draw(weights, title="t"))
        assert dict(matplotlib.rcParams) == before
    np.testing.assert_array_equal(pixels, again)


def test_png_holds_the_pixels(weights, tmp_path):
    pixels = render(draw(weights))
    write_png(tmp_path / "new" / "a.png", pixels)
    with Image.open(tmp_path / "new" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_one_cell():
    assert len(panels(draw_attention(torch.ones(1, 1, 1), query_tokens="a", key_tokens="b"))) == 1


@pytest.mark.parametrize("shape", [(T, S), (1, H, T, S), (H, 0, S)])
def test_shape_is_one_sentence(shape):
    with pytest.raises(ValueError, match=r"weights must be .* choose one sentence"):
        draw(torch.zeros(shape))


@pytest.mark.parametrize("name", ["query_tokens", "key_tokens", "panel_titles"])
def test_names_fit(weights, name):
    with pytest.raises(ValueError, match=f"{name} must hold .*, got 2"):
        draw(weights, **{name: ["a", "b"]})


@pytest.mark.parametrize("name", ["max_tokens", "max_heads"])
def test_limits_are_positive(weights, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        draw(weights, **{name: 0})
