"""Exports a checkpoint to every format and compares them: quality, speed and size.

    python scripts/exports.py CKPT SOURCES REFERENCES  # docs/results/exports.json and the table

Each export is made and verified by ``litseq export``. Then all translate the same sentences, one
after the other and that three times in one process with one thread; what is reported is the median
of the times, and of the ratios to litseq in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from doc_tables import fill
from litseq import Seq2Seq
from litseq.engines import MarianTranslator, load_exported
from litseq.evaluation import corpus_scores
from litseq.export.command import main as export
from litseq.translator import TextTranslator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "commands.md"
RESULTS = ROOT / "docs" / "results" / "exports.json"
ROUNDS = 3
EXPORTS = {
    "Marian, transformers": ("marian", "float32"),
    "CTranslate2, float32": ("ctranslate2", "float32"),
    "CTranslate2, int8": ("ctranslate2", "int8"),
    "ONNX, onnxruntime": ("onnx", "float32"),
}


def main() -> None:
    """Exports, compares and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("sources", type=Path, help="A sentence a line.")
    parser.add_argument("references", type=Path, help="Their translations.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Seq2Seq.load_from_checkpoint(args.ckpt).eval()
    texts, references = (
        path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        for path in (args.sources, args.references)
    )
    translators: dict[str, TextTranslator] = {"litseq": model.translator()}
    reports = {}
    size = sum(weight.nbytes for weight in model.network.parameters())
    sizes = {"litseq": size}
    with tempfile.TemporaryDirectory() as root:
        for name, (to, quantization) in EXPORTS.items():
            folder = Path(root, name)
            export(
                ckpt=str(args.ckpt), output=str(folder), to=to, quantization=quantization,
                input=str(args.sources),
            )  # fmt: skip
            reports[name] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            sizes[name] = sum(
                path.stat().st_size for path in folder.iterdir() if _is_model(path.name)
            )
            translators[name] = (
                MarianTranslator.load(folder, model.tokenizer)
                if to == "marian"
                else load_exported(folder, device="cpu")[0]
            )
        said, seconds = _translate(translators, model, texts)
    result = {
        "checkpoint": str(args.ckpt),
        "sentences": len(texts),
        "search": {
            name: getattr(model.search_options, name)
            for name in ("beam_size", "length_penalty", "length_offset")
        },
        "machine": f"{platform.processor() or platform.machine()}, one thread",
        "versions": _versions(),
        "rows": {
            name: {
                "bleu": corpus_scores(
                    said[name], references, tgt_lang=model.tokenizer.tgt_lang, ter=False
                ).bleu,
                "same_as_litseq": sum(
                    a == b for a, b in zip(said[name], said["litseq"], strict=True)
                ),
                "sentences_per_second": len(texts) / statistics.median(seconds[name]),
                "times_litseq": statistics.median(
                    ours / theirs
                    for ours, theirs in zip(seconds["litseq"], seconds[name], strict=True)
                ),
                "megabytes": sizes[name] / 1e6,
                **reports.get(name, {}),
            }
            for name in translators
        },
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fill(PAGE, "exports", *_table(result))


def _is_model(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".onnx", ".data"))


def _translate(
    translators: dict[str, TextTranslator], model: Seq2Seq, texts: list[str]
) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    said: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in translators}
    for number in range(ROUNDS):
        for name, translator in translators.items():
            begin = time.perf_counter()
            found = translator.translate(
                texts, model.search_options, max_tokens=4096, max_src_len=256,
                device=torch.device("cpu"),
            )  # fmt: skip
            seconds[name].append(time.perf_counter() - begin)
            said[name] = [translation.text for translation in found]
            print(f"{number + 1} {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
    return said, seconds


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "transformers", "ctranslate2", "onnxruntime")
    return {name: version(name) for name in names}


def _table(result: dict) -> tuple[list[str], list[list[str]]]:
    header = [
        "model", "BLEU", "the same translations", "largest gap", "sentences a second",
        "times litseq", "MB",
    ]  # fmt: skip
    rows = []
    for name, row in result["rows"].items():
        gap = f"{row['largest_gap']:.1e}" if "largest_gap" in row else "-"
        rows.append(
            [
                name,
                f"{row['bleu']:.2f}",
                f"{row['same_as_litseq']:,} of {result['sentences']:,}",
                gap,
                f"{row['sentences_per_second']:.0f}",
                f"{row['times_litseq']:.2f}",
                f"{row['megabytes']:.1f}",
            ]
        )
    return header, rows


if __name__ == "__main__":
    main()
