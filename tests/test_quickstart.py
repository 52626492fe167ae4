"""scripts/quickstart.sh, with a command in litseq's place that only leaves files behind."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "quickstart.sh"
COMMAND = """#!/usr/bin/env bash
set -eu
echo "$*" >> commands.txt
case $1 in
    fit) [ -z "$RUN" ] || mkdir -p "$RUN" ;;
    test) mkdir "$RUN/test"; printf '%s\\n' one two > "$RUN/test/sources.txt" ;;
    predict) printf '%s\\n' eins zwei > "$RUN/predictions.txt" ;;
esac
"""


@pytest.fixture
def quickstart(tmp_path):
    """Runs the script where ``litseq fit`` makes a folder, or none."""
    for folder in ("scripts", ".venv/bin", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").write_text("setup() { :; }\n")
    command = tmp_path / ".venv" / "bin" / "litseq"
    command.write_text(COMMAND)
    command.chmod(0o755)

    def run(*options, makes=""):
        return subprocess.run(
            ["bash", "../scripts/quickstart.sh", *options],
            cwd=tmp_path / "elsewhere",
            env={"PATH": "/usr/bin:/bin", "RUN": makes},
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize("older", [[], ["version_0", "version_9"]])
def test_shows_the_run_that_it_made(quickstart, tmp_path, older):
    for name in older:
        (tmp_path / "lightning_logs" / "demo" / name).mkdir(parents=True)
    new = f"lightning_logs/demo/version_{10 if older else 0}"
    done = quickstart("--model", "Rnn", makes=new)
    assert done.returncode == 0, done.stderr
    assert "\n  one\n  -> eins\n\n  two\n  -> zwei\n" in done.stdout
    assert f"Everything is in {new}:" in done.stdout
    assert (tmp_path / "commands.txt").read_text().splitlines() == [
        "fit -c configs/demo.yaml --model Rnn",
        f"test --ckpt_path {new}/checkpoints/best.ckpt",
        f"predict --ckpt_path {new}/checkpoints/best.ckpt",
    ]


def test_does_not_show_an_older_run(quickstart, tmp_path):
    for older in (False, True):
        if older:
            (tmp_path / "lightning_logs" / "demo" / "version_3").mkdir(parents=True)
        done = quickstart("--print_config")
        assert done.returncode == 1
        assert done.stderr == "No new run lies in lightning_logs/demo, so there is none to show.\n"
