#!/usr/bin/env python
"""Sets the page of litseq explain beside BertViz's: size, requests to other hosts, injected script.

    pip install bertviz ipython
    python scripts/compare_bertviz.py CHECKPOINT "A man rides a bike ."

Both get the same attention of the same sentence, and both pages are opened in Chromium without a
network. A source token that closes a script element shows whether text is escaped.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from bertviz import model_view
from playwright.sync_api import Browser, sync_playwright

from lesson_reports import LAUNCH
from litseq import Seq2Seq
from litseq.attention import capture_attention
from litseq.explain.page import render
from litseq.explain.record import explain_translations

INJECTED = "</script><img src=x onerror=alert(1)>"


def bertviz_page(module: Seq2Seq, record: dict, *, first: str | None = None) -> str:
    """BertViz's model view of the sentence in a record, ``first`` in place of its first token."""
    sentence = record["sentences"][0]
    src = torch.tensor([sentence["src"]["ids"]])
    network = module.network
    assert network is not None
    with torch.no_grad(), capture_attention(network) as maps:
        network(
            src, torch.zeros_like(src, dtype=torch.bool), torch.tensor([sentence["tgt_in"]["ids"]])
        )
    kinds = {
        kind: [m.weights for m in maps if m.kind == kind]
        for kind in ("encoder", "decoder", "cross")
    }
    tokens = list(sentence["src"]["tokens"])
    return model_view(
        encoder_attention=kinds["encoder"], decoder_attention=kinds["decoder"],
        cross_attention=kinds["cross"], encoder_tokens=[first or tokens[0], *tokens[1:]],
        decoder_tokens=sentence["tgt_in"]["tokens"], html_action="return",
    ).data  # fmt: skip


def look(browser: Browser, html: str, folder: Path) -> tuple[int, int, int, bool]:
    """Opens a page; gives kilobytes, foreign requests, pictures drawn, whether a script ran."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    requests: list[str] = []
    dialogs: list[str] = []
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.accept()))
    page.goto(file.as_uri())
    page.wait_for_timeout(1000)
    drawn = page.locator("svg, canvas").count()
    context.close()
    foreign = sum(url.startswith("http") for url in requests)
    return round(len(html.encode()) / 1000), foreign, drawn, bool(dialogs)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("ckpt")
    parser.add_argument("text")
    args = parser.parse_args()
    module = Seq2Seq.load_from_checkpoint(args.ckpt)
    record = explain_translations(module, [args.text])
    bad = explain_translations(module, [args.text])
    bad["sentences"][0]["src"]["tokens"][0] = INJECTED
    pages = {
        "litseq explain": (render(record), render(bad)),
        "BertViz": (bertviz_page(module, record), bertviz_page(module, record, first=INJECTED)),
    }
    print("| page | KB | requests | drawn offline | injected script |")
    print("| --- | --- | --- | --- | --- |")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(LAUNCH)
        )
        for name, (plain, injected) in pages.items():
            size, requests, drawn, _ = look(browser, plain, Path(folder))
            ran = look(browser, injected, Path(folder))[3]
            shown = "runs" if ran else "is shown as text"
            print(f"| {name} | {size} | {requests} | {drawn} | {shown} |")
        browser.close()


if __name__ == "__main__":
    main()
