import csv
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from litseq.callbacks import TokenThroughput, progress

# source lengths and target lengths of four batches of one row each
LENGTHS = [(7, 5), (3, 2), (7, 1), (4, 4)]
SRC_LEN, TGT_LEN = 7, 5


def batch(src_len: int, tgt_len: int) -> dict[str, torch.Tensor]:
    labels = torch.full((TGT_LEN,), -100)
    labels[:tgt_len] = 3
    return {"attention_mask": (torch.arange(SRC_LEN) < src_len).long(), "labels": labels}


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, model: Module, data: list, throughput=None, **options
) -> list[dict[str, str]]:
    """The rows that were logged with a throughput."""
    logger = CSVLogger(folder)
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[throughput or TokenThroughput()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "log_every_n_steps": 2, **options},
    )
    trainer.fit(model, DataLoader(data), DataLoader([data[0]]))
    metrics = Path(logger.log_dir) / "metrics.csv"
    if not metrics.exists():
        return []
    with metrics.open() as file:
        return [row for row in csv.DictReader(file) if row.get("train/padding")]


def test_padding_is_counted_over_the_steps_since_the_last_log(tmp_path):
    rows = fit(tmp_path, Module(), [batch(*lengths) for lengths in LENGTHS])
    positions = 2 * (SRC_LEN + TGT_LEN)
    expected = [1 - (7 + 5 + 3 + 2) / positions, 1 - (7 + 1 + 4 + 4) / positions]
    assert [float(row["train/padding"]) for row in rows] == pytest.approx(expected)


def test_padding_of_labels_alone(tmp_path):
    data = [{"labels": batch(*lengths)["labels"]} for lengths in LENGTHS]
    rows = fit(tmp_path, Module(), data)
    assert [float(row["train/padding"]) for row in rows] == pytest.approx([0.3, 0.5])


def test_accumulated_batches_count_together(tmp_path):
    data = [batch(*lengths) for lengths in LENGTHS]
    rows = fit(tmp_path, Module(), data, accumulate_grad_batches=2, log_every_n_steps=1)
    positions = 2 * (SRC_LEN + TGT_LEN)
    expected = [1 - (7 + 5 + 3 + 2) / positions, 1 - (7 + 1 + 4 + 4) / positions]
    assert [float(row["train/padding"]) for row in rows] == pytest.approx(expected)


def test_rate_counts_target_tokens_and_not_the_time_of_validation(tmp_path, monkeypatch):
    now = [0.0]

    class Ticking(Module):
        def training_step(self, batch, batch_idx):
            now[0] += 2
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            now[0] += 100

    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    data = [batch(*lengths) for lengths in LENGTHS]
    rows = fit(tmp_path, Ticking(), data, val_check_interval=1)
    rates = [float(row["train/tokens_per_second"]) for row in rows]
    assert rates == pytest.approx([(5 + 2) / 4, (1 + 4) / 4])  # two steps of two seconds each
    assert now[0] == 4 * 2 + 5 * 100  # the sanity check among the validations


class Clock:
    """A clock that stands still unless it is told how much time passes."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_both_sides_and_the_wait_for_data(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return len(LENGTHS)

        def __getitem__(self, i):
            clock.now += 3  # to read a batch
            return batch(*LENGTHS[i])

    class Ticking(Module):
        def training_step(self, batch, batch_idx):
            clock.now += 1  # to train on it
            return super().training_step(batch, batch_idx)

    trainer_options = {"log_every_n_steps": 4, "limit_val_batches": 0}
    (row,) = fit(tmp_path, Ticking(), Slow(), **trainer_options)
    src, tgt = (sum(side) for side in zip(*LENGTHS, strict=True))
    assert float(row["train/data_wait"]) == pytest.approx(12 / 16)
    assert float(row["train/tokens_per_second"]) == pytest.approx(tgt / 16)
    assert float(row["train/src_tokens_per_second"]) == pytest.approx(src / 16)
    assert "train/mfu" not in row  # nobody knows the peak of a CPU
    assert "train/tokens_per_second_per_device" not in row


def test_validation_is_no_wait_for_data(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    class Ticking(Module):
        def training_step(self, batch, batch_idx):
            clock.now += 2
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock.now += 100

    data = [batch(*lengths) for lengths in LENGTHS]
    rows = fit(tmp_path, Ticking(), data, val_check_interval=1)
    assert [float(row["train/data_wait"]) for row in rows] == [0, 0]


def test_utilisation_where_the_peak_is_known(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    class Ticking(Module):
        def training_step(self, batch, batch_idx):
            clock.now += 2
            return super().training_step(batch, batch_idx)

    (row,) = fit(tmp_path, Ticking(), [batch(7, 5)], TokenThroughput(36), log_every_n_steps=1)
    # one parameter, (7 + 5) / 2 tokens in two seconds
    assert float(row["train/mfu"]) == pytest.approx(6 * 1 * 6 / 2 / 36)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_peak_memory_is_that_of_the_process(tmp_path):
    (row,) = fit(tmp_path, Module(), [batch(1, 1)], log_every_n_steps=1)
    status = Path("/proc/self/status").read_text()
    kilobytes = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    assert float(row["train/peak_memory_gb"]) == pytest.approx(kilobytes * 1024 / 1e9, rel=0.01)


def test_a_peak_must_be_positive():
    with pytest.raises(ValueError, match="peak_flops must be above 0, got 0"):
        TokenThroughput(peak_flops=0)


def test_logging_switched_off_is_no_error(tmp_path):
    assert fit(tmp_path, Module(), [batch(1, 1)], log_every_n_steps=0) == []


def test_other_batches_are_told_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="litseq"):
        assert fit(tmp_path, Module(), [torch.zeros(2) for _ in range(3)]) == []
    assert [r.message for r in caplog.records if r.name.startswith("litseq")] == [
        "TokenThroughput logs nothing: a batch must be a mapping with a tensor `labels`, "
        "got Tensor."
    ]
