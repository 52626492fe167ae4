import importlib.util
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from command_line import error_of, litseq
from litseq import RnnAttentionSeq2Seq, RnnSeq2Seq, Seq2Seq, TransformerSeq2Seq, checkpoints
from litseq.checkpoint_io import SafeCheckpointIO
from litseq.data import TranslationTokenizer

B, S, D, H, V = 2, 7, 12, 3, 23


def make(vocab_size=V, **options):
    module = TransformerSeq2Seq(
        vocab_size=vocab_size, d_model=D, num_heads=H, num_encoder_layers=1, num_decoder_layers=2,
        dim_feedforward=20, **options,
    )  # fmt: skip
    module.configure_model()
    return module


@pytest.fixture(scope="module")
def tokenizer(fitted):
    return TranslationTokenizer.load(fitted.ckpt)


def saved(module, tokenizer=None):
    """What Lightning writes, as far as litseq reads it."""
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "litseq": checkpoints.describe(type(module), tokenizer),
    }


def test_describe(tokenizer):
    assert checkpoints.describe(RnnSeq2Seq, None) == {
        "format_version": 1,
        "class": "litseq.architectures.RnnSeq2Seq",
        "tokenizer": None,
    }
    entry = checkpoints.describe(RnnSeq2Seq, tokenizer)
    assert checkpoints.tokenizer_of({"litseq": entry}).fingerprint == tokenizer.fingerprint


def test_read(tokenizer, tmp_path):
    written = saved(make(), tokenizer)
    torch.save(written, tmp_path / "a.ckpt")
    for path in (tmp_path / "a.ckpt", str(tmp_path / "a.ckpt")):
        found = checkpoints.read(path)
        assert found.keys() == written.keys()
        assert found["hyper_parameters"] == written["hyper_parameters"]
        torch.testing.assert_close(
            dict(found["state_dict"]), dict(written["state_dict"]), rtol=0, atol=0
        )


def test_reads_what_fit_writes(fitted):
    checkpoint = checkpoints.read(fitted.ckpt)
    assert checkpoints.find_class(checkpoint, Seq2Seq) is TransformerSeq2Seq
    assert checkpoints.tokenizer_of(checkpoint).tgt_lang == "de"


def test_a_name_that_says_nothing(fitted, tmp_path):
    # a file is what it holds, not what it is called
    (tmp_path / "model").write_bytes(fitted.ckpt.read_bytes())
    assert checkpoints.read(tmp_path / "model")["litseq"]["format_version"] == 1


def test_read_names_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*a\.ckpt; beside it: no .ckpt"):
        checkpoints.read(tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError, match=r"beside it: no .ckpt file\."):
        checkpoints.read(tmp_path / "nowhere" / "a.ckpt")
    with pytest.raises(ValueError, match=r"is a folder \(with no .ckpt file\); give a checkpoint"):
        checkpoints.read(tmp_path)
    (tmp_path / "b.ckpt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"beside it: b\.ckpt\."):
        checkpoints.read(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"is a folder \(with b\.ckpt\); give a checkpoint file"):
        checkpoints.read(tmp_path)


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("the-code-ran",)


@pytest.mark.parametrize("where", ["state_dict", "hyper_parameters", "litseq", "callbacks"])
def test_read_runs_no_code(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = saved(make())
    checkpoint.setdefault(where, {})["more"] = Code()
    torch.save(checkpoint, "code.ckpt")
    with pytest.raises(ValueError, match=r"code\.ckpt holds \w+\.mkdir, which is neither"):
        checkpoints.read("code.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="is not a checkpoint, or was cut short"):
        checkpoints.read("plain.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code.ckpt", "plain.ckpt"]


def test_read_finds_every_truncation(tmp_path):
    torch.save(saved(make()), tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    for size in range(0, len(whole), 997):
        (tmp_path / "a.ckpt").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.ckpt \([\d,]+ bytes\) is not a checkpoint, or"):
            checkpoints.read(tmp_path / "a.ckpt")


def flip(path, whole, position, bits):
    damaged = bytearray(whole)
    damaged[position] ^= bits
    path.write_bytes(damaged)


def test_read_survives_damage(tmp_path):
    written = saved(make())
    torch.save(written, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    start = whole.index(b"hyper_parameters")
    (tmp_path / "whole.ckpt").unlink()  # it would be looked at whenever the other is damaged
    anywhere = range(0, len(whole), len(whole) // 60)
    messages = []
    for position in [*anywhere, *range(start, start + 700, 15)]:  # the latter is unpickled
        flip(tmp_path / "a.ckpt", whole, position, 0xFF)
        try:
            found = checkpoints.read(tmp_path / "a.ckpt")
        except ValueError as error:
            messages.append(str(error))
            continue
        assert found["hyper_parameters"] == written["hyper_parameters"]
        torch.testing.assert_close(
            dict(found["state_dict"]), dict(written["state_dict"]), rtol=0, atol=0
        )
    assert len(messages) > 60
    for message in messages:
        assert re.search(r"a\.ckpt (is damaged|\(.* bytes\) is not a checkpoint)", message)


def test_read_finds_every_truncation_between_records(tmp_path):
    torch.save(saved(make()), tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.ckpt") as archive:
        borders = [record.header_offset for record in archive.infolist()] + [archive.start_dir]
    for border in borders:
        (tmp_path / "a.ckpt").write_bytes(whole[:border])
        with pytest.raises(ValueError, match=r"a\.ckpt \([\d,]+ bytes\) is not a checkpoint, or"):
            checkpoints.read(tmp_path / "a.ckpt")


# ---- the newest one ----


@pytest.fixture
def run(tmp_path):
    """A folder with checkpoints of three steps, the last one also as last.ckpt, and more."""
    for step in (3, 20, 100):
        checkpoint = saved(make()) | {"global_step": step, "lr_schedulers": []}
        SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / f"step={step}.ckpt")
        os.utime(tmp_path / f"step={step}.ckpt", (1000 - step, 1000 - step))  # not by time
    (tmp_path / "last.ckpt").symlink_to("step=100.ckpt")
    (tmp_path / ".step=200.ckpt.01234567.part").write_bytes(b"not finished")
    (tmp_path / "folder.ckpt").mkdir()
    torch.save(saved(make()), tmp_path / "average.ckpt")  # of no step
    torch.save([1], tmp_path / "list.ckpt")
    return tmp_path


def damage(path):
    """Flips a bit in the middle of the largest weight."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_newest(run, caplog):
    assert checkpoints.newest(run).resolve() == run / "step=100.ckpt"
    assert checkpoints.newest(str(run), name="step=?.ckpt") == run / "step=3.ckpt"
    assert checkpoints.newest(run, name="*.part") is None
    assert checkpoints.newest(run, name="average*") is None
    assert checkpoints.newest(run / "nowhere") is None
    assert not caplog.messages


def test_newest_of_the_same_step_is_the_later_one(run):
    shutil.copy(run / "step=100.ckpt", run / "copy.ckpt")
    assert checkpoints.newest(run) == run / "copy.ckpt"
    os.utime(run / "copy.ckpt", (1, 1))
    assert checkpoints.newest(run).resolve() == run / "step=100.ckpt"


def test_newest_passes_over_what_is_damaged(run, caplog):
    (run / "last.ckpt").unlink()
    damage(run / "step=100.ckpt")
    (run / "cut.ckpt").write_bytes((run / "step=20.ckpt").read_bytes()[:5000])
    assert checkpoints.newest(run) == run / "step=20.ckpt"
    assert caplog.messages == [
        f"{run / 'cut.ckpt'} (5,000 bytes) is not a checkpoint, or was cut short and is passed "
        f"over: step=20.ckpt of step 20 is used.",
        f"{run / 'step=100.ckpt'} is damaged and is passed over: step=20.ckpt of step 20 is used.",
    ]
    caplog.clear()
    damage(run / "step=3.ckpt")  # older: nobody looks
    assert checkpoints.newest(run) == run / "step=20.ckpt"
    assert len(caplog.messages) == 2
    caplog.clear()
    damage(run / "step=20.ckpt")
    assert checkpoints.newest(run) is None
    assert len(caplog.messages) == 4
    assert all(message.endswith(" is passed over: none is left.") for message in caplog.messages)


def test_newest_passes_over_weights_alone(run):
    checkpoint = torch.load(checkpoints.newest(run), weights_only=True)
    del checkpoint["lr_schedulers"]
    torch.save(checkpoint | {"global_step": 999}, run / "weights.ckpt")
    assert checkpoints.newest(run).name != "weights.ckpt"


def test_newest_of_the_same_step_is_that_to_go_on_from(run):
    newest = checkpoints.newest(run)
    checkpoint = torch.load(newest, weights_only=True)
    torch.save(checkpoint | {"run": {"exact": True}}, run / "exact.ckpt")
    torch.save(checkpoint | {"run": {"exact": False}}, run / "later.ckpt")
    assert checkpoints.newest(run).name == "exact.ckpt"


def test_newest_passes_over_code(run, caplog):
    torch.save({"global_step": 999, "more": Code()}, run / "code.ckpt")
    assert checkpoints.newest(run).resolve() == run / "step=100.ckpt"
    [message] = caplog.messages
    assert "code.ckpt holds more than plain values and is passed over" in message


def test_newest_reads_no_more_than_it_must(run):
    """Of files that are not chosen only what they say of themselves is read, not their weights."""

    def bytes_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    for step in range(200, 210):
        weights = {"a": torch.ones(2**20)}
        large = {"global_step": step, "lr_schedulers": [], "state_dict": weights}
        SafeCheckpointIO().save_checkpoint(large, run / f"step={step}.ckpt")
    before = bytes_read()
    assert checkpoints.newest(run) == run / "step=209.ckpt"
    assert bytes_read() - before < 2 * 4 * 2**20  # twice the one that was checked, of ten


def test_a_damaged_file_names_an_intact_one(run):
    (run / "last.ckpt").unlink()
    damage(run / "step=20.ckpt")
    with pytest.raises(
        ValueError,
        match=r"20\.ckpt is damaged; use another checkpoint of the run: step=100\.ckpt of step 100",
    ):
        checkpoints.read(run / "step=20.ckpt")
    damage(run / "step=100.ckpt")
    with pytest.raises(ValueError, match=r"100\.ckpt is damaged; .*: step=3\.ckpt of step 3\."):
        checkpoints.read(run / "step=100.ckpt")
    damage(run / "step=3.ckpt")
    with pytest.raises(
        ValueError, match=r"3\.ckpt is damaged; use another checkpoint of the run\."
    ):
        checkpoints.read(run / "step=3.ckpt")


def test_a_damaged_checkpoint_on_the_command_line(fitted, elsewhere):
    shutil.copy(fitted.ckpt, "last.ckpt")
    shutil.copy(fitted.ckpt, "best.ckpt")
    damage(elsewhere / "last.ckpt")
    step = torch.load("best.ckpt", weights_only=True)["global_step"]
    expected = f"last.ckpt is damaged; use another checkpoint of the run: best.ckpt of step {step}."
    assert error_of("translate", "--ckpt", "last.ckpt") == expected
    for command in ("fit", "test"):
        words = ("-c", fitted.data, "-c", fitted.model, "--ckpt_path", "last.ckpt")
        assert error_of(command, *words) == expected


# ---- parts ----


@pytest.mark.parametrize("missing", ["state_dict", "hyper_parameters"])
def test_read_refuses_a_part(missing, tmp_path):
    checkpoint = saved(make())
    del checkpoint[missing]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"a\.ckpt lacks {missing}; use the file as litseq wrote"):
        checkpoints.read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("missing", ["format_version", "class", "tokenizer"])
def test_read_refuses_a_part_of_its_entry(missing, tmp_path):
    checkpoint = saved(make())
    del checkpoint["litseq"][missing]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"a\.ckpt lacks {missing}; use the file as litseq wrote"):
        checkpoints.read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"litseq": 1}, [1], torch.zeros(2)])
def test_read_refuses_what_is_foreign(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="was not written by litseq: it has no 'litseq' entry"):
        checkpoints.read(tmp_path / "a.ckpt")


def test_read_refuses_a_newer_format(tmp_path):
    checkpoint = saved(make())
    checkpoint["litseq"] = {"format_version": checkpoints.FORMAT_VERSION + 1}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(
        ValueError, match="has format version 2, this litseq reads up to 1; install"
    ):
        checkpoints.read(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("name", "value"),
    [("format_version", "1"), ("class", ["a"]), ("tokenizer", "a"), ("format_version", None)],
)
def test_read_refuses_an_entry_of_another_kind(name, value, tmp_path):
    checkpoint = saved(make())
    checkpoint["litseq"][name] = value
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"a\.ckpt lacks {name}; use the file as litseq wrote it"):
        checkpoints.read(tmp_path / "a.ckpt")


# ---- absurd sizes ----


@pytest.mark.parametrize(
    "name",
    ["d_model", "dim_feedforward", "num_heads", "vocab_size", "num_encoder_layers",
     "num_decoder_layers", "max_positions"],
)  # fmt: skip
@pytest.mark.parametrize("size", [10**8, 10**12, 10**30])
def test_read_refuses_absurd_sizes(name, size, tmp_path):
    checkpoint = saved(make())
    checkpoint["hyper_parameters"][name] = size
    torch.save(checkpoint, tmp_path / "a.ckpt")
    weights = len(checkpoint["state_dict"])
    message = rf"a\.ckpt declares {name}={size}, but its {weights} weights are at most 36 wide; use"
    with pytest.raises(ValueError, match=message):
        checkpoints.read(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message):
        Seq2Seq.load_from_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (TransformerSeq2Seq, "d_model"),
        (TransformerSeq2Seq, "dim_feedforward"),
        (TransformerSeq2Seq, "num_encoder_layers"),
        (TransformerSeq2Seq, "vocab_size"),
        (RnnSeq2Seq, "hidden_size"),
        (RnnSeq2Seq, "embedding_dim"),
        (RnnSeq2Seq, "num_layers"),
        (RnnAttentionSeq2Seq, "hidden_size"),
    ],
)
def test_sizes_are_compared_before_anything_is_allocated(cls, name, tmp_path, monkeypatch):
    sizes = {"d_model": D, "num_heads": H, "num_encoder_layers": 1, "num_decoder_layers": 1}
    if cls is not TransformerSeq2Seq:
        sizes = {"embedding_dim": D, "hidden_size": 16}
    module = cls(vocab_size=V, **sizes)
    module.configure_model()
    checkpoint = saved(module)
    checkpoint["hyper_parameters"][name] = 2 * H if name.startswith("num") else 300 * H
    torch.save(checkpoint, tmp_path / "a.ckpt")
    built = []
    build = cls.build_network

    def watched(self, *sizes):
        built.append(torch.get_default_device().type)
        return build(self, *sizes)

    monkeypatch.setattr(cls, "build_network", watched)
    with pytest.raises(
        ValueError, match=r"does not fit the model: \S+ is (\(|absent).* in the mod"
    ):
        Seq2Seq.load_from_checkpoint(tmp_path / "a.ckpt")
    assert built == ["meta"]


def test_a_network_that_needs_memory_is_compared_later():
    class Needy(TransformerSeq2Seq):
        def build_network(self, *sizes):
            network = super().build_network(*sizes)
            assert network.output.bias.sum().item() == 0  # not on the meta device
            return network

    module = Needy(vocab_size=V, d_model=D, num_heads=H, dim_feedforward=20)
    checkpoints.check_sizes(saved(make()), module)
    assert module.network is None
    module.configure_model()
    assert module.network.output.bias.device.type == "cpu"


# ---- classes ----


def test_find_class():
    checkpoint = saved(make())
    assert checkpoints.find_class(checkpoint, Seq2Seq) is TransformerSeq2Seq
    assert checkpoints.find_class(checkpoint, TransformerSeq2Seq) is TransformerSeq2Seq
    with pytest.raises(ValueError, match="TransformerSeq2Seq, which is no imported RnnSeq2Seq"):
        checkpoints.find_class(checkpoint, RnnSeq2Seq)
    checkpoint["litseq"]["class"] = "somebodys.Model"
    with pytest.raises(ValueError, match=r"by --allow_import somebodys\."):
        checkpoints.find_class(checkpoint, Seq2Seq)


def test_find_class_of_a_subclass():
    class Own(RnnSeq2Seq):
        pass

    checkpoint = {"litseq": checkpoints.describe(Own, None)}
    assert checkpoints.find_class(checkpoint, Seq2Seq) is Own


def test_tokenizer_of(tokenizer):
    assert checkpoints.tokenizer_of(saved(make())) is None
    assert checkpoints.tokenizer_of({}) is None
    found = checkpoints.tokenizer_of(saved(make(), tokenizer))
    assert found.encode_source(["one dog"]) == tokenizer.encode_source(["one dog"])


def test_check_class():
    checkpoint = saved(make())
    checkpoints.check_class(checkpoint, TransformerSeq2Seq)
    with pytest.raises(ValueError, match="is a TransformerSeq2Seq, the model is a RnnSeq2Seq; cho"):
        checkpoints.check_class(checkpoint, RnnSeq2Seq)
    with pytest.raises(ValueError, match="was not written by litseq"):
        checkpoints.check_class({"state_dict": {}}, RnnSeq2Seq)


def test_check_fits(tokenizer):
    checkpoint = saved(make(), tokenizer)
    for ours in (None, tokenizer):
        checkpoints.check_fits(checkpoint, make(), ours)
    checkpoints.check_fits(saved(make()), make(), tokenizer)


def test_check_fits_compares_classes():
    other = RnnSeq2Seq(vocab_size=V, embedding_dim=D, hidden_size=D)
    other.configure_model()
    with pytest.raises(ValueError, match="the model is a RnnSeq2Seq"):
        checkpoints.check_fits(saved(make()), other, None)


def test_check_fits_compares_tokenizers(tokenizer):
    other = TranslationTokenizer.train(
        ["one two three"] * 9, ["eins zwei drei"] * 9, vocab_size=24, src_lang="en", tgt_lang="de"
    )
    with pytest.raises(
        ValueError,
        match=rf"tokenizer \(sha256 {tokenizer.fingerprint[:12]}, 64 target tokens\) is not the "
        rf"DataModule's \(sha256 {other.fingerprint[:12]}, 24\); set the DataModule's 'tokenizer'",
    ):
        checkpoints.check_fits(saved(make(), tokenizer), make(), other)


def test_check_fits_compares_weights():
    checkpoint = saved(make())
    with pytest.raises(
        ValueError,
        match=r"network\.output\.bias is \(23,\) in the checkpoint and \(24,\) in the model; use",
    ):
        checkpoints.check_fits(checkpoint, make(vocab_size=24), None)
    less, more = (dict(checkpoint["state_dict"]) for _ in range(2))
    del less["network.output.bias"]
    with pytest.raises(
        ValueError, match=r"output\.bias is absent in the checkpoint and \(23,\) in"
    ):
        checkpoints.check_fits(checkpoint | {"state_dict": less}, make(), None)
    more["network.more"] = torch.zeros(B, S)
    with pytest.raises(ValueError, match=r"network\.more is \(2, 7\) in the checkpoint and absent"):
        checkpoints.check_fits(checkpoint | {"state_dict": more}, make(), None)


def test_check_fits_where_a_strategy_took_the_weights():
    checkpoint = saved(make())
    del checkpoint["state_dict"]  # Lightning's for shards
    checkpoints.check_fits(checkpoint, make(), None)


def test_check_resumable(fitted):
    checkpoint = checkpoints.read(fitted.ckpt)
    checkpoints.check_resumable(checkpoint)
    del checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    with pytest.raises(ValueError, match="holds weights alone and no state of a training to resu"):
        checkpoints.check_resumable(checkpoint)
    checkpoint["litseq"] = {**checkpoint["litseq"], "average": [{}, {}]}
    with pytest.raises(ValueError, match="holds the average of 2 checkpoints and no state of a tr"):
        checkpoints.check_resumable(checkpoint)


def test_weights_alone_cannot_be_resumed_but_tested(fitted, elsewhere):
    checkpoint = torch.load(fitted.ckpt, weights_only=True)
    for name in ("optimizer_states", "lr_schedulers", "callbacks"):  # as with save_weights_only
        del checkpoint[name]
    torch.save(checkpoint, "weights.ckpt")
    words = ("-c", fitted.data, "-c", fitted.model, "--ckpt_path", "weights.ckpt")
    assert "holds weights alone and no state of a training" in error_of("fit", *words)
    assert litseq("test", *words).status == 0


# ---- files of former versions ----

FIXTURES = Path(__file__).parent / "fixtures"
TEXTS = {
    "one dog": "ein Hund",
    "two cats": "zwei Katzen",
    "a red house": "ein rotes Haus",
    "a green tree": "ein grüner Baum",
    "three blue birds": "drei blaue Vögel",
    "the dog sleeps": "der Hund schläft",
}


@pytest.fixture
def make_format(monkeypatch, tmp_path):
    """The script that made the files, in a folder with their data."""
    for path in FIXTURES.glob("pairs.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("make_format", FIXTURES / "make_format.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


FORMER = sorted(path.name for path in FIXTURES.glob("format_*.ckpt"))


def test_there_is_a_file_of_each_version_and_model(make_format):
    versions = range(1, checkpoints.FORMAT_VERSION + 1)
    expected = {
        f"format_{version}_{kind}.ckpt" for version in versions for kind in make_format.MODULES
    }
    assert set(FORMER) == expected


@pytest.mark.parametrize("name", FORMER)
def test_a_former_file_translates(name):
    module = Seq2Seq.load_from_checkpoint(FIXTURES / name)
    assert dict(zip(TEXTS, module.translate(list(TEXTS)), strict=True)) == TEXTS


@pytest.mark.parametrize("name", FORMER)
def test_a_former_file_is_resumed(name, make_format):
    kind = re.fullmatch(r"format_\d+_(\w+)\.ckpt", name)[1]
    pl.seed_everything(1)
    trainer = make_format.trainer(make_format.STEPS + 7)
    module = make_format.MODULES[kind]()
    trainer.fit(module, make_format.data(), ckpt_path=FIXTURES / name)
    assert trainer.global_step == make_format.STEPS + 7
    [optimizer] = trainer.optimizers
    steps = {int(state["step"]) for state in optimizer.state.values()}
    assert steps == {make_format.STEPS + 7}
    module.eval()
    assert module.translate(list(TEXTS)) == list(TEXTS.values())


@pytest.mark.parametrize("name", FORMER)
def test_a_former_file_on_the_command_line(name, make_format, tmp_path):
    outcome = litseq("translate", "--ckpt", FIXTURES / name, stdin=b"one dog\n")
    assert outcome.out == "ein Hund\n"
    shutil.copy(FIXTURES / name, tmp_path)
    outcome = litseq("test", "--ckpt_path", name)
    assert outcome.status == 0, outcome.err
    assert re.search(r"test/exact_match\W+1\.0|exact.*100", outcome.out), outcome.out


def test_former_files_are_small_and_name_no_machine():
    for name in FORMER:
        content = (FIXTURES / name).read_bytes()
        assert len(content) < 61_000
        assert not re.search(rb"/(home|root|tmp|work|Users)/", content)
