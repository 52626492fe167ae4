"""Small tasks of the three families over random batches, for tests of training."""

import lightning.pytorch as pl
import torch

from litseq.architectures import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq

VOCAB_SIZE = 23

TINY_RNN = {"embedding_dim": 12, "hidden_size": 16}
TINY_TRANSFORMER = {
    "d_model": 12,
    "num_heads": 3,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 20,
}
FAMILIES = {
    RnnSeq2Seq: TINY_RNN,
    RnnAttentionSeq2Seq: TINY_RNN,
    TransformerSeq2Seq: TINY_TRANSFORMER,
}


def tiny_task(cls=TransformerSeq2Seq, **options):
    """A task with the same weights each time; ``cls`` may be a subclass of a family's."""
    family = next(family for family in FAMILIES if issubclass(cls, family))
    torch.manual_seed(0)
    given = {"vocab_size": VOCAB_SIZE, "schedule": "constant", "warmup_steps": 0, "max_len_b": 5}
    task = cls(**{**FAMILIES[family], **given, **options})
    task.configure_model()
    return task


def tiny_batches(count, *, first_id=0):
    """Random batches of three examples with ids."""
    generator = torch.Generator().manual_seed(first_id)
    batches = []
    for i in range(count):
        lengths = torch.randint(2, 8, (3,), generator=generator)
        padding = torch.arange(int(lengths.max())) >= lengths[:, None]
        ids = torch.randint(4, VOCAB_SIZE, padding.shape, generator=generator)
        batches.append(
            {
                "id": first_id + 3 * i + torch.arange(3),
                "input_ids": ids.masked_fill(padding, 0),
                "attention_mask": (~padding).long(),
                "labels": ids.flip(1).masked_fill(padding, -100),
            }
        )
    return batches


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def tiny_trainer(folder, **options):
    return pl.Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "logger": False,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            **options,
        }
    )
