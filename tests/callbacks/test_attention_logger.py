import csv
import dataclasses
import logging
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader

from litseq.architectures import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq
from litseq.attention import Seen, capture_attention
from litseq.callbacks import AttentionLogger
from litseq.callbacks.examples import choose_examples
from litseq.callbacks.probes import find_labels, run_module, views

pytest.importorskip("matplotlib")

B, S, T, V = 3, 7, 5, 23
SMALL = {
    "vocab_size": V, "d_model": 12, "num_heads": 3, "num_encoder_layers": 2,
    "num_decoder_layers": 2, "dim_feedforward": 20, "dropout": 0.3, "attention_dropout": 0.2,
}  # fmt: skip
SMALL_RNN = {"vocab_size": V, "embedding_dim": 6, "hidden_size": 8, "dropout": 0.3}


# ---- projects to plug it into ----


def seq2seq_batch(seed: int, *, padded: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "input_ids": torch.randint(4, V, (B, S), generator=generator),
        "attention_mask": torch.ones(B, S, dtype=torch.int64),
        "labels": torch.randint(4, V, (B, T), generator=generator),
        "id": torch.arange(B) + 10 * seed,
    }
    if padded:
        batch["attention_mask"][1, 4:] = 0
        batch["labels"][1, 3:] = -100
    return batch


def tuple_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As nn.Transformer likes it: time first, padding 0."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(4, V, (S, B), generator=generator)
    tgt = torch.randint(4, V, (T + 1, B), generator=generator)
    src[5:, 1] = 0
    return src, tgt


class Foreign(LightningModule):
    """A project that has never heard of litseq."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, 12)
        self.transformer = nn.Transformer(12, 3, 1, 2, 20, dropout=0.3)
        self.output = nn.Linear(12, V)
        self.losses = []

    def forward(self, src, tgt):
        tgt = tgt[:-1]
        mask = nn.Transformer.generate_square_subsequent_mask(len(tgt))
        hidden = self.transformer(
            self.embedding(src),
            self.embedding(tgt),
            tgt_mask=mask,
            src_key_padding_mask=(src == 0).T,
            memory_key_padding_mask=(src == 0).T,
        )
        return self.output(hidden)

    def training_step(self, batch, batch_idx):
        src, tgt = batch
        loss = nn.functional.cross_entropy(self(src, tgt).flatten(0, 1), tgt[1:].flatten())
        self.losses.append(loss.detach().clone())
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class HandWritten(nn.Module):
    def forward(self, x):
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        return weights @ x, weights


class Classifier(Foreign):
    """An encoder alone, with an attention of its own."""

    def __init__(self):
        super().__init__()
        self.transformer, self.attention = None, HandWritten()
        self.output = nn.Linear(12, 2)

    def forward(self, tokens):
        return self.output(self.attention(self.embedding(tokens))[0].mean(1))

    def training_step(self, batch, batch_idx):
        tokens, classes = batch
        return nn.functional.cross_entropy(self(tokens), classes)


class Recording:
    """Keeps the losses of training. No Seq2Seq itself, which the command line would offer."""

    def on_fit_start(self):
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach().clone())
        return loss


class Recorded(Recording, TransformerSeq2Seq):
    pass


class RecordedRnn(Recording, RnnAttentionSeq2Seq):
    pass


class Chatty(Foreign):
    """Logs in ``forward`` and draws random numbers of every kind there."""

    def forward(self, src, tgt):
        output = super().forward(src, tgt)
        noise = random.random() + float(np.random.rand())
        self.log("train/size", output.mean() + noise, on_step=False, on_epoch=True)
        self.log_dict({"train/noise": noise})
        return output + noise * output.std()


PROJECTS = {
    "litseq": (lambda: Recorded(**SMALL), seq2seq_batch),
    "rnn": (lambda: RecordedRnn(**SMALL_RNN), seq2seq_batch),
    "foreign": (Foreign, tuple_batch),
    "chatty": (Chatty, tuple_batch),
}


def loader(make_batch, num=6, first=0):
    return DataLoader([make_batch(first + i) for i in range(num)], batch_size=None)


def quiet_trainer(folder: Path, *callbacks, **options) -> Trainer:
    defaults = {
        "logger": False, "max_epochs": 2, "enable_checkpointing": False, "log_every_n_steps": 1,
    }  # fmt: skip
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**defaults, **options},
    )


def fit(folder, *callbacks, project="foreign", module=None, ckpt_path=None, **options):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    make, make_batch = PROJECTS[project]
    module = make() if module is None else module
    trainer = quiet_trainer(folder, *callbacks, **options)
    trainer.fit(
        module, loader(make_batch), loader(make_batch, 3, 90), ckpt_path=ckpt_path,
        weights_only=True,
    )  # fmt: skip
    return trainer, module


def pictures(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.WARNING, logger="litseq")
    return lambda: [r.message for r in caplog.records if r.name.startswith("litseq")]


def num_hooks(module):
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(part, table)) for part in module.modules() for table in tables)


# ---- training is untouched ----


@pytest.mark.parametrize(
    ("project", "accumulate", "precision"),
    [
        *((project, accumulate, "32-true") for project in PROJECTS for accumulate in (1, 2)),
        ("litseq", 2, "bf16-mixed"),
        ("foreign", 1, "bf16-true"),
    ],
)
def test_weights_and_losses_are_bit_equal(project, accumulate, precision, tmp_path, warned):
    found = []
    for callbacks in ([], [AttentionLogger(2, every_n_steps=2)]):
        options = {
            "accumulate_grad_batches": accumulate, "val_check_interval": 4, "precision": precision,
        }  # fmt: skip
        trainer, module = fit(tmp_path, *callbacks, project=project, **options)
        metrics = {k: v for k, v in trainer.callback_metrics.items() if k != "epoch"}
        found.append((torch.stack(module.losses), module.state_dict(), torch.get_rng_state(),
                      metrics, random.random(), np.random.rand()))  # fmt: skip
    assert pictures(tmp_path)
    assert not warned()
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_modes_hooks_and_attributes_come_back(tmp_path):
    class Frozen(Foreign):
        def on_train_batch_start(self, batch, batch_idx):
            self.transformer.encoder.eval()  # whoever freezes a part of a module

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.modes = [part.training for part in self.modules()]
            self.hooks = num_hooks(self)
            self.names = {name: set(vars(part)) for name, part in self.named_modules()}

    _, plain = fit(tmp_path, module=Frozen())
    # a module's own hook runs after those of callbacks
    _, seen = fit(tmp_path, AttentionLogger(every_n_steps=1), module=Frozen())
    assert pictures(tmp_path)
    assert (seen.modes, seen.hooks, seen.names) == (plain.modes, plain.hooks, plain.names)


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_module_is_not_compiled_again(in_place, tmp_path):
    counts = []
    for callbacks in ([], [AttentionLogger(1, every_n_steps=1)]):
        torch._dynamo.reset()
        compiled = []

        def backend(graph, inputs, compiled=compiled):
            compiled.append(graph)
            return graph.forward

        torch.manual_seed(0)
        few = {"num_encoder_layers": 1, "num_decoder_layers": 1}
        module = Recorded(**{**SMALL, **few}, val_decode=False)
        module.configure_model()
        if in_place:
            module.network.compile(backend=backend)
        else:
            module.network = torch.compile(module.network, backend=backend)
        fit(tmp_path, *callbacks, project="litseq", module=module, limit_val_batches=1)
        counts.append((len(compiled), torch.stack(module.losses)))
    torch._dynamo.reset()
    assert len(pictures(tmp_path)) == 12
    assert counts[0][0] > 0
    torch.testing.assert_close(counts[1], counts[0], rtol=0, atol=0)


def test_failure_in_the_probe_is_told_once_and_leaves_no_trace(tmp_path, warned):
    class Failing(Foreign):
        def attention_probe(self, batch):
            self(*batch)
            torch.rand(3)
            raise RuntimeError("no\nluck.")

    torch.manual_seed(0)
    _, plain = fit(tmp_path, module=Foreign())
    torch.manual_seed(0)
    _, module = fit(tmp_path, AttentionLogger(every_n_steps=1), module=Failing())
    torch.testing.assert_close(module.losses, plain.losses, rtol=0, atol=0)
    assert num_hooks(module) == 0
    assert all(part.training for part in module.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert warned() == ["AttentionLogger shows nothing from here on: RuntimeError: no luck."]


def test_failing_logger_does_not_stop_training(tmp_path, warned):
    class Broken(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any(key.startswith("attention/") for key in metrics):
                raise OSError("disk full")
            super().log_metrics(metrics, step)

    _, module = fit(tmp_path, AttentionLogger(every_n_steps=1), logger=Broken(tmp_path))
    assert len(module.losses) == 12
    assert warned() == ["AttentionLogger shows nothing from here on: OSError: disk full."]


def test_nothing_is_done_between_firings(tmp_path):
    class Counting(Foreign):
        num_forward, hooks = 0, ()

        def forward(self, src, tgt):
            self.num_forward += 1
            return super().forward(src, tgt)

        def training_step(self, batch, batch_idx):
            self.hooks = (*self.hooks, num_hooks(self))
            return super().training_step(batch, batch_idx)

    callback = AttentionLogger(every_n_steps=5, every_n_epochs=None)
    _, module = fit(tmp_path, callback, module=Counting())
    assert module.num_forward == 12 + 2  # of training, and after steps 5 and 10
    assert module.hooks == (0,) * 12


def test_own_log_of_an_instance_comes_back(tmp_path):
    module, logged = Chatty(), []
    module.log = lambda *args, **kwargs: logged.append(args)
    fit(tmp_path, AttentionLogger(every_n_steps=1), module=module)
    assert len(logged) == 3 * 12  # of each training step; log_dict calls log
    assert "log" in vars(module)
    assert "log_dict" not in vars(module)


def test_failing_hook_does_not_stop_training(tmp_path, warned):
    @dataclasses.dataclass(frozen=True)
    class Pair:
        src: torch.Tensor
        tgt: torch.Tensor

    class Dataclass(Foreign):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch

        def training_step(self, batch, batch_idx):
            return super().training_step((batch.src, batch.tgt), batch_idx)

    def batches(seed):
        return Pair(*tuple_batch(seed))

    module = Dataclass()
    trainer = quiet_trainer(tmp_path, AttentionLogger(every_n_steps=1))
    trainer.fit(module, loader(batches), loader(batches))
    assert len(module.losses) == 12
    [message] = warned()
    assert message.startswith("AttentionLogger shows nothing from here on: ")
    assert "frozen dataclass" in message


def test_failure_to_find_the_folder_does_not_stop_training(tmp_path, warned):
    class Lost(Logger):
        name = "lost"

        @property
        def version(self):
            raise OSError("no version.")

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, params):
            pass

    _, module = fit(tmp_path, AttentionLogger(every_n_steps=1), logger=Lost())
    assert len(module.losses) == 12
    assert warned() == ["AttentionLogger shows nothing from here on: OSError: no version."]


# ---- when and where ----


def test_fires_every_n_steps_and_writes_beside_the_run(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = AttentionLogger(2, every_n_steps=5, every_n_epochs=None)
    fit(tmp_path, callback, project="litseq", logger=logger)
    assert pictures(Path(logger.log_dir)) == {
        f"attention/cross.1/sample{i}-step{step:08}.png" for i in (0, 1) for step in (5, 10)
    }


def test_fires_after_validations_of_every_nth_epoch(tmp_path):
    fit(tmp_path, AttentionLogger(1, every_n_epochs=2), project="litseq", max_epochs=5)
    expected = {f"attention/cross.1/sample0-step{step:08}.png" for step in (12, 24)}
    assert pictures(tmp_path) == expected


def test_accumulated_step_fires_once(tmp_path):
    callback = AttentionLogger(1, every_n_steps=1, every_n_epochs=1)
    calls = []
    callback.probe = lambda module, batch: calls.append(1) or run_module(module, batch)
    fit(tmp_path, callback, accumulate_grad_batches=3)
    assert len(calls) == 4  # two steps in each of two epochs


def test_kinds_and_layers_choose_heatmaps(tmp_path):
    callback = AttentionLogger(1, kinds=["encoder", "decoder"], layers=[0, -1])
    fit(tmp_path, callback, max_epochs=1)
    names = ("encoder.0", "decoder.0", "decoder.1")
    assert pictures(tmp_path) == {f"attention/{n}/sample0-step00000006.png" for n in names}


def test_curves_reach_any_logger(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(tmp_path, AttentionLogger(B), project="litseq", logger=logger, max_epochs=1)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        [row] = [r for r in csv.DictReader(file) if r["attention/entropy/cross.1.0"]]
    logged = {k: float(v) for k, v in row.items() if k.startswith("attention/")}
    assert row["step"] == "6"
    assert len(logged) == 3 * 2 * 3 + 3 * 2 + 2  # entropy per head; diagonality, coverage per layer

    assert all(0 <= value <= 1 for value in logged.values())


def test_curve_of_one_sentence_is_its_entropy(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = AttentionLogger(1, scalars=["entropy", "confidence"])
    _, module = fit(tmp_path, callback, project="litseq", logger=logger, max_epochs=1)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        [row] = [r for r in csv.DictReader(file) if r["attention/entropy/cross.1.0"]]
    [batch] = callback._batches
    module.eval()
    with capture_attention(module) as maps, torch.no_grad():
        run_module(module, batch)
    num_queries = int((batch["labels"] != -100).sum())
    num_keys = int(batch["attention_mask"].sum())
    weights = maps.find("cross", 1).weights[0, :, :num_queries, :num_keys]
    entropy = -(weights * weights.log()).sum(-1).mean(-1) / torch.tensor(num_keys).log()
    for head in range(3):
        assert float(row[f"attention/entropy/cross.1.{head}"]) == pytest.approx(entropy[head])
    confidence = weights.amax(-1).mean()
    assert float(row["attention/confidence/cross.1"]) == pytest.approx(float(confidence))


def test_wandb_gets_pictures_and_curves(tmp_path, offline_wandb):
    logger = WandbLogger(save_dir=tmp_path, project="p", version="run1")
    fit(tmp_path, AttentionLogger(2), project="litseq", logger=logger)
    run = offline_wandb()
    for tag in ("attention/cross.1/sample0", "attention/cross.1/sample1"):
        rows = [row for row in run.history if f"{tag}/count" in row]
        assert [row["trainer/global_step"] for row in rows] == [6, 12]
    assert len(run.values("attention/entropy/encoder.0.2")) == 2
    assert len(pictures(run.folder)) == 4


def test_tensorboard_gets_pictures_and_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, AttentionLogger(2), project="litseq", logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {f"attention/cross.1/sample{i}" for i in (0, 1)}
    assert [e.step for e in events.Images("attention/cross.1/sample0")] == [6, 12]
    assert "attention/entropy/decoder.0.1" in tags["scalars"]


def test_nothing_is_written_outside_of_training(tmp_path):
    fit(tmp_path, AttentionLogger(), fast_dev_run=True)
    trainer = quiet_trainer(tmp_path, AttentionLogger())
    trainer.validate(Foreign(), loader(tuple_batch), verbose=False)
    assert not pictures(tmp_path)


def test_resumed_run_shows_the_same_sentences(tmp_path):
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    first = AttentionLogger(2)
    fit(tmp_path, first, checkpoint, project="litseq", max_epochs=1, enable_checkpointing=True)
    resumed = AttentionLogger(2)
    torch.manual_seed(0)
    module = Recorded(**SMALL)
    # other validation data: it must not choose from them
    trainer = quiet_trainer(tmp_path, resumed, max_epochs=2)
    trainer.fit(
        module, loader(seq2seq_batch), loader(seq2seq_batch, 3, 500),
        ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True,
    )  # fmt: skip
    torch.testing.assert_close(resumed._batches, first._batches, rtol=0, atol=0)
    assert "attention/cross.1/sample0-step00000012.png" in pictures(tmp_path)


def test_resumed_run_may_show_fewer_sentences(tmp_path, warned):
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, AttentionLogger(4), checkpoint, project="litseq", max_epochs=1,
        enable_checkpointing=True)  # fmt: skip
    fit(tmp_path, AttentionLogger(1), project="litseq", ckpt_path=tmp_path / "epoch=0.ckpt")
    assert not warned()
    assert [p for p in sorted(pictures(tmp_path)) if "step00000012" in p] == [
        "attention/cross.1/sample0-step00000012.png"
    ]


def test_checkpoint_holds_no_more_than_a_megabyte():
    callback = AttentionLogger()
    for num_rows, is_saved in ((1 << 17, True), ((1 << 17) + 1, False)):
        callback._batches = [torch.zeros(num_rows, dtype=torch.int64)]
        assert (callback.state_dict()["batches"] == callback._batches) is is_saved


def test_large_sentences_are_chosen_anew(tmp_path, warned):
    class Wide(Foreign):
        """Its batches carry what takes two megabytes."""

        def forward(self, src, tgt, ballast):
            return super().forward(src, tgt)

        def training_step(self, batch, batch_idx):
            src, tgt, ballast = batch
            loss = self(src, tgt, ballast).mean()
            self.losses.append(loss.detach())
            return loss

    def batches(seed):
        return *tuple_batch(seed), torch.zeros(1 << 19)

    first, resumed = AttentionLogger(2), AttentionLogger(2)
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    options = {"max_epochs": 1, "enable_checkpointing": True}
    trainer = quiet_trainer(tmp_path, first, checkpoint, **options)
    trainer.fit(Wide(), loader(batches), loader(batches, 2, 90))
    path = tmp_path / "epoch=0.ckpt"
    assert path.stat().st_size < 1 << 20
    trainer = quiet_trainer(tmp_path, resumed, max_epochs=2)
    trainer.fit(Wide(), loader(batches), loader(batches, 2, 90), ckpt_path=path, weights_only=True)
    torch.testing.assert_close(resumed._batches, first._batches, rtol=0, atol=0)
    assert "attention/cross.1/sample1-step00000012.png" in pictures(tmp_path)
    assert not warned()


def test_two_instances_keep_their_own_sentences(tmp_path):
    callbacks = [AttentionLogger(1), AttentionLogger(2, kinds=["decoder"], layers=[0])]
    trainer, _ = fit(tmp_path, *callbacks, project="litseq", max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    states = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    for callback in callbacks:
        saved = states[callback.state_key]["batches"]
        torch.testing.assert_close(saved, callback._batches, rtol=0, atol=0)
    assert pictures(tmp_path) == {
        f"attention/{name}-step00000006.png"
        for name in ("cross.1/sample0", "decoder.0/sample0", "decoder.0/sample1")
    }


def test_number_of_sentences_does_not_change_the_key():
    assert AttentionLogger(1).state_key == AttentionLogger(2).state_key


def test_two_ranks_train_on_and_rank_zero_alone_writes(tmp_path):
    options = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    fit(tmp_path, AttentionLogger(1, every_n_steps=2), max_epochs=1, **options)
    expected = {f"attention/cross.1/sample0-step{step:08}.png" for step in (2, 4, 6)}
    assert pictures(tmp_path) == expected


def test_sharded_parameters_are_left_alone(tmp_path, warned):
    class FSDPStrategy(SingleDeviceStrategy):
        """One of the names that it knows."""

    strategy = FSDPStrategy(device=torch.device("cpu"))
    fit(tmp_path, AttentionLogger(), strategy=strategy)
    assert not pictures(tmp_path)
    [message] = warned()
    assert "FSDPStrategy may shard parameters" in message


def test_without_matplotlib_curves_remain(tmp_path, warned, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    logger = CSVLogger(tmp_path)
    fit(tmp_path, AttentionLogger(), logger=logger, max_epochs=1)
    assert "attention/entropy/cross.0.0" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert not pictures(tmp_path)
    [message] = warned()
    assert "pip install matplotlib" in message


# ---- any project ----


def test_reader_shows_a_hand_written_attention(tmp_path, warned):
    def read(module, args, kwargs, output):
        yield Seen("encoder", output[1])

    def batch(seed):
        tokens = torch.randint(4, V, (B, S), generator=torch.Generator().manual_seed(seed))
        return tokens, torch.tensor([0, 1, 1])

    callback = AttentionLogger(2, readers={HandWritten: read})
    trainer = quiet_trainer(tmp_path, callback, max_epochs=1)
    trainer.fit(Classifier(), loader(batch), loader(batch))
    expected = {f"attention/encoder.0/sample{i}-step00000006.png" for i in (0, 1)}
    assert pictures(tmp_path) == expected
    assert not warned()


def test_huggingface_model_with_its_tokenizer(tmp_path, warned):
    transformers = pytest.importorskip("transformers")

    class Marian(Foreign):
        def __init__(self):
            super().__init__()
            self.transformer = transformers.MarianMTModel(
                transformers.MarianConfig(
                    vocab_size=V, d_model=12, encoder_layers=1, decoder_layers=2,
                    encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=20,
                    decoder_ffn_dim=20, max_position_embeddings=32, pad_token_id=0,
                    eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=1,
                )
            )  # fmt: skip

        def forward(self, input_ids, attention_mask, labels):
            return self.transformer(
                input_ids=input_ids, attention_mask=attention_mask, labels=labels
            )

        def training_step(self, batch, batch_idx):
            return self(**{k: v for k, v in batch.items() if k != "id"}).loss

    class Data(LightningDataModule):
        class Tokenizer:
            def convert_ids_to_tokens(self, ids):
                return [f"<{i}>" for i in ids]

        wordpieces = Tokenizer()

        def __init__(self):
            super().__init__()
            self.wordpieces = self.Tokenizer()

        def train_dataloader(self):
            return loader(seq2seq_batch)

        val_dataloader = train_dataloader

    seen = []
    callback = AttentionLogger(2, every_n_steps=2)
    look = callback._look
    callback._look = lambda *args: seen.append(look(*args)) or seen[-1]
    trainer = quiet_trainer(tmp_path, callback, max_epochs=1)
    module = Marian()
    trainer.fit(module, datamodule=Data())
    assert not warned()
    assert len(seen) == 3
    assert {view.name for view in seen[0][0]} >= {"encoder.0", "decoder.1", "cross.1"}
    cross = next(view for view in seen[0][0] if view.name == "cross.1")
    assert cross.key_tokens[0].startswith("<")
    assert cross.log_prob < 0
    assert pictures(tmp_path)
    assert module.transformer.config._attn_implementation != "eager"


def test_own_texts_are_cut_by_the_tokenizer_of_the_data(datamodule, tmp_path):
    texts = [("one red house", "haus rot eins"), ("dog", "hund")]
    callback = AttentionLogger(every_n_steps=1, texts=texts)
    seen = []
    look = callback._look
    callback._look = lambda *args: seen.append(look(*args)) or seen[-1]
    options = {k: v for k, v in SMALL.items() if k != "vocab_size"}
    module = TransformerSeq2Seq(**options)
    trainer = quiet_trainer(tmp_path, callback, max_steps=1)
    trainer.fit(module, datamodule)
    first, second = ({view.name: view for view in sentence} for sentence in seen[0])
    encode, pieces = module.tokenizer.encode_source, module.tokenizer.source_pieces
    source = pieces(encode(["one red house"])[0])
    target = module.tokenizer.target_pieces(module.tokenizer.encode_target([texts[0][1]])[0])
    assert first["encoder.0"].query_tokens == first["encoder.0"].key_tokens == source
    assert first["decoder.0"].query_tokens == ["<s>", *target[:-1]]
    assert first["cross.0"].query_tokens == target
    assert first["cross.0"].key_tokens == source
    assert "predicted" in first["cross.0"].query_label
    assert second["cross.1"].weights.size(-1) == len(second["cross.1"].key_tokens) < len(source)
    torch.testing.assert_close(second["cross.1"].weights.sum(-1), torch.ones(3, len(pieces(
        module.tokenizer.encode_target(["hund"])[0]))))  # fmt: skip
    assert len(pictures(tmp_path)) == 2


def test_texts_need_a_litseq_tokenizer(tmp_path, warned):
    fit(tmp_path, AttentionLogger(texts=[("a", "b")]))
    [message] = warned()
    assert "texts need a litseq tokenizer, and Foreign has none" in message


def test_module_without_attention_is_told_once(tmp_path, warned):
    fit(tmp_path, AttentionLogger(every_n_steps=1), project="rnn", module=RnnSeq2Seq(**SMALL_RNN))
    [message] = warned()
    assert "RnnSeq2Seq holds no attention: looked for" in message


def test_module_that_cannot_be_run_is_told_once(tmp_path, warned):
    class Silent(Foreign):
        forward = LightningModule.forward

        def training_step(self, batch, batch_idx):
            loss = Foreign.forward(self, *batch).mean()
            self.losses.append(loss.detach())
            return loss

    _, module = fit(tmp_path, AttentionLogger(every_n_steps=1), module=Silent())
    assert len(module.losses) == 12
    [message] = warned()
    assert "looked for attention_probe(batch) and forward(...) of Silent" in message


def test_attention_that_does_not_run_is_told(tmp_path, warned):
    fit(tmp_path, AttentionLogger(probe=lambda module, batch: None))
    [message] = warned()
    assert "the forward pass of Foreign ran none of its attention" in message


def test_no_validation_is_told_at_the_end(tmp_path, warned):
    fit(tmp_path, AttentionLogger(every_n_steps=1), limit_val_batches=0)
    [message] = warned()
    assert "no validation ran that it could choose sentences from; give texts" in message


def test_run_that_ends_before_it_fires_is_told(tmp_path, warned):
    fit(tmp_path, AttentionLogger(every_n_steps=100, every_n_epochs=None))
    [message] = warned()
    assert "it fires every 100 step(s), and none came in the 12 steps of training" in message


def test_texts_without_validation_are_told_when_they_fire(tmp_path, warned):
    fit(tmp_path, AttentionLogger(texts=[("a", "b")]), limit_val_batches=0)
    [message] = warned()
    assert "it fires after the validations of every 1 epoch(s), and none came" in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (7,)}, "no map of kinds=None and layers=[7]; "),
        ({"kinds": ["decoder"], "layers": [-3, 2]}, "no map of kinds=['decoder'] and layers=[-3"),
    ],
)
def test_heatmaps_that_are_not_there_are_told_once(options, said, tmp_path, warned):
    logger = CSVLogger(tmp_path)
    fit(tmp_path, AttentionLogger(1, **options), project="litseq", logger=logger)
    assert not pictures(tmp_path)
    [message] = warned()
    assert said in message
    names = [f"{kind}.{layer}" for kind in ("encoder", "decoder", "cross") for layer in (0, 1)]
    assert set(message.rpartition("there are: ")[2].rstrip(".").split(", ")) == set(names)
    assert "attention/entropy/cross.1.0" in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_rows_of_ignored_labels_are_left_out(tmp_path, warned):
    def batch(seed):
        found = seq2seq_batch(seed)
        found["labels"][1] = -100
        return found

    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, AttentionLogger(B), logger=logger, max_epochs=1)
    module = TransformerSeq2Seq(**SMALL, val_decode=False)
    trainer.fit(module, loader(seq2seq_batch), loader(batch, 1))
    assert not warned()
    folder = Path(logger.log_dir)
    expected = {f"attention/cross.1/sample{i}-step00000006.png" for i in (0, 2)}
    assert pictures(folder) == expected
    assert "attention/entropy/encoder.1.0" in (folder / "metrics.csv").read_text()


# ---- sentences and their tokens ----


def test_examples_are_spread_evenly():
    batches = [seq2seq_batch(i) for i in range(4)]  # 12 examples, ids 10 b + row
    chosen = choose_examples(batches, 4)
    assert torch.cat([batch["id"] for batch in chosen]).tolist() == [1, 11, 21, 31]
    chosen = choose_examples(batches[:2], 4)
    assert [batch["id"].tolist() for batch in chosen] == [[0, 2], [10, 12]]
    for batch in chosen:
        number = int(batch["id"][0]) // 10
        torch.testing.assert_close(batch["labels"], batches[number]["labels"][[0, 2]])
    assert sum(len(batch["id"]) for batch in choose_examples(batches, 99)) == 12


def test_foreign_batches_are_taken_whole():
    batches = [tuple_batch(0), tuple_batch(1)]
    assert choose_examples(batches, 2) == batches[:1]


def test_examples_are_taken_of_plain_batches_that_come_first():
    batches = [
        (torch.arange(24.0).view(6, 2, 2) + 100 * b, torch.arange(6) + 10 * b) for b in (0, 1)
    ]
    chosen = choose_examples(batches, 2)
    assert [classes.tolist() for _, classes in chosen] == [[3], [13]]
    torch.testing.assert_close(chosen[1][0], batches[1][0][[3]])
    [chosen] = choose_examples(
        [{"image": torch.zeros(6, 3), "class": torch.arange(6), "of": "x"}], 1
    )
    assert chosen["class"].tolist() == [3]
    assert chosen["image"].shape == (1, 3)
    assert chosen["of"] == "x"


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(6, 4), torch.zeros(6, 4)),  # either may be the time
        (torch.zeros(6, 6), torch.zeros(6)),
        torch.zeros(6, 4),
        [[torch.zeros(3, 4), torch.zeros(3, 5)], torch.zeros(3, 9)],  # images of many sizes
        ({1, 2}, torch.zeros(6, 4), torch.zeros(6)),
        5,
    ],
)
def test_batches_whose_examples_nobody_can_tell_are_taken_whole(batch):
    [chosen] = choose_examples([batch, batch], 2)
    assert chosen is batch


@pytest.mark.parametrize(
    ("forward", "batch", "expected"),
    [
        (lambda self, a, b: (a, b), {"b": 2, "a": 1, "c": 3}, (1, 2)),
        (lambda self, **all: all, {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        (lambda self, batch: batch, {"a": 1}, {"a": 1}),
        (lambda self, a: a, (1, 2), 1),
        (lambda self, a, *rest: (a, rest), [1, 2, 3], (1, (2, 3))),
        (lambda self, a: a, 5, 5),
        (lambda self, a, mask=None: (a, mask), (1, 2), (1, None)),
        (lambda self, a, b, scale=1.0: (a, b, scale), (1, 2, 3), (1, 2, 1.0)),
        (lambda self, a=0, flag=False: (a, flag), (1, 2), (1, False)),
    ],
)
def test_forward_gets_what_it_takes(forward, batch, expected):
    module = type("Any", (nn.Module,), {"forward": forward})()
    assert run_module(module, batch) == expected


def test_attention_probe_comes_first():
    module = type("Any", (nn.Module,), {"attention_probe": lambda self, batch: ("probe", batch)})()
    assert run_module(module, (1, 2)) == ("probe", (1, 2))


def test_foreign_tokens_stand_where_they_belong():
    """Time comes first, the forward pass drops the target's last token, row 1 is padded."""
    module = Foreign().eval()
    batch = tuple_batch(0)
    with capture_attention(module, max_examples=2) as maps, torch.no_grad():
        module(*batch)
    src, tgt = batch
    sentences = list(views(maps, batch, None, labels=find_labels(), max_rows=2))
    assert len(sentences) == 2
    for row, length in ((0, S), (1, 5)):
        by_name = {view.name: view for view in sentences[row]}
        source = [str(i) for i in src[:length, row].tolist()]
        target = [str(i) for i in tgt[:, row].tolist()]
        assert list(by_name["encoder.0"].key_tokens) == source
        assert by_name["encoder.0"].weights.shape == (3, length, length)
        assert list(by_name["decoder.1"].query_tokens) == target[:-1]
        assert list(by_name["cross.1"].query_tokens) == target[1:]
        assert list(by_name["cross.1"].key_tokens) == source
        expected = maps.find("cross", 1).weights[row, :, :, :length]
        torch.testing.assert_close(by_name["cross.1"].weights, expected, rtol=0, atol=0)


def test_tokens_of_no_known_batch_are_numbered():
    module = Foreign().eval()
    with capture_attention(module) as maps, torch.no_grad():
        module(*tuple_batch(0))
    [sentence] = views(maps, {"x": torch.rand(4)}, None, labels=find_labels(), max_rows=1)
    cross = next(view for view in sentence if view.kind == "cross")
    assert list(cross.key_tokens) == [str(i) for i in range(S)]
    assert "by position" in cross.key_label


def test_log_prob_is_that_of_the_shown_target():
    torch.manual_seed(0)
    module = TransformerSeq2Seq(**SMALL)
    module.configure_model()
    module.eval()
    batch = seq2seq_batch(0)
    with capture_attention(module) as maps, torch.no_grad():
        logits = run_module(module, batch)
    for row, [view, *_] in enumerate(views(maps, batch, logits, labels=find_labels(), max_rows=B)):
        expected = nn.functional.cross_entropy(logits[row], batch["labels"][row])
        assert view.log_prob == pytest.approx(-float(expected))


def test_padding_on_the_left_is_left_out():
    module = TransformerSeq2Seq(**SMALL)
    module.configure_model()
    module.eval()
    batch = seq2seq_batch(0, padded=False)
    batch["attention_mask"][0, :2] = 0
    with capture_attention(module) as maps, torch.no_grad():
        run_module(module, batch)
    first, *_ = views(maps, batch, None, labels=find_labels(), max_rows=1)
    cross = next(view for view in first if view.name == "cross.0")
    assert list(cross.key_tokens) == [str(i) for i in batch["input_ids"][0, 2:].tolist()]
    torch.testing.assert_close(cross.weights.sum(-1), torch.ones(3, T))


@pytest.mark.parametrize("name", ["num_samples", "every_n_steps", "every_n_epochs", "max_tokens"])
def test_numbers_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        AttentionLogger(**{name: 0})


def test_it_must_fire_at_some_time():
    with pytest.raises(ValueError, match="both None; give one of them"):
        AttentionLogger(every_n_epochs=None)


@pytest.mark.parametrize("name", ["kinds", "scalars"])
def test_names_are_known(name):
    with pytest.raises(ValueError, match=f"{name} are .*, got 'crosss'"):
        AttentionLogger(**{name: ["crosss"]})


@pytest.mark.parametrize("layers", [-1, "01", [0.5]])
def test_layers_are_a_sequence_of_numbers(layers):
    with pytest.raises(ValueError, match="layers must be a sequence of whole numbers such as"):
        AttentionLogger(layers=layers)
