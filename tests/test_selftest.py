"""``litseq selftest`` holds for a sound model, and finds what is wrong with another."""

import pytest

from command_line import error_of, litseq
from litseq import RnnAttentionSeq2Seq
from litseq.models import Transformer
from litseq.task import Seq2Seq
from random_models import make


def table(out):
    return {line[:44].strip(): line.split()[-1] for line in out.splitlines() if "  " in line}


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"schedule": "linear"}, ()),
        # three sentences are enough
        ({"cls": RnnAttentionSeq2Seq, "dropout": 0.3}, ("one two", "three", "a red house")),
    ],
)
def test_a_sound_model(options, texts, save, tmp_path):
    words = ("--ckpt", save(make(**options)), "--device", "cpu")
    if texts:
        (tmp_path / "in").write_text("".join(f"{text}\n" for text in texts))
        words += ("--input", tmp_path / "in")
    outcome = litseq("selftest", *words)
    assert outcome.status == 0, outcome.err
    assert "warm-up" not in outcome.err
    found = table(outcome.out)
    assert len(found) == 8
    assert set(found.values()) == {"holds"}
    assert outcome.out.startswith(f"{len(texts) or 16} sentences, cpu, torch")


def only(monkeypatch, *names):
    """Leaves out the checks that take a while."""
    import litseq.selftest as selftest

    every = selftest._checks
    monkeypatch.setattr(
        selftest,
        "_checks",
        lambda *args: [(n, c) for n, c in every(*args) if any(name in n for name in names)],
    )


def fails(capsys, ckpt):
    from litseq.cli import main

    with pytest.raises(SystemExit):
        main(["selftest", "--ckpt", str(ckpt), "--device", "cpu"])
    said = capsys.readouterr()
    assert "checks fail: what this model computes depends on how it is asked" in said.err
    return {name for name, verdict in table(said.out).items() if verdict == "FAILS"}


def test_a_step_that_differs(save, monkeypatch, capsys):
    step = Transformer.step

    def wrong(self, token, state):
        logits, state = step(self, token, state)
        return logits * 1.01, state

    monkeypatch.setattr(Transformer, "step", wrong)
    only(monkeypatch, "logits", "translations")
    assert fails(capsys, save(make())) == {"logits: step by step = all at once"}


def test_a_batch_that_matters(save, monkeypatch, capsys):
    encode = Transformer.encode

    def wrong(self, src, mask):
        memory = encode(self, src, mask)
        memory.output.mul_(1 + 0.1 * src.size(0))
        return memory

    monkeypatch.setattr(Transformer, "encode", wrong)
    only(monkeypatch, "one sentence")
    assert "logits: one sentence = in a batch" in fails(capsys, save(make()))


def test_a_loss_that_is_a_mean_of_means(save, monkeypatch, capsys):
    step = Seq2Seq.training_step

    def wrong(self, batch, batch_idx):
        return step(self, batch, batch_idx) / (batch["labels"] >= 0).sum()

    monkeypatch.setattr(Seq2Seq, "training_step", wrong)
    only(monkeypatch, "four batches")
    found = fails(capsys, save(make()))
    assert found == {"gradient: four batches added up = one"}


def test_sentences_are_read(save, tmp_path, monkeypatch):
    (tmp_path / "in").write_text("one two\n\nthree\n")
    words = ("--ckpt", save(make()), "--input", tmp_path / "in", "--device", "cpu")
    only(monkeypatch, "logits", "translations")
    assert litseq("selftest", *words).out.startswith("2 sentences, cpu")


def test_nan_is_no_agreement():
    import torch

    from litseq.selftest import _gradients

    ours = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert _gradients(ours, ours)[1]
    for name in ours:
        assert not _gradients(ours, {**ours, name: torch.tensor([0.0, torch.nan])})[1]


def test_a_checkpoint_without_a_tokenizer(save):
    model = make()
    model.tokenizer = None
    assert "holds no tokenizer" in error_of("selftest", "--ckpt", save(model))
