"""What is wrong must be said in one line, with the place, the value and the remedy."""

import json
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule

from bad_inputs_tried.case import World, run
from bad_inputs_tried.table import CASES
from command_line import error_of, litseq
from litseq import Seq2Seq


def left_behind(folder):
    """Files that a failed command wrote, and folders of runs that it began."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() or re.fullmatch(r"version_\d+", path.name)
    ]


@pytest.fixture
def fit(fitted, elsewhere):
    """Fits with further words, which must fail and leave nothing, and gives the message."""

    def run(*words):
        message = error_of("fit", "-c", fitted.data, "-c", fitted.model, *words)
        assert not left_behind(elsewhere)
        return message

    return run


@pytest.fixture
def resume(fitted, elsewhere):
    """Tests a checkpoint that must be refused, before anything is written."""

    def run(ckpt, *words, command="test"):
        message = error_of(command, "-c", fitted.data, "--ckpt_path", ckpt, *words)
        assert not left_behind(elsewhere)
        return message

    return run


# ---- the table ----


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("bad") / "world")


def as_parameter(case):
    # whole trainings, and options, whose checks have tests of their own
    slow = case.group == "option" or (case.words.startswith("fit") and not case.expect)
    slow |= case.name in ("bomb.jsonl.gz", "deep", "hub")
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(case, id=f"{case.group}-{case.name[:40]}", marks=marks)


@pytest.mark.parametrize("case", map(as_parameter, CASES))
def test_bad_inputs(case, world, tmp_path):
    run(case, world, tmp_path)


def test_the_table_is_the_one_of_the_documentation():
    docs = Path(__file__).parents[1] / "docs"
    results = json.loads((docs / "results" / "bad_inputs.json").read_text(encoding="utf-8"))
    assert [(row["group"], row["name"]) for row in results["cases"]] == [
        (case.group, case.name) for case in CASES
    ]
    page = (docs / "bad-input.md").read_text(encoding="utf-8")
    assert f"| {len(CASES)} |" in page
    assert len(CASES) == len({(case.group, case.name) for case in CASES}) >= 80


# ---- texts ----


def test_long_lines_are_counted(corpus, fitted, elsewhere):
    for lang in ("en", "de"):
        text = (corpus / f"train.{lang}").read_text(encoding="utf-8")
        (elsewhere / f"long.{lang}").write_text(text + ("one two three four " * 6 + "\n") * 3)
    words = ("-c", fitted.data, "-c", fitted.model, "--data.train", "long", "--data.val", "long")
    outcome = litseq("fit", *words, "--data.max_chars", "100", "--data.max_src_len", "12")
    assert outcome.status == 0
    kept = re.search(
        r"train: 303 pairs, kept (\d+): 3 longer than 100 characters, (\d+) longer than 12 or 256 "
        r"tokens",
        outcome.err,
    )
    assert int(kept[1]) + 3 + int(kept[2]) == 303
    assert re.search(r"val: 3 sources cut to 100 characters, \d+ sources cut to 12", outcome.err)


def test_sources_of_unknown_characters(copied, elsewhere):
    (elsewhere / "in.en").write_text("one dog\n犬\n猫 犬\n", encoding="utf-8")
    outcome = litseq("predict", "--ckpt_path", copied, "--data.predict", elsewhere / "in.en")
    assert outcome.status == 0
    assert "predict: 2 sources of unknown characters alone." in outcome.err


# ---- names and types ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--trainer.max_epoch 3", "--trainer.max_epoch: unknown key 'max_epoch'; did you mean "
         "'trainer.max_epochs'?"),
        ("--trainer.beam_size 3", "--trainer.beam_size: unknown key 'beam_size'; did you mean "
         "'model.beam_size'?"),
        ("--model.d_modl 3", "--model.d_modl: unknown key 'd_modl' of TransformerSeq2Seq; did you "
         "mean 'd_model'?"),
        ("--data.max_tokns=3", "--data.max_tokns: unknown key 'max_tokns' of "
         "TranslationDataModule; did you mean 'max_tokens'?"),
        ("--colour red", "--colour: unknown key 'colour'; 'litseq fit --help' lists the keys."),
        ("more", "unexpected word 'more'; 'litseq fit --help' lists the options."),
        ("--trainer.max_epochs", "--trainer.max_epochs needs a value; 'litseq fit --help' says "
         "which."),
        ("--trainer.max_epochs many", "--trainer.max_epochs: max_epochs must be int or null, got "
         "'many'."),
        ("--model.d_model 2.5", "--model.d_model: d_model must be int, got '2.5'."),
        ("--model.schedule cosin", "--model.schedule: schedule must be one of 'inverse_sqrt', "
         "'linear', 'cosine', 'constant', got 'cosin'."),
        ("--model.betas [0.9]", "--model.betas: betas must be a tuple with 2 elements, got "
         "'[0.9]'."),
        ("--model TransformrSeq2Seq", "--model: there is no class 'TransformrSeq2Seq'; did you "
         "mean 'litseq.TransformerSeq2Seq'? A class of your own needs its full path, and its "
         "package must be importable."),
        ("--allow_import no --model no.where.Model", "--model: there is no class "
         "'no.where.Model'; a class of your own needs its full path, and its package must be "
         "importable."),
        ("--model litseq.Transformer", "--model: model must be a subclass of Seq2Seq or null, got "
         "'litseq.Transformer'."),
        ("--data TranslationModule", "--data: there is no class 'TranslationModule'; did you mean "
         "'litseq.TranslationDataModule'? A class of your own needs its full path, and its "
         "package must be importable."),
        ("--trainer.callbacks EarlyStoping", "--trainer.callbacks: there is no class "
         "'EarlyStoping'; did you mean 'lightning.pytorch.callbacks.EarlyStopping'? A class of "
         "your own needs its full path, and its package must be importable."),
        ("--trainer.callbacks litseq.TranslationSamples --trainer.callbacks.num_samples 0",
         "num_samples must be at least 1, got 0."),
    ],
)  # fmt: skip
def test_words(words, message, fit):
    assert fit(*words.split()) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n  max_epoch: 3\n", "bad.yaml, line 2: unknown key 'max_epoch'; did you mean "
         "'trainer.max_epochs'?"),
        ("modl:\n  class_path: X\n", "bad.yaml, line 1: unknown key 'modl'; did you mean 'model'?"),
        ("# two\n\nmodel:\n  init_args:\n    d_modl: 3\n", "bad.yaml, line 5: unknown key "
         "'d_modl' of TransformerSeq2Seq; did you mean 'd_model'?"),
        ("model: {init_args: {d_model: wide}}\n", "bad.yaml, line 1: d_model must be int, got "
         "'wide'."),
        ("model: [1]\n", "bad.yaml, line 1: model must be a subclass of Seq2Seq or null, got "
         "'[1]'."),
        ("model:\n  class_path: RnSeq2Seq\n", "bad.yaml, line 2: there is no class 'RnSeq2Seq'; "
         "did you mean 'litseq.RnnSeq2Seq'? A class of your own needs its full path, and its "
         "package must be importable."),
        ("trainer:\n  callbacks:\n  - class_path: litseq.TranslationSample\n", "bad.yaml, line 3: "
         "there is no class 'litseq.TranslationSample'; did you mean "
         "'litseq.TranslationSamples'? A class of your own needs its full path, and its package "
         "must be importable."),
    ],
)  # fmt: skip
def test_files(text, message, fitted, elsewhere):
    (elsewhere / "bad.yaml").write_text(text)
    words = ("-c", fitted.data, "-c", fitted.model, "-c", "bad.yaml")
    assert error_of("fit", *words) == message
    assert left_behind(elsewhere) == [elsewhere / "bad.yaml"]


def test_a_file_in_another_folder_is_named_as_given(fitted, elsewhere):
    # jsonargparse reads it from within its folder
    (elsewhere / "sub").mkdir()
    (elsewhere / "sub" / "bad.yaml").write_text("model: {init_args: {d_model: wide}}\n")
    words = ("-c", fitted.data, "-c", fitted.model, "-c", "sub/bad.yaml")
    assert error_of("fit", *words).startswith("sub/bad.yaml, line 1: d_model must be int")


def test_no_model(fitted, elsewhere):
    ours = {"RnnAttentionSeq2Seq", "RnnSeq2Seq", "TransformerSeq2Seq"}
    loaded = {cls.__name__ for cls in Seq2Seq.__subclasses__() if "litseq." not in cls.__module__}
    models = " | ".join(sorted(ours | loaded))  # other tests in this process have their own
    expected = f"no model given; name a configuration with -c, or --model {models}."
    assert error_of("fit") == expected
    assert error_of("fit", "-c", fitted.data, "--model.lr", "1") == expected


# ---- checkpoints ----


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_named_in_a_file(command, fitted, elsewhere):
    torch.save({"state_dict": {}}, elsewhere / "foreign.ckpt")
    (elsewhere / "resume.yaml").write_text("ckpt_path: foreign.ckpt\n")
    words = ("-c", fitted.data, "-c", fitted.model, "-c", "resume.yaml")
    assert "foreign.ckpt was not written by litseq" in error_of(command, *words)
    assert len(left_behind(elsewhere)) == 2


def test_a_folder_for_a_checkpoint(fitted, resume):
    folder = fitted.ckpt.parent
    expected = f"{folder} is a folder (with best.ckpt, last.ckpt); give a checkpoint file."
    assert resume(folder) == expected
    assert error_of("translate", "--ckpt", folder) == expected


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_of_another_model(command, fitted, resume):
    assert resume(fitted.ckpt, "--model", "RnnSeq2Seq", command=command) == (
        "the checkpoint is a TransformerSeq2Seq, the model is a RnnSeq2Seq; choose the model of "
        "the checkpoint or another checkpoint."
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "d_model",
            "36",
            r"does not fit the model: network\.\S+ is \(\d.*\) in the checkpoint and",
        ),
        ("num_encoder_layers", "2", r"network\.encoder_layers\.1\S+ is absent in the checkpoint"),
        ("num_decoder_layers", "3", r"network\.decoder_layers\.\d\S+ is absent in the checkpoint"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_of_another_size(command, option, value, message, fitted, resume):
    assert re.search(message, resume(fitted.ckpt, f"--model.{option}", value, command=command))


def test_a_checkpoint_of_another_vocabulary(fitted, resume):
    message = resume(fitted.ckpt, "--data.vocab_size", "50", command="fit")
    assert re.match(r"vocab_size is 64 but the tokenizer \(sha256 \w{12}\) has 50; leave", message)


def test_a_checkpoint_of_another_tokenizer_of_the_same_size(fitted, resume, corpus, elsewhere):
    words = ("--data.character_coverage", "0.99", "--data.user_symbols", "[<x>]")
    message = resume(fitted.ckpt, *words, command="fit")
    assert re.match(
        r"the (data's|checkpoint's) tokenizer .* is not the (checkpoint's|DataModule's)", message
    )
    assert re.search(r"tokenizer'? to the checkpoint", message)


# ---- workers ----


class Failing(LightningDataModule):
    """Its examples cannot be read, as only a worker process finds out."""

    def train_dataloader(self):
        class Broken(torch.utils.data.Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                raise ValueError(f"example {index} is broken;\n  mend it.")

        return torch.utils.data.DataLoader(Broken(), num_workers=1)


def test_an_error_of_a_worker_is_one_line(fitted, elsewhere):
    words = ("-c", fitted.data, "-c", fitted.model, "--model.vocab_size", "23")
    own = ("--allow_import", __name__, "--data", f"{__name__}.Failing")
    message = error_of("fit", *words, *own)
    assert message == "example 0 is broken; mend it."
