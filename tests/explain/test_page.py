import base64
import copy
import json
import math
import re
import shutil
import zlib

import numpy as np
import pytest
import torch

from custom_models import CUSTOM, task_of
from litseq import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq
from litseq.data import TranslationTokenizer
from litseq.decoding import SearchOptions
from litseq.explain.page import SCRIPTS, SECTIONS, render
from litseq.explain.record import explain_translations

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

SOURCES = ["the cat sees two dogs", "a red house", "two dogs see the red cat"]
TARGETS = ["猫看见两只狗", "一座红房子", "两只狗看见红猫"]
TEXTS = ["two dogsees see the red houses", "the cat"]

NASTY = [
    "</script><img src=x onerror=\"document.title='broken'\">", "]]>", "&quot;<b>", "\u202egnp.exe",
    "\0\x07\u2028", "<!--<script>", "'\"`${1}{token}", "長" * 10_000,
]  # fmt: skip


def module_of(cls, **options):
    torch.manual_seed(3)
    tokenizer = TranslationTokenizer.train(
        SOURCES, TARGETS, vocab_size=48, shared=False, src_lang="en"
    )
    module = cls(
        vocab_size=tokenizer.tgt_vocab_size,
        src_vocab_size=tokenizer.src_vocab_size,
        **options,
    )
    module.tokenizer = tokenizer
    module.configure_model()
    with torch.no_grad():
        for parameter in module.network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)  # random, but with opinions
    return module.eval()


def record_of(cls, **options):
    search = SearchOptions(beam_size=3, max_len_b=6)
    return explain_translations(module_of(cls, **options), TEXTS, options=search)


TINY = {"num_encoder_layers": 2, "num_decoder_layers": 3, "dim_feedforward": 20}


@pytest.fixture(scope="module")
def transformer():
    return record_of(TransformerSeq2Seq, d_model=12, num_heads=3, **TINY)


@pytest.fixture(scope="module")
def rnn_attention():
    return record_of(RnnAttentionSeq2Seq, embedding_dim=6, hidden_size=10)


@pytest.fixture(scope="module")
def rnn():
    return record_of(RnnSeq2Seq, embedding_dim=6, hidden_size=10)


@pytest.fixture(scope="module", params=CUSTOM)
def custom(request):
    return record_of(task_of(CUSTOM[request.param]), width=12, num_heads=3)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Visit:
    """Pages opened from disk, without a network, and everything that went wrong in them."""

    def __init__(self, browser, folder):
        self.browser, self.folder = browser, folder
        self.contexts, self.problems, self.requests = [], [], []

    def open(self, record, *, language="en", **options):
        path = self.folder / f"page{len(self.contexts)}.html"
        path.write_text(render(record, language=language), encoding="utf-8")
        screen = {"width": 1280, "height": 900}
        context = self.browser.new_context(
            offline=True, viewport=screen, reduced_motion="reduce", **options
        )
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(error.message))
        page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]")
        return page

    def check(self):
        """Nothing may be said on the console, and nothing asked for but the file."""
        assert self.problems == []
        assert all(url.startswith("file:") for url in self.requests)
        assert len(self.requests) == len(self.contexts)

    def close(self):
        for context in self.contexts:
            context.close()
        self.check()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of its own for a test."""
    visit = Visit(browser, tmp_path)
    yield visit.open
    visit.close()


@pytest.fixture(scope="module")
def _one_page(browser, transformer, tmp_path_factory):
    visit = Visit(browser, tmp_path_factory.mktemp("page"))
    yield visit, visit.open(transformer)
    visit.close()


@pytest.fixture
def page(_one_page):
    """The Transformer's page, one for many tests, each of which chooses what it looks at."""
    visit, page = _one_page
    yield page
    visit.check()


READ = """node => [...node.querySelectorAll("data.number")].map(
    (number) => [number.dataset.value, number.textContent])"""


def whole(shown):
    """The numbers themselves, after a look at how they were rounded."""
    values = []
    for text, rounded in shown:
        value = float(text)
        plain = rounded.strip("()").replace("\u2212", "-")
        if re.fullmatch(r"-?\d+\.\d+", plain):
            step = 10.0 ** -len(plain.partition(".")[2])
            assert abs(float(plain) - value) <= step / 2 * (1 + 1e-6)
        values.append(value)
    return values


def unfold(details):
    """Opens what is built when it first opens; the browser says so a moment later."""
    if details.get_attribute("open") is None:
        details.locator("summary").click()
    details.locator(".details-body > *").first.wait_for()


def numbers(locator):
    """The numbers that a part of the page shows."""
    return whole(locator.evaluate(READ))


def rows_of(locator):
    """The numbers that each of several rows shows."""
    return [whole(row) for row in locator.evaluate_all(f"rows => rows.map({READ})")]


def choose(locator):
    """Chooses a radio button or a switch as a click would, without waiting for it to be seen."""
    locator.evaluate("node => node.click()")


def array(packed):
    values = np.frombuffer(base64.b64decode(packed["data"]), dtype=packed["dtype"])
    return values.reshape(packed["shape"]).astype(np.float64)


# ---- the file


def test_page_is_one_file_with_a_strict_policy(transformer):
    page = render(transformer)

    assert "default-src &#39;none&#39;; script-src &#39;sha256-" in page
    assert "http-equiv" in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert page.count("<script") == 2  # one of data, one that runs
    assert "innerHTML" not in page
    assert "eval(" not in page


@pytest.mark.parametrize("architecture", SECTIONS)
def test_both_languages_say_everything(architecture):
    from importlib import resources

    folder = resources.files("litseq.explain") / "page"
    texts = {
        name: json.loads((folder / f"texts.{name}.json").read_text("utf-8"))
        for name in ("en", "zh")
    }

    def flat(node, prefix=""):
        if isinstance(node, dict):
            return {
                k: v for key, part in node.items() for k, v in flat(part, f"{prefix}{key}.").items()
            }
        return {prefix.rstrip("."): node}

    en, zh = flat(texts["en"]), flat(texts["zh"])
    assert en.keys() == zh.keys()
    for key in en:
        assert set(re.findall(r"{\w+}", str(en[key]))) == set(re.findall(r"{\w+}", str(zh[key]))), (
            key
        )
    script = "".join((folder / name).read_text("utf-8") for name in SCRIPTS[architecture])
    groups = "|".join(texts["en"])
    used = set(re.findall(rf'"((?:{groups})\.[A-Za-z_]+)"', script))
    assert used <= en.keys()
    assert all(
        f"{section}.{part}" in en
        for section in SECTIONS[architecture]
        for part in ("title", "lead")
    )


def test_data_in_the_page_is_the_record(transformer):
    page = render(transformer)
    packed = re.search(r'<script type="text/plain" id="data">(.*?)</script>', page)[1]
    text, _, data = zlib.decompress(base64.b64decode(packed)).partition(b"\0")
    stored = json.loads(text)["record"]

    def same(mine, theirs):
        if isinstance(theirs, dict) and "data" in theirs:
            raw = base64.b64decode(theirs["data"])
            assert data[mine["at"] : mine["at"] + len(raw)] == raw
        elif isinstance(theirs, dict):
            assert mine.keys() == theirs.keys()
            for key in theirs:
                same(mine[key], theirs[key])
        elif isinstance(theirs, list):
            for a, b in zip(mine, theirs, strict=True):
                same(a, b)
        else:
            assert mine == theirs

    same(stored, transformer)


def test_base_sized_page_stays_below_300_kb():
    torch.manual_seed(0)
    sides = {"num_encoder_layers": 6, "num_decoder_layers": 6, "dim_feedforward": 16}
    module = module_of(TransformerSeq2Seq, d_model=512, num_heads=8, **sides)
    text = "cat red " * 20
    ids = module.tokenizer.encode_source([text])[0]
    assert len(ids) > 30
    record = explain_translations(module, [text], translations=["猫红" * 40], max_src_len=30)
    sentence = record["sentences"][0]
    assert len(sentence["src"]["tokens"]) == 30
    assert len(sentence["tgt"]["tokens"]) == 30
    assert [item["weights"]["shape"][0] for item in sentence["detail"]["attention"]] == [8] * 18

    assert len(render(record).encode()) <= 300_000


@needs_chromium
def test_model_of_ones_own_shows_what_can_be_seen(custom, opened):
    architecture = custom["model"]["architecture"]
    page = opened(custom)
    sections = [section.get_attribute("id") for section in page.locator("main section").all()]
    assert sections == list(SECTIONS[architecture])
    for link in page.locator(".questions a").all():
        assert link.get_attribute("href").removeprefix("#") in sections
    grid = page.locator("#attention button.head")
    assert grid.count() == (0 if architecture == "custom" else 3)
    assert page.locator("#attention button.action").count() == 0  # nothing to work through
    assert page.locator("#alignment svg").count() > 0 or architecture != "custom_cross"


@needs_chromium
def test_model_of_ones_own_whose_maps_do_not_fit(opened):
    record = record_of(task_of(CUSTOM["custom_cross"]), width=12, num_heads=3)
    record["sentences"][0] |= {"detail": {"attention": [], "heads": []}, "left_out": {"maps": 3}}
    page = opened(record)
    assert "3 heads were left out" in page.locator("#attention").inner_text()
    assert "no attention over the source" in page.locator("#alignment").inner_text()


def test_unknown_language_is_an_error(transformer):
    with pytest.raises(ValueError, match="language must be one of en, zh, got 'de'"):
        render(transformer, language="de")


def test_unknown_architecture_is_an_error(transformer):
    record = {**transformer, "model": {**transformer["model"], "architecture": "cnn"}}
    with pytest.raises(ValueError, match=r"explains the architectures transformer.*got 'cnn'"):
        render(record)


def test_no_sentence_is_an_error(transformer):
    with pytest.raises(ValueError, match="the record has no sentence"):
        render({**transformer, "sentences": []})


# ---- the arithmetic, from the page's own numbers


@needs_chromium
def test_one_head_adds_up(transformer, page):
    detail = transformer["sentences"][0]["detail"]
    heads = detail["heads"]
    for index in {0, len(heads) - 1}:
        page.locator("#head select").select_option(str(index))
        head = heads[index]
        q, k, v = (array(head[name]) for name in "qkv")
        queries = page.locator("#head input[name=query]")
        for query in (1, queries.count() - 1):
            choose(queries.nth(query))
            check_head(page, head, (q[query], k, v), query, detail["d_k"])


def check_head(page, head, vectors, query, d_k):
    q, k, v = vectors
    visible = len(k) if head["kind"] != "decoder" else query + 1
    rows = page.locator("#head table.scores tbody tr")
    assert rows.count() == len(k)
    shown = rows_of(rows)  # q·k, divided, exp, weight
    products, divided, exps, weights = (np.array(column) for column in zip(*shown, strict=True))
    np.testing.assert_allclose(products, k @ q, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(divided, products / math.sqrt(d_k), rtol=1e-12)
    np.testing.assert_allclose(exps[:visible], np.exp(divided[:visible]), rtol=1e-12)
    assert (exps[visible:] == 0).all()
    assert (weights[visible:] == 0).all()
    total, one = numbers(page.locator("#head table.scores tfoot"))
    assert total == pytest.approx(exps.sum(), rel=1e-12)
    assert one == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(weights, exps / total, rtol=1e-12)
    np.testing.assert_allclose(weights, array(head["weights"])[query], atol=1e-6)

    *terms, output = numbers(page.locator("#head .weighted"))
    factors = np.array(terms).reshape(-1, 2)  # weight and value of each key that is seen
    assert factors.prod(1).sum() == pytest.approx(output, abs=1e-12)
    assert output == pytest.approx(array(head["output"])[query][0], abs=1e-5)
    np.testing.assert_allclose(factors[:, 1], v[weights > 0, 0])


@needs_chromium
def test_one_product_is_written_out(page):
    page.locator("#head tr[data-key='2'] button").click()
    unfold(page.locator("#head details", has_text="terms").first)
    rows = page.locator("#head table.terms tbody tr")
    running = 0.0
    for row in range(rows.count()):
        q, k, product, so_far = numbers(rows.nth(row))
        running += product
        assert product == q * k
        assert so_far == pytest.approx(running)
    (total,) = numbers(page.locator("#head table.terms tfoot"))
    assert total == pytest.approx(running)
    assert numbers(page.locator("#head tr[data-key='2']"))[0] == pytest.approx(total)


@needs_chromium
def test_without_the_division(transformer, page):
    detail = transformer["sentences"][0]["detail"]
    head = transformer["sentences"][0]["detail"]["heads"]
    cross = next(number for number, item in enumerate(head) if item["kind"] == "cross")
    page.locator("#head select").select_option(str(cross))
    raw, scaled = numbers(page.locator("#head .data-line"))
    assert raw / scaled == pytest.approx(detail["d_k"])
    choose(page.get_by_label("Without the division"))
    rows = page.locator("#head table.scores tbody tr")
    shown = np.array(rows_of(rows))  # q·k, exp, weight
    assert shown.shape[1] == 3
    np.testing.assert_allclose(shown[:, 2], np.exp(shown[:, 0]) / np.exp(shown[:, 0]).sum())
    plain = numbers(page.locator("#head .way[data-way=plain] .facts"))  # entropy, largest weight
    assert plain[1] == pytest.approx(shown[:, 2].max())
    assert plain[0] == pytest.approx(-(shown[:, 2] * np.log(shown[:, 2])).sum())
    assert "not the model’s output" in page.locator("#head").inner_text()
    choose(page.get_by_label("Without the division"))


@needs_chromium
def test_positions_follow_the_rule(transformer, page):
    for position, pair in ((0, 0), (1, 2), (3, 5)):
        page.locator("#positions select").select_option(str(position))
        page.locator("#positions input[type=range]").fill(str(pair))
        power, angle, sine, cosine = numbers(page.locator("#positions .data-line"))
        assert power == pytest.approx(10000 ** (2 * pair / 12))
        assert angle == pytest.approx(position / power)
        assert (sine, cosine) == pytest.approx((math.sin(angle), math.cos(angle)))
        own = page.locator("#positions .worked .good")
        if own.count():
            assert numbers(own) == pytest.approx([sine, cosine], abs=1e-6)
    cells = page.locator("#positions table.sum tbody tr")
    raw, scaled, code, total = (np.array(numbers(cells.nth(row))) for row in range(4))
    np.testing.assert_allclose(raw * math.sqrt(12), scaled, rtol=1e-6)
    np.testing.assert_allclose(scaled + code, total, rtol=1e-5, atol=1e-6)


@needs_chromium
def test_next_words_are_softmax_of_their_logits(transformer, page):
    choose(page.locator("#output input[name=step]").nth(1))
    step = transformer["sentences"][0]["steps"][1]
    rows = page.locator("#output table.scores tbody tr")
    total = numbers(page.locator("#output table.scores tfoot"))[0]
    assert total == pytest.approx(math.exp(step["logsumexp"]))
    for row in range(5):
        logit, exp, prob = numbers(rows.nth(row))
        assert exp == pytest.approx(math.exp(logit))
        assert prob == pytest.approx(exp / total, rel=1e-5)
    assert (
        page.locator("#output math").last.text_content().endswith(f"{step['top'][0]['prob']:.4f}")
    )


@needs_chromium
def test_scores_of_recurrent_attention_add_up(rnn_attention, opened):
    page = opened(rnn_attention)
    detail = rnn_attention["sentences"][0]["detail"]
    scores, weights = array(detail["scores"]), array(detail["weights"])
    steps = page.locator("#scores input[name=step-of-scores]")
    for step in (0, steps.count() - 1):
        choose(steps.nth(step))
        rows = page.locator("#scores table.scores tbody tr")
        shown = np.array(rows_of(rows))
        np.testing.assert_allclose(shown[:, 0], scores[step])
        np.testing.assert_allclose(shown[:, 1], np.exp(scores[step]))
        np.testing.assert_allclose(shown[:, 2], weights[step], atol=1e-6)
        *terms, context = numbers(page.locator("#scores .weighted"))
        assert np.array(terms).reshape(-1, 2).prod(1).sum() == pytest.approx(context)
        assert context == pytest.approx(array(detail["contexts"])[step][0], abs=1e-5)
    assert page.locator("#scores .note.bad").count() == 0
    states = page.locator("#states").inner_text()
    assert "reads in both directions" in states
    assert "20 numbers" in states


@needs_chromium
def test_recurrent_model_without_attention_says_so(rnn, opened):
    page = opened(rnn)

    assert "no attention in this model" in page.locator("#context").inner_text()
    assert page.locator("#alignment, #head, #attention").count() == 0
    (size,) = rnn["sentences"][0]["detail"]["context"]["shape"]
    (each,) = numbers(page.locator("#context .data-line"))
    assert each == pytest.approx(size / len(rnn["sentences"][0]["src"]["tokens"]))


# ---- the switches


@needs_chromium
def test_language_switch(page):
    choose(page.get_by_label("中文"))

    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert page.locator("#attention h2").inner_text().endswith("每一处注意力")
    assert "查询、键和值" in page.locator("#head").inner_text()
    assert page.evaluate("document.activeElement.name") == "language"
    choose(page.get_by_label("English"))
    assert page.locator("html").get_attribute("lang") == "en"


@needs_chromium
def test_language_switch_keeps_what_is_open_and_names_the_tab(page):
    box = page.locator("#tokens details")
    unfold(box)
    choose(page.get_by_label("中文"))
    assert page.title() == "这句话是怎样翻译出来的 · litseq"
    assert "逐步对照：读入与写出" in box.inner_text()
    choose(page.get_by_label("English"))
    assert page.title() == "How this sentence was translated · litseq"
    box.locator("summary").click()


@needs_chromium
def test_page_opens_in_chinese(rnn, opened):
    page = opened(rnn, language="zh")
    assert page.locator("h1").inner_text() == "这句话是怎样翻译出来的"


@needs_chromium
def test_theme_switch(page):
    background = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('canvas').toDataURL()"
    light, light_ink = page.evaluate(background), page.evaluate(ink)
    choose(page.get_by_label("Dark"))
    assert page.evaluate(background) != light
    assert page.evaluate(ink) != light_ink
    choose(page.get_by_label("Auto"))
    assert page.evaluate(background) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light


@needs_chromium
def test_sentence_switch(transformer, page):
    sentences = page.locator("#switches select")
    sentences.select_option("1")
    assert page.locator("#overview .texts dd").first.inner_text() == TEXTS[1]
    tokens = transformer["sentences"][1]["src"]["tokens"]
    assert page.locator("#tokens .tokens").first.locator("li").count() == len(tokens)
    assert page.locator("#alignment g[role=row]").first.locator("rect").count() == len(tokens)
    sentences.select_option("0")
    assert page.locator("#overview .texts dd").first.inner_text() == TEXTS[0]


@needs_chromium
def test_heads_of_the_page_are_the_models(transformer, page):
    detail = transformer["sentences"][0]["detail"]
    for name, kind in (("Encoder self-attention", "encoder"), ("Cross-attention", "cross")):
        choose(page.locator("#attention").get_by_label(name, exact=True))
        for item in (item for item in detail["attention"] if item["kind"] == kind):
            button = page.locator(f"button.head[data-layer='{item['layer']}'][data-head='1']")
            button.click()
            assert button.get_attribute("aria-pressed") == "true"
            assert (
                f"layer {item['layer'] + 1}, head 2"
                in page.locator("#attention .large h3").inner_text()
            )
            weights = array(item["weights"])[1] / 255
            cell = page.locator("#attention [role=gridcell][data-row='1'][data-column='2']")
            cell.hover()
            assert numbers(page.locator("#attention .readout"))[0] == pytest.approx(
                weights[1, 2], abs=1 / 255
            )


@needs_chromium
def test_only_heads_in_the_page_can_be_worked_through(transformer, opened):
    record = copy.deepcopy(transformer)
    detail = record["sentences"][0]["detail"]
    kept = next(head for head in detail["heads"] if head["kind"] == "cross")
    other = next(head for head in detail["heads"] if head["kind"] == "encoder")
    detail["heads"] = [kept, other]
    page = opened(record)
    options = page.locator("#head select option")
    assert [text.split(",")[0] for text in options.all_inner_texts()] == [
        "Encoder self-attention",
        "Cross-attention",
    ]
    for head in range(3):
        page.locator(f"button.head[data-layer='{kept['layer']}'][data-head='{head}']").click()
        action = page.locator("#attention .action")
        assert action.is_enabled() == (head == kept["head"])
        assert ("--head" in page.locator("#attention .actions").inner_text()) != (
            head == kept["head"]
        )


@needs_chromium
def test_signs_of_position_codes_are_told_apart(page):
    row = page.locator("#positions .codes .code-row").nth(3)
    cells = (
        row.locator(".strip")
        .first.locator("rect.cell")
        .evaluate_all(
            "nodes => nodes.map(node => [node.classList.contains('below'),"
            " Number(node.getAttribute('fill-opacity'))])"
        )
    )
    codes = [math.sin(3 / 10000 ** (2 * i / 12)) for i in range(6)]
    assert [below for below, _ in cells] == [code < 0 for code in codes]
    strengths = np.array([opacity for _, opacity in cells])
    assert (strengths.argsort() == np.abs(codes).argsort()).all()


@needs_chromium
def test_words_join_pieces_and_rows_still_make_one(transformer, page):
    sentence = transformer["sentences"][0]
    choose(page.locator("#switches").get_by_label("Words", exact=True))
    rows, columns = (len(set(sentence[side]["words"])) for side in ("tgt", "src"))
    assert columns < len(sentence["src"]["tokens"])
    assert page.locator("#alignment g[role=row]").count() == rows
    assert page.locator("#alignment g[role=row]").first.locator("rect").count() == columns
    unfold(page.locator("#alignment details").first)
    lines = rows_of(page.locator("#alignment table tbody tr"))
    assert [sum(line) for line in lines] == pytest.approx([1] * rows, abs=1e-6)
    shown = numbers(page.locator("#overview .probabilities"))
    assert math.prod(shown) == pytest.approx(math.exp(sentence["log_prob"]), rel=1e-4)
    choose(page.locator("#switches").get_by_label("Pieces", exact=True))


@needs_chromium
def test_future_is_masked(page):
    choose(page.locator("#attention").get_by_label("Decoder self-attention"))
    cell = page.locator("#attention [role=gridcell][data-row='0'][data-column='1']")
    assert "masked" in cell.get_attribute("class")
    assert cell.get_attribute("aria-label").endswith("masked: not written yet")


# ---- the memory


@needs_chromium
def test_memory_reaches_every_layer(transformer, page):
    digest = transformer["sentences"][0]["detail"]["memory"]["digest"]
    assert page.locator("#memory .memory-layers li").count() == 3
    assert (
        f"All 3 decoder layers received the very same tensor, {digest}"
        in page.locator("#memory .good").inner_text()
    )


@needs_chromium
def test_other_memory_and_blind_layers_are_named(transformer, opened):
    record = copy.deepcopy(transformer)
    layers = record["sentences"][0]["detail"]["memory"]["layers"]
    layers[1]["digest"] = "0123456789ab"
    layers[2]["digest"] = None
    page = opened(record)
    other, missing = page.locator("#memory .note.bad").all_inner_texts()
    assert "layer 2 got another tensor" in other
    assert "never look at the source (layer 3)" in missing
    assert page.locator("#memory .note.good").count() == 0


# ---- models that were built otherwise


@needs_chromium
def test_ablated_transformer_is_explained_as_it_is(opened):
    record = record_of(
        TransformerSeq2Seq,
        d_model=12,
        num_heads=3,
        positions="none",
        scale_scores=False,
        cross_attention="last_layer",
        **TINY,
    )
    page = opened(record)
    assert "no position codes" in page.locator("#positions").inner_text()
    assert "Nothing is added" in page.locator("#positions").inner_text()
    assert (
        "2 of the decoder layers never look at the source (layer 1, 2)"
        in page.locator("#memory .bad").inner_text()
    )
    assert "trained without dividing its scores" in page.locator("#head").inner_text()
    assert page.locator("#head .good").count() == 2
    undivided = rows_of(page.locator("#head table.scores tbody tr"))
    choose(page.get_by_label("With a division"))
    divided = rows_of(page.locator("#head table.scores tbody tr"))
    for before, after in zip(undivided, divided, strict=True):
        assert len(after) == len(before) + 1
        assert after[1] == pytest.approx(before[0] / 2)  # d_k is 4


@needs_chromium
def test_rotary_positions_are_said_to_turn_and_not_to_be_added(opened):
    record = record_of(TransformerSeq2Seq, d_model=12, num_heads=3, positions="rotary", **TINY)
    page = opened(record)
    said = page.locator("#positions").inner_text()
    assert "adds nothing to the embeddings" in said
    assert "Nothing is added to it" in said
    assert "position code" not in said.partition("\n")[2]  # the title aside
    for position, pair in ((0, 0), (1, 1), (3, 1)):
        page.locator("#positions select").select_option(str(position))
        page.locator("#positions input[type=range]").fill(str(pair))
        power, angle, sine, cosine = numbers(page.locator("#positions .data-line"))
        assert power == pytest.approx(10000 ** (2 * pair / 4))  # d_k is 4
        assert angle == pytest.approx(position / power)
        assert (sine, cosine) == pytest.approx((math.sin(angle), math.cos(angle)))
        own = page.locator("#positions .worked .good")
        assert own.count() == (position < 2)
        if own.count():
            assert numbers(own) == pytest.approx([sine, cosine], abs=1e-6)
    said = page.locator("#positions .worked").inner_text()  # of position 3, pair 1
    assert "a × 1.000 − b × 0.030 and a × 0.030 + b × 1.000" in said
    page.locator("#positions input[type=range]").fill("0")
    said = page.locator("#positions .worked").inner_text()
    assert "a × (−0.990) − b × 0.141 and a × 0.141 + b × (−0.990)" in said
    cells = page.locator("#positions table.sum tbody tr")
    raw, scaled = (np.array(numbers(cells.nth(row))) for row in range(2))
    assert cells.count() == 2
    np.testing.assert_allclose(raw * math.sqrt(12), scaled, rtol=1e-6)
    assert page.locator("#head .good").count() == 2  # the page computes what the model did


@needs_chromium
def test_learned_positions_and_a_given_translation(opened):
    module = module_of(TransformerSeq2Seq, d_model=12, num_heads=3, positions="learned", **TINY)
    page = opened(explain_translations(module, ["the cat"], translations=["红猫"]))
    assert "learned its position codes" in page.locator("#positions").inner_text()
    assert page.locator("#positions .formula").count() == 0
    assert page.locator("#overview .texts dt").nth(1).inner_text() == "Translation given by you"
    assert "nothing was searched" in page.locator("#beam").inner_text()


@needs_chromium
def test_what_was_left_out_for_its_length_is_said(transformer, rnn_attention, opened):
    record = copy.deepcopy(rnn_attention)
    record["sentences"][0]["detail"].update(scores=None, queries=None, contexts=None)
    assert "too long for its arithmetic" in opened(record).locator("#scores").inner_text()
    record = copy.deepcopy(transformer)
    record["sentences"][0]["detail"]["heads"] = []
    record["sentences"][0]["left_out"] = {"maps": 5}
    page = opened(record)
    assert "no head could be kept" in page.locator("#head").inner_text()
    assert "5 heads were left out" in page.locator("#attention").inner_text()


# ---- safety


@needs_chromium
@pytest.mark.parametrize("name", ["transformer", "rnn_attention"])
def test_text_is_shown_and_never_run(name, opened, request):
    record = copy.deepcopy(request.getfixturevalue(name))
    sentence = record["sentences"][0]
    for side in ("src", "tgt", "tgt_in"):
        tokens = sentence[side]["tokens"]
        tokens[:] = (NASTY * 3)[: len(tokens)]
    for text in ("source", "output", "reference"):
        sentence[text] = " ".join(NASTY)
    for candidate in sentence["candidates"]:
        candidate["text"] = NASTY[0]
        candidate["tokens"] = NASTY[:2]
    for step in sentence["steps"]:
        for item, text in zip(step["top"], NASTY, strict=False):
            item["token"] = text
    record["model"]["src_lang"] = record["model"]["tgt_lang"] = NASTY[0]
    page = opened(record)
    for summary in page.locator("summary").all():
        summary.evaluate("node => node.parentNode.open = true")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.details-body')].every(n => n.hasChildNodes())"
    )
    choose(page.get_by_label("中文"))

    assert page.locator("img, iframe, object, embed, b:not(.q, .kv)").count() == 0
    assert page.locator("script").count() == 2
    assert page.title().endswith("litseq")
    text = page.locator("body").inner_text()
    assert NASTY[0] in text
    assert "⟨U+202E⟩gnp.exe" in text
    assert "␀␇⟨U+2028⟩" in text
    assert "\u202e" not in text


# ---- access


@needs_chromium
def test_closing_sentence_follows_the_table(transformer, page):
    rows = page.locator("#caution table.scores tbody tr")
    shown = [(row.locator("th").inner_text(), numbers(row)) for row in rows.all()]
    received = max(shown, key=lambda item: item[1][0])[0]
    lost = max((item for item in shown if len(item[1]) == 3), key=lambda item: item[1][2])[0]
    said = page.locator("#caution .note .token").all_inner_texts()
    assert said == [received, lost]


@needs_chromium
def test_matrix_is_walked_by_keyboard(transformer, page):
    matrix = page.locator("#alignment svg.matrix")
    matrix.locator("[tabindex='0']").focus()
    page.keyboard.press("Control+Home")
    place = (
        "[document.activeElement.dataset.row, document.activeElement.dataset.column].map(Number)"
    )
    assert page.evaluate(place) == [0, 0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(place) == [1, 1]
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert re.fullmatch(r"row “.+”, column “.+”, [01]\.\d\d", label)
    page.keyboard.press("Control+End")
    sentence = transformer["sentences"][0]
    ends = [len(sentence["tgt"]["tokens"]) - 1, len(sentence["src"]["tokens"]) - 1]
    assert page.evaluate(place) == ends
    page.keyboard.press("ArrowRight")
    assert page.evaluate(place) == ends
    assert matrix.locator("[tabindex='0']").count() == 1


@needs_chromium
def test_every_control_is_reached_by_tab_and_is_visible(transformer, opened):
    page = opened(transformer)
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        mark = page.evaluate(
            """() => {
              const node = document.activeElement;
              if (node === document.body) return null;
              const box = node.getBoundingClientRect();
              const shown = node.type === "radio" ? node.nextSibling : node;
              const style = getComputedStyle(shown);
              const marked = style.outlineStyle !== "none" || style.strokeWidth === "3px";
              node.dataset.reached ??= Math.random();
              return [node.dataset.reached, node.outerHTML.slice(0, 90), box.width > 0 && marked];
            }"""
        )
        if mark is None or mark[0] in reached:
            break
        assert mark[2], f"no visible focus: {mark[1]}"
        reached.add(mark[0])
    missed = page.evaluate(
        """() => [...document.querySelectorAll("a[href], button, select, summary, input")]
          .filter((node) => node.checkVisibility() && !node.dataset.reached)
          // one stop for a group of radio buttons
          .filter((node) => node.type !== "radio" || node.checked).map((node) => node.outerHTML)"""
    )
    assert missed == []


@needs_chromium
@pytest.mark.parametrize(("name", "scheme"), [("transformer", "dark"), ("rnn_attention", "light")])
def test_axe_finds_nothing_serious(name, scheme, opened, request):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(request.getfixturevalue(name), color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (item["id"], item["nodes"][0]["html"][:200])
        for item in found
        if item["impact"] in ("serious", "critical")
    ]
    assert serious == []


@needs_chromium
@pytest.mark.parametrize("name", ["transformer", "rnn_attention", "rnn"])
def test_narrow_screen_has_no_sideways_scroll(name, opened, request):
    page = opened(request.getfixturevalue(name))
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    choose(page.get_by_label("中文"))
    assert page.evaluate("document.documentElement.scrollWidth") == 320


@needs_chromium
def test_page_is_useful_without_a_script(transformer, opened):
    page = opened(transformer, java_script_enabled=False)
    text = page.locator("main").inner_text()
    sentence = transformer["sentences"][0]
    assert sentence["source"] in text
    assert sentence["output"] in text
    assert "JavaScript" in text
    table = page.locator("#alignment table").first
    assert table.locator("tbody tr").count() == len(sentence["tgt"]["tokens"])


@needs_chromium
def test_colours_of_weights_grow_darker(page):
    opacities = page.locator("#alignment .legend rect").evaluate_all(
        "nodes => nodes.map(node => Number(node.getAttribute('fill-opacity')))"
    )
    assert opacities == sorted(set(opacities))
    assert (opacities[0], opacities[-1]) == (0, 1)


@needs_chromium
def test_pictures_have_the_same_numbers_as_a_table(page):
    box = page.locator("#alignment")
    unfold(box.locator("details").first)
    rows = box.locator("table tbody tr")
    for row in range(rows.count()):
        spoken = (
            box.locator("g[role=row]")
            .nth(row)
            .locator("rect")
            .evaluate_all(
                "nodes => nodes.map(node => Number(node.getAttribute('aria-label').slice(-4)))"
            )
        )
        np.testing.assert_allclose(spoken, numbers(rows.nth(row)), atol=0.0051)
