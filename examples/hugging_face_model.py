"""Our data for a Hugging Face model: the batches are those that its models take anyway.

TranslationDataModule reads the corpus, trains the tokenizer and fills batches by tokens; the model
is a small Marian (random weights; nothing is downloaded). Two of our callbacks come along: what
they need of the module is a predict_step that returns text, and labels in the batch.

    python examples/hugging_face_model.py [STEPS]
"""

import sys

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from transformers import MarianConfig, MarianMTModel

from litseq import TokenThroughput, TranslationDataModule, TranslationSamples


class Marian(pl.LightningModule):
    """A Hugging Face model in a LightningModule, as many projects have one."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.model = MarianMTModel(
            MarianConfig(
                vocab_size=tokenizer.tgt_vocab_size, d_model=128, encoder_layers=2,
                decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                encoder_ffn_dim=256, decoder_ffn_dim=256, max_position_embeddings=256,
                scale_embedding=True, init_std=0.09,
                pad_token_id=tokenizer.pad_id, eos_token_id=tokenizer.eos_id,
                decoder_start_token_id=tokenizer.pad_id, forced_eos_token_id=tokenizer.eos_id,
            )
        )  # fmt: skip

    def loss(self, batch):
        return self.model(**{name: batch[name] for name in batch if name != "id"}).loss

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=len(batch["labels"]))

    def predict_step(self, batch, batch_idx):
        mask = batch["attention_mask"]
        ids = self.model.generate(
            batch["input_ids"], attention_mask=mask, max_new_tokens=30, num_beams=1
        )
        return [self.tokenizer.decode(row) for row in ids.tolist()]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(num_steps=300):
    """Trains on the built-in demo corpus, English to German."""
    pl.seed_everything(1)
    data = TranslationDataModule("en", "de", vocab_size=1000, split_digits=True, max_tokens=1500)
    data.prepare_data()  # makes the tokenizer, whose size the model needs
    data.setup("fit")
    logger = CSVLogger("lightning_logs", name="hugging_face_model")
    trainer = pl.Trainer(
        max_steps=num_steps, val_check_interval=min(50, num_steps), check_val_every_n_epoch=None,
        accelerator="cpu", logger=logger, log_every_n_steps=10, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[TranslationSamples(3), TokenThroughput()],
    )  # fmt: skip
    trainer.fit(Marian(data.tokenizer), data)
    trainer.validate(trainer.model, data)
    print(f"samples: {logger.log_dir}/samples.tsv")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
