"""The lesson: measured numbers, the same in both languages, and all of its pictures."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import litseq
from litseq.attention import capture_attention

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))

import by_length  # noqa: E402
import lesson  # noqa: E402
import lesson_measures as measures  # noqa: E402
import lesson_pictures as pictures  # noqa: E402

ENGLISH, CHINESE = ((DOCS / name).read_text() for name in ("lesson.md", "lesson.zh.md"))
IMAGE = re.compile(r"!\[(.*?)\]\((.*?)\)")


def english(text, _):
    return text


def chinese(_, text):
    return text


# ---- the text ----


def test_both_languages_have_the_same_parts():
    def headings(text):
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        found = re.findall(r"^(#+) (?:(\d+)\.)?.*?(\{#.*\})?$", text, re.MULTILINE)
        assert len(found) > 10
        return found

    def code(text):
        found = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        return [re.sub(r" *#.*", "", block) for block in found]

    def images(text):
        return [path for _, path in IMAGE.findall(text)]

    def tags(text):
        return Counter(re.findall(r'<data value="(.*?)">', text))

    for part in (headings, code, images, tags):
        assert part(CHINESE) == part(ENGLISH)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_pictures_are_there(text):
    found = IMAGE.findall(text)
    assert len(found) > 12
    for description, path in found:
        assert len(description) > 8
        for name in (path, path.replace(".png", ".zh.png")):
            file = DOCS / name
            assert file.stat().st_size < 150_000, name
            with Image.open(file) as image:
                assert image.width > 600, name


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_numbers_are_the_measured_ones(text):
    ablation = DOCS / "results/ablation.json"
    if not ablation.is_file():
        pytest.skip("docs/results/ablation.json is not there: python scripts/ablate.py")
    measured = json.loads((DOCS / "assets/lesson.json").read_text())
    values = {**lesson.ablation_values(ablation), **measured}
    assert lesson.fill(text, values, known=lesson.known_values()) == text
    assert lesson.PENDING not in text


def test_every_number_stands_in_a_tag():
    """No score is written by hand: it would stay when a run is repeated."""
    prose = re.sub(r"<data.*?</data>", "", ENGLISH, flags=re.DOTALL)
    assert not re.findall(r"BLEU (?:of|to|from) \d", prose)


def test_fill():
    text = 'a <data value="x">old</data> b <data value="later"></data>'
    filled = lesson.fill(text, {"x": "1.5"}, known={"later"})
    assert filled == 'a <data value="x">1.5</data> b <data value="later">PENDING</data>'
    assert lesson.fill(filled, {"x": "1.5"}, known={"later"}) == filled
    with pytest.raises(ValueError, match="nothing measures 'x'"):
        lesson.fill(text, {}, known=set())


def test_ablation_values(tmp_path):
    curve = [[1, 2.0], [2, 1.0], [3, 0.5]]
    runs = [
        {"name": "rnn", "bleu": bleu, "exact_match": 50, "seconds": 90, "curve": {"val/nll": curve}}
        for bleu in (10.0, 20.0)
    ]
    file = tmp_path / "ablation.json"
    file.write_text(json.dumps({"runs": runs}))
    values = lesson.ablation_values(file)
    assert values["bleu.rnn"] == "15.0"
    assert values["bleu_range.rnn"] == "10.0–20.0"
    assert (values["seeds.rnn"], values["last.rnn"]) == ("2", "0.500")
    assert set(values) < lesson.known_values()
    assert lesson.ablation_values(tmp_path / "none.json") == {}


# ---- the measures ----


@pytest.fixture(scope="module")
def transformer(fitted):
    module = litseq.Seq2Seq.load_from_checkpoint(fitted.ckpt)
    return measures.Example.of(module, "one red house")


def recurrent(cls, **options):
    torch.manual_seed(0)
    module = cls(vocab_size=23, embedding_dim=5, hidden_size=6, dropout=0.0, **options).eval()
    module.configure_model()
    src, tgt_in = torch.tensor([[7, 8, 9, 10, 3]]), torch.tensor([[2, 11, 12, 13]])
    return measures.Example(module, "", src, tgt_in, list("abcde"), list("wxyz"))


def test_example_is_the_models_own_translation(transformer):
    assert transformer.text == transformer.module.translate(["one red house"])[0]
    assert transformer.src_pieces[-1] == transformer.tgt_pieces[-1] == "</s>"
    assert transformer.tgt_in.shape == (1, len(transformer.tgt_pieces))
    assert transformer.run().shape[0] == len(transformer.tgt_pieces)


def test_attentions_are_those_of_the_capture(transformer):
    found = measures.attentions(transformer)
    with capture_attention(transformer.module) as maps:
        transformer.run()
    for kind, products in found.items():
        assert products
        for layer, product in enumerate(products):
            assert_close(product.weights(), maps.find(kind, layer).weights[0])


def test_arithmetic_leads_to_the_models_weights(transformer):
    (product,) = measures.attentions(transformer)["encoder"]
    sums = measures.arithmetic(product, query=1, pieces=transformer.src_pieces)
    assert sums["d_k"] == 8
    for key in sums["keys"]:
        assert key["score"] == pytest.approx(key["dot"] / 8**0.5)
        weight = product.weights()[sums["head"], 1, key["place"]]
        assert key["weight"] == pytest.approx(float(weight))
    assert sums["keys"][0]["weight"] == pytest.approx(float(product.weights()[:, 1].max()))


def test_layers_overlap_themselves(transformer):
    cross = measures.attentions(transformer)["cross"]
    assert measures.layer_overlap([cross[0], cross[0]]) == pytest.approx(1)


def test_products_leaves_no_hook(transformer):
    network = transformer.module.network
    with pytest.raises(KeyError), measures.products(network):
        raise KeyError
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_attention_steps_are_the_models_weights():
    example = recurrent(litseq.RnnAttentionSeq2Seq)
    steps = measures.attention_steps(example)
    network = example.module.network
    memory = network.encode(example.src, torch.zeros_like(example.src, dtype=torch.bool))
    assert_close(steps["weights"], network.attention(example.tgt_in, memory)[0])
    assert steps["scores"].shape == (4, 5)


def test_hidden_states_end_in_the_context_vector():
    example = recurrent(litseq.RnnSeq2Seq)
    found = measures.hidden_states(example, num_replacements=3)
    network = example.module.network
    memory = network.encode(example.src, torch.zeros_like(example.src, dtype=torch.bool))
    assert_close(found["states"][-1], memory.output[0, 0])
    assert found["influence"].shape == (4,)
    assert (found["influence"] > 0).all()


def test_position_products_depend_on_distance_alone():
    found = measures.position_products(12, 8)
    # the codes are float32, the sum has 8 terms of at most 1
    assert found["spread"] < 8 * 2 * torch.finfo(torch.float32).eps
    distance = torch.arange(12, dtype=torch.float64)
    expected = sum(torch.cos(distance / 10000 ** (2 * i / 8)) for i in range(4))
    assert_close(found["products"][0], expected, atol=1e-6, rtol=0)


def test_variance_of_random_dot_products_is_the_width():
    widths = (4, 64)
    found = measures.random_scores(widths)
    # 36,000 products; a product's square spreads about sqrt(2 + 6 / d) times its mean
    assert found["variance"] == pytest.approx(list(widths), rel=5 * (2 + 6 / 4) ** 0.5 / 36000**0.5)
    assert found["largest_undivided"][1] > found["largest"][1]
    assert found["gradient_undivided"][1] < found["gradient"][1]


def test_score_spread_knows_whether_scores_are_divided(transformer):
    divided = measures.score_spread(transformer.module, num_sentences=2)
    for module in transformer.module.modules():
        if isinstance(module, measures.DotProductAttention):
            module.scale = 1.0
    undivided = measures.score_spread(transformer.module, num_sentences=2)
    for module in transformer.module.modules():
        if isinstance(module, measures.DotProductAttention):
            module.scale = None
    assert undivided["largest"] > divided["largest"]


def test_missing_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ablate\.py --seeds 1 --only rnn"):
        measures.load(tmp_path, "rnn")


# ---- by length ----


@pytest.mark.parametrize("lengths", [[3], [1, 2, 3, 4, 5, 6], [2, 2, 2, 2, 9]])
def test_bins_hold_every_length_once(lengths):
    ranges = by_length.bins(lengths)
    for length in lengths:
        assert sum(low <= length <= high for low, high in ranges) == 1


def test_scores_by_length(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "config.yaml").write_text("data: {init_args: {tgt_lang: de}}")
    texts = {
        "sources": ["a", "a b c d e"],
        "references": ["eins zwei drei vier", "eins zwei drei vier fünf"],
        "hypotheses": ["eins zwei drei vier", "sechs"],
    }
    with pytest.raises(FileNotFoundError, match="litseq test --ckpt_path"):
        by_length.score(tmp_path)
    for name, lines in texts.items():
        (tmp_path / f"test/{name}.txt").write_text("\n".join(lines) + "\n")
    found = by_length.score(tmp_path)
    assert found["bins"] == ["1–4", "5"]
    assert found["num_sentences"] == [1, 1]
    assert found["bleu"][0] == pytest.approx(100)
    assert found["bleu"][1] < 5


# ---- the pictures ----


def test_curves_take_runs_of_several_seeds(tmp_path):
    run = {"curve": {"val/nll": [[1, 2.0], [2, 0.5]]}}
    figure = pictures.curves(english, [("one", [run, run]), ("other", [run])])
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines if not line.get_label().startswith("_")] == [
        "one",
        "other",
    ]
    pictures.save(figure, tmp_path / "deep/picture.png")
    with Image.open(tmp_path / "deep/picture.png") as image:
        assert image.mode == "P"


@pytest.mark.parametrize("say", [english, chinese])
def test_model_diagram_sends_the_memory_to_every_layer(say):
    figure = pictures.transformer(say, num_layers=3)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count(say("attention to the source", "对源句的注意力")) == 3
    assert texts.count(say("self-attention", "自注意力")) == 3


def test_wavelengths_are_those_of_the_paper():
    assert pictures.wavelength(0, 128) == pytest.approx(2 * 3.141592653589793)
    assert pictures.wavelength(64, 128) == pytest.approx(2 * 3.141592653589793 * 10000)
