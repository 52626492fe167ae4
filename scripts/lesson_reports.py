"""Photographs the pages of ``litseq explain`` for the lesson, in a headless Chromium."""

from __future__ import annotations

import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from lesson_measures import SENTENCE, load
from litseq.explain.page import render
from litseq.explain.record import explain_translations
from litseq.explain.transformer import Head

WIDTH, SCALE, MARGIN = 1000, 1.5, 16
LAUNCH = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@dataclass(frozen=True)
class Shot:
    """One picture of a page.

    Attributes:
        name: Name of the PNG.
        run: Which of ``scripts/ablate.py``'s models.
        section: Id of the page's section.
        first: Number of the sub-heading that it begins with. None: the section's own heading.
        last: Number of the sub-heading before which it ends. None: the end of the section.
        theme: The theme of the page.
    """

    name: str
    run: str
    section: str
    first: int | None = None
    last: int | None = None
    theme: Literal["light", "dark"] = "light"


SHOTS = (
    Shot("explain-rnn", "rnn", "context", last=1),
    Shot("explain-rnn-attention", "rnn_attention", "scores", first=2),
    Shot("explain-transformer", "transformer", "overview", last=1),
    Shot("explain-arithmetic", "transformer", "head", first=1, last=3),
    Shot("explain-memory", "transformer", "memory"),
    Shot("explain-positions", "transformer", "positions", first=1, last=2),
    Shot("explain-attention-dark", "transformer", "attention", theme="dark"),
)


def photograph(runs: Path, folder: Path, *, languages: tuple[str, ...]) -> None:
    """Writes a PNG of every shot, in every language."""
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(LAUNCH)
        )
        for run in dict.fromkeys(shot.run for shot in SHOTS):
            heads = [Head.parse("encoder:1:3")] if run == "transformer" else []
            record = explain_translations(load(runs, run), [SENTENCE], heads=heads)
            for language in languages:
                file = Path(home) / f"{run}.{language}.html"
                file.write_text(render(record, language=language))
                page = browser.new_page(
                    viewport={"width": WIDTH, "height": 900}, device_scale_factor=SCALE
                )
                page.goto(file.as_uri())
                suffix = "" if language == "en" else f".{language}"
                for shot in SHOTS:
                    if shot.run == run:
                        page.emulate_media(color_scheme=shot.theme)
                        _shoot(page, shot, folder / f"{shot.name}{suffix}.png")
                page.close()
        browser.close()


def _shoot(page: Page, shot: Shot, path: Path) -> None:
    _choose(page, shot)
    page.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")
    section = page.locator(f"#{shot.section}")
    headings = section.locator("h3")
    whole = section.bounding_box()
    assert whole is not None
    top = whole["y"] if shot.first is None else _top(headings.nth(shot.first))
    bottom = whole["y"] + whole["height"] if shot.last is None else _top(headings.nth(shot.last))
    clip = {
        "x": whole["x"] - MARGIN,
        "y": top - (MARGIN if shot.first is not None else -MARGIN),
        "width": whole["width"] + 2 * MARGIN,
        "height": bottom - top - MARGIN,
    }
    picture = page.screenshot(full_page=True, clip=clip)  # type: ignore[arg-type]
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(64).save(path, optimize=True)


def _top(heading: Locator) -> float:
    box = heading.bounding_box()
    assert box is not None
    return box["y"]


def _choose(page: Page, shot: Shot) -> None:
    """Chooses what the lesson speaks of: one head and the first 0 of 7:00, or the 0 of 2025."""
    if shot.section == "head":
        chooser = page.locator("#head select").first
        names = chooser.locator("option").all_inner_texts()
        chooser.select_option(next(name for name in names if name in _LESSONS_HEAD))
        page.locator("input[name=query]").nth(14).evaluate("radio => radio.click()")
    elif shot.section == "scores":
        page.locator("input[name=step-of-scores]").nth(2).evaluate("radio => radio.click()")


_LESSONS_HEAD = ("Encoder self-attention, layer 1, head 3", "编码器自注意力，第 1 层，第 3 个头")
