"""One rank of test_nodes, run by torchrun: trains, and writes down which examples it sees."""

import json
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from litseq import RunCheckpoint
from litseq.architectures import TransformerSeq2Seq
from litseq.callbacks.ranks import RankMonitor
from litseq.data import TranslationDataModule


class WriteIds(Callback):
    """A line for each batch: epoch, optimizer step, ids."""

    def __init__(self, path):
        self.file = path.open("a", buffering=1)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        line = [trainer.current_epoch, trainer.global_step, batch["id"].tolist()]
        self.file.write(json.dumps(line) + "\n")


def main(folder, options, batches_per_step, resume):
    folder, world_size = Path(folder), int(os.environ["WORLD_SIZE"])
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"d_model": 12, "num_heads": 3, "num_encoder_layers": 1, "num_decoder_layers": 2}
    task = TransformerSeq2Seq(
        **sizes, dim_feedforward=20, dropout=0.0, warmup_steps=0, schedule="constant"
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=local,
        num_nodes=world_size // local,
        strategy="ddp",
        accumulate_grad_batches=int(batches_per_step) // world_size,
        callbacks=[
            WriteIds(folder / f"ids-{world_size}-{os.environ['RANK']}.jsonl"),
            RunCheckpoint(str(folder), every_n_steps=1),
            RankMonitor(60.0),
        ],
        precision="64-true",
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    ckpt_path = str(folder / "last.ckpt") if resume == "resume" else None
    trainer.fit(task, TranslationDataModule(**json.loads(options)), ckpt_path=ckpt_path)
    if trainer.is_global_zero:
        torch.save(task.state_dict(), folder / f"weights-{world_size}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
