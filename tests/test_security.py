"""What a configuration, a checkpoint, a text or a name must not be able to do."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from bad_inputs_tried.case import run_command
from command_line import error_of, litseq
from litseq import translate
from litseq.cli_imports import ROOTS, import_flags, restrict_imports
from litseq.cli_messages import PrintableFormatter, say_os_error, too_little_memory
from litseq.cli_outputs import check_names, check_new
from litseq.textfiles import printable

ROOT = Path(__file__).parents[1]

# ---- what a configuration may import ----

FOREIGN = """
from pathlib import Path
from lightning.pytorch import Callback

Path("the-code-ran").touch()

class Quiet(Callback):
    def __init__(self, *, api_key: str = "", sizes: object = None):
        self.sizes = sizes

def schedule(optimizer):
    raise AssertionError("called")
"""


@pytest.fixture
def foreign(elsewhere, monkeypatch):
    """A module that leaves a file when it is imported."""
    (elsewhere / "foreign_parts.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(elsewhere)
    sys.modules.pop("foreign_parts", None)
    yield "foreign_parts"
    sys.modules.pop("foreign_parts", None)


def named(text, *, path):
    """Where a class or function stands in a configuration."""
    return {
        "model": f"model: {{class_path: {text}}}",
        "data": f"data: {{class_path: {text}}}",
        "callback": f"trainer: {{callbacks: [{{class_path: {text}}}]}}",
        "short": f"trainer: {{callbacks: [{text}]}}",
        "logger": f"trainer: {{logger: {{class_path: {text}}}}}",
        "function": f"model: {{init_args: {{lr_scheduler: {text}}}}}",
        "scheduler": f"model: {{init_args: {{lr_scheduler: {{class_path: {text}}}}}}}",
        "strategy": f"trainer: {{strategy: {{class_path: {text}}}}}",
        "plugin": f"trainer: {{plugins: [{{class_path: {text}}}]}}",
    }[path]


PLACES = ["model", "data", "callback", "logger", "function", "scheduler", "strategy", "plugin"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["foreign_parts.Quiet", "foreign_parts.schedule"])
def test_a_foreign_module_is_not_imported(place, name, foreign, fitted, elsewhere):
    (elsewhere / "bad.yaml").write_text(named(name, path=place) + "\n")
    assert error_of("fit", "-c", fitted.data, "-c", fitted.model, "-c", "bad.yaml") == (
        f"bad.yaml, line 1: {name} is not imported: a configuration may name what is in "
        f"{', '.join(ROOTS)}; if you trust foreign_parts and whoever wrote the configuration, add "
        f"--allow_import foreign_parts."
    )
    assert not (elsewhere / "the-code-ran").exists()
    assert foreign not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "litseq.textfiles.os.system",  # by what an allowed module has imported
        "litseq.cli.sys.exit",
        "torch.hub.load",
        "torch.load",
        "jsonargparse.set_parsing_settings",
    ],
)
def test_a_function_that_runs_anything_is_refused(name, fitted, elsewhere):
    words = ("-c", fitted.data, "-c", fitted.model, "--model.lr_scheduler", name)
    assert re.search(r"is not imported|there is no class", error_of("fit", *words))


def test_a_flag_allows_a_package_for_one_command(foreign, fitted, elsewhere):
    words = ("-c", fitted.data, "-c", fitted.model, "--trainer.callbacks+", f"{foreign}.Quiet")
    for flag in (["--allow_import", foreign], [f"--allow_import={foreign}.Quiet"]):
        assert litseq("fit", *words, *flag, "--print_config").status == 0
        assert litseq(*flag, "fit", *words, "--print_config").status == 0
    assert (elsewhere / "the-code-ran").exists()
    assert "is not imported" in error_of("fit", *words)  # in the same process


def test_a_class_in_a_value_of_any_type_stays_text(foreign, fitted, elsewhere):
    (elsewhere / "own.yaml").write_text(
        f"trainer:\n  callbacks:\n  - class_path: {foreign}.Quiet\n"
        "    init_args: {sizes: {class_path: lightning.pytorch.callbacks.Timer}}\n"
    )
    words = ("-c", fitted.data, "-c", fitted.model, "-c", "own.yaml", "--allow_import", foreign)
    assert litseq("fit", *words).status == 0
    saved = yaml.safe_load((elsewhere / "runs/tiny/version_0/config.yaml").read_text())
    [quiet] = saved["trainer"]["callbacks"]
    assert quiet["init_args"]["sizes"]["class_path"] == "lightning.pytorch.callbacks.Timer"


@pytest.mark.parametrize("package", ["", "*", "a b", "a..b", "1a", "a/b"])
def test_a_flag_needs_a_package(package):
    with pytest.raises(ValueError, match="--allow_import needs the name of a package, such as"):
        restrict_imports(["fit", "--allow_import", package])


def test_the_rules_cannot_be_imported():
    for name in ("jsonargparse", "jsonargparse.set_parsing_settings"):
        with pytest.raises(ValueError, match="it decides what may be imported, and stays out"):
            restrict_imports([f"--allow_import={name}"])


def test_flags_are_taken_out_and_remembered():
    words = ["fit", "--allow_import", "one", "-c", "a", "--allow_import=two.three", "--x"]
    assert restrict_imports(words) == ["fit", "-c", "a", "--x"]
    assert import_flags() == ["--allow_import=one", "--allow_import=two.three"]
    assert restrict_imports(["fit"]) == ["fit"]
    assert import_flags() == []


@pytest.mark.parametrize("command", ["test", "translate"])
def test_a_checkpoint_imports_nothing(command, foreign, fitted, elsewhere):
    checkpoint = torch.load(fitted.ckpt, weights_only=True)
    checkpoint["hyper_parameters"]["lr_scheduler"] = {"class_path": f"{foreign}.schedule"}
    checkpoint["hyper_parameters"] |= {"_instantiator": f"{foreign}.schedule"}
    torch.save(checkpoint, "bad.ckpt")
    words = {"test": ("--ckpt_path", "bad.ckpt"), "translate": ("--ckpt", "bad.ckpt")}[command]
    try:
        litseq(command, *words)
    except TypeError as error:  # an argument that no model has
        assert "_instantiator" in str(error)  # noqa: PT017
    assert not (elsewhere / "the-code-ran").exists()


def test_the_help_says_how_to_allow():
    said = " ".join(litseq("fit", "--help").out.split())
    assert "--allow_import PACKAGE" in said


# ---- names ----


def trainer(**parts):
    defaults = {"logger": False, "callbacks": [], "enable_checkpointing": False}
    return Trainer(accelerator="cpu", **{**defaults, **parts})


@pytest.mark.parametrize("name", ["demo", "a/b", "试验 1", "lr=1e-3,d_model=64", "", "v1.2"])
def test_names_that_stay_in_their_folder(name, tmp_path):
    check_names(trainer(logger=CSVLogger(tmp_path, name=name, version=name or None)))


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../b", "/etc", "a//b", ".", "a\0b", "a\nb", "x" * 101, "a\\b", "~*?"]
)
def test_names_that_do_not(name, tmp_path):
    with pytest.raises(ValueError, match="the name of CSVLogger must be letters, digits, spaces"):
        check_names(trainer(logger=CSVLogger(tmp_path, name=name, version=0)))
    with pytest.raises(ValueError, match="the version of CSVLogger must be letters, digits"):
        check_names(trainer(logger=CSVLogger(tmp_path, name="a", version=name)))


@pytest.mark.parametrize("filename", ["../../x", "/x", "a/../../b"])
def test_checkpoints_stay_in_their_folder(filename, tmp_path):
    callback = ModelCheckpoint(dirpath=tmp_path, filename=filename)
    with pytest.raises(ValueError, match="the filename of ModelCheckpoint must stay in its folder"):
        check_names(trainer(callbacks=[callback], enable_checkpointing=True))
    good = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}-{val/loss:.2f}")
    check_names(trainer(callbacks=[good], enable_checkpointing=True))


def test_a_run_does_not_write_over_another(tmp_path):
    logger = CSVLogger(tmp_path, name="a", version=3)
    check_new(trainer(logger=logger))
    Path(logger.log_dir).mkdir(parents=True)
    (Path(logger.log_dir) / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"version_3 holds a run already, which would be written"):
        check_new(trainer(logger=logger))


# ---- texts that are shown ----

ESCAPES = "\x1b[2J\x1b]0;title\x07 red\u202e dog\x9b31m\r"


def test_control_characters_are_written_out():
    assert printable(ESCAPES) == ("\\x1b[2J\\x1b]0;title\\x07 red\\u202e dog\\x9b31m\\r")
    assert printable("one\ttwo\n犬 é 🐕") == "one\ttwo\n犬 é 🐕"


def test_errors_and_logs_command_no_terminal(fitted, elsewhere):
    name = "a\x1b]0;x\x07.en"
    outcome = litseq("translate", "--ckpt", fitted.ckpt, "--input", name)
    assert outcome.status == 2
    assert "\x1b" not in outcome.err
    assert "no input file at a\\x1b]0;x\\x07.en." in outcome.err
    record = logging.LogRecord("litseq", logging.INFO, "", 0, "read %s", (ESCAPES,), None)
    assert PrintableFormatter().format(record) == f"read {printable(ESCAPES)}"


def test_translations_command_no_terminal(fitted, elsewhere):
    """To a terminal they are shown, to a file written as they are."""
    ours, theirs = pty.openpty()

    def hostile():
        translate._FORMATS["text"] = lambda translation: ["\x1b[2J" + translation.text]

    def hostile_on_a_terminal():
        hostile()
        os.dup2(theirs, 1)

    words = ["translate", "--ckpt", str(fitted.ckpt)]
    written = run_command(words, elsewhere, stdin=b"one\n", first=hostile)
    assert written.status == 0
    assert written.out.startswith(b"\x1b[2J")
    shown = run_command(words, elsewhere, stdin=b"one\n", first=hostile_on_a_terminal)
    assert shown.status == 0
    assert os.read(ours, 100).startswith(b"\\x1b[2J")
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://x")'])
def test_no_cell_is_a_formula(text, tmp_path, monkeypatch):
    from litseq.callbacks import samples

    assert samples._cell(text) == f"'{text}"
    assert samples._cell("a" + text) == "a" + text
    assert samples._cell(-1.5) == "-1.5"  # a number
    assert samples._cell("\x1b[2J\t\\") == "\\x1b[2J\\t\\\\"


def test_samples_hold_no_formula(fitted, corpus, elsewhere):
    for lang in ("en", "de"):
        lines = (corpus / f"val.{lang}").read_text(encoding="utf-8").splitlines()
        (elsewhere / f"val.{lang}").write_text("".join(f"={line}\n" for line in lines))
    words = ("-c", fitted.data, "-c", fitted.model, "--data.val", "val")
    assert litseq("fit", *words, "--trainer.callbacks", "litseq.TranslationSamples").status == 0
    table = (elsewhere / "runs/tiny/version_0/samples.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    assert all(row[2].startswith("'=") for row in rows)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@"))]


# ---- errors of the machine ----


def test_what_the_operating_system_refuses():
    for number, remedy in ((28, "make room"), (13, "get the right to it"), (20, "TRACEBACK=1")):
        message = say_os_error(OSError(number, os.strerror(number), "a.txt"))
        assert re.fullmatch(rf"a\.txt: .*; .*{remedy}.*\.", message)
    assert say_os_error(OSError("told already")) == "told already"
    assert say_os_error(OSError(2, "No such file")).startswith("the working folder is no longer")


def test_too_little_memory():
    alloc = "[enforce fail] CPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    assert "enough memory for 8 bytes; make the model" in too_little_memory(RuntimeError(alloc))
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    assert "enough memory for 2.00 GiB;" in too_little_memory(cuda)
    assert "enough memory; make" in too_little_memory(MemoryError())
    assert too_little_memory(RuntimeError("shapes differ")) is None


# ---- secrets ----

SECRET = "f0rb1dden-fru1t"


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_no_file_of_a_run_holds_a_secret(logger, foreign, fitted, elsewhere, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    (elsewhere / "secret").mkdir()
    (elsewhere / "secret" / "own.yaml").write_text(
        f"trainer:\n  logger: {{class_path: {logger}, init_args: {{save_dir: runs, name: x}}}}\n"
        f"  callbacks:\n  - class_path: {foreign}.Quiet\n    init_args: {{api_key: {SECRET}}}\n"
        f"  - class_path: ModelCheckpoint\n"
    )
    words = ("-c", fitted.data, "-c", fitted.model, "-c", "secret/own.yaml")
    outcome = litseq("fit", *words, "--allow_import", foreign)
    assert outcome.status == 0, outcome.err
    written = [path for path in (elsewhere / "runs").rglob("*") if path.is_file()]
    assert {"config.yaml"} <= {path.name for path in written}
    assert [path for path in written if path.suffix == ".ckpt"]
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in outcome.out + outcome.err
    [quiet] = [
        part
        for part in yaml.safe_load((elsewhere / "runs/x/version_0/config.yaml").read_text())[
            "trainer"
        ]["callbacks"]
        if "Quiet" in part["class_path"]
    ]
    assert quiet["init_args"]["api_key"] == "hidden"


# ---- known weaknesses of what we depend on ----


@pytest.mark.slow
@pytest.mark.network
def test_no_pinned_package_has_a_known_weakness():
    command = [sys.executable, "-m", "pip_audit", "-r", ROOT / "constraints.txt"]
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.stdout, f"pip-audit looked at nothing: {done.stderr[-500:]}"
    packages = json.loads(done.stdout)["dependencies"]
    # where no service answers, pip-audit skips a package and is content
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    assert not skipped, f"{len(skipped)} of {len(packages)} packages were not audited: {skipped}"
    found = {p["name"]: [v["id"] for v in p["vulns"]] for p in packages if p["vulns"]}
    assert not found


def test_nothing_is_loaded_with_code():
    """Neither a checkpoint nor a data set is ever allowed to bring code."""
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("trust_remote_code", "yaml.load(", "pickle.load"):
            assert word not in text, f"{path.name}: {word}"
        assert not re.search(r"weights_only=(False|None)\)", text), path.name
        for call in re.finditer(r"torch\.load\(([^)]*)\)", text):
            assert "weights_only=True" in call[1], path.name


def test_the_samples_are_the_only_table_for_spreadsheets():
    written = [
        path.name
        for path in (ROOT / "src").rglob("*.py")
        if re.search(r"\"[\w.]*\.(tsv|csv)\"", path.read_text(encoding="utf-8"))
    ]
    # readers.py and cli_resume.py read them; the latter keeps Lightning's own columns of numbers
    assert sorted(written) == ["cli_resume.py", "readers.py", "samples.py"]
