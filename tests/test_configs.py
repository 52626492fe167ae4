"""Every YAML file below configs/ runs; a new one is found by itself."""

import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from litseq.cli import Seq2SeqCLI, main

ROOT = Path(__file__).parents[1]
FILES = {
    str(path.relative_to(ROOT)): path
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if path.parent.name != "sweeps"  # W&B's, not ours: test_sweeps.py
}
CONTENTS = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
EXPERIMENTS = [
    name
    for name, content in CONTENTS.items()
    if "class_path" in content.get("model", {}) and "data" in content
]
OVERLAYS = [name for name in FILES if name not in EXPERIMENTS]


def from_hub(name):
    return CONTENTS[name]["data"]["init_args"].get("dataset", "demo") != "demo"


HUB = [name for name in EXPERIMENTS if from_hub(name)]
LARGE = [name for name in EXPERIMENTS if name.startswith("configs/paper/")]

# What a test cannot wait for: sizes of models that are meant for an accelerator
SHRUNK = {
    "litseq.TransformerSeq2Seq": {"d_model": 64, "num_heads": 4, "dim_feedforward": 128},
    "litseq.RnnAttentionSeq2Seq": {"embedding_dim": 31, "hidden_size": 64},
    "litseq.RnnSeq2Seq": {"embedding_dim": 31, "hidden_size": 64},
}

# One step and one validation, with everything that a run leaves behind; fast_dev_run leaves nothing
SHORT = {
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 1,
    "trainer.limit_val_batches": 1,
    "trainer.val_check_interval": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "model.max_len_a": 0.0,  # a model that knows nothing never ends
    "model.max_len_b": 5,
}

TINY = """
model:
  class_path: litseq.TransformerSeq2Seq
  init_args: {d_model: 12, num_heads: 3, num_encoder_layers: 1, num_decoder_layers: 1,
              dim_feedforward: 24}
trainer:
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: lightning_logs, name: tiny}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/bleu, mode: max}
    - class_path: litseq.TranslationSamples
"""


def flags(options):
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture(autouse=True)
def no_traces(elsewhere, monkeypatch):
    """Runs write below the working folder; what they leave in the process goes too."""
    monkeypatch.setattr(sys, "argv", ["litseq"])
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def our_data(data_options):
    """Makes flags that put the tiny corpus in place of an experiment's data."""

    def make(options):
        vocab_size = 16 if options.get("model_type") == "word" else 64
        if options.get("byte_fallback"):
            vocab_size = 300  # 256 bytes, characters and a few words
        ours = data_options | {"vocab_size": vocab_size, "num_workers": 0}
        ours |= dict.fromkeys(("dataset", "dataset_config"), "null")
        return flags({f"data.{name}": value for name, value in ours.items()})

    return make


def test_they_are_found():
    assert len(FILES) > 10
    assert HUB
    assert OVERLAYS
    assert set(HUB) < set(LARGE) < set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_run(name, our_data, tmp_path):
    data, small = our_data(CONTENTS[name]["data"]["init_args"]), {}
    if name in LARGE:
        sizes = SHRUNK[CONTENTS[name]["model"]["class_path"]]
        small = {f"model.{key}": value for key, value in sizes.items()}
    main(["fit", "-c", str(FILES[name]), *data, *flags(SHORT | small)])

    (run,) = (tmp_path / "lightning_logs").glob("*/version_0")
    left = ["config.yaml", "metrics.csv"]
    if CONTENTS[name]["model"]["init_args"].get("val_decode", True):
        left += ["samples.tsv", "val/scores.json"]
    for file in left:
        assert (run / file).is_file(), file
    checkpoints = list((run / "checkpoints").rglob("*.ckpt"))
    assert checkpoints
    assert all(path.parent.name == "checkpoints" for path in checkpoints), "a slash in the name"


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_run_on_top_of_an_experiment(
    name, our_data, tmp_path, monkeypatch, offline_wandb, capsys
):
    trainer = CONTENTS[name].get("trainer", {})
    logger = trainer.get("logger", {}).get("class_path", "")
    if "TensorBoard" in logger and not (
        importlib.util.find_spec("tensorboard") or importlib.util.find_spec("tensorboardX")
    ):
        pytest.skip("tensorboard is not installed")
    Path("tiny.yaml").write_text(TINY)
    words = ["fit", "-c", "tiny.yaml", "-c", str(FILES[name]), *our_data({}), *flags(SHORT)]
    if trainer.get("precision") == "16-mixed":  # for GPUs alone
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert "16-mixed" in capsys.readouterr().err
        return
    main(words)

    below = "*/*" if "Wandb" in logger else "tiny/version_0"
    (run,) = (path for path in (tmp_path / "lightning_logs").glob(f"{below}/config.yaml"))
    saved = yaml.safe_load(run.read_text())
    for option, value in trainer.items():
        if option == "callbacks+":
            added = [callback["class_path"] for callback in value]
            named = [callback["class_path"] for callback in saved["trainer"]["callbacks"]]
            assert named[-len(added) :] == added
            assert len(named) > len(added), "they replace those of the experiment"
        elif isinstance(value, dict) and option != "logger":  # a class; it has more arguments
            assert saved["trainer"][option]["class_path"] == value["class_path"]
            assert saved["trainer"][option]["init_args"].items() >= value["init_args"].items()
        elif f"trainer.{option}" not in SHORT and option != "logger":
            assert saved["trainer"][option] == value
    for option, value in CONTENTS[name].get("model", {}).get("init_args", {}).items():
        assert saved["model"]["init_args"][option] == value


class Stopped(Exception):
    """Carries the CLI out of a command that is about to run."""


class StoppingCLI(Seq2SeqCLI):
    def before_fit(self):
        raise Stopped(self)


def instantiate(name):
    """The model of an experiment, its trainer and its data's options; reads and fetches nothing."""
    with pytest.raises(Stopped) as stopped:
        StoppingCLI(["fit", "-c", str(FILES[name]), "--trainer.accelerator=cpu"])
    (cli,) = stopped.value.args
    return cli.model, cli.trainer, cli.config["fit"].data.init_args


def num_parameters(name):
    model, _, data = instantiate(name)
    vocab_size = data["vocab_size"]
    with torch.device("meta"):
        network = model.build_network(vocab_size, None if data["shared_vocab"] else vocab_size)
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", HUB)
def test_experiments_on_hub_data_have_a_model(name):
    assert num_parameters(name) > 50e6


@pytest.mark.parametrize("corpus", ["multi30k", "tatoeba"])
def test_the_recurrent_models_are_of_one_size(corpus):
    """Attention is not to win by its parameters: within a tenth."""
    sizes = [num_parameters(f"configs/{corpus}/{kind}.yaml") for kind in ("rnn", "rnn_attention")]
    assert max(sizes) <= 1.1 * min(sizes)


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_how_to_run_it(name):
    first = FILES[name].read_text(encoding="utf-8").split("\n")[0]
    assert first.startswith("# litseq fit -c ")
    words = shlex.split(first[2:])
    named = [words[i + 1] for i, word in enumerate(words) if word == "-c"]
    assert name in named
    for path in named:
        assert path in FILES or path == "RUN/config.yaml", path


@pytest.mark.parametrize("name", FILES)
def test_nothing_in_it_belongs_to_one_machine_or_person(name):
    text = FILES[name].read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.:/}])(/[A-Za-z]|~/|[A-Z]:\\)(?!roc/cpuinfo)", text), "a path"
    assert not re.search(r"(?i)(api_?key|password|secret|token) *: *\S", text)
    assert not re.search(r"\b(hf_\w{20,}|[0-9a-f]{32,})\b", text), "looks like a key"
    assert len(max(text.split("\n"), key=len)) <= 120
