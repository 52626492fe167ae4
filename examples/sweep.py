"""A sweep in plain Python: two options, every pair of values, one table.

Every size and rate is a flat argument of the model's class, so a grid is a loop, and any other
searcher can set the same names. Each pair is a run of its own in lightning_logs/sweep:

    python examples/sweep.py [STEPS]
"""

import sys
from itertools import product

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger

from litseq import TransformerSeq2Seq, TranslationDataModule

GRID = {"lr": [1e-3, 4e-3], "norm_first": [False, True]}
FIXED = {
    "d_model": 64, "num_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "dim_feedforward": 128, "warmup_steps": 40, "val_decode": False,
}  # fmt: skip


def run(num_steps, **options):
    """Trains once; the same seed and data for all."""
    pl.seed_everything(1)
    name = ",".join(f"{key}={value}" for key, value in options.items())
    trainer = pl.Trainer(
        max_steps=num_steps, limit_val_batches=10, accelerator="cpu", enable_progress_bar=False,
        logger=CSVLogger("lightning_logs/sweep", name=name), log_every_n_steps=10,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    data = TranslationDataModule("en", "de", vocab_size=1000, split_digits=True, max_tokens=1500)
    model = TransformerSeq2Seq(**FIXED, **options)
    trainer.fit(model, data)
    [found] = trainer.validate(model, data, verbose=False)
    return found["val/nll"]


def main(num_steps=150):
    """Runs the grid and prints it, best first."""
    values = [dict(zip(GRID, pair, strict=True)) for pair in product(*GRID.values())]
    results = [(run(num_steps, **options), options) for options in values]
    for nll, options in sorted(results, key=lambda result: result[0]):
        print(f"val/nll {nll:.3f}  {options}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
