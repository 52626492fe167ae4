import copy
import ctypes
import gc
import logging
import re
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from litseq.architectures import RnnSeq2Seq, TransformerSeq2Seq
from litseq.callbacks import memory
from litseq.callbacks.memory import MemoryCheck
from litseq.data import TranslationDataModule
from litseq.data.buckets import TokenBucketLoader
from processes import ForkedPython
from rank_processes import run_ranks
from tiny_tasks import FAMILIES, VOCAB_SIZE, loader, tiny_batches, tiny_task, tiny_trainer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory in use")


def bucket_loader(max_tokens=60, longest=9, num_examples=40):
    """A real loader of random examples; reading one draws nothing."""
    rng = np.random.default_rng(0)
    src, tgt = rng.integers(2, longest + 1, (2, num_examples))

    def load_batch(ids, epoch):
        generator = np.random.default_rng(int(ids.sum()))
        shape = len(ids), int(src[ids].max())
        tokens = torch.from_numpy(generator.integers(4, VOCAB_SIZE, shape))
        padding = torch.arange(shape[1]) >= torch.from_numpy(src[ids])[:, None]
        labels = torch.full((len(ids), int(tgt[ids].max())), -100)
        for row, length in zip(labels, tgt[ids], strict=True):
            row[:length] = 5
        return {
            "id": torch.from_numpy(ids),
            "input_ids": tokens.masked_fill(padding, 0),
            "attention_mask": (~padding).long(),
            "labels": labels,
        }

    return TokenBucketLoader(load_batch, src, tgt, max_tokens=max_tokens)


class Trace(Callback):
    """Notes everything that a dry run could disturb."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(
            copy.deepcopy((batch, torch.get_rng_state(), vars(pl_module)["_num_tokens"]))
        )

    def on_train_end(self, trainer, pl_module):
        state = trainer.optimizers[0].state_dict()["state"]
        grads = {name: p.grad for name, p in pl_module.named_parameters()}
        self.seen.append(copy.deepcopy((pl_module.state_dict(), state, grads)))


@pytest.mark.parametrize(
    ("family", "precision"),
    [*((family, "32-true") for family in FAMILIES), (TransformerSeq2Seq, "bf16-mixed")],
)
def test_a_run_is_the_same_with_and_without(tmp_path, family, precision):
    ends, files = [], []
    for callbacks in ([], [MemoryCheck()]):
        trace, logger = Trace(), CSVLogger(tmp_path, version=len(ends))
        task = tiny_task(family, dropout=0.3)
        trainer = tiny_trainer(
            tmp_path,
            callbacks=[*callbacks, trace],
            precision=precision,
            accumulate_grad_batches=2,
            max_epochs=2,
            logger=logger,
        )
        trainer.fit(task, bucket_loader())
        ends.append(trace.seen)
        files.append(re.sub(r"(?m)^\s+$", "", (Path(logger.log_dir) / "metrics.csv").read_text()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert files[0] == files[1]
    assert len(ends[0]) > 10


def test_gradients_of_a_broken_off_accumulation_stay(tmp_path):
    class Resumed(Callback):
        def on_train_start(self, trainer, pl_module):
            for parameter in pl_module.parameters():
                parameter.grad = torch.full_like(parameter, 7.0)

    kept = []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            kept.extend(p.grad.unique().tolist() for p in pl_module.parameters())

    trainer = tiny_trainer(tmp_path, callbacks=[Resumed(), MemoryCheck(), Look()], max_steps=1)
    trainer.fit(tiny_task(), bucket_loader())
    assert kept
    assert all(values == [7.0] for values in kept)


def test_the_line_names_the_largest_batch_and_both_figures(tmp_path, caplog):
    data = bucket_loader(max_tokens=5000, longest=100, num_examples=100)
    plan = data.plan()
    most = max(data.largest_batches(), key=lambda batch: batch["input_ids"].numel())
    with caplog.at_level(logging.INFO, logger="litseq"):
        trainer = tiny_trainer(tmp_path, callbacks=[MemoryCheck()], limit_train_batches=1)
        trainer.fit(tiny_task(dim_feedforward=1000), data)
    text = "\n".join(r.getMessage() for r in caplog.records if r.name.endswith("memory"))
    rows, src = most["input_ids"].shape
    assert f"a training step on {rows} sentences of {src} source and " in text
    found = re.search(r"the largest, takes ([\d.]+) GB; ([\d.]+) GB are free", text)
    # the feed-forward layers alone keep 1000 floats, twice, for each position
    positions = most["input_ids"].numel() + 2 * most["labels"].numel()
    assert 4 * 1000 * positions / 1e9 < float(found[1]) < 40 * 1000 * positions / 1e9
    assert float(found[1]) < float(found[2])
    assert len(plan) > 1


@pytest.mark.usefixtures("no_memory_of_former_tests")
def test_what_does_not_fit_is_refused_before_step_1(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: 80_000_000)
    data = bucket_loader(max_tokens=5000, longest=100, num_examples=100)
    task = tiny_task(dim_feedforward=1000)
    before = copy.deepcopy(task.state_dict())
    trainer = tiny_trainer(tmp_path, callbacks=[MemoryCheck()])
    with pytest.raises(
        ValueError, match=r"takes .* GB or more, and 0\.08 GB are free; lower data\.max_tokens from"
    ) as error:
        trainer.fit(task, data)
    advised = int(re.search(r"to about (\d+)", str(error.value))[1])
    assert 500 < advised < 5000
    assert trainer.global_step == 0
    torch.testing.assert_close(task.state_dict(), before, rtol=0, atol=0)

    fits = bucket_loader(max_tokens=advised, longest=100, num_examples=100)
    tiny_trainer(tmp_path, callbacks=[MemoryCheck()], limit_train_batches=1).fit(
        tiny_task(dim_feedforward=1000), fits
    )


@pytest.fixture
def no_memory_of_former_tests(monkeypatch):
    """Lets all but small tensors have memory of their own, not what earlier ones have freed."""
    monkeypatch.setattr("litseq.task.keep_freed", lambda: None)
    mmap_threshold, mmap_max, libc = -3, -4, ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 2**17)
    libc.mallopt(mmap_max, 2**16)
    gc.collect()  # or what they left is freed in the midst of a step, and makes room
    libc.malloc_trim(0)
    yield
    libc.mallopt(mmap_threshold, 2**25)  # as far as it would have gone up by itself


def limited(num_bytes):
    """A task during whose steps the process may take so much more, and no byte beyond."""

    class Limited(TransformerSeq2Seq):
        def training_step(self, batch, batch_idx):
            gc.collect()
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, hard))
            try:
                return super().training_step(batch, batch_idx)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    return Limited


@pytest.mark.usefixtures("no_memory_of_former_tests")
def test_memory_that_runs_out_is_an_error_of_one_line(tmp_path):
    """The real thing: the process may take 60 MB more, and Linux says that there is enough."""
    data = bucket_loader(max_tokens=20_000, longest=100, num_examples=400)
    trainer = tiny_trainer(tmp_path, callbacks=[MemoryCheck()])
    with pytest.raises(ValueError, match=r"GB or more, .* GB are free; "):
        trainer.fit(tiny_task(limited(60_000_000), dim_feedforward=4000), data)


def test_a_model_that_alone_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: 1000)
    with pytest.raises(ValueError, match="take a smaller model"):
        tiny_trainer(tmp_path, callbacks=[MemoryCheck()]).fit(tiny_task(), bucket_loader())


def test_other_errors_are_not_about_memory(tmp_path):
    class Faulty(TransformerSeq2Seq):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        tiny_trainer(tmp_path, callbacks=[MemoryCheck()]).fit(tiny_task(Faulty), bucket_loader())


def test_other_loaders_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="litseq"):
        tiny_trainer(tmp_path, callbacks=[MemoryCheck()]).fit(tiny_task(), loader(tiny_batches(1)))
    assert "MemoryCheck checks nothing: DataLoader has no largest_batches()." in caplog.messages


def test_largest_batches_are_those_of_the_plan():
    data = bucket_loader()
    plan, sizes = data.plan(), []
    for ids in plan.batches():
        batch = data._loader.dataset[(0, ids, True)]
        rows, src = batch["input_ids"].shape
        sizes.append((rows * (src + batch["labels"].size(1)), rows * src * batch["labels"].size(1)))
    largest = data.largest_batches()
    found = []
    for batch in largest:
        rows, src = batch["input_ids"].shape
        found.append((rows * (src + batch["labels"].size(1)), rows * src * batch["labels"].size(1)))
    for kind in (0, 1):
        assert max(size[kind] for size in found) == max(size[kind] for size in sizes)
    assert data.state_dict()["batches"] == 0


# ---- max_tokens: auto ----


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_run_is_the_same_with_the_number_and_with_auto(tmp_path, data_options, caplog, schedule):
    """``linear`` asks for the loader while the strategy is set up, ``constant`` in validation."""
    ends = []
    for max_tokens, callbacks in ((128, []), ("auto", [MemoryCheck(max_tokens_at_most=130)])):
        trace = Trace()
        data = TranslationDataModule(**{**data_options, "max_tokens": max_tokens})
        task = tiny_task(RnnSeq2Seq, vocab_size=64, dropout=0.3, schedule=schedule)
        trainer = tiny_trainer(tmp_path, callbacks=[*callbacks, trace], max_epochs=2)
        with caplog.at_level(logging.INFO, logger="litseq"):
            torch.manual_seed(5)
            trainer.fit(task, data)
        ends.append(trace.seen)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert len(ends[0]) > 10
    said = [r.getMessage() for r in caplog.records if r.name.endswith("memory")]
    assert len(said) == 1
    assert "data.max_tokens: auto is 128 (max_tokens_at_most): a training step on " in said[0]


def choose(tmp_path, cls=TransformerSeq2Seq, *, check=None, **options):
    """What is chosen for random sentences, at the start of a training of no step."""
    found = []

    class Choose(Callback):
        def on_train_start(self, trainer, pl_module):
            found.append((check or MemoryCheck()).choose_max_tokens(trainer, many_sentences))

    trainer = tiny_trainer(tmp_path, callbacks=[Choose()], limit_train_batches=1, **options)
    trainer.fit(tiny_task(cls, dim_feedforward=1000), bucket_loader())
    return found[0]


def many_sentences(max_tokens):
    return bucket_loader(max_tokens, longest=20, num_examples=2000)


@pytest.mark.usefixtures("no_memory_of_former_tests")
def test_auto_is_the_most_that_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: 250_000_000)
    chosen = choose(tmp_path)
    assert chosen % 64 == 0
    assert 1024 < chosen < 16_384

    def peak(max_tokens):
        seen = []
        monkeypatch.setattr(memory, "_all_fit", lambda trainer, trial: seen.append(trial) or True)
        callbacks = [MemoryCheck()]
        tiny_trainer(tmp_path, callbacks=callbacks, limit_train_batches=1).fit(
            tiny_task(dim_feedforward=1000), many_sentences(max_tokens)
        )
        return seen[0].need

    assert peak(chosen) <= 0.75 * 250e6  # 0.7 were to be used
    assert peak(2 * chosen) > 0.7 * 250e6


@pytest.mark.usefixtures("no_memory_of_former_tests")
def test_auto_tries_fewer_until_they_fit(tmp_path, monkeypatch):
    """The real thing: the process may take 150 MB more, and Linux says that there is enough."""
    sizes = []

    def counted(max_tokens):
        sizes.append(max_tokens)
        return plain(max_tokens)

    plain = many_sentences
    monkeypatch.setitem(globals(), "many_sentences", counted)
    chosen = choose(tmp_path, limited(150_000_000))
    assert sizes[:2] == [1024, 16_384]
    assert sizes[2:] == sorted(sizes[2:], reverse=True)
    assert chosen == sizes[-1] < 16_384


@pytest.mark.parametrize("times", [2, 20])
def test_auto_is_not_misled_by_a_guess(tmp_path, monkeypatch, times):
    """The few sentences of the first large batch seem to take several times what they do."""
    sizes = []

    def step(trainer, module, batch):
        sizes.append(batch["input_ids"].numel())

    def peak(device, work):
        work()
        large = [size for size in sizes if 512 < size < 1000]
        return 25_000 * sizes[-1] * (times if misled and sizes[-1] in large[:1] else 1)

    monkeypatch.setattr(memory, "_free", lambda device: 250_000_000)
    monkeypatch.setattr(memory, "_step", step)
    monkeypatch.setattr(memory, "_peak", peak)
    misled = False
    honest = choose(tmp_path)
    sizes, misled = [], True
    assert choose(tmp_path) >= 7 * honest // 8 // 64 * 64


@pytest.mark.usefixtures("no_memory_of_former_tests")
def test_auto_where_little_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: 15_000_000)
    assert 64 <= choose(tmp_path) < 1024


def test_auto_where_nothing_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: 1_000_000)
    with pytest.raises(ValueError, match=r"no max_tokens fits: a training step on .* take a small"):
        choose(tmp_path)


def test_auto_where_memory_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: None)
    with pytest.raises(ValueError, match="max_tokens cannot be 'auto' where the memory of the dev"):
        choose(tmp_path)


def test_auto_has_a_limit(tmp_path):
    assert choose(tmp_path, check=MemoryCheck(1000)) == 960
    with pytest.raises(ValueError, match="max_tokens_at_most must be at least 64, got 63"):
        MemoryCheck(max_tokens_at_most=63)


def choose_on_rank(rank, folder):
    memory._free = lambda device: 1_000_000_000 if rank == 0 else 200_000_000
    return choose(folder, strategy="ddp", devices=2)


def test_all_ranks_choose_what_fits_the_smallest(tmp_path):
    first, second = run_ranks(2, choose_on_rank, tmp_path)
    assert first == second
    assert 1024 < first < 3000  # 0.1 GB: two ranks of a machine share it


def test_the_number_of_a_checkpoint_is_checked_like_any_other(
    tmp_path, data_options, caplog, monkeypatch
):
    def fit(ckpt_path=None, max_epochs=1):
        task = tiny_task(RnnSeq2Seq, vocab_size=64)
        trainer = tiny_trainer(tmp_path, callbacks=[MemoryCheck(128)], max_epochs=max_epochs)
        data = TranslationDataModule(**{**data_options, "max_tokens": "auto"})
        trainer.fit(task, data, ckpt_path=ckpt_path)
        return trainer

    fit().save_checkpoint(tmp_path / "a.ckpt")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="litseq"):
        fit(tmp_path / "a.ckpt", max_epochs=2)
    assert "enough for data.max_tokens up to about" in caplog.text
    assert "(now 128)" in caplog.text
    assert "auto is" not in caplog.text
    monkeypatch.setattr(memory, "_free", lambda device: 1000)
    with pytest.raises(ValueError, match=r"0\.00 GB are free; take a smaller model"):
        fit(tmp_path / "a.ckpt", max_epochs=3)


def test_a_step_that_takes_the_batch_alone(tmp_path, caplog):
    class Alone(type(tiny_task())):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    with caplog.at_level(logging.INFO, logger="litseq"):
        tiny_trainer(tmp_path, callbacks=[MemoryCheck()]).fit(tiny_task(Alone), bucket_loader())
    assert any("the largest, takes" in message for message in caplog.messages)


def test_optimization_by_hand_is_told(tmp_path, caplog):
    class ByHand(type(tiny_task())):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            """Steps, whoever calls it."""

    with caplog.at_level(logging.WARNING, logger="litseq"):
        tiny_trainer(tmp_path, callbacks=[MemoryCheck()]).fit(tiny_task(ByHand), bucket_loader())
    assert "MemoryCheck checks nothing: ByHand optimizes by hand." in caplog.messages


CONTAINERS = [
    ({"memory.max": "7000000", "memory.current": "3000000"}, 4_000_000),
    ({"memory.max": "max", "memory.current": "3000000"}, None),
    (
        {"memory/memory.limit_in_bytes": "9000000", "memory/memory.usage_in_bytes": "8000000"},
        1_000_000,
    ),
]


@pytest.mark.parametrize(("files", "free"), CONTAINERS)
def test_a_containers_limit_counts(files, free, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "none")
    machine = memory._free(torch.device("cpu"))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    found = memory._free(torch.device("cpu"))
    assert found == free if free else found == pytest.approx(machine, rel=0.5)


def test_a_limit_of_the_process_counts(tmp_path):
    """``ulimit -v``: what it lets the process have, less what it has."""
    (tmp_path / "limited.py").write_text(
        "import resource, torch; from litseq.callbacks import memory; "
        "size = memory._status('VmSize'); "
        "resource.setrlimit(resource.RLIMIT_AS, (size + 10**8, size + 10**8)); "
        "free = memory._free(torch.device('cpu')); assert 0 < free <= 10**8, free"
    )
    with ForkedPython([sys.executable, tmp_path / "limited.py"]) as process:
        assert process.wait() == 0
