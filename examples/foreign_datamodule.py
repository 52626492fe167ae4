"""Our model with data of your own: any DataModule whose batches have three keys.

input_ids and attention_mask (B, S), labels (B, T; -100 = padding), as Hugging Face's collators make
them. Give vocab_size and the special ids; a ``tokenizer`` with ``decode`` turns outputs into text,
so that BLEU is logged and predict works. Here words are spelled backwards, letter by letter:

    python examples/foreign_datamodule.py [EPOCHS]
"""

import random
import sys

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from litseq import TransformerSeq2Seq
from litseq.data import collate

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAD, BOS, EOS = 0, 1, 2


class Letters:
    """The least that a tokenizer is: ids to text."""

    def decode(self, ids):
        return "".join(LETTERS[i - 3] for i in ids if i > 2)


def encode(word):
    """Ids of a word, EOS at their end."""
    return [LETTERS.index(letter) + 3 for letter in word] + [EOS]


def make_batch(words):
    """Pads words and their reverse."""
    return collate([encode(word) for word in words], [encode(word[::-1]) for word in words])


class Words(pl.LightningDataModule):
    """Nothing of litseq but the padding; a collator of your own will do."""

    def __init__(self):
        super().__init__()
        self.tokenizer = Letters()
        rng = random.Random(0)
        self.words = ["".join(rng.choices(LETTERS, k=rng.randint(3, 8))) for _ in range(4000)]

    def train_dataloader(self):
        return DataLoader(self.words[:3900], batch_size=64, shuffle=True, collate_fn=make_batch)

    def val_dataloader(self):
        return DataLoader(self.words[3900:], batch_size=64, collate_fn=make_batch)

    def predict_dataloader(self):
        return DataLoader(["hello", "lightning"], batch_size=2, collate_fn=make_batch)


def main(num_epochs=8):
    """Trains, validates with BLEU, predicts."""
    pl.seed_everything(1)
    model = TransformerSeq2Seq(
        vocab_size=len(LETTERS) + 3, pad_id=PAD, bos_id=BOS, eos_id=EOS, d_model=64, num_heads=4,
        num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=128, norm_first=True, lr=3e-3,
        warmup_steps=50, max_len_b=5,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=num_epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, Words())
    metrics = trainer.callback_metrics
    print(f"val/loss {metrics['val/loss']:.3f}, exact match {metrics['val/exact_match']:.1f} %")
    for translation in trainer.predict(model, Words())[0]:
        print(f"{translation.source} -> {translation.text}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
