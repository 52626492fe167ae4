"""``litseq selftest``: whether what must be equal is equal, with one's own model and machine."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from litseq import checkpoints
from litseq.attention import capture_attention
from litseq.checkpoint_io import SafeCheckpointIO
from litseq.data.collate import collate
from litseq.decoding import SearchOptions, beam_search, greedy_search
from litseq.export.verify import read_sentences, sentences_of
from litseq.task import Seq2Seq
from litseq.translate import find_device
from litseq.translator import Translator
from litseq.types import Batch, shift_right

__all__ = ["main"]

_NUM_SENTENCES = 16
_MAX_LENGTH = 40
_PARTS = 4
_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "r_drop")
_BOUND = {torch.float32: 1e-4, torch.float64: 1e-10}


def main(*, ckpt: str, input: str | None = None, device: str = "auto") -> None:
    """Checks on this machine that a checkpoint computes what it must, and prints a table.

    Batches and single sentences, a step and the whole target, a beam of one and greedy search, the
    paths with and without attention kept, file and model: scores may differ by 0.01 % of the
    largest, translations not at all. One step of training on the CPU, without dropout: as one
    batch, as four that are added up, and on two processes; gradients may differ likewise.

    Args:
        ckpt: A litseq checkpoint.
        input: Text file of sentences to check on, one a line; the first 16 are. Default: random
            ones.
        device: Where the searches run, such as cpu or cuda:0; auto is an accelerator where there is
            one.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the checkpoint is not usable, or a check fails.
    """
    begin = time.monotonic()
    texts = read_sentences(input)
    where = find_device(device)
    model = Seq2Seq.load_from_checkpoint(ckpt, map_location=where)
    if model.tokenizer is None:
        raise ValueError(f"{ckpt} holds no tokenizer, and there is nothing to read sentences with.")
    filled = sentences_of(model, texts)[:_NUM_SENTENCES]
    # fewer stand for more: all parts of the training step are of one size
    sample = _Sample(model, list(islice(cycle(filled), _NUM_SENTENCES)))
    _say(f"{len(filled)} sentences, {where}, torch {version('torch')}\n\n")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, check in _checks(sample, Path(ckpt), Path(folder)):
            found, holds = check()
            failed += not holds
            _say(f"{name:<44}  {found:<34}  {'holds' if holds else 'FAILS'}\n")
    _say(f"\n{time.monotonic() - begin:.0f} seconds\n")
    if failed:
        raise ValueError(
            f"{failed} of the checks fail: what this model computes depends on how it is asked."
        )


Check = Callable[[], tuple[str, bool]]


class _Sample:
    """Sentences, and what the model says of them by its ordinary ways."""

    def __init__(self, model: Seq2Seq, texts: Sequence[str]) -> None:
        assert model.tokenizer is not None
        translator = model.translator()
        assert translator is not None
        self.model = model
        self.translator: Translator = translator
        self.sources = model.tokenizer.encode_source(texts)
        self.greedy = SearchOptions(beam_size=1, max_len_a=0, max_len_b=_MAX_LENGTH)
        found = translator.search(self.batch(), self.greedy)
        self.targets = [list(best.tokens) for [best] in found]
        self.scored = self.batch(self.targets)
        self.logits = translator.logits(self.scored)
        self.token = self.scored["labels"] >= 0

    def batch(
        self,
        targets: Sequence[Sequence[int]] | None = None,
        rows: slice = slice(None),
        *,
        device: torch.device | None = None,
    ) -> Batch:
        """Some of the sentences as one batch, where the model is."""
        batch = collate(
            self.sources[rows],
            None if targets is None else targets[rows],
            pad_id=self.translator.pad_id,
        )
        moved: Batch = move_data_to_device(batch, device or self.model.device)
        return moved

    def near(self, logits: Tensor) -> tuple[str, bool]:
        """Compares other logits of the same tokens with ours."""
        gap = float((logits - self.logits)[self.token].abs().max())
        largest = float(self.logits[self.token].abs().max())
        bound = _BOUND.get(self.logits.dtype, 1e-2) * largest
        return f"{gap:.1e} of at most {bound:.1e}", gap <= bound


def _checks(sample: _Sample, ckpt: Path, folder: Path) -> Iterator[tuple[str, Check]]:
    yield "logits: one sentence = in a batch", lambda: _alone(sample)
    yield "translations: one sentence = in a batch", lambda: _translated_alone(sample)
    yield "logits: step by step = all at once", lambda: _stepped(sample)
    yield "translations: a beam of 1 = greedy", lambda: _beam_of_one(sample)
    yield "logits: attention kept = not kept", lambda: _captured(sample)
    yield "weights and translations: saved and read", lambda: _saved(sample, folder)
    whole = folder / "whole"
    yield (
        "gradient: four batches added up = one",
        lambda: _gradients(
            _train(sample, ckpt, whole, parts=1),
            _train(sample, ckpt, folder / "four", parts=_PARTS),
        ),
    )
    yield (
        "gradient: two processes = one",
        lambda: _gradients(
            torch.load(whole, weights_only=True),
            _train(sample, ckpt, folder / "two", parts=_PARTS, processes=2),
        ),
    )


def _alone(sample: _Sample) -> tuple[str, bool]:
    logits = torch.zeros_like(sample.logits)
    for row, target in enumerate(sample.targets):
        batch = sample.batch(sample.targets, slice(row, row + 1))
        logits[row, : len(target)] = sample.translator.logits(batch)[0]
    return sample.near(logits)


def _translated_alone(sample: _Sample) -> tuple[str, bool]:
    beam = replace(sample.greedy, beam_size=4)
    together = sample.translator.search(sample.batch(), beam)
    alone = [
        sample.translator.search(sample.batch(rows=slice(row, row + 1)), beam)[0]
        for row in range(len(sample.sources))
    ]
    return _equal([best.tokens for best, *_ in alone], [best.tokens for best, *_ in together])


@torch.inference_mode()
def _stepped(sample: _Sample) -> tuple[str, bool]:
    network, batch, ids = sample.translator.model, sample.scored, sample.translator
    state = network.init_state(network.encode(batch["input_ids"], batch["attention_mask"] == 0))
    logits = []
    for token in shift_right(batch["labels"], bos_id=ids.bos_id, pad_id=ids.pad_id).unbind(1):
        scores, state = network.step(token, state)
        logits.append(scores)
    return sample.near(torch.stack(logits, 1))


@torch.inference_mode()
def _beam_of_one(sample: _Sample) -> tuple[str, bool]:
    network, batch, ids = sample.translator.model, sample.batch(), sample.translator
    memory = network.encode(batch["input_ids"], batch["attention_mask"] == 0)
    max_len = sample.greedy.max_len(batch["attention_mask"].sum(1))
    beam = beam_search(
        network, memory, beam_size=1, length_penalty=0.0, n_best=1, max_len=max_len,
        bos_id=ids.bos_id, eos_id=ids.eos_id,
    )  # fmt: skip
    greedy = greedy_search(network, memory, max_len=max_len, bos_id=ids.bos_id, eos_id=ids.eos_id)
    return _equal([best.tokens for [best] in beam], [best.tokens for best in greedy])


def _captured(sample: _Sample) -> tuple[str, bool]:
    with torch.inference_mode(), capture_attention(sample.translator.model):
        return sample.near(sample.translator.logits(sample.scored))


def _saved(sample: _Sample, folder: Path) -> tuple[str, bool]:
    model, path = sample.model, folder / "model.ckpt"
    checkpoint = checkpoints.weights_alone(model, model.tokenizer)
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    other = Seq2Seq.load_from_checkpoint(path, map_location=model.device)
    weights = other.state_dict()
    if any(not torch.equal(weight, weights[name]) for name, weight in model.state_dict().items()):
        return "other weights", False
    translator = other.translator()
    assert translator is not None
    found = translator.search(sample.batch(), sample.greedy)
    return _equal([list(best.tokens) for [best] in found], sample.targets)


def _equal(ours: Sequence[object], theirs: Sequence[object]) -> tuple[str, bool]:
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return f"{same} of {len(ours)} equal", same == len(ours)


# ---- one step of training ----


def _gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[str, bool]:
    # by torch, which passes NaN on
    gap = float(
        torch.stack([(theirs[name] - grad).abs().max() for name, grad in ours.items()]).max()
    )
    bound = 1e-4 * float(torch.stack([grad.abs().max() for grad in ours.values()]).max())
    return f"{gap:.1e} of at most {bound:.1e}", gap <= bound


class _Batches(pl.LightningDataModule):
    """A few batches; each process takes its share."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        super().__init__()
        self.batches = batches

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process of its own, before Lightning says anything there."""
        self.__dict__ |= state
        _silence()

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        mine = list(self.batches[self.trainer.global_rank :: self.trainer.world_size])
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]


class _KeepGradient(pl.Callback):
    """Writes the gradient of the last step to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            named = pl_module.named_parameters()
            torch.save({name: p.grad for name, p in named if p.grad is not None}, self.path)


def _train(
    sample: _Sample, ckpt: Path, path: Path, *, parts: int, processes: int = 1
) -> dict[str, Tensor]:
    """The gradient of one step, of the same sentences however they are shared out."""
    options = sample.model.hparams
    still = {name: 0.0 for name in _DROPOUTS if name in options}
    # one step has no course of learning rates, and warns of none
    model = Seq2Seq.load_from_checkpoint(ckpt, hparams={**still, "schedule": "constant"}).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    size = -(-len(sample.sources) // parts)
    batches = [
        sample.batch(sample.targets, slice(first, first + size), device=torch.device("cpu"))
        for first in range(0, len(sample.sources), size)
    ]
    with _quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=processes,
            strategy="auto" if processes == 1 else "ddp_spawn",
            precision="32-true",
            max_steps=1,
            accumulate_grad_batches=len(batches) // processes,
            callbacks=[_KeepGradient(path)],
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, _Batches(batches))
    gradient: dict[str, Tensor] = torch.load(path, weights_only=True)
    return gradient


def _silence() -> list[tuple[logging.Logger, int]]:
    """Lightning says what it computes on, and what it would rather have; returns former levels."""
    names = ["lightning.pytorch", "lightning.fabric", *logging.root.manager.loggerDict]
    loggers = [logging.getLogger(name) for name in names if name.startswith("lightning.")]
    levels = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return levels


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        levels = _silence()
        try:
            yield
        finally:
            for logger, level in levels:
                logger.setLevel(level)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
