"""What is wrong must be said in one line, with the place, the value and the remedy."""

import os
import pickle
import re
import zipfile

import pytest
import torch
from lightning.pytorch import LightningDataModule

from command_line import error_of, litseq


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


# ---- texts ----


@pytest.fixture(scope="module")
def bad(corpus, tmp_path_factory):
    """Faulty copies of the corpus."""
    folder = tmp_path_factory.mktemp("bad")
    en, de = ((corpus / f"train.{lang}").read_bytes() for lang in ("en", "de"))
    long = b"one two three four five six " * 4 + b"\n"
    pairs = {
        "unequal": (en, de + "übrig\n".encode()),
        "empty": (b"", b""),
        "latin": (en + b"caf\xe9\n", de + b"x\n"),
        "nul": (en, de[:-1] + b"\0\n"),
        "utf16": (en.decode().encode("utf-16"), de),
        "blank": (b"\n" * 30, b"\n" * 30),
        "long": (en + long * 3, de + long * 3),
        "lonely": (en, None),
    }
    for name, texts in pairs.items():
        for lang, text in zip(("en", "de"), texts, strict=True):
            if text is not None:
                (folder / f"{name}.{lang}").write_bytes(text)
    (folder / "folder.en").mkdir()
    (folder / "folder.de").write_bytes(de)
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unequal", r"unequal\.en has 300 lines and .*unequal\.de has 301; line N of one must"),
        ("empty", r"empty\.en, .*empty\.de: 0 pairs; there is nothing to read"),
        ("latin", r"latin\.en:301: byte 4 of the line is 0xe9, which is not UTF-8; convert the"),
        ("nul", r"nul\.de:300: byte \d+ of the line is NUL; remove it"),
        ("utf16", r"utf16\.en looks like UTF-16; convert it to UTF-8"),
        ("blank", r"the en and de training text is empty: there is nothing to train"),
        ("folder", r"folder\.en is a directory; give a file, or the prefix of text files"),
        ("lonely", r"lonely\.de is missing, with and without \.gz; nearest: lonely\.en"),
        ("lonly", r"lonly\.en is missing, with and without \.gz; nearest: lonely\.en"),
        ("no/where", r"no/where\.en is missing: there is no folder .*/no\."),
        ("", r" is a directory; give a file, or the prefix of text files"),
    ],
)
def test_texts(name, message, bad, fit):
    assert re.search(message, fit("--data.train", bad / name))


@pytest.mark.parametrize("split", ["val", "test"])
def test_texts_for_later_show_before_training(split, bad, fit):
    assert "has 300 lines" in fit(f"--data.{split}", bad / "unequal")
    assert "is missing" in fit(f"--data.{split}", bad / "nothing")


def test_long_lines_are_counted(bad, fitted, elsewhere):
    words = ("-c", fitted.data, "-c", fitted.model, "--trainer.max_epochs", "1")
    limits = ("--data.max_chars", "100", "--data.max_src_len", "12")
    outcome = litseq(
        "fit", *words, *limits, "--data.train", bad / "long", "--data.val", bad / "long"
    )
    assert outcome.status == 0
    kept = re.search(
        r"train: 303 pairs, kept (\d+): 3 longer than 100 characters, (\d+) longer than 12 or 256 "
        r"tokens",
        outcome.err,
    )
    assert int(kept[1]) + 3 + int(kept[2]) == 303
    assert re.search(r"val: 3 sources cut to 100 characters, \d+ sources cut to 12", outcome.err)


def test_every_pair_filtered_away(fit):
    message = fit("--data.max_chars", "2")
    assert message == "no training pair is left: 300 pairs, kept 0: 300 longer than 2 characters."


def test_sources_of_unknown_characters(copied, elsewhere):
    (elsewhere / "in.en").write_text("one dog\n犬\n猫 犬\n", encoding="utf-8")
    outcome = litseq("predict", "--ckpt_path", copied, "--data.predict", elsewhere / "in.en")
    assert outcome.status == 0
    assert "predict: 2 sources of unknown characters alone." in outcome.err


# ---- numbers ----


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("vocab_size", "50000", r"vocab_size=50000 is too large for the en and de .* at most \d+"),
        ("vocab_size", "5", r"vocab_size=5 is smaller than the \d+ single characters"),
        ("vocab_size", "0", "vocab_size must be at least 1, got 0"),
        ("max_tokens", "0", "max_tokens must be at least 1, got 0"),
        ("eval_max_tokens", "-5", "eval_max_tokens must be at least 1, got -5"),
        ("max_sentences", "0", "max_sentences must be at least 1, got 0"),
        ("max_src_len", "1", "max_src_len and max_tgt_len count EOS and must be at least 2"),
        ("max_length_ratio", "0.5", r"max_length_ratio must be at least 1, got 0\.5"),
        ("max_chars", "0", "max_chars must be at least 1, got 0"),
        ("num_workers", "-1", "num_workers must be at least 0, got -1"),
        ("num_proc", "0", "num_proc must be at least 1, got 0"),
        ("seed", "-1", "seed must be at least 0, got -1"),
        ("subword_sampling", "-0.1", r"subword_sampling must be at least 0, got -0\.1"),
        ("subword_sampling", "2", r"subword_sampling is a probability .* got 2\.0; 0\.1 is usual"),
        ("character_coverage", "2", r"character_coverage must lie between 0\.98 and 1, got 2\.0"),
        ("src_lang", "../x", r"src_lang must be letters, .* got '\.\./x'"),
        ("tokenizer", "nowhere.model", r"no tokenizer at nowhere\.model; give a folder, a"),
        ("val_size", "3", "not both"),
    ],
)
def test_options_of_the_data(option, value, message, fit):
    assert re.search(message, fit(f"--data.{option}", value))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("d_model=0", "d_model must be at least 1, got 0"),
        ("d_model=-12", "d_model must be at least 1, got -12"),
        ("d_model=13", "d_model must be even for sinusoidal positions, got 13"),
        ("d_model=14", "d_model must be divisible by num_heads, got d_model=14, num_heads=3"),
        ("num_heads=0", "d_model must be divisible by num_heads, got d_model=24, num_heads=0"),
        ("num_encoder_layers=-1", "num_encoder_layers must be at least 1, got -1"),
        ("num_decoder_layers=0", "num_decoder_layers must be at least 1, got 0"),
        ("dim_feedforward=-3", "dim_feedforward must be at least 1, got -3"),
        ("dropout=2", r"dropout must be in \[0, 1\), got 2\.0"),
        ("attention_dropout=2", r"dropout on attention weights must be in \[0, 1\), got 2\.0"),
        ("max_positions=0", "max_positions must be at least 1, got 0"),
        ("vocab_size=0", r"vocab_size is 0 but the tokenizer \(sha256 \w+\) has 64; leave"),
        ("label_smoothing=2", r"label_smoothing must be at least 0 and below 1, got 2\.0"),
        ("lr=-1", r"Invalid learning rate: -1\.0"),
        ("weight_decay=-1", r"Invalid weight_decay value: -1\.0"),
        ("warmup_steps=-1", "warmup_steps must be at least 0, got -1"),
        ("beam_size=0", "beam_size must be at least 1, got 0; 1 is greedy search"),
        ("n_best=9", "n_best must lie between 1 and beam_size, got n_best=9, beam_size=4"),
        ("max_len_b=-1", "max_len_b must be a number of at least 0, got -1"),
        ("length_penalty=-1", r"length_penalty must be a number of at least 0, got -1\.0"),
    ],
)
def test_options_of_the_model(words, message, fit):
    assert re.search(message, fit(*f"--model.{words}".split("=")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hidden_size=0", "hidden_size must be at least 1, got 0"),
        ("embedding_dim=-4", "embedding_dim must be at least 1, got -4"),
        ("num_layers=0", "num_layers must be at least 1, got 0"),
        ("dropout=1.5", r"dropout must be in \[0, 1\), got 1\.5"),
        ("tie_output=true", "tie_output needs embedding_dim == hidden_size, got 256 and 512"),
        ("score=dot", "score 'dot' compares vectors of one size, got .* 512 and .* 1024"),
    ],
)
def test_options_of_a_recurrent_model(words, message, fit):
    option, value = words.split("=")
    assert re.search(message, fit("--model", "RnnAttentionSeq2Seq", f"--model.{option}", value))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.schedule cosine --trainer.max_epochs -1", "cosine schedule needs the number of"),
        ("--trainer.max_epochs -5", "`max_epochs` must be a non-negative integer or -1"),
        ("--trainer.accelerator magic", "invalid accelerator name: `accelerator='magic'`"),
        ("--trainer.devices 0", "value is not a valid input using cpu accelerator"),
        ("--seed_everything -3", "-3 is not in bounds"),
    ],
)
def test_options_of_the_trainer(words, message, fit):
    assert message in fit(*words.split())


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
        ("--model no.where.Model", "--model: there is no class 'no.where.Model'; a class of your "
         "own needs its full path, and its package must be importable."),
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
    models = "RnnAttentionSeq2Seq | RnnSeq2Seq | TransformerSeq2Seq"
    expected = f"no model given; name a configuration with -c, or --model {models}."
    assert error_of("fit") == expected
    assert error_of("fit", "-c", fitted.data, "--model.lr", "1") == expected


def test_no_command():
    assert error_of("fiit") == (
        "there is no command 'fiit'; choose among fit, validate, test, predict, translate, explain."
    )


# ---- checkpoints ----


class Code:
    """What a pickle must not be able to do."""

    def __reduce__(self):
        return os.mkdir, ("the-code-ran",)


@pytest.fixture(scope="module")
def ckpts(fitted, tmp_path_factory):
    """Faulty copies of a checkpoint."""
    folder = tmp_path_factory.mktemp("ckpts")
    good = torch.load(fitted.ckpt, weights_only=True)
    raw = fitted.ckpt.read_bytes()
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "truncated.ckpt").write_bytes(raw[: len(raw) // 2])
    (folder / "text.ckpt").write_text("one red house\n")
    (folder / "damaged.ckpt").write_bytes(raw[:2000] + bytes(1000) + raw[3000:])
    (folder / "pickle.ckpt").write_bytes(pickle.dumps(Code()))
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as archive:
        archive.writestr("archive/a.txt", "one red house")
    torch.save(good | {"more": Code()}, folder / "code.ckpt")
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    torch.save(torch.zeros(3), folder / "tensor.ckpt")
    torch.save(good | {"litseq": {**good["litseq"], "format_version": 99}}, folder / "newer.ckpt")
    torch.save(good | {"litseq": {}}, folder / "hollow.ckpt")
    torch.save(
        good | {"hyper_parameters": {**good["hyper_parameters"], "old": 1}}, folder / "h.ckpt"
    )
    torch.save({k: v for k, v in good.items() if k != "state_dict"}, folder / "weightless.ckpt")
    weights = dict(good["state_dict"])
    del weights["network.output.bias"]
    torch.save(good | {"state_dict": weights}, folder / "partial.ckpt")
    return folder


REFUSED = [
    ("empty", r"empty\.ckpt \(0 bytes\) is not a checkpoint, or was cut short; use another"),
    ("truncated", r"truncated\.ckpt \([\d,]+ bytes\) is not a checkpoint, or was cut short; use"),
    ("text", r"text\.ckpt \(14 bytes\) is not a checkpoint, or was cut short; use another"),
    ("damaged", r"damaged\.ckpt is damaged; use another checkpoint of the run"),
    ("zip", r"zip\.ckpt is damaged; use another checkpoint of the run"),
    ("pickle", r"pickle\.ckpt \(\d+ bytes\) is not a checkpoint"),
    (
        "code",
        r"code\.ckpt holds (posix|nt)\.mkdir, which is neither a tensor nor a plain value, and",
    ),
    ("foreign", r"foreign\.ckpt was not written by litseq: it has no 'litseq' entry; give a"),
    ("tensor", r"tensor\.ckpt was not written by litseq"),
    ("newer", r"newer\.ckpt has format version 99, this litseq reads up to 1; install a newer"),
    ("hollow", r"hollow\.ckpt lacks class, format_version, tokenizer; use the file as litseq"),
    ("weightless", r"weightless\.ckpt lacks state_dict; use the file as litseq wrote it"),
    ("partial", r"network\.output\.bias is absent in the checkpoint and \(64,\) in the model"),
    ("nothing", r"no checkpoint at .*nothing\.ckpt; beside it: code\.ckpt, damaged\.ckpt"),
]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_checkpoints(name, message, ckpts, resume, elsewhere):
    assert re.search(message, resume(ckpts / f"{name}.ckpt"))
    assert re.search(message, error_of("translate", "--ckpt", ckpts / f"{name}.ckpt"))
    assert not list(elsewhere.glob("the-code-ran"))


def test_fit_reads_checkpoints_as_carefully(ckpts, resume):
    for name in ("truncated", "code"):
        assert f"{name}.ckpt" in resume(ckpts / f"{name}.ckpt", command="fit")


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_named_in_a_file(command, ckpts, fitted, elsewhere):
    (elsewhere / "resume.yaml").write_text(f"ckpt_path: {ckpts / 'code.ckpt'}\n")
    words = ("-c", fitted.data, "-c", fitted.model, "-c", "resume.yaml")
    assert "code.ckpt holds" in error_of(command, *words)
    assert left_behind(elsewhere) == [elsewhere / "resume.yaml"]


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


def test_hyperparameters_that_the_model_does_not_know(ckpts, resume):
    assert "unknown key 'old' of TransformerSeq2Seq" in resume(ckpts / "h.ckpt")


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
    message = error_of("fit", *words, "--data", f"{__name__}.Failing")
    assert message == "example 0 is broken; mend it."
