"""``litseq compare``: whether one system is better than another, or only luckier."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from json import JSONDecodeError, dumps, loads
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from litseq.evaluation.legacy import LEGACY
from litseq.evaluation.scores import bleu_tokenizer
from litseq.evaluation.significance import Comparison, compare
from litseq.evaluation.texts import short
from litseq.textfiles import check_output, open_input, printable, read_lines, whole_file

__all__ = ["declare", "main"]

_log = logging.getLogger(__name__)

_METRICS = ("bleu", "chrf", "ter")
_HEADINGS = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER (lower is better)"}


def declare(parser: ArgumentParser) -> None:
    """Declares the arguments of ``main``: paths stand alone, and several metrics are words."""
    parser.add_argument("paths", nargs="+", help="Folders of runs, or text files; baseline first.")
    parser.add_argument(
        "--metrics", nargs="+", choices=_METRICS, default=["bleu", "chrf"], help="What to compare."
    )
    parser.add_argument(
        "--legacy", nargs="+", choices=list(LEGACY), default=[], help="BLEU as older papers had it."
    )
    parser.add_function_arguments(main, as_group=False, skip={"paths", "metrics", "legacy"})


def main(
    paths: list[str],
    *,
    references: str | None = None,
    metrics: Sequence[str] = ("bleu", "chrf"),
    method: Literal["bs", "ar"] = "bs",
    legacy: Sequence[str] = (),
    tgt_lang: str | None = None,
    json: str | None = None,
) -> None:
    """Compares systems with a baseline on one test set, and says whether differences hold.

    A system is a folder that litseq test wrote to, or a text file of hypotheses, a sentence a line.
    All must translate the same sentences.

    Args:
        paths: Folders of runs, or text files; the first is the baseline.
        references: Text file of references; text files need it, folders bring their own.
        metrics: What to compare: bleu, chrf, ter.
        method: bs, paired bootstrap resampling (1,000 resamples), or ar, approximate randomisation
            (10,000 trials), as in sacreBLEU.
        legacy: BLEU as older papers computed it, on tokenised text, beside.
        tgt_lang: Language code, which decides how words are cut. Default: what the folders say.
        json: Writes all of it to this file too, as JSON.

    Raises:
        FileNotFoundError: If a file, or the folder of one to write, is missing.
        ValueError: If systems have other references or another number of lines, or if an option
            is not usable.
    """
    out = None if json is None else Path(json)
    if out is not None:
        check_output(out)
    if len(paths) < 2:
        raise ValueError(f"{paths[0]} alone: a comparison needs two systems, baseline first.")
    resolved = [Path(path).resolve() for path in paths]
    if twice := [paths[i] for i, path in enumerate(resolved) if path in resolved[:i]]:
        raise ValueError(f"{twice[0]} is given twice; give each system once.")
    files = [_files(Path(path), references) for path in paths]
    if out is not None and out.resolve() in {file.resolve() for pair in files for file in pair}:
        raise ValueError(f"{out} is compared itself; write to another file.")
    agreed = _read(files[0][1])
    systems = {}
    for path, (hypotheses, own) in zip(paths, files, strict=True):
        _check_same(files[0][1], agreed, own)
        systems[path] = _read(hypotheses)
        if len(systems[path]) != len(agreed):
            raise ValueError(
                f"{hypotheses} has {len(systems[path])} lines and {own} has {len(agreed)}; each "
                f"hypothesis needs its reference."
            )
    if not agreed:
        raise ValueError(f"{files[0][1]} is empty; there is nothing to compare.")
    language = _language(list(map(Path, paths)), tgt_lang)
    try:
        found = compare(
            systems, agreed, metrics=metrics, legacy=legacy, method=method, tgt_lang=language
        )
    except ModuleNotFoundError as error:
        if error.name != "sacremoses":
            raise
        raise ValueError(str(error)) from error
    sys.stdout.write(printable(_table(found)))
    if out is not None:
        with whole_file(out) as file:
            file.write(dumps(_record(found), ensure_ascii=False, indent=2) + "\n")
        _log.info("%s holds the comparison.", out)


def _files(path: Path, references: str | None) -> tuple[Path, Path]:
    """The files of hypotheses and of references."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(
                f"there is no {path}; give the folder of a run, or a text file."
            )
        if references is None:
            raise ValueError(f"{path} is a text file; give its references by --references FILE.")
        return path, Path(references)
    folder = path / "test"
    for file in (folder / "hypotheses.txt", folder / "references.txt"):
        if not file.is_file():
            raise FileNotFoundError(
                f"there is no {file}; make it: litseq test --ckpt_path {path}/checkpoints/best.ckpt"
            )
    return folder / "hypotheses.txt", folder / "references.txt"


def _read(path: Path) -> list[str]:
    with open_input(str(path)) as file:
        # a byte order mark counts, as in sacreBLEU's own command
        return list(read_lines(file, str(path), keep_mark=True))


def _check_same(one: Path, ours: Sequence[str], other: Path) -> None:
    """Refuses other references: scores on two test sets say nothing of two systems."""
    if other == one:
        return
    theirs = _read(other)
    if len(theirs) != len(ours):
        raise ValueError(
            f"{one} has {len(ours)} lines and {other} has {len(theirs)}; compare systems on the "
            f"same test set."
        )
    for number, (mine, its) in enumerate(zip(ours, theirs, strict=True), 1):
        if mine != its:
            raise ValueError(
                f"{one} and {other} differ in line {number}: {short(mine)} and {short(its)}; "
                f"compare systems on the same test set."
            )


def _language(paths: Sequence[Path], given: str | None) -> str | None:
    """The target language: the one given, or the one that the tests of the runs were scored in."""
    said: dict[str, Path] = {}
    tokenizers: dict[str, Path] = {}
    for file in (path / "test" / "scores.json" for path in paths):
        if not file.is_file():
            continue
        scores = _scores(file)
        if scores.get("tgt_lang"):
            said.setdefault(scores["tgt_lang"], file)
        signature = str(scores.get("signatures", {}).get("bleu", ""))
        for part in signature.split("|"):
            if part.startswith("tok:"):
                tokenizers.setdefault(part, file)
    if given is None and len(said) > 1:
        (one, file), (other, second) = list(said.items())[:2]
        raise ValueError(
            f"{file} is of language {one} and {second} of {other}; give --tgt_lang if they are one."
        )
    language = given or next(iter(said), None)
    ours = f"tok:{bleu_tokenizer(language)}"
    if given is None and tokenizers.keys() - {ours}:
        tokenizer = min(tokenizers.keys() - {ours})
        raise ValueError(
            f"{tokenizers[tokenizer]} has BLEU by {tokenizer}, and this would be {ours}; give the "
            f"language by --tgt_lang."
        )
    return language


def _scores(file: Path) -> dict[str, Any]:
    try:
        scores = loads(file.read_text(encoding="utf-8"))
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON ({error}); test the run again.") from error
    if not isinstance(scores, dict) or not isinstance(scores.get("signatures", {}), dict):
        raise ValueError(f"{file} holds no scores; test the run again.")
    return scores


def _table(found: Comparison) -> str:
    method = {
        "bs": "paired bootstrap, {:,} resamples",
        "ar": "approximate randomisation, {:,} trials",
    }
    lines = [f"{found.num_sentences:,} sentences; {method[found.method].format(found.num_samples)}"]
    headings = {metric: _HEADINGS.get(metric, f"BLEU, {metric}") for metric in found.signatures}
    names = {row.system: row.system for row in found.rows}
    names[found.baseline] += " (baseline)"
    width = max(map(len, [*names.values(), *headings.values()]))
    for metric, heading in headings.items():
        lines += ["", f"{heading:<{width}}  {'score':>6}  {'95 % interval':>15}  {'differs':>7}  p"]
        for row in found.rows:
            if row.metric != metric:
                continue
            interval = f"{row.confidence.low:.2f} to {row.confidence.high:.2f}"
            line = f"{names[row.system]:<{width}}  {row.score:>6.2f}  {interval:>15}"
            if row.p_value is not None:
                line += f"  {row.difference:>+7.2f}  {row.p_value:.4f}"
            lines.append(line)
    lines += ["", *found.sentences(), ""]
    for metric, signature in found.signatures.items():
        name = _HEADINGS.get(metric, "BLEU").partition(" ")[0]
        lines.append(f"{name}|{signature}")
    return "\n".join(lines) + "\n"


def _record(found: Comparison) -> dict[str, Any]:
    rows = [{**asdict(row), "holds": row.holds} for row in found.rows]
    return {**asdict(found), "rows": rows, "sentences": found.sentences()}
