"""Each part alone, in a project that is not ours."""

import json
import subprocess
import sys
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader

import litseq
from litseq.data import collate, plan_batches
from tiny_tasks import VOCAB_SIZE, tiny_batches, tiny_task, tiny_trainer

# ---- batches ----


def good():
    return {name: value.clone() for name, value in tiny_batches(1)[0].items()}


def without(name):
    batch = good()
    del batch[name]
    return batch


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            [torch.zeros(2, 3), torch.zeros(2, 3)],
            TypeError,
            r"a mapping with input_ids, attention_mask, labels, as .* make it, got a list; let",
        ),
        (without("attention_mask"), ValueError, "attention_mask is missing among id, input_ids, l"),
        ({}, ValueError, "input_ids is missing among nothing;"),
        ({**good(), "labels": [[1]]}, TypeError, "labels of a batch must be an int64 .*, got list"),
        (
            {**good(), "input_ids": torch.zeros(3, 4)},
            TypeError,
            "input_ids of a batch must be an int64 tensor, got torch.float32",
        ),
        (
            {**good(), "labels": good()["labels"][:2]},
            ValueError,
            r"labels of a batch must be \(B, length\), .* got \(2, \d\) beside input_ids \(3, \d\)",
        ),
        (
            {**good(), "attention_mask": torch.ones(3, 99, dtype=torch.int64)},
            ValueError,
            r"attention_mask must have the shape of input_ids, got \(3, 99\) and \(3, \d\)",
        ),
        (
            {**good(), "input_ids": good()["input_ids"] + VOCAB_SIZE},
            ValueError,
            "input_ids of a batch must be from 0 to 22, the vocabulary's last id, got ",
        ),
        (
            {**good(), "labels": torch.full((3, 5), -1)},
            ValueError,
            "from 0 to 22, the vocabulary's last id, and -100 where there is padding, got -1",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_foreign_batch_that_does_not_fit_is_told_in_one_line(
    stage, batch, error, message, tmp_path
):
    loader = DataLoader([batch], batch_size=None)
    with pytest.raises(error, match=message) as caught:
        getattr(tiny_trainer(tmp_path), stage)(tiny_task(), loader)
    assert "\n" not in str(caught.value)


def test_a_source_vocabulary_of_its_own_is_checked(tmp_path):
    task = tiny_task(src_vocab_size=9)
    with pytest.raises(ValueError, match="input_ids of a batch must be from 0 to 8"):
        tiny_trainer(tmp_path).fit(task, DataLoader(tiny_batches(1), batch_size=None))


# ---- our batches in other people's modules and loops ----


def foreign(base):
    """A project's module, under either Lightning package."""

    class Foreign(base):
        """Reads the keys of a batch and knows nothing else of litseq."""

        def __init__(self, vocab_size):
            super().__init__()
            self.embedding = nn.Embedding(vocab_size, 8)
            self.output = nn.Linear(8, vocab_size)
            self.seen = []

        def training_step(self, batch, batch_idx):
            if "id" in batch:
                self.seen += batch["id"].tolist()
            mask = batch["attention_mask"][..., None]
            bag = (self.embedding(batch["input_ids"]) * mask).sum(1) / mask.sum(1)
            logits = self.output(bag)[:, None].expand(-1, batch["labels"].size(1), -1)
            return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

        def validation_step(self, batch, batch_idx):
            self.log("loss", self.training_step(batch, batch_idx), batch_size=len(batch["id"]))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
            schedule = litseq.scheduler(optimizer, "inverse_sqrt", warmup_steps=4)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Foreign


def test_our_datamodule_feeds_a_foreign_module(datamodule, tmp_path):
    datamodule.prepare_data()
    datamodule.setup("fit")
    module = foreign(pl.LightningModule)(datamodule.tokenizer.tgt_vocab_size)
    trainer = tiny_trainer(tmp_path, limit_val_batches=0)
    trainer.fit(module, datamodule)
    assert sorted(module.seen) == list(range(300))
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(0.5 * (4 / (trainer.global_step + 1)) ** 0.5)


def test_our_loaders_feed_the_other_lightning(datamodule, tmp_path):
    other = pytest.importorskip("pytorch_lightning")
    datamodule.prepare_data()
    datamodule.setup("fit")
    module = foreign(other.LightningModule)(datamodule.tokenizer.tgt_vocab_size)
    trainer = other.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule.train_dataloader(), datamodule.val_dataloader())
    assert sorted(set(module.seen)) == list(range(300))


def test_batch_plan_and_collator_with_a_plain_dataloader(tmp_path):
    lengths = [1 + i % 7 for i in range(40)]
    pairs = [(list(range(4, 4 + n)), [5] * n) for n in lengths]
    plan = plan_batches(lengths, lengths, max_tokens=20)

    class Plain(foreign(pl.LightningModule)):
        def training_step(self, batch, batch_idx):
            assert batch["input_ids"].numel() <= 20
            self.seen += batch["input_ids"].size(0) * [0]
            return super().training_step(batch, batch_idx)

    loader = DataLoader(
        pairs,
        batch_sampler=plan.batches(),
        collate_fn=lambda rows: collate(*zip(*rows)),  # noqa: B905
    )
    module = Plain(VOCAB_SIZE)
    tiny_trainer(tmp_path, max_epochs=2).fit(module, loader)
    assert len(module.seen) == 2 * len(pairs)


# ---- searches, loss and schedule over anything ----


@dataclass
class BareState:
    """A state of one's own: all that is asked of it is ``reorder``."""

    hidden: torch.Tensor

    def reorder(self, index):
        return BareState(self.hidden[index])


class BareModel:
    """No nn.Module, no class of ours."""

    def __init__(self):
        torch.manual_seed(0)
        self.embedding, self.cell = nn.Embedding(9, 8), nn.GRUCell(8, 8)
        self.output = nn.Linear(8, 9)

    def init_state(self, memory):
        return BareState(memory)

    def step(self, token, state):
        hidden = self.cell(self.embedding(token), state.hidden)
        return self.output(hidden), BareState(hidden)


def all_outputs(model, memory, max_len):
    """Every sequence that ends with EOS = 1 within ``max_len`` tokens, and its log-probability."""
    done, alive = [], [((), 0.0, model.init_state(memory), torch.tensor([0]))]
    for _ in range(max_len):
        grown = []
        for tokens, total, state, last in alive:
            logits, after = model.step(last, state)
            for token, log_prob in enumerate(logits.log_softmax(-1)[0].tolist()):
                item = ((*tokens, token), total + log_prob, after, torch.tensor([token]))
                (done if token == 1 else grown).append(item)
        alive = grown
    return sorted(((total, tokens) for tokens, total, *_ in done), reverse=True)


@torch.no_grad()
def test_beam_search_over_an_object_with_init_state_and_step():
    model, memory = BareModel(), torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    found = litseq.beam_search(
        model, memory, beam_size=81, max_len=torch.tensor([3, 3]), bos_id=0, eos_id=1,
        length_penalty=0.0, n_best=3,
    )  # fmt: skip
    for row in range(2):
        best = all_outputs(model, memory[row : row + 1], 3)[:3]
        complete = [h for h in found[row] if h.tokens[-1] == 1]
        assert [tuple(h.tokens) for h in complete] == [tokens for _, tokens in best]
        for hypothesis, (total, _) in zip(complete, best, strict=True):
            assert hypothesis.log_prob == pytest.approx(total, abs=1e-5)


def test_loss_and_schedule_in_a_loop_of_ones_own():
    torch.manual_seed(0)
    layer = nn.Linear(4, 9)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    schedule = litseq.scheduler(optimizer, "linear", warmup_steps=2, total_steps=10)
    inputs, labels = torch.randn(3, 5, 4), torch.randint(9, (3, 5))
    labels[0, 3:] = -100
    losses = []
    for _ in range(10):
        loss, nll, num_tokens = litseq.token_loss(layer(inputs), labels, label_smoothing=0.1)
        expected = nn.functional.cross_entropy(
            layer(inputs).flatten(0, 1), labels.flatten(), label_smoothing=0.1, reduction="sum"
        )
        torch.testing.assert_close(loss, expected)
        assert num_tokens == 13
        losses.append(float(nll / num_tokens))
        optimizer.zero_grad()
        (loss / num_tokens).backward()
        optimizer.step()
        schedule.step()
    assert losses == sorted(losses, reverse=True)
    assert optimizer.param_groups[0]["lr"] == 0


# ---- names in other people's YAML ----

PROJECT = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI


class Model(LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()
        self.embedding = torch.nn.Embedding(23, width)
        self.attention = torch.nn.MultiheadAttention(width, 2, batch_first=True)
        self.output = torch.nn.Linear(width, 23)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.output(self.attention(x, x, x)[0])

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]).transpose(1, 2), batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Data(LightningDataModule):
    def train_dataloader(self):
        tokens = torch.randint(23, (6, 5), generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens), batch_size=2)

    val_dataloader = train_dataloader


LightningCLI(Model, Data)
"""


def test_names_resolve_in_a_command_line_that_is_not_ours(tmp_path):
    (tmp_path / "project.py").write_text(PROJECT)
    config = {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": ".", "name": "runs"},
            },
            "callbacks": [
                {"class_path": "litseq.AttentionLogger", "init_args": {"num_samples": 1}},
                {
                    "class_path": "litseq.BestCheckpoint",
                    "init_args": {"monitor": "val_loss", "mode": "min"},
                },
                {"class_path": "litseq.RunCheckpoint"},
                {"class_path": "litseq.NonFiniteGuard"},
            ],
        }
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    first, second = (tmp_path / "runs" / f"version_{number}" for number in range(2))
    program = (
        "import json, runpy, sys\n"
        "for words in json.loads(sys.argv.pop()):\n"
        "    sys.argv[1:] = words\n"
        "    runpy.run_path('project.py', run_name='__main__')\n"
    )
    words = [
        ["fit", "--config", "config.yaml", "--trainer.callbacks+=litseq.PrecisionMonitor"],
        ["fit", "--config", str(first / "config.yaml")],  # what it saved runs again
    ]
    subprocess.run(
        [sys.executable, "-c", program, json.dumps(words)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (first / "attention" / "encoder.0" / "sample0-step00000003.png").is_file()
    assert {path.name for path in (first / "checkpoints").iterdir()} >= {"best.ckpt", "last.ckpt"}
    assert (second / "checkpoints" / "best.ckpt").is_file()


# ---- importing ----

LOOK = """
import json, logging, os, random, sys, warnings
{before}

def look():
    state = {{
        "environment": dict(os.environ),
        "filters": list(map(str, warnings.filters)),
        "handlers": [str(h) for h in logging.getLogger().handlers],
        "levels": {{n: logging.getLogger(n).level for n in ("", "lightning.pytorch", "torch")}},
        "random": str(random.getstate()),
        "files": sorted(os.listdir(".")),
        "excepthook": str(sys.excepthook),
    }}
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None:
        state["torch"] = [
            torch.get_num_threads(), str(torch.get_default_dtype()), torch.initial_seed(),
            torch.get_rng_state().tolist(), torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
        ]
    if numpy is not None:
        state["numpy"] = str(numpy.random.get_state())
    return state

def packages():
    return {{name.split(".")[0] for name in sys.modules}}

first, known = look(), packages()
{act}
second = look()
changed = {{name for name in first if first[name] != second[name]}}
print(json.dumps([sorted(changed), sorted(packages()), sorted(packages() - known)]))
"""


def look(before, act, folder):
    code = LOOK.format(before=before, act=act)
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert outcome.stderr == ""
    return json.loads(outcome.stdout)


def test_importing_changes_nothing_and_loads_nothing(tmp_path):
    changed, loaded, _ = look("", "import litseq", tmp_path)
    assert changed == []
    heavy = {"torch", "lightning", "numpy", "datasets", "transformers", "wandb", "sacrebleu"}
    assert heavy.isdisjoint(loaded)


def test_importing_every_name_changes_no_setting(tmp_path):
    # what these do when they are first imported is not ours
    others = "import lightning.pytorch, datasets, matplotlib.figure, sacrebleu, sentencepiece"
    act = "import litseq\nfor name in litseq.__all__: getattr(litseq, name)"
    changed, loaded, _ = look(others, act, tmp_path)
    assert changed == []
    assert {"wandb", "tensorboard", "comet"}.isdisjoint(loaded)


def test_one_callback_loads_little_more_than_lightning(tmp_path):
    act = "from litseq import AttentionLogger"
    _, _, more = look("import lightning.pytorch", act, tmp_path)
    heavy = {"datasets", "transformers", "wandb", "pandas", "pyarrow"}
    assert heavy.isdisjoint(more)
    assert "litseq" in more
