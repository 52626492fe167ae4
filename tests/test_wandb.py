import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from litseq.cli_runs import prepare_wandb, without_secrets
from wandb_reader import read_offline_run

pty = pytest.importorskip("pty", reason="needs a POSIX terminal")

OVERLAY = Path(__file__).parents[1] / "configs" / "logger" / "wandb.yaml"
SECRET = "f0rb1dden-fru1t"

EXPERIMENT = """
model:
  class_path: litseq.TransformerSeq2Seq
  init_args: {d_model: 12, num_heads: 3, num_encoder_layers: 1, num_decoder_layers: 1,
              dim_feedforward: 24, warmup_steps: 5, max_len_b: 5}
trainer:
  accelerator: cpu
  max_epochs: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: lightning_logs, name: tiny}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/bleu, mode: max, save_last: true}
    - class_path: litseq.TranslationSamples
      init_args: {num_samples: 3}
"""


def without_wandb(folder):
    """The environment of somebody who has never heard of W&B, with a secret in it."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return kept | {
        "HOME": str(home),
        "NETRC": str(home / "netrc"),
        "XDG_CONFIG_HOME": str(home),
        "MY_API_KEY": SECRET,
        "OMP_NUM_THREADS": "1",
        "TERM": "dumb",
    }


def run_in_terminal(args, *, cwd, env):
    """Runs litseq where it could ask a question, and gives what it says; nobody answers."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "litseq", *args],
        cwd=cwd,
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        # W&B's own process holds the terminal too
        timer = threading.Timer(90, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        said = b""
        with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
            while chunk := terminal.read(65536):  # OSError: the other side is closed
                said += chunk
        timer.cancel()
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_options):
    """What a training with the overlay says in a terminal, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("wandb")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": {"init_args": data_options}}))
    args = ["fit", "-c", "experiment.yaml", "-c", "data.yaml", "-c", str(OVERLAY)]
    return run_in_terminal(args, cwd=folder, env=without_wandb(folder)), folder


@pytest.fixture(scope="module")
def run(finished):
    return read_offline_run(finished[1] / "lightning_logs")


@pytest.fixture(scope="module")
def run_dir(finished):
    (folder,) = (finished[1] / "lightning_logs" / "litseq").iterdir()
    return folder


def test_who_is_not_logged_in_hears_one_line(finished):
    said, _ = finished
    (line,) = [line for line in said.splitlines() if "not logged in" in line]
    assert line.startswith("not logged in to W&B: the run is kept offline;")
    assert re.search(r"wandb sync lightning_logs/wandb/offline-run-\S+", said)
    assert "Traceback" not in said


def test_the_config_has_model_sizes_and_data_options(run, data_options):
    assert run.config["model"]["class_path"] == "litseq.TransformerSeq2Seq"
    assert run.config["data"]["init_args"]["max_tokens"] == data_options["max_tokens"]
    assert run.config["trainer"]["max_epochs"] == 2
    assert run.config["d_model"] == 12
    assert run.config["vocab_size"] == 64  # what the tokenizer turned out to have


def test_the_config_has_versions_and_hashes(run, run_dir):
    from importlib.metadata import version

    from litseq import Seq2Seq

    found = run.config["provenance"]
    assert found["versions"]["litseq"] == version("litseq")
    assert found["versions"]["torch"] == version("torch")
    assert found["commit"] is None  # the folder is no repository
    assert found["data"].keys() == {"train", "val"}
    model = Seq2Seq.load_from_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    assert found["tokenizer"] == model.tokenizer.fingerprint


def test_the_commit_of_the_folder(tmp_path, monkeypatch):
    from litseq.cli_runs import _commit

    monkeypatch.chdir(tmp_path)
    assert _commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    commit = _commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "file").write_text("two")
    assert _commit() == f"{commit}, changed"
    monkeypatch.setenv("PATH", "")
    assert _commit() is None


def test_the_summary_says_how_scores_were_computed(run, run_dir):
    scores = json.loads((run_dir / "val" / "scores.json").read_text())
    assert run.summary["val/signature/bleu"] == scores["signatures"]["bleu"]


def test_the_curves_are_there(run):
    for key in ("train/loss", "train/lr", "train/grad_norm", "train/ppl"):
        assert len(run.values(key)) == run.summary["trainer/global_step"]  # log_every_n_steps: 1
    assert run.values("train/lr")[:2] == pytest.approx([7e-4 / 5, 7e-4 / 5 * 2])
    for key in ("val/loss", "val/bleu", "val/chrf"):
        assert len(run.values(key)) == 2  # epochs


def test_the_summary_has_the_last_and_the_best_score(run, run_dir):
    scores = json.loads((run_dir / "val" / "scores.json").read_text())
    assert run.summary["val/bleu"] == pytest.approx(scores["bleu"], rel=1e-6)
    assert run.summary["best/val/bleu"] == max(run.values("val/bleu"))


def test_the_table_of_translations_grows(run):
    first, second = run.tables["val/samples"]
    assert run.columns["val/samples"][2:5] == ["source", "reference", "hypothesis"]
    assert (len(first), len(second)) == (3, 6)
    assert second[:3] == first


def test_best_and_last_checkpoint_are_artifacts(finished, run, run_dir):
    best, last = run.artifacts
    assert best.type == last.type == "model"
    assert best.name == last.name  # two versions of one artifact
    assert {*best.aliases, *last.aliases} == {"best", "latest"}
    files = {finished[1] / a.manifest.contents[0].local_path for a in run.artifacts}
    assert files == set((run_dir / "checkpoints").iterdir())


def test_the_configuration_is_in_the_run_folder_and_trains_again(finished, run, run_dir):
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    sent = yaml.safe_load((run.folder / "litseq.yaml").read_text())
    assert "litseq.yaml" in run.files
    assert "config.yaml" not in run.files  # the name of a file that W&B itself writes
    for part in ("model", "data"):
        given = {k: v for k, v in saved[part]["init_args"].items() if v is not None}
        assert sent[part] == {**saved[part], "init_args": given}


def test_neither_secrets_nor_code_nor_command_line_are_kept(finished, run):
    _, folder = finished
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert b"experiment.yaml" not in content, path  # a word of the command line
    assert not [path for path in run.folder.rglob("*") if path.suffix in (".py", ".patch")]


@pytest.fixture
def wandb_session(tmp_path, monkeypatch):
    """W&B as it is at the start of a program, without a key."""
    import wandb
    from wandb.sdk.lib.service import service_process

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in without_wandb(tmp_path).items():
        monkeypatch.setenv(name, value)
    # wandb's own wait for its service has no end, and after a login that found no server the
    # service has been seen to stay
    monkeypatch.setattr(service_process.ServiceProcess, "join", join_at_last)
    wandb.teardown()
    yield wandb
    wandb.teardown()


def join_at_last(service):
    try:
        return service._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        service._process.kill()
        service._process.wait()
        return 0


def trainer_with_wandb():
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import WandbLogger

    return Trainer(accelerator="cpu", logger=WandbLogger(project="litseq"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "not logged in to W&B: the run"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid: API key must have 40"),
        (
            {
                "WANDB_API_KEY": "0" * 40,
                "WANDB_BASE_URL": "http://127.0.0.1:9",
                "WANDB_HTTP_TIMEOUT": "2",
            },
            "Failed to authenticate with http://127.0.0.1:9",
        ),
    ],
    ids=["no key", "bad key", "no server"],
)
def test_a_server_that_does_not_let_us_in_means_offline(
    wandb_session, monkeypatch, caplog, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    prepare_wandb(trainer_with_wandb())
    assert wandb_session.setup().settings.mode == "offline"
    (record,) = [r for r in caplog.records if r.name == "litseq"]
    assert message in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_chosen_mode_stays(wandb_session, monkeypatch, caplog, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    prepare_wandb(trainer_with_wandb())
    assert wandb_session.setup().settings.mode == mode
    assert not [record for record in caplog.records if record.name == "litseq"]


def test_the_home_folder_has_no_name():
    from litseq.cli_runs import _at_home

    home = Path.home()
    config = {"train": [f"{home}/a/train", "data/b"], "root": str(home.parent), "n": 1, "x": None}
    assert _at_home(config) == {**config, "train": ["~/a/train", "data/b"]}


def test_what_is_named_like_a_secret_is_hidden():
    config = {
        "logger": [{"init_args": {"api_key": "k", "project": "litseq"}}],
        "data": {"max_tokens": 2048, "tokenizer": "folder", "hf_token": "t", "password": None},
    }
    assert without_secrets(config) == {
        "logger": [{"init_args": {"api_key": "hidden", "project": "litseq"}}],
        "data": {"max_tokens": 2048, "tokenizer": "folder", "hf_token": "hidden", "password": None},
    }
