#!/usr/bin/env python
"""Makes every picture and every number of the lesson in ``docs/lesson.md``.

    python scripts/ablate.py             # first: the models, 8 x 3 of them
    python scripts/lesson.py pictures    # docs/assets/*.png and docs/assets/lesson.json
    python scripts/lesson.py numbers     # writes the numbers into the text, in both languages
    python scripts/lesson.py screenshots # docs/assets/explain-*.png; needs playwright and Chromium

A number in the text stands in a tag that says what it is, as in ``<data value="bleu.rnn">``;
``numbers`` puts in what was measured, and ``PENDING`` where a run is missing.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

import by_length
import lesson_measures as measures
import lesson_pictures as pictures
from ablate import VARIANTS
from litseq.fonts import choose_fonts

DOCS = Path(__file__).parents[1] / "docs"
RUNS = Path("lightning_logs/ablation")
LANGUAGES = ("en", "zh")
WIDTHS = (4, 8, 16, 32, 64, 128, 256, 512)
PENDING = "PENDING"

_TAG = re.compile(r'(<data value="([^"]+)">)(.*?)(</data>)', re.DOTALL)

# ---- numbers ----


def ablation_values(path: Path) -> dict[str, str]:
    """What ``scripts/ablate.py`` measured, as the text quotes it; empty where it has not run."""
    if not path.is_file():
        return {}
    runs = json.loads(path.read_text())["runs"]
    values: dict[str, str] = {}
    for name in VARIANTS:
        found = [run for run in runs if run["name"] == name]
        if not found:
            continue
        curves = [run["curve"]["val/nll"] for run in found]
        bleu = [run["bleu"] for run in found]
        values |= {
            f"seeds.{name}": str(len(found)),
            f"minutes.{name}": f"{statistics.mean(run['seconds'] for run in found) / 60:.0f}",
            f"bleu.{name}": f"{statistics.mean(bleu):.1f}",
            f"bleu_range.{name}": f"{min(bleu):.1f}\N{EN DASH}{max(bleu):.1f}",
            f"exact.{name}": f"{statistics.mean(run['exact_match'] for run in found):.1f}",
            f"first.{name}": f"{statistics.mean(curve[0][1] for curve in curves):.2f}",
            f"last.{name}": f"{statistics.mean(curve[-1][1] for curve in curves):.3f}",
        }
    return values


def known_values() -> set[str]:
    """Names that ``ablation_values`` has once every model was run."""
    parts = ("seeds", "minutes", "bleu", "bleu_range", "exact", "first", "last")
    return {f"{part}.{name}" for part in parts for name in VARIANTS}


def fill(text: str, values: dict[str, str], *, known: set[str]) -> str:
    """Puts the values into their tags.

    Raises:
        ValueError: If a tag asks for what nobody measures.
    """

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name not in values and name not in known:
            raise ValueError(f"nothing measures {name!r}; see ablation_values and measure.")
        return match[1] + values.get(name, PENDING) + match[4]

    return _TAG.sub(replace, text)


def numbers(ablation: Path) -> None:
    """Writes the numbers into the lesson."""
    measured = DOCS / "assets/lesson.json"
    values = ablation_values(ablation)
    if measured.is_file():
        values |= json.loads(measured.read_text())
    for language in LANGUAGES:
        page = DOCS / ("lesson.md" if language == "en" else f"lesson.{language}.md")
        page.write_text(fill(page.read_text(), values, known=known_values()))


# ---- pictures ----


def draw(runs: Path, ablation: Path) -> None:
    """Measures, draws, and keeps the numbers that the text quotes."""
    figures: dict[str, Callable[[pictures.Say], Any]] = {}
    values: dict[str, str] = {"sentence": measures.SENTENCE}
    for part in (_recurrent, _transformer, _positions, _scores):
        more_figures, more_values = part(runs)
        figures |= more_figures
        values |= more_values
    figures |= _curves(ablation)
    fonts = choose_fonts("dₖ √ ▁ 注意力编码器隐藏状态").families
    for language in LANGUAGES:
        with matplotlib.rc_context({**pictures.STYLE, "font.family": fonts}):
            for name, figure in figures.items():
                suffix = "" if language == "en" else f".{language}"
                say = (lambda en, zh: en) if language == "en" else (lambda en, zh: zh)
                pictures.save(figure(say), DOCS / f"assets/{name}{suffix}.png")
    (DOCS / "assets/lesson.json").write_text(
        json.dumps(values, ensure_ascii=False, indent=1) + "\n"
    )


Part = tuple[dict[str, Callable[[pictures.Say], Any]], dict[str, str]]


def _millions(example: measures.Example) -> str:
    return f"{sum(p.numel() for p in example.module.parameters()) / 1e6:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _recurrent(runs: Path) -> Part:
    plain = measures.Example.of(measures.load(runs, "rnn"), measures.SENTENCE)
    found = measures.hidden_states(plain)
    attending = measures.Example.of(measures.load(runs, "rnn_attention"), measures.SENTENCE)
    steps = measures.attention_steps(attending)
    place = 2  # the 0 of 2025, fetched from the middle of the sentence
    tens = steps["weights"][attending.tgt_pieces.index("9") - 1]
    weights = steps["weights"][place]
    first, second = weights.topk(2).indices.tolist()
    models = ("rnn", "rnn_attention", "transformer")
    tables = {name: [by_length.score(runs / name / "seed-1")] for name in models}
    values = {
        "rnn.text": plain.text,
        "rnn.state_size": str(found["states"].size(1)),
        "rnn.influence_first": f"{float(found['influence'][0]):.2f}",
        "rnn.influence_hour": f"{float(found['influence'][plain.src_pieces.index('7')]):.2f}",
        "rnn_attention.text": attending.text,
        "steps.first": attending.src_pieces[first],
        "steps.first_score": f"{float(steps['scores'][place, first]):.1f}",
        "steps.first_weight": f"{float(weights[first]):.2f}",
        "steps.second": attending.src_pieces[second],
        "steps.second_score": f"{float(steps['scores'][place, second]):.1f}",
        "steps.second_weight": f"{float(weights[second]):.2f}",
        "steps.tens_colon": f"{float(tens[attending.src_pieces.index(':')]):.2f}",
        "steps.tens_pm": f"{float(tens[attending.src_pieces.index('▁PM')]):.2f}",
        "params.rnn": _millions(plain),
        "params.rnn_attention": _millions(attending),
        "length.shortest": tables["rnn"][0]["bins"][0],
        "length.longest": tables["rnn"][0]["bins"][-1],
    }
    for name, [table] in tables.items():
        bleu = table["bleu"]
        values |= {f"short.{name}": f"{bleu[0]:.1f}", f"long.{name}": f"{bleu[-1]:.1f}"}
    return {
        "hidden-states": lambda say: pictures.hidden_states(say, **found, pieces=plain.src_pieces),
        "attention-steps": lambda say: pictures.attention_steps(
            say, steps["scores"][place], weights, pieces=attending.src_pieces, output="0"
        ),
        "alignment": lambda say: pictures.alignment(
            say, steps["weights"], rows=attending.tgt_pieces, columns=attending.src_pieces
        ),
        "by-length": lambda say: pictures.by_length(say, tables),
    }, values


def _transformer(runs: Path) -> Part:
    example = measures.Example.of(measures.load(runs, "transformer"), measures.SENTENCE)
    found = measures.attentions(example)
    src, tgt = example.src_pieces, example.tgt_pieces
    read = ["<s>", *tgt[:-1]]
    query = len(src) - 4  # the first zero of 7:00
    sums = measures.arithmetic(found["encoder"][0], query=query, pieces=src)
    encoder_head, cross = sums["head"], found["cross"]
    hour, tens = tgt.index("9"), tgt.index("9") - 1
    cross_weights = cross[0].weights()
    pm = src.index("▁PM")
    on_pm, on_hour = cross_weights[:, hour, pm], cross_weights[:, hour, src.index("7")]
    # looks at PM for the tens, at the hour for the hour
    cross_head = int((cross_weights[:, tens, pm] * on_hour).argmax())
    values = {
        "transformer.text": example.text,
        "params.transformer": _millions(example),
        "transformer.tokens": str(len(src)),
        "head.number": str(encoder_head + 1),
        "head.d_k": str(sums["d_k"]),
        "head.root": f"{sums['d_k'] ** 0.5:.2f}",
        "cross.tens_pm": f"{float(cross_weights[cross_head, tens, pm]):.2f}",
        "cross.hour_pm": f"{float(on_pm.max()):.2f}",
        "cross.hour_pm_head": str(int(on_pm.argmax()) + 1),
        "cross.hour_7": f"{float(on_hour[cross_head]):.2f}",
        "cross.hour_7_head": str(cross_head + 1),
        "cross.overlap": _percent(measures.layer_overlap(cross)),
    }
    for number, key in enumerate(sums["keys"], 1):
        values |= {
            f"head.key{number}": key["piece"],
            f"head.dot{number}": f"{key['dot']:.2f}",
            f"head.score{number}": f"{key['score']:.2f}",
            f"head.weight{number}": f"{key['weight']:.2f}",
            f"head.undivided{number}": f"{key['undivided']:.4f}",
        }

    def three(say: pictures.Say) -> Any:  # noqa: ANN401 - a figure
        return pictures.kinds(
            say,
            [
                (
                    say(
                        f"source to source (layer 1, head {encoder_head + 1})",
                        f"源句看源句（第 1 层第 {encoder_head + 1} 个头）",
                    ),
                    found["encoder"][0].weights()[encoder_head],
                    src,
                    src,
                ),
                (
                    say("target to its past (layer 1)", "目标句看已写出的部分（第 1 层）"),
                    found["decoder"][0].weights().mean(0),
                    tgt,
                    read,
                ),
                (
                    say(
                        f"target to source (layer 1, head {cross_head + 1})",
                        f"目标句看源句（第 1 层第 {cross_head + 1} 个头）",
                    ),
                    cross_weights[cross_head],
                    tgt,
                    src,
                ),
            ],
        )

    def layers(say: pictures.Say) -> Any:  # noqa: ANN401 - a figure
        return pictures.kinds(
            say,
            [
                (
                    say(f"decoder layer {layer} (mean)", f"解码器第 {layer} 层（各头平均）"),
                    product.weights().mean(0),
                    tgt,
                    src,
                )
                for layer, product in enumerate(cross, 1)
            ],
        )

    return {"transformer": pictures.transformer, "kinds": three, "cross-layers": layers}, values


def _positions(runs: Path) -> Part:
    found = measures.position_products()
    codes = found["codes"]
    whole, blind = (measures.load(runs, name) for name in ("transformer", "no_positions"))
    values = {
        "positions.sin3": f"{float(codes[3, 0]):.3f}",
        "positions.cos3": f"{float(codes[3, 1]):.3f}",
        "positions.later": f"{float(codes[3, 20]):.3f}",
        "positions.shortest": f"{pictures.wavelength(0, 128):.1f}",
        "positions.longest": f"{pictures.wavelength(63, 128):,.0f}",
        "positions.self": f"{float(found['products'][0, 0]):.0f}",
        "positions.next": f"{float(found['products'][0, 1]):.1f}",
        "positions.ten": f"{float(found['products'][0, 10]):.1f}",
    }
    for number, source in enumerate(measures.TWINS, 1):
        values |= {
            f"twin{number}.source": source,
            f"twin{number}.transformer": whole.translate([source])[0],
            f"twin{number}.no_positions": blind.translate([source])[0],
        }
    return {
        "positions": lambda say: pictures.positions(say, codes.float(), found["products"])
    }, values


def _scores(runs: Path) -> Part:
    found = measures.random_scores(WIDTHS)
    trained = measures.load(runs, "transformer")
    values: dict[str, str] = {}
    for width in (32, 128, 512):
        place = WIDTHS.index(width)
        values |= {
            f"random.variance_{width}": f"{found['variance'][place]:.0f}",
            f"random.largest_{width}": f"{found['largest'][place]:.2f}",
            f"random.undivided_{width}": f"{found['largest_undivided'][place]:.2f}",
            f"random.gradient_{width}": f"{found['gradient'][place]:.2f}",
            f"random.gradient_undivided_{width}": f"{found['gradient_undivided'][place]:.2f}",
        }
    start, end = measures.score_spread(measures.untrained(trained)), measures.score_spread(trained)
    values |= {"spread.start": f"{start['std']:.1f}", "spread.end": f"{end['std']:.1f}"}
    return {"scores": lambda say: pictures.scores(say, WIDTHS, found)}, values


def _curves(ablation: Path) -> dict[str, Callable[[pictures.Say], Any]]:
    if not ablation.is_file():
        return {}
    runs = json.loads(ablation.read_text())["runs"]

    def figure(*lines: tuple[str, str, str]) -> Callable[[pictures.Say], Any]:
        def make(say: pictures.Say) -> Any:  # noqa: ANN401 - a figure
            named = {
                say(en, zh): [run for run in runs if run["name"] == name] for name, en, zh in lines
            }
            return pictures.curves(say, [(label, found) for label, found in named.items() if found])

        return make

    whole = ("transformer", "the whole model", "完整模型")
    return {
        "curves-memory": figure(
            whole,
            ("last_layer_alone", "only the last layer sees the source", "只有最后一层能看源句"),
        ),
        "curves-positions": figure(
            whole, ("no_positions", "without position codes", "没有位置编码")
        ),
        "curves-scores": figure(
            ("transformer", "4 heads of 32, divided", "4 个 32 维的头，除"),
            ("unscaled", "4 heads of 32, undivided", "4 个 32 维的头，不除"),
            ("one_wide_head", "1 head of 128, divided", "1 个 128 维的头，除"),
            ("one_wide_head_unscaled", "1 head of 128, undivided", "1 个 128 维的头，不除"),
        ),
    }


def main() -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=("pictures", "numbers", "screenshots"))
    parser.add_argument("--runs", type=Path, default=RUNS, help="where ablate.py put its runs")
    parser.add_argument("--ablation", type=Path, default=DOCS / "results/ablation.json")
    args = parser.parse_args()
    if args.command == "pictures":
        draw(args.runs, args.ablation)
    elif args.command == "numbers":
        numbers(args.ablation)
    else:
        from lesson_reports import photograph  # needs playwright

        photograph(args.runs, DOCS / "assets", languages=LANGUAGES)


if __name__ == "__main__":
    main()
