import os
import pickle
import re

import pytest
import torch

from litseq import RnnSeq2Seq, Seq2Seq, TransformerSeq2Seq, checkpoints
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


def test_read_survives_damage(tmp_path):
    torch.save(saved(make()), tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    start = whole.index(b"hyper_parameters")
    messages = []
    for position in range(start, start + 700, 7):  # in what is unpickled
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "a.ckpt").write_bytes(damaged)
        try:
            checkpoints.read(tmp_path / "a.ckpt")  # as it is, where a number has changed
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 50
    for message in messages:
        assert re.search(r"a\.ckpt (is damaged|lacks|was not written)", message)


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


def test_find_class():
    checkpoint = saved(make())
    assert checkpoints.find_class(checkpoint, Seq2Seq) is TransformerSeq2Seq
    assert checkpoints.find_class(checkpoint, TransformerSeq2Seq) is TransformerSeq2Seq
    with pytest.raises(ValueError, match="TransformerSeq2Seq, which is no imported RnnSeq2Seq"):
        checkpoints.find_class(checkpoint, RnnSeq2Seq)
    checkpoint["litseq"]["class"] = "somebodys.Model"
    with pytest.raises(ValueError, match=r"by --model somebodys\.Model"):
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
