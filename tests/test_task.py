import itertools
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F

from litseq import task
from litseq.architectures import RnnSeq2Seq, TransformerSeq2Seq
from litseq.data import TranslationDataModule
from litseq.decoding import SearchOptions
from litseq.evaluation import corpus_scores
from litseq.task import Seq2Seq
from litseq.translator import Translator
from tiny_tasks import FAMILIES


@pytest.fixture(params=FAMILIES, ids=lambda cls: cls.__name__)
def family(request):
    return request.param


def make(cls, **options):
    """A module with the same weights each time, built at once where the vocabulary is given."""
    torch.manual_seed(0)
    module = cls(**{**FAMILIES[cls], "warmup_steps": 4, "max_len_b": 5, **options})
    if "vocab_size" in options:
        module.configure_model()
    return module


def trainer(folder, **options):
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "log_every_n_steps": 1, **options},
    )


class Batches(pl.LightningDataModule):
    """A foreign DataModule: it knows nothing of litseq."""

    def __init__(self, batches, tokenizer=None):
        super().__init__()
        self.batches = batches
        if tokenizer is not None:
            self.tokenizer = tokenizer

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def batch(lengths, *, vocab_size=23):
    """Random examples whose sources and targets have the given lengths."""
    size = max(lengths)
    ids = torch.randint(4, vocab_size, (len(lengths), size))
    padding = torch.arange(size) >= torch.tensor(lengths)[:, None]
    return {
        "input_ids": ids.masked_fill(padding, 0),
        "attention_mask": (~padding).long(),
        "labels": ids.flip(1).masked_fill(padding, -100),
    }


def joined(batches):
    def pad(name, value):
        rows = [row for b in batches for row in b[name]]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return {
        "input_ids": pad("input_ids", 0),
        "attention_mask": pad("attention_mask", 0),
        "labels": pad("labels", -100),
    }


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# ---- training ----


def test_accumulated_micro_batches_are_the_big_batch(family, tmp_path):
    micro = [batch([7]), batch([5, 2, 4]), batch([1, 1])]  # very different token counts
    found = []
    for batches, parts in ((micro, 3), ([joined(micro)], 1)):
        module = make(family, vocab_size=23, dropout=0.0)
        trainer(
            tmp_path,
            max_steps=1,
            accumulate_grad_batches=parts,
            precision="64-true",
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
        ).fit(module, Batches(batches))
        found.append(gradients(module))
    assert found[0].keys() == found[1].keys()
    torch.testing.assert_close(found[0], found[1])


def test_gradient_is_that_of_the_mean_token(family, tmp_path):
    one = batch([7, 3])
    module = make(family, vocab_size=23, dropout=0.0)
    trainer(
        tmp_path, max_steps=1, precision="64-true", limit_val_batches=0, logger=False,
        enable_checkpointing=False,
    ).fit(module, Batches([one]))  # fmt: skip
    reference = make(family, vocab_size=23, dropout=0.0).double()
    logits = reference(**one)
    F.cross_entropy(logits.flatten(0, 1), one["labels"].flatten(), label_smoothing=0.1).backward()
    torch.testing.assert_close(gradients(module), gradients(reference))


def test_r_drop_of_a_network_without_dropout_changes_nothing(family, tmp_path):
    found = []
    for r_drop in (0.0, 5.0):
        module = make(family, vocab_size=23, dropout=0.0, r_drop=r_drop)
        run = trainer(
            tmp_path, max_steps=1, precision="64-true", limit_val_batches=0, logger=False,
            enable_checkpointing=False,
        )  # fmt: skip
        run.fit(module, Batches([batch([7, 3])]))
        found.append((gradients(module), run.logged_metrics))
    torch.testing.assert_close(*found)


def test_r_drop_is_that_of_two_passes(family):
    one = batch([7, 3])
    torch.manual_seed(1)
    module = make(family, vocab_size=23, dropout=0.5, r_drop=5.0).double()
    torch.manual_seed(2)
    loss, nll, num_tokens = module._loss_of_two(one, 5.0)
    torch.manual_seed(2)  # the same draws of dropout, by hand
    first, second = module(
        **{name: torch.cat((value, value)) for name, value in one.items()}
    ).chunk(2)
    assert not first.equal(second)
    kept = one["labels"] != -100
    labels, p, q = one["labels"][kept], first[kept].log_softmax(-1), second[kept].log_softmax(-1)
    losses = [
        F.cross_entropy(x[kept], labels, label_smoothing=0.1, reduction="sum")
        for x in (first, second)
    ]
    kl = [F.kl_div(a, b, reduction="sum", log_target=True) for a, b in ((p, q), (q, p))]
    torch.testing.assert_close(loss, (sum(losses) + 5.0 / 2 * sum(kl)) / 2)  # the paper's, halved
    assert num_tokens == kept.sum()
    assert nll > 0


def test_logged_values(family, tmp_path):
    one = batch([7, 3])
    module = make(family, vocab_size=23, dropout=0.0, lr=0.5)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, Batches([one]))
    reference = make(family, vocab_size=23, dropout=0.0)
    logits, labels = reference(**one).flatten(0, 1), one["labels"].flatten()
    logged = run.logged_metrics
    nll = F.cross_entropy(logits, labels)
    torch.testing.assert_close(logged["train/nll"], nll.detach())
    torch.testing.assert_close(logged["train/ppl"], nll.exp().detach())
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(logged["train/loss"], smoothed.detach())
    smoothed.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()])
    torch.testing.assert_close(logged["train/grad_norm"], norm)
    assert logged["train/lr"].item() == pytest.approx(0.5 / 4)  # first of four warm-up steps


def test_schedule_moves_with_every_optimizer_step(tmp_path):
    module = make(TransformerSeq2Seq, vocab_size=23, lr=1.0)
    run = trainer(tmp_path, max_epochs=4, accumulate_grad_batches=2)
    run.fit(module, Batches([batch([3])] * 4))
    assert run.global_step == 8
    rate = run.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx((4 / 9) ** 0.5)  # the ninth step of inverse_sqrt, warm-up 4


def test_any_torch_scheduler(tmp_path):
    module = make(
        TransformerSeq2Seq,
        vocab_size=23,
        lr=1.0,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
    )
    run = trainer(tmp_path, max_steps=3)
    run.fit(module, Batches([batch([3])] * 3))
    assert run.optimizers[0].param_groups[0]["lr"] == 0.125
    path = run.checkpoint_callback.best_model_path
    assert isinstance(Seq2Seq.load_from_checkpoint(path), TransformerSeq2Seq)


def test_plateau_scheduler_goes_by_validation(tmp_path):
    module = make(
        TransformerSeq2Seq,
        vocab_size=23,
        lr=1.0,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=1e9
        ),
    )
    run = trainer(tmp_path, max_epochs=4)
    run.fit(module, Batches([batch([3])] * 3))
    # with that threshold no epoch is ever better, and each of the four halves
    assert run.optimizers[0].param_groups[0]["lr"] == 0.0625


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"check_val_every_n_epoch": 2}, 2),  # an epoch without a validation says nothing
        ({"check_val_every_n_epoch": None, "val_check_interval": 5}, 3),  # nor the first one here
    ],
)
def test_a_plateau_is_one_of_validations(options, times, tmp_path):
    module = make(
        TransformerSeq2Seq,
        vocab_size=23,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    )
    run = trainer(tmp_path, max_epochs=4, **options)
    batches = torch.utils.data.DataLoader([batch([3])] * 3, batch_size=None)
    run.fit(module, batches, torch.utils.data.DataLoader([batch([3])], batch_size=None))
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == times


def test_warm_up_longer_than_the_run_is_told(tmp_path, caplog):
    module = make(TransformerSeq2Seq, vocab_size=23, schedule="linear", warmup_steps=9)
    trainer(tmp_path, max_steps=2).fit(module, Batches([batch([3])] * 3))
    assert "the run ends after 2 steps, before the warm-up of 9" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; choose among adam, adamw"),
        ({"schedule": "step"}, "unknown schedule 'step'; choose among inverse_sqrt"),
        ({"r_drop": -1.0}, "r_drop must be at least 0, got -1.0"),
        ({"label_smoothing": 1.5}, "label_smoothing must be at least 0 and below 1, got 1.5"),
    ],
)
def test_refuses_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        make(TransformerSeq2Seq, **options)


def test_a_broken_off_accumulation_is_forgotten(tmp_path):
    one, found = batch([7, 3]), []
    for left_over in (None, torch.tensor(100)):
        module = make(TransformerSeq2Seq, vocab_size=23, dropout=0.0)
        module._num_tokens = left_over
        run = trainer(tmp_path, max_steps=1, limit_val_batches=0, logger=False)
        run.fit(module, Batches([one]))
        found.append(gradients(module))
    torch.testing.assert_close(*found)


def test_a_batch_without_labels_does_no_harm(tmp_path):
    empty = batch([3, 2])
    empty["labels"] = torch.full_like(empty["labels"], -100)
    module = make(TransformerSeq2Seq, vocab_size=23)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, Batches([empty]))
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16(family, datamodule, tmp_path, precision):
    module = make(family)
    run = trainer(tmp_path, precision=precision, logger=False, enable_checkpointing=False)
    run.fit(module, datamodule)
    assert run.callback_metrics["val/nll"].isfinite()
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("precision", "calls"),
    [("32-true", ["keep"]), ("bf16-mixed", ["keep", "give", "give"])],
)
def test_freed_memory_is_kept_and_in_bfloat16_given_back_now_and_then(
    tmp_path, monkeypatch, precision, calls
):
    called, clock = [], itertools.count(0, 4)
    monkeypatch.setattr(task, "_GIVE_BACK_EVERY", 10.0)
    monkeypatch.setattr(task, "keep_freed", lambda: called.append("keep"))
    monkeypatch.setattr(task, "give_back", lambda: called.append("give"))
    monkeypatch.setattr(task, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run = trainer(tmp_path, max_steps=7, limit_val_batches=0, precision=precision, logger=False)
    run.fit(make(RnnSeq2Seq, vocab_size=23), Batches([batch([3, 2])] * 7))
    assert called == calls


@pytest.mark.parametrize("run", ["fit", "validate", "test", "predict"])
def test_freed_memory_is_kept_in_every_run_on_a_cpu(tmp_path, monkeypatch, run):
    called = []
    monkeypatch.setattr(task, "keep_freed", lambda: called.append("keep"))
    module = make(RnnSeq2Seq, vocab_size=23)
    batches = Batches([batch([3, 2])] * 2, tokenizer=Letters())
    module.setup("fit")
    assert not called  # on which device it will be is not known yet
    getattr(trainer(tmp_path, max_steps=1, limit_val_batches=1, logger=False), run)(module, batches)
    assert called


def test_learns(family, datamodule, tmp_path):
    module = make(family, dropout=0.0, lr=1e-2, warmup_steps=20)
    run = trainer(tmp_path, max_epochs=6, logger=False, enable_checkpointing=False)
    [untrained] = run.validate(module, datamodule, verbose=False)
    run.fit(module, datamodule)
    assert run.callback_metrics["val/nll"] < untrained["val/nll"] - 1.0  # nats per token


# ---- validation, test, predict ----


def test_scores_raw_text(family, datamodule, corpus, tmp_path):
    module = make(family)
    run = trainer(tmp_path, logger=False, enable_checkpointing=False)
    [metrics] = run.test(module, datamodule, verbose=False)
    lines = (corpus / "test.de").read_text(encoding="utf-8").splitlines()
    assert [t.reference for t in module.evaluation.translations] == lines
    assert [t.id for t in module.evaluation.translations] == list(range(30))
    assert metrics["test/bleu"] == pytest.approx(module.evaluation.scores.bleu)
    assert set(metrics) == {
        f"test/{name}" for name in ("loss", "nll", "ppl", "bleu", "chrf", "ter", "exact_match")
    }
    torch.testing.assert_close(
        torch.tensor(metrics["test/nll"]).exp(), torch.tensor(metrics["test/ppl"])
    )


@pytest.mark.parametrize(("tgt_lang", "words"), [("de", "tok:13a"), ("zh", "tok:zh")])
def test_scores_are_those_of_the_texts(tgt_lang, words, corpus, data_options, tmp_path):
    """And cut as the target language wants it."""
    for split in ("train", "val", "test"):
        for side, name in (("en", "en"), ("de", tgt_lang)):
            shutil.copy(corpus / f"{split}.{side}", tmp_path / f"{split}.{name}")
    own = {split: str(tmp_path / split) for split in ("train", "val", "test")}
    own |= {"tgt_lang": tgt_lang, "cache_dir": str(tmp_path / "cache")}
    data = TranslationDataModule(**{**data_options, **own})
    module = make(TransformerSeq2Seq, lr=1e-2, warmup_steps=20, max_len_b=5)
    run = trainer(tmp_path, max_epochs=3, logger=False, enable_checkpointing=False)
    run.fit(module, data)
    [metrics] = run.test(module, data, verbose=False)
    found = module.evaluation
    texts = [t.text for t in found.translations]
    references = [t.reference for t in found.translations]
    assert found.scores == corpus_scores(texts, references, tgt_lang=tgt_lang, confidence=True)
    assert words in found.scores.signatures["bleu"]
    assert found.scores.chrf > 5
    assert metrics["test/chrf"] == pytest.approx(found.scores.chrf)


def test_validation_and_test_have_beams_of_their_own(datamodule, tmp_path, monkeypatch):
    sizes = []
    plain = Translator.translate_batch

    def watched(self, batch, options, *args, **kwargs):
        sizes.append(options.beam_size)
        return plain(self, batch, options, *args, **kwargs)

    monkeypatch.setattr(Translator, "translate_batch", watched)
    module = make(TransformerSeq2Seq, beam_size=3, val_beam_size=2)
    run = trainer(tmp_path, logger=False, enable_checkpointing=False)
    run.validate(module, datamodule, verbose=False)
    assert set(sizes) == {2}
    sizes.clear()
    run.test(module, datamodule, verbose=False)
    assert set(sizes) == {3}


def test_validation_loss_does_not_depend_on_batches(family, data_options, tmp_path):
    losses = []
    for max_tokens in (8, 1000):
        data = TranslationDataModule(**{**data_options, "max_tokens": max_tokens})
        run = trainer(tmp_path, logger=False, enable_checkpointing=False)
        [metrics] = run.validate(make(family, vocab_size=64), data, verbose=False)
        losses.append(metrics["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_validation_without_decoding(datamodule, tmp_path):
    module = make(TransformerSeq2Seq, val_decode=False)
    [metrics] = trainer(tmp_path, logger=False).validate(module, datamodule, verbose=False)
    assert set(metrics) == {"val/loss", "val/nll", "val/ppl"}
    assert module.evaluation is None


def test_predicts_every_source_once_in_order(family, datamodule, corpus, tmp_path):
    batches = trainer(tmp_path, logger=False).predict(make(family, n_best=2), datamodule)
    found = [translation for batch in batches for translation in batch]
    assert [t.id for t in found] == list(range(30))
    assert [t.source for t in found] == (corpus / "test.en").read_text().splitlines()
    assert all(len(t.hypotheses) == 2 for t in found)


# ---- foreign parts ----


class Letters:
    """A foreign tokenizer: decode is all it has."""

    def decode(self, ids):
        return " ".join(chr(97 + i) for i in ids)


def test_foreign_datamodule(family, tmp_path):
    module = make(family, vocab_size=23)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, Batches([batch([3, 5]), batch([2])], Letters()))
    assert [t.id for t in module.evaluation.translations] == [0, 1, 2]
    assert all(t.source and t.reference for t in module.evaluation.translations)
    foreign = Batches([batch([3, 5]), batch([2])], Letters())
    predicted = [t for found in run.predict(module, foreign) for t in found]
    assert [t.id for t in predicted] == [0, 1, 2]
    with pytest.raises(ValueError, match="needs a litseq tokenizer, got Letters"):
        module.translate(["hello"])


def test_alignment_needs_words_and_attention(tmp_path, datamodule):
    run = trainer(tmp_path, logger=False, enable_checkpointing=False)
    module = make(TransformerSeq2Seq, vocab_size=23, alignment=True)
    with pytest.raises(ValueError, match="aligning words needs a litseq tokenizer, got Letters"):
        run.predict(module, Batches([batch([3, 5])], Letters()))
    with pytest.raises(ValueError, match=r"Rnn has no attention .* words cannot be aligned"):
        run.predict(make(RnnSeq2Seq, alignment=True), datamodule)


def test_foreign_datamodule_without_tokenizer(tmp_path):
    module = make(TransformerSeq2Seq, vocab_size=23)
    run = trainer(tmp_path, logger=False, enable_checkpointing=False)
    [metrics] = run.validate(module, Batches([batch([3, 5])]), verbose=False)
    assert set(metrics) == {"val/loss", "val/nll", "val/ppl"}
    with pytest.raises(ValueError, match="predict needs a tokenizer"):
        run.predict(module, Batches([batch([3, 5])]))
    with pytest.raises(ValueError, match="translating text needs a tokenizer"):
        make(TransformerSeq2Seq, vocab_size=23).translate(["hello"])


def test_unknown_vocabulary(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown without a litseq tokenizer \(Batches has none\)"
    ):
        trainer(tmp_path).fit(make(TransformerSeq2Seq), Batches([batch([3])]))


def test_another_tokenizer_of_the_same_size(fitted, data_options, corpus, tmp_path):
    module = Seq2Seq.load_from_checkpoint(fitted[TransformerSeq2Seq])
    swapped = {**data_options, "train": str(corpus / "val"), "vocab_size": 64}
    with pytest.raises(ValueError, match="is not the DataModule's"):
        trainer(tmp_path, logger=False).test(module, TranslationDataModule(**swapped))


def test_options_that_show_in_no_shape(fitted, datamodule, tmp_path):
    path = fitted[TransformerSeq2Seq]
    module = make(TransformerSeq2Seq, num_heads=2)
    with pytest.raises(ValueError, match="trained with num_heads 3, the model has 2"):
        trainer(tmp_path, logger=False).test(module, datamodule, ckpt_path=path)
    freer = make(TransformerSeq2Seq, dropout=0.7, beam_size=2)  # these are free to change
    trainer(tmp_path, logger=False).test(freer, datamodule, ckpt_path=path, verbose=False)


def test_vocabulary_that_does_not_fit(datamodule, tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size is 99 but the tokenizer .* has 64"):
        trainer(tmp_path).fit(make(TransformerSeq2Seq, vocab_size=99), datamodule)


# ---- checkpoints and translating ----


@pytest.fixture(scope="module")
def fitted(data_options, tmp_path_factory):
    """A checkpoint of each family, trained for a moment."""
    paths = {}
    for cls in FAMILIES:
        folder = tmp_path_factory.mktemp(cls.__name__)
        module = make(cls, lr=1e-2)
        run = trainer(folder, max_epochs=2)
        run.fit(module, TranslationDataModule(**data_options))
        paths[cls] = run.checkpoint_callback.best_model_path
    return paths


def test_a_checkpoint_alone_translates(fitted, tmp_path):
    texts = ["one red house", "dog"]
    # a fresh process in an empty folder: nothing but the files; Seq2Seq brings the classes of all
    code = (
        "import json, sys; from litseq import Seq2Seq;"
        "*paths, texts = map(json.loads, sys.argv[1:]);"
        "[print(json.dumps(Seq2Seq.load_from_checkpoint(p).translate(texts))) for p in paths]"
    )
    words = map(json.dumps, [*fitted.values(), texts])
    out = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = [Seq2Seq.load_from_checkpoint(path).translate(texts) for path in fitted.values()]
    assert [json.loads(line) for line in out.stdout.splitlines()] == expected
    assert len(expected) == len(FAMILIES)
    assert not list(tmp_path.iterdir())


def test_checkpoint_holds_no_code(family, fitted):
    checkpoint = torch.load(fitted[family], weights_only=True)
    assert checkpoint["litseq"]["class"] == f"litseq.architectures.{family.__name__}"
    assert checkpoint["litseq"]["format_version"] == 1


def test_loads_what_was_saved(family, fitted):
    module = Seq2Seq.load_from_checkpoint(fitted[family], hparams={"beam_size": 7})
    assert type(module) is family
    assert not module.training
    assert module.search_options.beam_size == 7
    saved = torch.load(fitted[family], weights_only=True)["state_dict"]
    torch.testing.assert_close(dict(module.state_dict()), dict(saved), rtol=0, atol=0)


def test_translations_keep_their_order(family, fitted, corpus):
    module = Seq2Seq.load_from_checkpoint(fitted[family]).double()
    texts = (corpus / "test.en").read_text().splitlines()
    together = module.translations(texts)
    assert [t.source for t in together] == texts
    for max_tokens in (1, 12):
        assert [t.text for t in module.translations(texts, max_tokens=max_tokens)] == [
            t.text for t in together
        ]


def test_blank_lines_stay_blank(family, fitted):
    module = Seq2Seq.load_from_checkpoint(fitted[family])
    assert module.translate([]) == []
    assert module.translate(["", "  "]) == ["", ""]
    first, blank, last = module.translate(["one dog", "", "two"])
    assert blank == ""
    assert [first, last] == module.translate(["one dog", "two"])


def test_long_lines_are_cut_and_counted(fitted, caplog):
    module = Seq2Seq.load_from_checkpoint(fitted[TransformerSeq2Seq])
    long = "one two " * 50
    [found] = module.translations([long], max_src_len=9)
    assert found.source == long
    assert "1 of 1 sources are longer than max_src_len=9 tokens and were cut (first: line 1" in (
        caplog.text
    )


def test_unknown_characters_are_reported(fitted, caplog):
    module = Seq2Seq.load_from_checkpoint(fitted[TransformerSeq2Seq])
    module.translate(["one dog", "犬"])
    assert "1 of 2 sources hold only unknown characters (first: line 2)" in caplog.text


def test_sampling_does_not_depend_on_the_batch(fitted):
    module = Seq2Seq.load_from_checkpoint(fitted[TransformerSeq2Seq]).double()
    options = SearchOptions(sample=True, seed=3, max_len_b=5)
    texts = ["one red house", "dog", "two green cats"]
    assert module.translate(texts, options=options) == module.translate(
        texts, options=options, max_tokens=1
    )


def test_training_goes_on_in_training_mode(fitted):
    module = Seq2Seq.load_from_checkpoint(fitted[TransformerSeq2Seq]).train()
    module.translate(["one dog"])
    assert module.training
    assert module.network.training


def test_resuming_equals_not_stopping(family, data_options, tmp_path):
    def fit(folder, epochs, ckpt_path=None):
        module = make(family, dropout=0.0)
        run = trainer(folder, max_epochs=epochs, limit_val_batches=0)
        run.fit(module, TranslationDataModule(**data_options), ckpt_path=ckpt_path)
        return module, run.checkpoint_callback.best_model_path

    whole, _ = fit(tmp_path / "whole", 2)
    _, path = fit(tmp_path / "half", 1)
    resumed, _ = fit(tmp_path / "rest", 2, ckpt_path=path)
    torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


# ---- several devices ----


def two_ranks(folder, **options):
    return trainer(folder, strategy="ddp_fork", devices=2, logger=False, **options)


def test_two_ranks_are_one_big_batch(tmp_path):
    micro = [batch([7]), batch([5, 2, 4])]  # very different token counts
    weights = []
    for run, batches in (
        (two_ranks(tmp_path, max_steps=1), micro),
        (trainer(tmp_path, max_steps=1, logger=False), [joined(micro)]),
    ):
        module = make(TransformerSeq2Seq, vocab_size=23, dropout=0.0, lr=1.0, warmup_steps=0)
        module.double()
        run.fit(module, Batches(batches))
        path = run.checkpoint_callback.best_model_path
        weights.append(torch.load(path, weights_only=True)["state_dict"])
    torch.testing.assert_close(dict(weights[0]), dict(weights[1]))


def test_two_ranks_score_what_one_scores(data_options, tmp_path):
    found = []
    for run in (trainer(tmp_path, logger=False), two_ranks(tmp_path)):
        module = make(TransformerSeq2Seq, vocab_size=64)
        [metrics] = run.test(module, TranslationDataModule(**data_options), verbose=False)
        found.append(metrics)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5), name
