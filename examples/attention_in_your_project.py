"""Attention pictures for a project that stands: two lines added.

The project is a plain LightningModule around nn.Transformer that learns to turn digits around; it
knows nothing of litseq. Look for "# added". Half a minute on a CPU; the pictures lie in the run's
folder, and the curves beside the loss in its metrics.csv:

    python examples/attention_in_your_project.py
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from litseq import AttentionLogger  # added

BEGIN, LENGTH = 10, 7  # the digits are 0 to 9


class Reverser(pl.LightningModule):
    """An encoder and a decoder from torch, a loss, an optimizer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 32)
        self.position = nn.Parameter(torch.randn(LENGTH, 32))
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, batch_first=True)
        self.output = nn.Linear(32, 11)

    def forward(self, source, target_in):
        hidden = self.transformer(
            self.embedding(source) + self.position,
            self.embedding(target_in) + self.position,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(LENGTH),
        )
        return self.output(hidden)

    def loss(self, batch):
        source, target_in, target = batch
        return nn.functional.cross_entropy(self(source, target_in).transpose(1, 2), target)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def digits(count, seed):
    """Batches of (source, target behind BEGIN, target)."""
    source = torch.randint(10, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    target = source.flip(1)
    target_in = torch.cat([torch.full((count, 1), BEGIN), target[:, :-1]], 1)
    return DataLoader(TensorDataset(source, target_in, target), batch_size=64)


def main():
    """Trains as before, and shows where the decoder looked."""
    pl.seed_everything(1)
    logger = CSVLogger("lightning_logs", name="attention_in_your_project")
    look = AttentionLogger(num_samples=2, metric="val_loss")  # added
    trainer = pl.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[look],
    )
    trainer.fit(Reverser(), digits(6400, seed=0), digits(256, seed=1))
    print(f"val_loss {float(trainer.callback_metrics['val_loss']):.3f}")
    print(f"pictures: {logger.log_dir}/attention")


if __name__ == "__main__":
    main()
