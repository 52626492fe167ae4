import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from command_line import error_of, litseq

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "fit": ("--ckpt_path", "--trainer.max_epochs", "--model.help", "--data.help", "--config"),
    "validate": ("--ckpt_path", "--trainer.limit_val_batches", "--config"),
    "test": ("--ckpt_path", "--trainer.limit_test_batches", "--config"),
    "predict": ("--ckpt_path", "--trainer.limit_predict_batches", "--config"),
    "translate": (
        "--ckpt",
        "--model",
        "--engine",
        "--input",
        "--output",
        "--format",
        "--n_best",
        "--beam_size",
        "--seed",
    ),
    "average": ("paths", "--output", "--last"),
    "export": ("--ckpt", "--output", "--to", "--quantization", "--input", "--references"),
    "completion": ("shell",),
    "selftest": ("--ckpt", "--input", "--device"),
    "import": ("folder", "--output", "--format", "--input"),
    "compare": (
        "paths",
        "--references",
        "--metrics",
        "--method",
        "--legacy",
        "--tgt_lang",
        "--json",
    ),
}


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def new_run(folder):
    [run] = (folder / "runs" / "tiny").iterdir()
    return run


def printed_config(*words):
    outcome = litseq(*words, "--print_config")
    assert outcome.status == 0, outcome.err
    return yaml.safe_load(outcome.out)


# ---- help ----


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command):
    outcome = litseq(command, "--help")
    assert outcome.status == 0
    for option in COMMANDS[command]:
        assert option in outcome.out
    assert f"litseq {command}" in outcome.out.replace("[options] ", "")
    assert not outcome.err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help(words):
    outcome = litseq(*words)
    assert outcome.status == 0
    for command in COMMANDS:
        assert command in outcome.out


@pytest.mark.parametrize("name", ["TransformerSeq2Seq", "RnnSeq2Seq", "RnnAttentionSeq2Seq"])
def test_help_of_a_model(name):
    outcome = litseq("fit", "--model.help", name)
    assert outcome.status == 0
    for option in ("--model.dropout", "--model.label_smoothing", "--model.beam_size"):
        assert option in outcome.out


def test_no_abbreviations(fitted):
    assert "did you mean 'trainer.max_epochs'?" in error_of(
        "fit", "-c", fitted.data, "-c", fitted.model, "--trainer.max_epoch", "1"
    )


# ---- fit ----


def test_fit_leaves_a_whole_run(fitted):
    assert files(fitted.run) == [
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
        "provenance.yaml",
        "samples.tsv",
        "val/hypotheses.txt",
        "val/references.txt",
        "val/scores.json",
        "val/sources.txt",
    ]
    assert {"train/loss", "train/lr", "train/grad_norm", "val/bleu", "val/nll"} <= set(
        lines(fitted.run / "metrics.csv")[0].split(",")
    )


def test_tensorboard_shows_all_that_it_can(elsewhere):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1")
    words += ("--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1")
    overlay = ROOT / "configs" / "logger" / "tensorboard.yaml"
    outcome = litseq("fit", "-c", ROOT / "configs" / "demo.yaml", "-c", overlay, *words)
    assert outcome.status == 0, outcome.err
    [folder] = (elsewhere / "lightning_logs" / "demo").iterdir()
    log = EventAccumulator(str(folder))
    log.Reload()
    tags = log.Tags()
    assert {"train/loss", "train/lr", "val/loss", "val/bleu"} <= set(tags["scalars"])
    assert any(tag.startswith("attention/") for tag in tags["images"])
    texts = {
        tag.removesuffix("/text_summary"): log.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in tags["tensors"]
    }
    assert "| hypothesis |" in texts["val/samples"]
    assert "vocab_size:" in texts["config"]
    assert texts["provenance"] == f"```yaml\n{(folder / 'provenance.yaml').read_text()}```"
    assert yaml.safe_load((folder / "provenance.yaml").read_text())["data"].keys() == {
        "train",
        "val",
    }


def test_fit_says_what_it_reads_and_where_it_writes(fitted):
    assert "train: 300 pairs, kept 300" in fitted.outcome.err
    assert "en-de: 300 training pairs" in fitted.outcome.err
    assert f"run folder: {os.path.join('runs', 'tiny', 'version_0')}" in fitted.outcome.out


def test_flags_override_files_and_later_files_override_earlier_ones(fitted):
    config = yaml.safe_load(fitted.config.read_text())
    assert config["trainer"]["max_epochs"] == 3
    assert config["model"]["init_args"]["d_model"] == 24
    assert config["data"]["init_args"]["vocab_size"] == 64


def test_files_are_merged_in_their_order(fitted, elsewhere):
    (elsewhere / "wide.yaml").write_text("model: {init_args: {d_model: 48}}\n")
    words = ("-c", fitted.data, "-c", fitted.model, "-c", elsewhere / "wide.yaml")
    config = printed_config("fit", *words, "--model.num_heads", "4")
    assert config["model"]["init_args"]["d_model"] == 48
    assert config["model"]["init_args"]["num_heads"] == 4
    assert config["model"]["init_args"]["dim_feedforward"] == 48


def test_the_saved_configuration_trains_again(fitted, elsewhere):
    assert litseq("fit", "-c", fitted.config).status == 0
    ours, theirs = fitted.run, new_run(elsewhere)
    assert lines(ours / "metrics.csv") == lines(theirs / "metrics.csv")
    assert (ours / "config.yaml").read_text() == (theirs / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["RnnSeq2Seq", "RnnAttentionSeq2Seq", "litseq.RnnSeq2Seq"])
def test_the_model_is_one_key(name, fitted, elsewhere):
    sizes = ("--model.embedding_dim", "8", "--model.hidden_size", "8")
    outcome = litseq("fit", "-c", fitted.data, "-c", fitted.model, "--model", name, *sizes)
    assert outcome.status == 0
    # what the other model does not know is left out without a word, what both know stays
    assert "d_model" not in outcome.err
    saved = torch.load(new_run(elsewhere) / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["litseq"]["class"].endswith(name.rpartition(".")[2])
    assert saved["hyper_parameters"]["warmup_steps"] == 10
    assert "d_model" not in saved["hyper_parameters"]


def test_the_model_is_one_key_of_a_file(fitted, elsewhere):
    (elsewhere / "rnn.yaml").write_text("model: {class_path: litseq.RnnSeq2Seq}\n")
    config = printed_config(
        "fit", "-c", fitted.data, "-c", fitted.model, "-c", elsewhere / "rnn.yaml"
    )
    assert config["model"]["class_path"] == "litseq.RnnSeq2Seq"
    assert config["model"]["init_args"]["lr"] == 0.02
    assert config["model"]["init_args"]["hidden_size"] == 512


def test_fit_goes_on_from_a_checkpoint(fitted, elsewhere):
    words = ("-c", fitted.data, "-c", fitted.model, "--ckpt_path", fitted.ckpt)
    assert litseq("fit", *words, "--trainer.max_epochs", "4").status == 0
    [header, *rows] = lines(new_run(elsewhere) / "metrics.csv")
    assert {row.split(",")[header.split(",").index("epoch")] for row in rows} == {"3"}
    before, after = (
        torch.load(path, weights_only=True)
        for path in (fitted.ckpt, new_run(elsewhere) / "checkpoints" / "last.ckpt")
    )
    assert after["global_step"] == before["global_step"] * 4 // 3


def test_fit_from_a_checkpoint_needs_no_model(fitted, elsewhere):
    words = ("-c", fitted.data, "--ckpt_path", fitted.ckpt)
    assert litseq("fit", *words, "--trainer.max_epochs", "4").status == 0


def test_a_second_run_has_its_own_folder(fitted, elsewhere):
    for _ in range(2):
        assert litseq("fit", "-c", fitted.data, "-c", fitted.model).status == 0
    first, second = sorted((elsewhere / "runs" / "tiny").iterdir())
    assert files(first) == files(second)


# ---- validate, test and predict ----


def test_test_with_the_configuration_of_the_run(fitted, elsewhere, corpus):
    outcome = litseq("test", "-c", fitted.config, "--ckpt_path", fitted.ckpt)
    assert outcome.status == 0, outcome.err
    folder = new_run(elsewhere) / "test"
    assert files(folder) == ["hypotheses.txt", "references.txt", "scores.json", "sources.txt"]
    assert lines(folder / "references.txt") == lines(corpus / "test.de")
    assert lines(folder / "sources.txt") == lines(corpus / "test.en")
    assert len(lines(folder / "hypotheses.txt")) == 30
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["split"] == "test"
    assert scores["num_sentences"] == 30
    assert scores["checkpoint"] == str(fitted.ckpt)
    assert "sacrebleu" in scores["signatures"]["bleu"] or "version" in scores["signatures"]["bleu"]
    assert not (new_run(elsewhere) / "config.yaml").exists()
    assert "BLEU" in outcome.out
    assert f"test outputs: {folder.relative_to(elsewhere)}" in outcome.out


def test_a_checkpoint_alone_suffices(copied, fitted, elsewhere, corpus):
    assert litseq("test", "--ckpt_path", copied).status == 0
    assert litseq("validate", f"--ckpt_path={copied}").status == 0
    assert litseq("predict", "--ckpt_path", copied).status == 0
    written = [f"test/{name}" for name in files(elsewhere / "copy" / "test")]
    assert files(elsewhere) == sorted(
        [
            "copy/checkpoints/best.ckpt",
            "copy/predictions.jsonl",
            "copy/predictions.txt",
            *(f"copy/{name}" for name in written),
            *(f"copy/val/{name}" for name in files(elsewhere / "copy" / "val")),
        ]
    )
    assert lines(elsewhere / "copy/test/references.txt") == lines(corpus / "test.de")
    assert lines(elsewhere / "copy/val/references.txt") == lines(corpus / "val.de")
    # the validation of the last epoch again, from the file
    assert lines(elsewhere / "copy/val/hypotheses.txt") == lines(fitted.run / "val/hypotheses.txt")


def test_predict_keeps_the_order(copied, elsewhere, corpus):
    words = ("--data.predict", corpus / "train.en", "--data.max_tokens", "60")
    assert litseq("predict", "--ckpt_path", copied, *words).status == 0
    records = [json.loads(line) for line in lines(elsewhere / "copy/predictions.jsonl")]
    assert [record["id"] for record in records] == list(range(300))
    assert [record["source"] for record in records] == lines(corpus / "train.en")
    assert [record["text"] for record in records] == lines(elsewhere / "copy/predictions.txt")


def test_predict_aligns_words(copied, elsewhere):
    assert litseq("predict", "--ckpt_path", copied).status == 0
    plain = (elsewhere / "copy/predictions.txt").read_text()
    assert not (elsewhere / "copy/predictions.align").exists()
    outcome = litseq("predict", "--ckpt_path", copied, "--model.alignment", "true")
    assert outcome.status == 0
    assert "predictions.align" in outcome.out
    records = [json.loads(line) for line in lines(elsewhere / "copy/predictions.jsonl")]
    assert lines(elsewhere / "copy/predictions.align") == [r["alignment"] for r in records]
    assert all(r["src_words"] == r["source"].split() for r in records)
    assert (elsewhere / "copy/predictions.txt").read_text() == plain


def test_other_data_come_by_flags(copied, elsewhere, corpus):
    words = ("--data.test", corpus / "val", "--model.beam_size", "1")
    assert litseq("test", "--ckpt_path", copied, *words).status == 0
    assert lines(elsewhere / "copy/test/references.txt") == lines(corpus / "val.de")


def test_the_tokenizer_is_the_checkpoints(copied, fitted, elsewhere, corpus):
    # these texts alone would give another vocabulary, and not one of this size
    for side in ("en", "de"):
        shutil.copy(corpus / f"val.{side}", elsewhere / f"train.{side}")
    (elsewhere / "other.yaml").write_text(
        f"data:\n  init_args: {{train: {elsewhere}/train, tokenizer: null, vocab_size: 40}}\n"
    )
    words = ("-c", fitted.config, "-c", elsewhere / "other.yaml", "--trainer.logger", "false")
    assert litseq("test", "--ckpt_path", copied, *words).status == 0


def test_a_tokenizer_that_was_loaded_is_in_the_checkpoint(fitted, elsewhere, corpus):
    from litseq.data import TranslationTokenizer

    TranslationTokenizer.load(fitted.ckpt).save(elsewhere / "tokenizer")
    words = ("-c", fitted.data, "-c", fitted.model, "--data.tokenizer", "tokenizer")
    assert litseq("fit", *words).status == 0
    shutil.rmtree(elsewhere / "tokenizer")
    ckpt = new_run(elsewhere) / "checkpoints" / "last.ckpt"
    assert litseq("test", "--ckpt_path", ckpt).status == 0


def test_files_and_flags_override_the_checkpoint(copied, elsewhere):
    said = printed_config("test", "--ckpt_path", copied)["model"]["init_args"]
    assert (said["d_model"], said["beam_size"], said["max_len_b"]) == (24, 4, 5)
    (elsewhere / "search.yaml").write_text("model: {init_args: {beam_size: 3, max_len_b: 9}}\n")
    words = ("-c", elsewhere / "search.yaml", "--model.beam_size", "1")
    said = printed_config("test", "--ckpt_path", copied, *words)["model"]["init_args"]
    assert (said["d_model"], said["beam_size"], said["max_len_b"]) == (24, 1, 9)


def test_a_printed_configuration_works(copied, elsewhere):
    outcome = litseq("test", "--ckpt_path", copied, "--print_config")
    (elsewhere / "printed.yaml").write_text(outcome.out)
    assert litseq("test", "-c", elsewhere / "printed.yaml", "--ckpt_path", copied).status == 0
    assert (elsewhere / "copy/test/scores.json").exists()


def test_an_untrained_model_is_mentioned(fitted, elsewhere):
    outcome = litseq("test", "-c", fitted.data, "-c", fitted.model)
    assert outcome.status == 0
    assert "no --ckpt_path is given: the model is untrained." in outcome.err


# ---- parts of the user's own ----

OWN = """
from litseq import TransformerSeq2Seq, TranslationDataModule

class OwnSeq2Seq(TransformerSeq2Seq):
    '''One of the user's own.'''

class OwnData(TranslationDataModule):
    '''One of the user's own.'''

    def train_dataloader(self):
        raise KeyError("a bug")

class Picky(TransformerSeq2Seq):
    '''With a bug in its constructor.'''

    def __init__(self, *, num_tries: int = 1, **options):
        super().__init__(**options)
        len(num_tries)
"""


@pytest.fixture
def own(elsewhere, monkeypatch):
    """A module of the user's own, under a name that no other test imports."""
    (elsewhere / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(elsewhere)
    yield "own_parts"
    sys.modules.pop("own_parts", None)


def test_own_classes(own, fitted, elsewhere):
    name = f"{own}.OwnSeq2Seq"
    (elsewhere / "own.yaml").write_text(
        fitted.model.read_text().replace("TransformerSeq2Seq", name)
    )
    # as a run with that class has written it; nothing has imported the class in this process
    checkpoint = torch.load(fitted.ckpt, weights_only=True)
    checkpoint["litseq"]["class"] = name
    torch.save(checkpoint, elsewhere / "own.ckpt")
    assert error_of("test", "--ckpt_path", "own.ckpt") == (
        f"the checkpoint is a {name}, which is no imported Seq2Seq; import its module first, on "
        f"the command line by --allow_import {own}."
    )
    # which is enough: the checkpoint says the rest
    assert litseq("test", "--ckpt_path", "own.ckpt", "--allow_import", own).status == 0
    out = litseq("translate", "--ckpt", "own.ckpt", "--allow_import", own, stdin=b"two\n").out
    assert out.count("\n") == 1
    for module, said in (
        ("nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        (f"{own}.nothing", f"ModuleNotFoundError: No module named '{own}.nothing'; '{own}' is not"),
    ):
        words = ("--ckpt", "own.ckpt", "--allow_import", module)
        assert error_of("translate", *words, stdin=b"two\n").startswith(
            f"--allow_import {module}: {said}"
        )
    words = ("-c", fitted.data, "-c", "own.yaml", "--allow_import", own)
    assert litseq("test", *words, "--ckpt_path", "own.ckpt").status == 0
    assert litseq("fit", *words).status == 0
    saved = torch.load(elsewhere / "runs/tiny/version_1/checkpoints/last.ckpt", weights_only=True)
    assert saved["litseq"]["class"] == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Model(\n", "'(' was never closed (faulty_part.py, line 1)"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("import os\nos.nothing\n", "module 'os' has no attribute 'nothing'"),
    ],
)
def test_faulty_files_of_own_classes(text, message, fitted, elsewhere, monkeypatch):
    (elsewhere / "faulty_part.py").write_text(text)
    monkeypatch.syspath_prepend(elsewhere)
    words = ("-c", fitted.data, "--allow_import=faulty_part")
    found = error_of("fit", *words, "--model", "faulty_part.Model")
    assert found.startswith("--model: ")
    assert found.endswith(f"{message}; LITSEQ_TRACEBACK=1 says more.")


def test_bugs_keep_their_traceback(own, fitted, elsewhere):
    words = ("-c", fitted.data, "-c", fitted.model, "--allow_import", own)
    with pytest.raises(KeyError, match="a bug"):
        litseq("fit", *words, "--data", f"{own}.OwnData")
    with pytest.raises(TypeError, match="has no len"):
        litseq("fit", *words, "--model", f"{own}.Picky")


def test_tracebacks_on_request(fitted, elsewhere, monkeypatch):
    monkeypatch.setenv("LITSEQ_TRACEBACK", "1")
    words = ("-c", fitted.data, "-c", fitted.model)
    with pytest.raises(ValueError, match="Does not validate"):
        litseq("fit", *words, "--model.beam_size", "0")
    with pytest.raises(FileNotFoundError):
        litseq("fit", *words, "--data.train", "nowhere")


# ---- as a program of its own ----


def test_an_error_of_a_program(fitted, elsewhere):
    words = ("-c", fitted.data, "-c", fitted.model, "--model.d_model", "14")
    command = [sys.executable, "-m", "litseq", "fit", *map(str, words)]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert "Traceback" not in outcome.stderr
    found = [line for line in outcome.stderr.splitlines() if "error" in line.lower()]
    assert found == [
        "litseq: error: d_model must be divisible by num_heads, got d_model=14, num_heads=3; "
        "choose num_heads among the divisors of d_model."
    ]
    assert outcome.stderr.splitlines()[-1:] == found
    assert not list((elsewhere / "runs" / "tiny").iterdir())
