"""A run that is stopped by anything and resumed ends as if nothing had happened."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litseq import checkpoints
from processes import run

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from faults import differences

CONFIG = """
model:
  class_path: {family}
  init_args: {{{sizes}, dropout: 0.2, warmup_steps: 4, lr: 1.0e-2, schedule: linear, max_len_b: 5}}
data:
  class_path: TranslationDataModule
  init_args:
    src_lang: en
    tgt_lang: de
    train: {corpus}/train
    val: {corpus}/val
    test: {corpus}/test
    vocab_size: 64
    max_tokens: 500
    eval_max_tokens: 60
    cache_dir: {cache_dir}
trainer:
  accelerator: cpu
  max_epochs: 3
  accumulate_grad_batches: 2
  val_check_interval: 4
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {{save_dir: runs, name: tiny}}
  callbacks:
    - class_path: litseq.BestCheckpoint
      init_args: {{monitor: val/loss, mode: min}}
    - class_path: litseq.RunCheckpoint
      init_args: {{every_n_steps: 2}}
"""

RNN = "embedding_dim: 8, hidden_size: 12"
TRANSFORMER = (
    "d_model: 12, num_heads: 3, num_encoder_layers: 1, num_decoder_layers: 1, dim_feedforward: 20"
)
FAMILIES = {
    "RnnSeq2Seq": RNN,
    "RnnAttentionSeq2Seq": RNN,
    "TransformerSeq2Seq": TRANSFORMER,
}


@pytest.fixture(scope="module")
def whole(corpus, data_options, tmp_path_factory):
    """Configurations of all models, and their runs that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    runs = {}

    def fit(family):
        if family not in runs:
            home = folder / family
            home.mkdir()
            config = home / "config.yaml"
            cache = data_options["cache_dir"]
            config.write_text(
                CONFIG.format(family=family, sizes=FAMILIES[family], corpus=corpus, cache_dir=cache)
            )
            ended = run("fit", "-c", config, folder=home)
            assert ended.status == 0, ended.output
            runs[family] = config, home / "runs" / "tiny" / "version_0"
        return runs[family]

    return fit


def assert_equal_runs(resumed, whole):
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    for name in ("last", "best"):
        ours, theirs = (
            torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for folder in (resumed, whole)
        )
        where = r"run\.loggers|path|best_k_models|\.dirpath|\.cache_dir|processes.Fault"
        found = [place for place in differences(ours, theirs) if not re.search(where, place)]
        assert not found, name
    assert (resumed / "val" / "hypotheses.txt").read_text() == (
        whole / "val" / "hypotheses.txt"
    ).read_text()


def fault(hook, call, signal_name="SIGKILL", times=1):
    return (
        "--allow_import=processes",
        "--trainer.callbacks+=processes.Fault",
        f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.call={call}",
        f"--trainer.callbacks.signal_name={signal_name}",
        f"--trainer.callbacks.times={times}",
    )


def stop_and_go_on(config, folder, *words):
    """Fits with a fault, then goes on with the run as it was told."""
    first = run("fit", "-c", config, "--ckpt_path=last", *words, folder=folder)
    second = run("fit", "-c", config, "--ckpt_path=last", folder=folder)
    assert second.status == 0, second.output
    [run_folder] = (folder / "runs" / "tiny").iterdir()
    return first, second, run_folder


KILLS = [
    ("TransformerSeq2Seq", "on_train_batch_start", 12),
    ("RnnSeq2Seq", "on_after_backward", 11),
    ("RnnAttentionSeq2Seq", "on_before_optimizer_step", 5),
    ("TransformerSeq2Seq", "on_validation_batch_end", 9),
    ("RnnSeq2Seq", "on_train_epoch_end", 1),
    ("TransformerSeq2Seq", "on_save_checkpoint", 5),
    ("TransformerSeq2Seq", "os.fsync", 9),  # the file is written, but not in its place
    ("RnnAttentionSeq2Seq", "os.replace", 9),
]


@pytest.mark.parametrize(("family", "hook", "call"), KILLS)
def test_killed(family, hook, call, whole, tmp_path):
    config, uninterrupted = whole(family)
    first, _, run_folder = stop_and_go_on(config, tmp_path, *fault(hook, call))
    assert first.status == -9
    assert_equal_runs(run_folder, uninterrupted)


STOPS = [
    ("on_train_batch_start", 13, "SIGTERM", 143),
    ("on_before_backward", 6, "SIGUSR1", 143),
    ("on_validation_batch_end", 9, "SIGTERM", 143),
    ("on_train_batch_end", 8, "SIGINT", 130),
]


@pytest.mark.parametrize(("hook", "call", "signal_name", "status"), STOPS)
def test_stopped(hook, call, signal_name, status, whole, tmp_path):
    config, uninterrupted = whole("TransformerSeq2Seq")
    first, _, run_folder = stop_and_go_on(config, tmp_path, *fault(hook, call, signal_name))
    assert first.status == status, first.output
    assert "Traceback" not in first.output
    assert first.output.rstrip().splitlines()[-1] == (
        "to go on: litseq fit -c runs/tiny/version_0/config.yaml --ckpt_path last "
        "--allow_import=processes"
    )
    assert_equal_runs(run_folder, uninterrupted)


def test_the_exit_status_is_a_choice(whole, tmp_path):
    config, _ = whole("TransformerSeq2Seq")
    chosen = config.read_text().replace("every_n_steps: 2}", "every_n_steps: 2, exit_code: 75}")
    (tmp_path / "config.yaml").write_text(chosen)
    words = fault("on_train_batch_start", 3, "SIGTERM")
    assert run("fit", "-c", "config.yaml", *words, folder=tmp_path).status == 75


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_the_newest_checkpoint_is_damaged(damage, whole, tmp_path):
    config, uninterrupted = whole("TransformerSeq2Seq")
    words = fault("on_train_batch_start", 12)
    run("fit", "-c", config, *words, folder=tmp_path)
    [run_folder] = (tmp_path / "runs" / "tiny").iterdir()
    path = run_folder / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 3] ^= 1
    path.write_bytes({"flipped": content, "cut": content[:-100], "empty": b""}[damage])
    second = run("fit", "-c", config, "--ckpt_path=last", folder=tmp_path)
    assert second.status == 0, second.output
    assert re.search(r"last\.ckpt .* is passed over: \w+\.ckpt of step 4 is used", second.output)
    assert_equal_runs(run_folder, uninterrupted)


def test_a_damaged_checkpoint_takes_no_place(whole, tmp_path):
    """The first save after it may fail, too; until then the one that is used stays."""
    config, uninterrupted = whole("TransformerSeq2Seq")
    run("fit", "-c", config, *fault("on_train_batch_start", 12), folder=tmp_path)
    [run_folder] = (tmp_path / "runs" / "tiny").iterdir()
    last = run_folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    again = ("fit", "-c", config, "--ckpt_path=last")
    assert run(*again, *fault("on_save_checkpoint", 1), folder=tmp_path).status == -9
    assert checkpoints.newest(last.parent) == last.with_name("previous.ckpt")
    assert run(*again, folder=tmp_path).status == 0
    assert_equal_runs(run_folder, uninterrupted)


def test_a_save_that_fails(whole, tmp_path):
    config, uninterrupted = whole("TransformerSeq2Seq")
    limit = "processes.FullDisk"
    words = ("--allow_import=processes", f"--trainer.callbacks+={limit}")
    first, _, run_folder = stop_and_go_on(config, tmp_path, *words)
    assert first.status == 2
    error = first.output.rstrip().splitlines()[-1]
    assert error.startswith("litseq: error: ")
    assert "last.ckpt" in error
    assert "Traceback" not in first.output
    assert_equal_runs(run_folder, uninterrupted)


def test_a_second_interrupt_ends_at_once(whole, tmp_path):
    config, uninterrupted = whole("TransformerSeq2Seq")
    words = fault("on_before_backward", 7, "SIGINT", times=2)
    first, _, run_folder = stop_and_go_on(config, tmp_path, *words)
    assert first.status == 130
    assert "saved step" not in first.output
    assert_equal_runs(run_folder, uninterrupted)


@pytest.mark.parametrize(
    ("hook", "signal_name"),
    [("on_sanity_check_start", "SIGTERM"), ("on_sanity_check_end", "SIGINT")],
)
def test_stopped_before_the_first_step(hook, signal_name, whole, tmp_path):
    config, uninterrupted = whole("TransformerSeq2Seq")
    words = fault(hook, 1, signal_name)
    first = run("fit", "-c", config, "--ckpt_path=last", *words, folder=tmp_path)
    assert first.status == {"SIGTERM": 143, "SIGINT": 130}[signal_name]
    assert "to go on" not in first.output
    second = run("fit", "-c", config, "--ckpt_path=last", folder=tmp_path)
    assert "there is no run yet" in second.output
    assert_equal_runs(tmp_path / "runs" / "tiny" / "version_1", uninterrupted)


ARRAY = {"ARRAY_JOB_ID": "70", "ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(
    ("signal_name", "more", "asked"),
    [
        ("SIGUSR1", {}, "requeue 77\n"),
        ("SIGUSR1", ARRAY, "requeue 70_3\n"),
        ("SIGTERM", {}, None),
    ],
)
def test_slurm(signal_name, more, asked, whole, tmp_path):
    """The warning before the time limit puts the job back into the queue; the end does not."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    job = {"JOB_ID": "77", "JOB_NAME": "train", "NTASKS": "1", "NNODES": "1"}
    job |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    environment = {f"SLURM_{name}": value for name, value in (job | more).items()}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    config, uninterrupted = whole("TransformerSeq2Seq")
    words = ("fit", "-c", config, "--ckpt_path=last")
    stop = fault("on_before_backward", 7, signal_name)
    first = run(*words, *stop, folder=tmp_path, environment=environment)
    assert first.status == 143, first.output
    assert not list(tmp_path.rglob("hpc*"))
    path = tmp_path / "asked"
    assert (path.read_text() if path.exists() else None) == asked
    run(*words, folder=tmp_path, environment=environment)
    assert_equal_runs(tmp_path / "runs" / "tiny" / "version_0", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "hook", "call"),
    [(0, "on_before_backward", 5), (1, "on_before_backward", 5), (1, "on_validation_batch_end", 5)],
)
def test_two_ranks_stopped(rank, hook, call, whole, tmp_path):
    """Real processes, as Lightning starts them; the signal reaches one alone."""
    config, _ = whole("TransformerSeq2Seq")
    command = [sys.executable, "-m", "litseq", "fit", "-c", config, "--trainer.strategy=ddp"]
    command += ["--trainer.devices=2", "--trainer.limit_val_batches=2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    runs = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "stopped":
            words = ["--allow_import=processes", "--trainer.callbacks+=processes.Fault"]
            words += [f"--trainer.callbacks.hook={hook}", f"--trainer.callbacks.call={call}"]
            words += ["--trainer.callbacks.signal_name=SIGTERM", f"--trainer.callbacks.rank={rank}"]
            stopped = subprocess.run(
                [*command, *words], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert stopped.returncode == 143, stopped.stderr
        subprocess.run([*command, "--ckpt_path=last"], cwd=folder, check=True)
        runs.append(folder / "runs" / "tiny" / "version_0")
    assert_equal_runs(runs[1], runs[0])


def test_sigterm_is_no_success_without_a_callback_that_saves(whole, tmp_path):
    config, _ = whole("TransformerSeq2Seq")
    text = config.read_text()
    (tmp_path / "config.yaml").write_text(text[: text.index("    - class_path: litseq.RunC")])
    words = fault("on_train_batch_start", 5, "SIGTERM")
    assert run("fit", "-c", "config.yaml", *words, folder=tmp_path).status == 143


def curves(folder):
    """All points that TensorBoard shows of a run, and how many there are."""
    log = EventAccumulator(str(folder))
    log.Reload()
    points = [(tag, e.step, e.value) for tag in log.Tags()["scalars"] for e in log.Scalars(tag)]
    return set(points), len(points)


def test_tensorboard_goes_on(whole, tmp_path):
    text = whole("TransformerSeq2Seq")[0].read_text()
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("every_n_steps: 2", "every_n_steps: 0"))
    words = ("fit", "-c", config, "--ckpt_path=last", "--trainer.logger=TensorBoardLogger")
    words += ("--trainer.logger.save_dir=runs", "--trainer.logger.name=tiny")
    words += ("--trainer.val_check_interval=1.0",)
    found = []
    for name, hit in (("whole", ()), ("killed", fault("on_train_batch_start", 18))):
        folder = tmp_path / name
        folder.mkdir()
        assert run(*words, *hit, folder=folder).status == (-9 if hit else 0)
        if hit:
            assert run(*words, folder=folder).status == 0
        [run_folder] = (folder / "runs" / "tiny").iterdir()
        found.append(curves(run_folder))
    assert found[0][0] == found[1][0]
    assert found[1][1] <= found[0][1] + 7  # those of one step, once more
    assert found[0][1] > 90


def test_going_on_by_the_configuration_of_the_run(whole, tmp_path):
    config, uninterrupted = whole("TransformerSeq2Seq")
    words = fault("on_train_batch_start", 15, "SIGTERM")  # too late a call to come again
    first = run("fit", "-c", config, *words, folder=tmp_path)
    [command] = re.findall(r"to go on: litseq (.*)", first.output)
    other = run("fit", "-c", config, "--trainer.max_epochs=1", folder=tmp_path)  # a newer run
    assert other.status == 0, other.output
    second = run(*command.split(), folder=tmp_path)
    assert second.status == 0, second.output
    assert_equal_runs(tmp_path / "runs" / "tiny" / "version_0", uninterrupted)
