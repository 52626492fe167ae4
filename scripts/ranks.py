"""Trains on 1, 2 and 3 ranks and compares: weights, scores, lines, and which examples were seen.

    python scripts/ranks.py

Writes docs/results/ranks.json and the table of docs/clusters.md. CPU only; a few minutes.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from doc_tables import fill
from litseq import RunCheckpoint, TransformerSeq2Seq, TranslationDataModule

ROOT = Path(__file__).parents[1]
SEED = 1
STEP = 6  # batches of an optimizer step, on any number of ranks
SIZES = {"d_model": 32, "num_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": 2}


class Ids(Callback):
    """Writes down the ids of every batch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        """Adds a line: epoch, ids."""
        with self.path.open("a") as file:
            file.write(json.dumps([trainer.current_epoch, batch["id"].tolist()]) + "\n")


def rank(folder: str, name: str, max_steps: int, resume: bool) -> None:
    """What one process does: trains, and tests on the same ranks."""
    out, world_size = Path(folder), int(os.environ["WORLD_SIZE"])
    seed_everything(SEED, verbose=False)
    torch.set_num_threads(1)
    task = TransformerSeq2Seq(
        **SIZES,
        dim_feedforward=64,
        dropout=0.0,
        warmup_steps=20,
        lr=3e-3,
        beam_size=1,
        max_len_b=10,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        accumulate_grad_batches=STEP // world_size,
        callbacks=[
            Ids(out / f"{name}-ids-{world_size}-{os.environ['RANK']}.jsonl"),
            RunCheckpoint(str(out / name)),
        ],
        precision="64-true",
        max_epochs=1,
        max_steps=max_steps,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TranslationDataModule(max_tokens=512, cache_dir=str(out / "cache"))
    trainer.fit(task, data, ckpt_path=str(out / name / "last.ckpt") if resume else None)
    scores, lines = {}, []
    if max_steps == -1:  # the end of a run
        [scores] = trainer.test(task, data, verbose=False)
        assert task.evaluation is not None
        lines = [translation.text for translation in task.evaluation.translations]
    if trainer.is_global_zero:
        result = {"weights": task.state_dict(), "scores": scores, "lines": lines}
        torch.save(result | {"steps": trainer.global_step}, out / f"{name}.pt")


def run(
    folder: Path, name: str, world_size: int, *, max_steps: int = -1, resume: bool = False
) -> Any:  # noqa: ANN401
    """Starts the ranks and gives what rank zero has found."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    words = [sys.executable, __file__, str(folder), name, str(max_steps), str(int(resume))]
    processes = [
        subprocess.Popen(
            words,
            env={
                **os.environ,
                "RANK": str(number),
                "LOCAL_RANK": str(number),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": name,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.DEVNULL,
        )
        for number in range(world_size)
    ]
    if any([process.wait() for process in processes]):
        raise SystemExit(f"the run {name} on {world_size} ranks failed.")
    return torch.load(folder / f"{name}.pt")


def ids_of(folder: Path, name: str) -> tuple[int, int]:
    """How many examples were seen, and how often the one seen most."""
    lines = [line for path in folder.glob(f"{name}-ids-*") for line in path.open()]
    count = Counter(i for line in lines for i in json.loads(line)[1] if i >= 0)
    return len(count), max(count.values())


def main() -> None:
    """Runs all and writes the results."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        one = run(folder, "one", 1)
        third = one["steps"] // 3
        found = {"1": one, "2": run(folder, "two", 2), "3": run(folder, "three", 3)}
        run(folder, "changing", 2, max_steps=third)
        run(folder, "changing", 1, max_steps=2 * third, resume=True)
        found["2, 1, 3"] = run(folder, "changing", 3, resume=True)
        names = {"1": "one", "2": "two", "3": "three", "2, 1, 3": "changing"}
        results = {}
        for ranks, outcome in found.items():
            seen, most = ids_of(folder, names[ranks])
            results[ranks] = {
                "steps": outcome["steps"],
                "largest weight difference": max(
                    float((weight - one["weights"][key]).abs().max())
                    for key, weight in outcome["weights"].items()
                ),
                "scores": outcome["scores"],
                "equal lines": sum(map(str.__eq__, outcome["lines"], one["lines"])),
                "lines": len(one["lines"]),
                "examples seen": seen,
                "most often": most,
            }
    target = ROOT / "docs" / "results" / "ranks.json"
    about = {
        "seed": SEED,
        "batches of a step": STEP,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "hardware": f"{platform.machine()}, CPU, gloo, one thread a rank",
    }
    target.write_text(json.dumps({**about, "ranks": results}, indent=2) + "\n", encoding="utf-8")
    header = ["ranks", "steps", "test BLEU", "test chrF", "lines equal to one rank's"]
    header += ["largest difference of a weight", "examples seen", "most often"]
    rows = [
        [
            ranks,
            row["steps"],
            f"{row['scores']['test/bleu']:.4f}",
            f"{row['scores']['test/chrf']:.4f}",
            f"{row['equal lines']} of {row['lines']}",
            f"{row['largest weight difference']:.1e}",
            row["examples seen"],
            row["most often"],
        ]
        for ranks, row in results.items()
    ]
    fill(ROOT / "docs" / "clusters.md", "ranks", header, rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        folder, name, max_steps, resume = sys.argv[1:]
        rank(folder, name, int(max_steps), resume == "1")
    else:
        main()
