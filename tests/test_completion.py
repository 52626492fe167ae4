"""``litseq completion``: the script that bash gets completes what litseq has."""

import shutil
import subprocess
import sys
from typing import get_args

import pytest

from command_line import error_of, litseq
from litseq.cli_messages import COMMANDS
from litseq.completion import Shell
from processes import ForkedPython

pytest.importorskip("shtab")

PROGRAM = """
import contextlib, sys
from litseq.cli import main

for shell in sys.argv[1:]:
    with open(f"litseq.{shell}", "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        try:
            main(["completion", shell])
        except SystemExit as end:
            assert not end.code
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The folder of the scripts of all shells."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "program.py").write_text(PROGRAM)
    # in a process of their own: it changes how all parsers of a process are made
    words = [sys.executable, "program.py", *get_args(Shell)]
    with ForkedPython(words, cwd=folder) as process:
        assert process.wait(timeout=240) == 0
    return folder


@pytest.fixture
def bash(scripts):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    path = scripts / "litseq.bash"

    def complete(*words):
        lines = [
            f"source {path}",
            f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}",
            "_shtab_litseq 2> /dev/null",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
        done = subprocess.run(
            ["bash", "--norc", "-c", "\n".join(lines)], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    return complete


def test_commands(bash):
    found = bash("litseq", "")
    for name in ("fit", "validate", "test", "predict", *(COMMANDS.keys() - {"completion"})):
        assert name in found
    assert bash("litseq", "trans") == ["translate"]


def test_options_and_values(bash):
    assert bash("litseq", "translate", "--length_") == ["--length_penalty", "--length_offset"]
    assert bash("litseq", "export", "--to", "on") == ["onnx"]
    assert "--trainer.accumulate_grad_batches" in bash("litseq", "fit", "--trainer.acc")
    assert "litseq.TransformerSeq2Seq" in bash("litseq", "fit", "--model", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell, scripts):
    assert "litseq" in (scripts / f"litseq.{shell}").read_text(encoding="utf-8")


def test_shtab_is_optional(monkeypatch):
    import litseq.completion

    monkeypatch.setattr(litseq.completion, "find_spec", lambda name: None)
    assert error_of("completion", "bash") == (
        "completion needs shtab, which is not installed: pip install 'litseq[completion]'."
    )


def test_an_unknown_shell():
    assert litseq("completion", "csh").status == 2
