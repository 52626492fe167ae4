"""The documentation: it builds, asks the network for nothing, and what it says can be run."""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import litseq
from command_line import litseq as run_command
from litseq.cli import COMMANDS, Seq2SeqCLI

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"), key=str)
NAMES = [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    return folder


class Requests(HTMLParser):
    """What a browser would fetch by itself to show a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source", "audio", "video", "embed", "input"):
            self.found.append(given.get("src", ""))
            self.found += [part.split()[0] for part in given.get("srcset", "").split(",") if part]
        elif tag == "object":
            self.found.append(given.get("data", ""))
        elif tag == "link" and given.get("rel") not in ("canonical", "alternate", "prev", "next"):
            self.found.append(given.get("href", ""))
        self.found += re.findall(r"url\(['\"]?([^'\")]+)", given.get("style", ""))


def is_foreign(address):
    return re.match(r"(?:[a-z]+:)?//", address) is not None


def test_pages_ask_no_other_host(site):
    pages = list(site.rglob("*.html"))
    assert {"index.html", "lesson.html"} <= {page.name for page in pages}
    for page in pages:
        requests = Requests()
        requests.feed(page.read_text())
        assert not [address for address in requests.found if is_foreign(address)], page
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")]+)", sheet.read_text())
        assert not [address for address in addresses if is_foreign(address)], sheet


def test_pages_open_from_disk(site):
    browser_of = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with browser_of.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        for page in ("index.html", "lesson.html", "zh/lesson.html", "api/layers.html"):
            for scheme in ("light", "dark"):
                check_opens(browser, site / page, scheme)
        browser.close()


def check_opens(browser, page, scheme):
    requests, errors = [], []
    tab = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 800})
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page.as_uri())
    tab.wait_for_load_state("networkidle")
    # a phone scrolls down, not sideways
    overflow = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    broken = tab.evaluate(
        "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    )
    tab.close()
    foreign = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert page.as_uri() in requests
    assert (foreign, errors, broken) == ([], [], []), (page, scheme)
    assert overflow <= 0, (page, scheme)


def test_chinese_pages_are_chinese(site):
    for name in ("index.html", "lesson.html", "attention.html", "plug-in.html"):
        text = (site / "zh" / name).read_text()
        assert '<html lang="zh"' in text
        assert "看见注意力" in text


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    listed = set(re.findall(r"^::: ([\w.]+)", pages, re.MULTILINE))
    for name in litseq.__all__:
        home = getattr(litseq, name).__module__
        assert home in listed or any(entry.endswith(f".{name}") for entry in listed), name


# ---- commands ----


def commands(text):
    """Every command of a page: the lines of its shell blocks and indented blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}((?:litseq|python|bash) .*)$", text, re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`((?:litseq(?!\.)|python scripts/|bash scripts/)[^`]*)`", text)
    for line in [*lines, *indented, *inline]:
        if words := shlex.split(line, comments=True):
            yield words


def check_options(words, names):
    for word in words:
        if word.startswith("--"):
            assert word.removeprefix("--").partition("=")[0] in names, word


def test_pages_have_commands():
    assert sum(1 for page in PAGES for _ in commands(page.read_text())) > 40


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name):
    for words in commands((DOCS / name).read_text()):
        program, *rest = words
        if program in ("bash", "python"):
            assert (ROOT / rest[0]).is_file(), words
        elif program == "source":
            assert rest == [".venv/bin/activate"]
        else:
            assert program == "litseq", words
            command, *options = rest
            assert command in [*Seq2SeqCLI.subcommands(), *COMMANDS, "COMMAND"], words
            for flag, value in pairwise(options):
                if flag == "-c" and value.startswith("configs/"):
                    assert (ROOT / value).is_file(), words
            if command in COMMANDS:
                main = import_module(COMMANDS[command][0]).main
                check_options(options, {*inspect.signature(main).parameters, "help"})


def fits():
    """Every different ``litseq fit`` of the documentation that uses its own configurations."""
    found = {}
    for page in PAGES:
        for words in commands(page.read_text()):
            own = [word for word in words if word.endswith(".yaml")]
            if words[:2] == ["litseq", "fit"] and "--ckpt_path" not in words and own:
                if all(word.startswith("configs/") for word in own):
                    found[" ".join(words[1:])] = words[1:]
    return found


@pytest.mark.parametrize("words", list(fits().values()), ids=list(fits()))
def test_fit_commands_are_understood(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    print_config = [] if "--print_config" in words else ["--print_config"]
    outcome = run_command(*words, *print_config)
    assert outcome.status == 0, outcome.err
    assert "class_path" in outcome.out


# ---- code ----


def blocks():
    for page in ("attention.md", "attention.zh.md", "data.md"):
        text = (DOCS / page).read_text()
        found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for number, code in enumerate(found, 1):
            yield pytest.param(code, id=f"{page}-{number}")


@pytest.mark.parametrize("code", list(blocks()))
def test_code_runs(code, fitted, elsewhere, monkeypatch):
    if "transformers" in code:
        pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(elsewhere / "cache"))
    checkpoint = elsewhere / "RUN/checkpoints/best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(fitted.ckpt, checkpoint)
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})


def test_chinese_code_is_the_english_code():
    def code(page):
        text = (DOCS / page).read_text()
        found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        return [re.sub(r"  #.*|\"\"\".*\"\"\"", "", block) for block in found]

    assert code("attention.zh.md") == code("attention.md")


def test_chinese_plug_in_page_has_the_english_parts():
    def parts(page):
        text = (DOCS / page).read_text()
        code = re.findall(r"^```\w*\n.*?^```|^ {4}\S.*?$", text, re.MULTILINE | re.DOTALL)
        targets = sorted(re.findall(r"\]\(([^)]+)\)", text))
        return code, targets, len(re.findall(r"^#+ ", text, re.MULTILINE))

    assert parts("plug-in.zh.md") == parts("plug-in.md")
