#!/usr/bin/env python
"""Measures what AttentionLogger costs a training run: idle, and when it fires every 500 steps.

    python scripts/benchmark_attention.py                        # the demo's model and data
    python scripts/benchmark_attention.py --steps 20 --repetitions 3
    python scripts/benchmark_attention.py --d-model 512 --layers 6 --heads 8 --max-tokens 4096

One training run does it all. Its steps are dealt in turns, ``--steps`` at a time, to three ways:
without the callback, with the callback idle, and with one firing in so many steps. Each turn gives
a throughput; medians and quartiles of the turns are compared. Turns lie side by side in time, so a
machine that slows down slows down all three.

No machine is quiet enough to see a ten-thousandth of a step that way. So the same run also measures
directly, the whole cost and nothing else: how long the callback's hook takes in a step that does
not fire, over the time of a step; and how long one firing takes, over that of ``--every`` steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from litseq import TransformerSeq2Seq, TranslationDataModule
from litseq.callbacks import AttentionLogger

WAYS = ("without", "idle", "firing")
WARM_UP = 10  # steps that nobody counts


class Stopwatch(Callback):
    """Deals the steps to the three ways and times them.

    It holds the callback and calls its hooks as the Trainer would, or does not.
    """

    def __init__(self, logger: AttentionLogger, *, steps: int, repetitions: int) -> None:
        self.logger = logger
        self.steps = steps
        self.total = WARM_UP + steps * repetitions * len(WAYS)
        self.seconds: dict[str, list[float]] = {way: [] for way in WAYS}  # of a step, per turn
        self.hook_seconds: list[float] = []
        self.firing_seconds: list[float] = []
        self._start = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the callback up."""
        self.logger.setup(trainer, pl_module, stage)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int,  # noqa: ANN401
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Hands it the batches that it chooses sentences from."""
        self.logger.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets it choose."""
        self.logger.on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets it say when it fires first: never within this run, but for ``_fire_once``."""
        self.logger.on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Ends a step of one of the three ways, and at the end of a turn begins the next."""
        step = trainer.global_step - WARM_UP - 1  # the one that ends
        turn, within = divmod(step, self.steps)
        way = _way(turn)
        if step >= 0 and way != "without":
            arguments = (trainer, pl_module, outputs, batch, batch_idx)
            start = time.perf_counter()
            if way == "firing" and within == self.steps // 2:
                # the very branch that a step takes whose number is due
                self.logger._next_step = trainer.global_step
                self.logger.on_train_batch_end(*arguments)
                _wait(pl_module)
                self.firing_seconds.append(time.perf_counter() - start)
            else:
                self.logger.on_train_batch_end(*arguments)
                self.hook_seconds.append(time.perf_counter() - start)
        if step >= 0 and within == self.steps - 1:
            _wait(pl_module)
            self.seconds[way].append((time.perf_counter() - self._start) / self.steps)
        if within == self.steps - 1:
            self._start = time.perf_counter()


def _way(turn: int) -> str:
    """The order changes from round to round, so that nobody always comes after the same."""
    repetition, place = divmod(turn, len(WAYS))
    return WAYS[(place + repetition) % len(WAYS)]


def _wait(pl_module: LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the training and returns all that was measured."""
    torch.manual_seed(0)
    logger = AttentionLogger(
        options.samples, every_n_steps=10**9, every_n_epochs=None, kinds=options.kinds
    )
    stopwatch = Stopwatch(logger, steps=options.steps, repetitions=options.repetitions)
    module = TransformerSeq2Seq(
        d_model=options.d_model,
        num_heads=options.heads,
        num_encoder_layers=options.layers,
        num_decoder_layers=options.layers,
        dim_feedforward=4 * options.d_model,
        norm_first=True,
        lr=3e-3,
        warmup_steps=200,
        val_decode=False,
    )
    data = TranslationDataModule(
        src_lang="en", tgt_lang="zh", dataset="demo", vocab_size=1000, shared_vocab=False,
        split_digits=True, max_tokens=options.max_tokens,
    )  # fmt: skip
    trainer = Trainer(
        max_steps=stopwatch.total,
        max_epochs=-1,
        limit_val_batches=4,
        check_val_every_n_epoch=10**6,  # the sanity check alone, which the sentences come from
        gradient_clip_val=1.0,
        accelerator=options.accelerator,
        devices=1,
        logger=CSVLogger(folder),
        callbacks=[stopwatch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    pictures = len(list(folder.rglob("*.png")))
    assert pictures >= len(stopwatch.firing_seconds) > 0, "the callback did not fire"
    return _report(stopwatch, options, pictures=pictures / len(stopwatch.firing_seconds))


def _report(
    stopwatch: Stopwatch, options: argparse.Namespace, *, pictures: float
) -> dict[str, Any]:
    step = statistics.median(stopwatch.seconds["without"])
    hook = statistics.median(stopwatch.hook_seconds)
    firing = stopwatch.firing_seconds
    # A turn holds one firing: what is left of its time are its steps, as slow as the machine just
    # was; a firing's share of --every of them is what a run would see.
    pairs = list(zip(firing, stopwatch.seconds["firing"], strict=True))
    own_steps = [turn - fired / options.steps for fired, turn in pairs]
    rates = {way: [1 / turn for turn in turns] for way, turns in stopwatch.seconds.items()}
    rates["firing"] = [
        1 / (own + fired / options.every) for fired, own in zip(firing, own_steps, strict=True)
    ]
    shares = [fired / (options.every * own) for fired, own in zip(firing, own_steps, strict=True)]
    return {
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "accelerator": options.accelerator,
        },
        "options": vars(options),
        "steps_per_second": {
            way: {
                "median": statistics.median(turns),
                "quartiles": statistics.quantiles(turns, n=4)[::2],
                "ratio": statistics.median(turns) / statistics.median(rates["without"]),
            }
            for way, turns in rates.items()
        },
        "step_seconds": step,
        "idle_hook_seconds": hook,
        "idle_share": hook / step,
        "firing_seconds": statistics.median(firing),
        "pictures": pictures,
        "firing_share": statistics.median(shares),
    }


def _show(found: dict[str, Any]) -> None:
    every = found["options"]["every"]
    print(f"\n{'':>26}  {'steps/s':>8}  {'quartiles':>15}  {'ratio':>7}")
    names = {"without": "without AttentionLogger", "idle": "with it, idle",
             "firing": f"firing every {every} steps"}  # fmt: skip
    for way, row in found["steps_per_second"].items():
        low, high = row["quartiles"]
        print(
            f"{names[way]:>26}  {row['median']:8.3f}  {low:7.3f} {high:7.3f}  {row['ratio']:7.4f}"
        )
    print(f"\nmeasured directly, per step of {found['step_seconds'] * 1e3:.1f} ms")
    print(f"  idle:   {found['idle_hook_seconds'] * 1e6:.2f} us = {found['idle_share']:.5%}")
    print(
        f"  firing: {found['firing_seconds']:.3f} s for {found['pictures']:.0f} heatmaps, every "
        f"{every} steps = {found['firing_share']:.3%}"
    )


def main() -> None:
    """Reads the options, measures, and shows or writes what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30, help="steps of a turn")
    parser.add_argument("--repetitions", type=int, default=8, help="turns of each way")
    parser.add_argument("--every", type=int, default=500, help="steps from firing to firing")
    parser.add_argument("--samples", type=int, default=4, help="sentences shown")
    parser.add_argument("--kinds", nargs="*", help="heatmaps drawn; cross alone by default")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2, help="of encoder and of decoder")
    parser.add_argument("--max-tokens", type=int, default=1500, help="padded tokens per batch")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    options = parser.parse_args()
    if min(options.steps, options.every, options.samples) < 1 or options.repetitions < 2:
        parser.error("--steps, --every and --samples must be at least 1, --repetitions 2")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    _show(found)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**found, "options": {**found["options"], "json": None}}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
