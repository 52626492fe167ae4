#!/usr/bin/env python
"""Does the same things to a run under plain Lightning and under litseq, and tells what came of it.

    python scripts/compare_lightning.py      # two minutes

Both train the same small Transformer on the same pairs with the same Trainer. Plain is what
Lightning's documentation shows: a shuffled DataLoader, a ModelCheckpoint with ``save_last`` and one
of the best score. litseq is its DataModule and the callbacks of its configurations. Every run is a
process of its own.

Writes ``docs/results/compare_lightning.json`` and the table in ``docs/reliability.md``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import litseq
from doc_tables import fill
from litseq.callbacks.idle import RefuseIdleRun
from litseq.checkpoint_io import DamagedCheckpointError, load_file
from litseq.data import TranslationDataModule, collate
from litseq.data.demo import load_demo

RESULT = Path("docs/results/compare_lightning.json")
PAGE = Path("docs/reliability.md")
PAIRS, EPOCHS, SEED = 240, 3, 1
NOBODY = 65534


class Note(pl.Callback):
    """Writes down which examples every step has read, and does the damage that a scene asks for."""

    def __init__(self, scene: str, folder: Path) -> None:
        self.scene = scene
        self.path = folder / "steps.jsonl"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A process begins or goes on."""
        self.write(["start", trainer.global_step])

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        """A step; in the middle of the second epoch, a signal."""
        self.write([trainer.global_step, trainer.current_epoch, *batch["id"].tolist()])
        if (
            trainer.current_epoch == 1
            and batch_idx == 6
            and self.scene in signal.Signals.__members__
        ):
            os.kill(os.getpid(), signal.Signals[self.scene])

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One gradient that is not a number."""
        if self.scene == "gradient" and trainer.global_step == 6:
            gradient = next(pl_module.parameters()).grad
            assert gradient is not None
            gradient.fill_(math.nan)

    def write(self, line: list[Any]) -> None:
        """Adds a line at once, so that it outlives the process."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def train(kind: str, scene: str, folder: Path, data: TranslationDataModule) -> None:
    """One run, or the rest of one."""
    pl.seed_everything(SEED, verbose=False)
    data.setup("fit")
    task = litseq.TransformerSeq2Seq(
        vocab_size=data.tokenizer.tgt_vocab_size,
        d_model=32,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dim_feedforward=64,
        warmup_steps=10,
        val_decode=False,
    )
    checkpoints = folder / "checkpoints"
    own: list[pl.Callback]
    if kind == "plain":
        source: Any = {
            "train_dataloaders": loader(data.train_dataloader(), shuffle=True),
            "val_dataloaders": loader(data.val_dataloader(), shuffle=False),
        }
        own = [
            ModelCheckpoint(checkpoints, save_last=True, every_n_train_steps=5),
            ModelCheckpoint(checkpoints, filename="best", monitor="val/nll"),
        ]
        last = checkpoints / "last.ckpt"
        resume = last if last.exists() else None
    else:
        source = {"datamodule": data}
        own = [
            litseq.RunCheckpoint(str(checkpoints), every_n_steps=5),
            litseq.BestCheckpoint("val/nll", "min", dirpath=str(checkpoints)),
            litseq.NonFiniteGuard(),
            RefuseIdleRun(),  # which the command line adds
        ]
        resume = litseq.checkpoints.newest(checkpoints) if checkpoints.exists() else None
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS + (scene == "more"),
        limit_train_batches=0 if scene == "nothing" else None,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Note(scene, folder), *own],
    )
    trainer.fit(task, **source, ckpt_path=resume)
    torch.save(task.state_dict(), folder / "weights.pt")


def loader(batches: Any, *, shuffle: bool) -> DataLoader[Any]:  # noqa: ANN401
    """The same examples in an ordinary DataLoader."""
    rows = []
    for batch in batches:
        for i, number in enumerate(batch["id"].tolist()):
            src = batch["input_ids"][i][batch["attention_mask"][i] > 0].tolist()
            tgt = [token for token in batch["labels"][i].tolist() if token >= 0]
            rows.append((number, src, tgt))
    rows.sort()

    def stack(chosen: list[Any]) -> Any:  # noqa: ANN401
        ids, src, tgt = zip(*chosen, strict=True)
        return collate(src, tgt, ids=ids)

    return DataLoader(rows, batch_size=16, shuffle=shuffle, collate_fn=stack)  # type: ignore[arg-type]


def run(kind: str, scene: str, folder: Path, data: Callable[[], TranslationDataModule]) -> int:
    """Trains in a forked process; gives its exit status, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if scene == "read-only" and os.getuid() == 0:
            os.setuid(NOBODY)  # root may write anywhere
        train(kind, scene, folder, data())
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException as error:
        message = " ".join(str(error).split())
        os.write(2, f"error: {type(error).__name__}: {message}\n".encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def newest(folder: Path) -> dict[str, Any] | None:
    """What the checkpoint of the highest step holds, if any can be read."""
    found = []
    for path in folder.glob("checkpoints/*.ckpt"):
        try:
            found.append(load_file(path))
        except DamagedCheckpointError:
            continue
    return max(found, key=lambda one: int(one["global_step"]), default=None)


def saved(folder: Path) -> str:
    """Up to which step the run is saved."""
    checkpoint = newest(folder)
    return "nothing saved" if checkpoint is None else f"step {checkpoint['global_step']} saved"


def steps(folder: Path) -> dict[int, list[tuple[int, int]]]:
    """Epoch and example of all that went into the final weights, by step."""
    taken: dict[int, list[tuple[int, int]]] = {}
    for line in (folder / "steps.jsonl").read_text().splitlines():
        first, value, *ids = json.loads(line)
        if first == "start":
            taken = {step: pairs for step, pairs in taken.items() if step < value}
        else:
            taken[first] = [(value, number) for number in ids]
    return taken


def examples(folder: Path) -> str:
    """Whether each was seen once in each epoch."""
    count = Counter(read for reads in steps(folder).values() for read in reads)
    often = sum(number > 1 for number in count.values())
    seldom = EPOCHS * PAIRS - len(count)
    if often == seldom == 0:
        return "every pair once in each epoch"
    return f"{often} pairs read twice in an epoch, {seldom} not at all"


def same(folder: Path, other: Path) -> str:
    """Whether two runs ended with the same weights."""
    one, two = (torch.load(path / "weights.pt") for path in (folder, other))
    equal = all(torch.equal(one[name], two[name]) for name in two)
    return "the weights of a run that nothing stopped" if equal else "other weights"


def finite(folder: Path) -> str:
    """Whether the weights are numbers."""
    weights = torch.load(folder / "weights.pt")
    bad = sum(int((~value.isfinite()).sum()) for value in weights.values())
    total = sum(value.numel() for value in weights.values())
    return f"{bad / total:.0%} of the weights are not numbers" if bad else "all weights are numbers"


def told(folder: Path) -> str:
    """What a user reads of a fault: the error, or else the warning; of a long one the start."""
    lines = (folder / "output.txt").read_text().splitlines()
    said = [line.strip() for word in ("error: ", "is used") for line in lines if word in line]
    if not said:
        return "not a word"
    text = re.sub(r"/\S*/", "", said[0])
    return f"“{text}”" if len(text) <= 160 else f"“{text[:150].rpartition(' ')[0]} …”"


def flip(path: Path) -> None:
    """One bit, in a weight."""
    content = bytearray(path.read_bytes())
    state = load_file(path)["state_dict"]
    weight = next(value for name, value in state.items() if name.endswith("out_proj.weight"))
    content[content.index(weight.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """The second half is missing."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Stage(NamedTuple):
    """Where one kind of run is put through one scene."""

    kind: str
    folder: Path
    undisturbed: Path
    data: Callable[[], TranslationDataModule]

    def run(self, scene: str) -> int:
        """Begins the run, or goes on with it."""
        return run(self.kind, scene, self.folder, self.data)


def stopped(by: str) -> Callable[[Stage], str]:
    """A signal stops a run, which then goes on."""

    def play(stage: Stage) -> str:
        first = f"exit {stage.run(by)}, {saved(stage.folder)}"
        if stage.run(""):
            return f"{first}; it cannot go on"
        rest = f"{examples(stage.folder)}, {same(stage.folder, stage.undisturbed)}"
        return f"{first}; gone on: {rest}"

    return play


def damaged(scene: str, damage: Callable[[Path], None]) -> Callable[[Stage], str]:
    """A run is at its end, its newest checkpoint is damaged, and it is to train one epoch more."""

    def play(stage: Stage) -> str:
        stage.run("")
        damage(stage.folder / "checkpoints" / "last.ckpt")
        status = stage.run(scene)
        return f"exit {status}, {told(stage.folder)}"

    return play


def goes_through(scene: str, look: Callable[[Path], str]) -> Callable[[Stage], str]:
    """A run that nothing need stop, and what it left."""

    def play(stage: Stage) -> str:
        if scene == "read-only":
            (stage.folder / "checkpoints").mkdir(mode=0o555)
            (stage.folder / "steps.jsonl").touch()
            for path in (stage.folder, stage.folder / "steps.jsonl"):
                os.chmod(path, 0o777)
        return f"exit {stage.run(scene)}, {look(stage.folder)}"

    return play


SCENES: dict[str, Callable[[Stage], str]] = {
    "SIGTERM in mid-epoch": stopped("SIGTERM"),
    "Ctrl-C in mid-epoch": stopped("SIGINT"),
    "SIGKILL in mid-epoch": stopped("SIGKILL"),
    "one bit of `last.ckpt` flips": damaged("more", flip),
    "`last.ckpt` is cut short": damaged("more", cut),
    "the folder for checkpoints is read-only": goes_through(
        "read-only", lambda folder: f"{saved(folder)}, {told(folder)}"
    ),
    "a gradient is not a number": goes_through("gradient", finite),
    "`limit_train_batches: 0`": goes_through("nothing", told),
}


def main() -> None:
    """Plays all scenes and writes the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        options = prepare(root)

        def data() -> TranslationDataModule:
            return TranslationDataModule(**options)

        rows = []
        for number, (name, play) in enumerate({"nothing": stopped(""), **SCENES}.items()):
            outcomes = []
            for kind in ("plain", "litseq"):
                folder = root / f"{kind}-{number}"
                folder.mkdir()
                if number == 0:
                    if run(kind, "", folder, data):
                        raise SystemExit((folder / "output.txt").read_text())
                    continue
                outcomes.append(play(Stage(kind, folder, root / f"{kind}-0", data)))
            if outcomes:
                rows.append([name, *outcomes])
                sys.stderr.write(f"{rows[-1]}\n")
    result = {
        "scenes": rows,
        "seed": SEED,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "litseq": litseq.__version__,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fill(PAGE, "compare_lightning", ["what happens", "Lightning alone", "with litseq"], rows)


def prepare(root: Path) -> dict[str, Any]:
    """Writes the pairs; gives the options of the data module."""
    pairs = load_demo("en", "zh", split="train")[: PAIRS + 40]
    for split, rows in (("train", pairs[:PAIRS]), ("val", pairs[PAIRS:])):
        for lang, side in zip(("en", "zh"), zip(*rows, strict=True), strict=True):
            text = "".join(f"{line}\n" for line in side)
            (root / f"{split}.{lang}").write_text(text, encoding="utf-8")
    options: dict[str, Any] = {
        "train": str(root / "train"),
        "val": str(root / "val"),
        "vocab_size": 400,
        "max_tokens": 400,
        "cache_dir": str(root / "cache"),
        "seed": SEED,
    }
    TranslationDataModule(**options).prepare_data()
    return options


if __name__ == "__main__":
    main()
