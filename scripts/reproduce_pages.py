"""The tables and pictures of ``docs/reproduce.md``, made from the records and nothing else."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from by_length import read_test, target_language
from doc_tables import fill
from lesson_pictures import STYLE, by_length, save
from litseq.evaluation import compare
from recipes import LANES, MODELS, RECIPES, Recipe
from reproduce_records import num_devices, write_json

__all__ = [
    "README",
    "RECORDS",
    "compare_runs",
    "forget_comparisons",
    "read_records",
    "write_pages",
]

RECORDS = Path("docs/results/recipes")
PAGE = Path("docs/reproduce.md")
PICTURES = Path("docs/assets")
COMPARISONS = RECORDS / "comparisons.json"

_RECIPES = ("recipe", "what it is", "parameters", "runs", "BLEU", "legacy BLEU", "published")
_RUNS = ("run", "BLEU, 95 %", "legacy BLEU, 95 %", "target tokens", "minutes", "machine", "note")
_COMPARED = ("run", "metric", "system", "score", "against", "score", "p", "does it hold?")
_ABLATED = ("what is different", "parameters", "nats per token, val", "BLEU", "legacy BLEU", "p")
README = {  # what the models are called, and titles of the columns, by table
    Path("README.md"): (
        (
            "`RnnSeq2Seq`, one context vector",
            "`RnnAttentionSeq2Seq`, Bahdanau's attention",
            "`TransformerSeq2Seq`, 3 + 3 layers",
        ),
        {
            "multi30k": ("model", "parameters", "minutes", "BLEU", "chrF2", "TER"),
            "tatoeba": ("model", "to Chinese: BLEU", "minutes", "to French: BLEU", "minutes"),
        },
    ),
    Path("README.zh-CN.md"): (
        (
            "`RnnSeq2Seq`，单一上下文向量",
            "`RnnAttentionSeq2Seq`，Bahdanau 注意力",
            "`TransformerSeq2Seq`，3 + 3 层",
        ),
        {
            "multi30k": ("模型", "参数量", "分钟", "BLEU", "chrF2", "TER"),
            "tatoeba": ("模型", "英译汉：BLEU", "分钟", "英译法：BLEU", "分钟"),
        },
    ),
}
_TAUGHT = ("model", "parameters", "minutes", "BLEU", "exact match, %", "shortest", "longest")


def read_records() -> list[dict[str, Any]]:
    """All records, in the order of the recipes, then of seeds."""
    records = [
        json.loads(file.read_text("utf-8"))
        for file in RECORDS.glob("*.json")
        if file != COMPARISONS
    ]
    order = list(RECIPES)
    return sorted(records, key=lambda r: (order.index(r["recipe"]), r["label"], r["seed"]))


def compare_runs(run: str, *, baseline: str, system: str, folders: Sequence[Path]) -> None:
    """Tests the difference of two runs by paired bootstrap, and keeps what came out.

    Args:
        run: Name of both folders, such as ``seed-1``.
        baseline: Recipe of the first folder.
        system: Recipe of the second folder.
        folders: Runs that were tested on the same sentences.
    """
    (_, before, references), (_, after, others) = map(read_test, folders)
    if references != others:
        raise ValueError(f"{folders[0]} and {folders[1]} were tested on different sentences.")
    recipe = RECIPES[system]
    found = compare(
        {baseline: before, system: after},
        references,
        metrics=("bleu",),
        legacy=(recipe.legacy,) if recipe.legacy else (),
        tgt_lang=target_language(folders[1]),
    )
    kept = _comparisons()
    for first, second in zip(found.rows[::2], found.rows[1::2], strict=True):
        kept[f"{system}-{run}-{second.metric}"] = {
            "run": run.removeprefix("seed-"),
            "metric": second.metric,
            "baseline": baseline,
            "system": system,
            "scores": [round(first.score, 2), round(second.score, 2)],
            "p": second.p_value,
            "holds": second.holds,
            "signature": found.signatures[second.metric],
        }
    write_json(COMPARISONS, dict(sorted(kept.items())))


def forget_comparisons(run: str, record: dict[str, Any]) -> None:
    """Drops what was found out of an earlier run in the place of this one, with other scores.

    Args:
        run: Name of the run's folder, such as ``seed-1``.
        record: What came of it now.
    """
    scores = {"bleu": record["scores"]["bleu"]}
    if "legacy" in record:
        scores[f"legacy:{record['legacy']['name']}"] = record["legacy"]["bleu"]

    def is_stale(found: dict[str, Any]) -> bool:
        sides = zip((found["baseline"], found["system"]), found["scores"], strict=True)
        return found["run"] == run.removeprefix("seed-") and any(
            name == record["recipe"] and score != scores.get(found["metric"])
            for name, score in sides
        )

    kept = _comparisons()
    write_json(COMPARISONS, {name: row for name, row in kept.items() if not is_stale(row)})


def _comparisons() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if COMPARISONS.exists():
        found = json.loads(COMPARISONS.read_text("utf-8"))
    return found


def write_pages() -> None:
    """Fills the tables and draws the pictures."""
    records, compared = read_records(), _comparisons()
    main = [recipe for recipe in RECIPES.values() if not _is_aside(recipe.name)]
    fill(PAGE, "recipes", _RECIPES, [_recipe_row(recipe, records) for recipe in main])
    fill(PAGE, "runs", _RUNS, [_run_row(r) for r in records if not _is_aside(r["recipe"])])
    rows = [_compared_row(found) for found in compared.values() if not _is_aside(found["system"])]
    fill(PAGE, "comparisons", _COMPARED, rows)
    ablated = [record for record in records if record["recipe"].startswith("ablation-")]
    fill(PAGE, "ablation", _ABLATED, [_ablated_row(record, compared) for record in ablated])
    first = [record for record in records if (record["seed"], record["label"]) == (1, "")]
    taught = {r["recipe"]: r for r in first if r["recipe"].startswith("teacher-")}
    rows = [_taught_row(record) for record in taught.values()]
    if len(taught) == len(sum(LANES, ())):
        minutes = max(sum(map(_minutes, map(taught.get, lane))) for lane in LANES)
        rows.append(["all three, two at a time", "", f"{minutes:.1f}", "", "", "", ""])
    fill(PAGE, "teacher", _TAUGHT, rows)
    models = _three_models(records, "multi30k")
    pairs = [_three_models(records, f"tatoeba-{pair}") for pair in ("en-zh", "en-fr")]
    for page, (names, titles) in README.items():
        if all(models.values()):
            rows = map(_sized_row, names, models.values())
            fill(page, "multi30k", titles["multi30k"], rows)
        if all(found for pair in pairs for found in pair.values()):
            rows = map(_timed_row, names, *(pair.values() for pair in pairs))
            fill(page, "tatoeba", titles["tatoeba"], rows)
    tables = {name: [r["by_length"] for r in found] for name, found in models.items()}
    if tables["rnn"] and tables["rnn_attention"]:
        with matplotlib.rc_context(STYLE):
            figure = by_length(lambda english, _: english, tables)
            save(figure, PICTURES / "multi30k-by-length.png")


def _three_models(
    records: Iterable[dict[str, Any]], corpus: str
) -> dict[str, list[dict[str, Any]]]:
    """The runs of each model on a corpus, all on one kind of machine."""
    unlabelled = [record for record in records if not record["label"]]
    return {
        kind.replace("-", "_"): [r for r in unlabelled if r["recipe"] == f"{corpus}-{kind}"]
        for kind, _ in MODELS
    }


def _recipe_row(recipe: Recipe, records: Iterable[dict[str, Any]]) -> list[str]:
    found = [record for record in records if record["recipe"] == recipe.name]
    published = recipe.published
    goal = f"{published.score} {published.metric}, {published.source}" if published else ""
    if not found:
        state = f"not run here: it needs {recipe.needs}" if recipe.needs else "not run yet"
        return [f"`{recipe.name}`", recipe.title, "", state, "", "", goal]
    bleu = [record["scores"]["bleu"] for record in found]
    legacy = [record["legacy"]["bleu"] for record in found if "legacy" in record]
    if published:
        least = published.score - published.tolerance
        reached = round(statistics.mean(legacy), 2) >= round(least, 2)
        goal += f": at least {least:.1f} is {'reached' if reached else 'not reached'}"
    return [
        f"`{recipe.name}`",
        recipe.title,
        f"{found[0]['training']['parameters'] / 1e6:.1f}M",
        ", ".join(map(_run, found)),
        _mean(bleu),
        _mean(legacy) if legacy else "",
        goal,
    ]


def _run_row(record: dict[str, Any]) -> list[str]:
    legacy, training = record.get("legacy"), record["training"]
    precision = record["config"]["trainer"]["precision"] or "32-true"
    return [
        f"{record['recipe']}, {_run(record)}",
        _with_interval(record["scores"]),
        _with_interval(legacy) if legacy else "",
        f"{training['tgt_tokens'] / 1e6:.1f}M in {training['steps']:,} steps",
        f"{_minutes(record):.1f}",
        f"{_machine(record)}; {precision}",
        record["note"],
    ]


def _sized_row(name: str, found: Sequence[dict[str, Any]]) -> list[str]:
    scores = [record["scores"] for record in found]
    return [
        name,
        f"{found[0]['training']['parameters'] / 1e6:.1f}M",
        _mean_minutes(found),
        *(_mean([score[metric] for score in scores]) for metric in ("bleu", "chrf", "ter")),
    ]


def _timed_row(name: str, *pairs: Sequence[dict[str, Any]]) -> list[str]:
    cells = ((_mean([r["scores"]["bleu"] for r in runs]), _mean_minutes(runs)) for runs in pairs)
    return [name, *sum(cells, ())]


def _compared_row(found: dict[str, Any]) -> list[str]:
    before, after = found["scores"]
    return [
        found["run"], found["metric"], found["system"], f"{after:.2f}", found["baseline"],
        f"{before:.2f}", _p(found), "yes" if found["holds"] else "no: it may be chance",
    ]  # fmt: skip


def _ablated_row(record: dict[str, Any], compared: dict[str, dict[str, Any]]) -> list[str]:
    name = record["recipe"]
    tested = compared.get(f"{name}-seed-{_run(record)}-legacy:multi30k")
    return [
        RECIPES[name].title.partition(": ")[2],
        f"{record['training']['parameters'] / 1e6:.1f}M",
        f"{min(record['training']['val']['nll']):.3f}",
        f"{record['scores']['bleu']:.1f}",
        f"{record['legacy']['bleu']:.1f}",
        _p(tested) if tested else "",
    ]


def _taught_row(record: dict[str, Any]) -> list[str]:
    table = record["by_length"]
    return [
        RECIPES[record["recipe"]].title.partition(": ")[2],
        f"{record['training']['parameters'] / 1e6:.1f}M",
        f"{_minutes(record):.1f}",
        f"{record['scores']['bleu']:.1f}",
        f"{record['scores']['exact_match']:.1f}",
        *(f"{table['bleu'][i]:.1f} ({table['bins'][i]} words)" for i in (0, -1)),
    ]


def _is_aside(name: str) -> bool:
    """Whether a recipe has a table of its own."""
    return name.startswith(("ablation-", "teacher-"))


def _p(found: dict[str, Any]) -> str:
    if found["scores"][0] == found["scores"][1]:
        return ""
    return "< 0.001" if found["p"] < 0.001 else f"{found['p']:.3f}"


def _minutes(record: dict[str, Any] | None) -> float:
    """Of all commands of a run."""
    return sum(value or 0 for value in record["seconds"].values()) / 60 if record else 0.0


def _mean_minutes(records: Iterable[dict[str, Any]]) -> str:
    return f"{statistics.mean(map(_minutes, records)):.0f}"


def _with_interval(scores: dict[str, Any]) -> str:
    low, high = scores["bleu_interval"]
    return f"{scores['bleu']:.2f} ({low:.1f}–{high:.1f})"


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean} ({min(values):.1f}–{max(values):.1f})"


def _run(record: dict[str, Any]) -> str:
    """Seed and label, as in the names of folders and records."""
    return f"{record['seed']}{record['label'] and '-'}{record['label']}"


def _machine(record: dict[str, Any]) -> str:
    hardware, trainer = record["hardware"], record["config"]["trainer"]
    count = num_devices(trainer, hardware["gpus"])
    if trainer["accelerator"] != "cpu" and hardware["gpus"]:
        name: str = hardware["gpus"][0]
        return name if count == 1 else f"{count} x {name}"
    processes = f"{count} processes of " if count > 1 else ""
    threads = hardware["threads"]
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores: {processes}{threads} "
        f"thread{'s' if threads > 1 else ''}"
    )
