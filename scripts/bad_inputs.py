"""Runs litseq on every bad input and writes what came of it into the documentation.

    python scripts/bad_inputs.py            # all of them; docs/results/bad_inputs.json, the page
    python scripts/bad_inputs.py --only zip # new ones, and whose name holds a word; others stay

The cases are those of the tests (tests/bad_inputs_tried). Each runs in a process of its own, in an
empty folder; the message and the exit status are the real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

from bad_inputs_tried.case import Case, World, run  # noqa: E402
from bad_inputs_tried.table import CASES  # noqa: E402
from doc_tables import fill  # noqa: E402

PAGE = ROOT / "docs" / "bad-input.md"
RESULTS = ROOT / "docs" / "results" / "bad_inputs.json"


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="a part of the names of the cases to run")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    rows, wrong = [], []
    kept = {}
    if only:
        former = json.loads(RESULTS.read_text(encoding="utf-8"))
        if former | about() != former:
            sys.exit(f"{RESULTS} is of another machine or torch; run all.")
        kept = {(row["name"], row["wrong"], row["command"]): row for row in former["cases"]}
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder) / "world")
        for number, case in enumerate(CASES, start=1):
            row = kept.get((case.name, case.wrong, command(case)))
            if row and only not in case.name:
                rows.append({**row, "number": number})
                continue
            try:
                rows.append(result(number, case, world, Path(folder)))
                said = rows[-1]["outcome"]
            except AssertionError as error:
                said = f"NOT AS EXPECTED: {error}"
                wrong.append(case.name)
            print(f"{number:4} {case.group} {case.name[:40]}: {str(said)[:600]}", flush=True)
    if wrong:
        sys.exit(f"{len(wrong)} not as expected: {', '.join(wrong)}; nothing is written.")
    write(rows)


def about() -> dict[str, str]:
    """What the results are of."""
    return {
        "command": "python scripts/bad_inputs.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def result(number: int, case: Case, world: World, folder: Path) -> dict[str, object]:
    """Runs a case and returns its row; raises AssertionError if it is not as expected."""
    place = folder / f"case{number}"
    place.mkdir()
    outcome, said = run(case, world, place)
    for path, name in ((place, "."), (world.home, "HOME")):
        said = said.replace(f"{path}/", "" if name == "." else f"{name}/").replace(str(path), name)
    said = re.sub(r"\.\d+\.part", ".part", said)
    return {
        "number": number,
        "group": case.group,
        "name": case.name,
        "wrong": case.wrong,
        "command": command(case),
        "works": not case.expect,
        "status": outcome.status,
        "outcome": said,
    }


def command(case: Case) -> str:
    """What is typed."""
    return "litseq " + " ".join(case.words.split())


def write(rows: list[dict[str, object]]) -> None:
    """Writes the results and fills the tables of the page."""
    text = json.dumps({**about(), "cases": rows}, ensure_ascii=False, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    total, works = (
        Counter(r["group"] for r in rows),
        Counter(r["group"] for r in rows if r["works"]),
    )
    summary = [[g, n, works[g], n - works[g]] for g, n in total.items()]
    summary.append(["**all**", len(rows), works.total(), len(rows) - works.total()])
    fill(PAGE, "summary", ["what is bad", "tried", "works, loses nothing", "one line"], summary)
    fill(
        PAGE,
        "cases",
        ["", "what is wrong", "status", "what litseq does"],
        [[r["number"], r["wrong"], r["status"], shown(r)] for r in rows],
    )


def shown(row: dict[str, object]) -> str:
    """The outcome as a cell: a message is quoted, and cut where it is long."""
    said = str(row["outcome"])
    said = said if len(said) < 220 else f"{said[:215]} ..."
    return said if row["works"] else f"`{said.replace('`', chr(39))}`"


if __name__ == "__main__":
    main()
