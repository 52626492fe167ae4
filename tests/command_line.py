"""The command line in this process, and a small run of it for all tests."""

import contextlib
import io
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import pytest

from litseq.cli import main

MODEL = """
model:
  class_path: TransformerSeq2Seq
  init_args:
    d_model: 24
    num_heads: 3
    num_encoder_layers: 1
    num_decoder_layers: 1
    dim_feedforward: 48
    dropout: 0.0
    warmup_steps: 10
    lr: 2.0e-2
    max_len_b: 5
"""

DATA = """
data:
  class_path: TranslationDataModule
  init_args:
    src_lang: en
    tgt_lang: de
    train: {corpus}/train
    val: {corpus}/val
    test: {corpus}/test
    vocab_size: 64
    max_tokens: 256
    cache_dir: {cache_dir}
trainer:
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {{save_dir: runs, name: tiny}}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args:
        monitor: val/loss
        mode: min
        filename: best
        save_last: true
    - class_path: litseq.TranslationSamples
"""


class Outcome(NamedTuple):
    """What a command did: its exit status and what it printed."""

    status: int
    out: str
    err: str


def litseq(*words, stdin=b""):
    """Runs a command in this process, as the console script would."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["litseq"]),  # Lightning reads it too
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            status = end.code or 0
    return Outcome(status, out.getvalue(), err.getvalue())


def error_of(*words, stdin=b""):
    """Runs a command that must fail, and gives its message: one line, the last one."""
    status, out, err = litseq(*words, stdin=stdin)
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    *before, last = err.splitlines()
    assert not [line for line in before if "error" in line.lower()]
    prefix = "litseq: error: "
    assert last.startswith(prefix)
    return last.removeprefix(prefix)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def fitted(corpus, data_options, tmp_path_factory):
    """A run of ``litseq fit``: two configuration files, the second one's limit overridden."""
    home = tmp_path_factory.mktemp("fitted")
    data, model = home / "data.yaml", home / "model.yaml"
    data.write_text(DATA.format(corpus=corpus, cache_dir=data_options["cache_dir"]))
    model.write_text(MODEL)
    before = Path.cwd()
    os.chdir(home)
    try:
        outcome = litseq("fit", "-c", data, "-c", model, "--trainer.max_epochs", "3")
    finally:
        os.chdir(before)
    assert outcome.status == 0, outcome.err
    run = home / "runs" / "tiny" / "version_0"
    return SimpleNamespace(
        outcome=outcome,
        data=data,
        model=model,
        run=run,
        config=run / "config.yaml",
        ckpt=run / "checkpoints" / "last.ckpt",
    )


@pytest.fixture
def copied(fitted, elsewhere):
    """The run, at another place and without its configuration: nothing but the checkpoint."""
    folder = elsewhere / "copy" / "checkpoints"
    folder.mkdir(parents=True)
    return shutil.copy(fitted.ckpt, folder / "best.ckpt")
