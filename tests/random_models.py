"""Models with random weights that say different things, and their checkpoints."""

import pytest
import torch

from litseq import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq
from litseq.checkpoint_io import SafeCheckpointIO
from litseq.checkpoints import describe
from litseq.data import TranslationTokenizer

SOURCES = ["one two three", "a red house", "two houses", "three red ones and a house"] * 4
TARGETS = ["drei zwei eins", "ein rotes haus", "zwei häuser", "drei rote und ein haus"] * 4
RNN = {"embedding_dim": 8, "hidden_size": 8}
SIZES = {
    TransformerSeq2Seq: {
        "d_model": 16, "num_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": 3,
        "dim_feedforward": 24, "length_penalty": 1.0, "length_offset": 0,
    },
    RnnSeq2Seq: RNN,
    RnnAttentionSeq2Seq: RNN,
}  # fmt: skip


def make(*, shared=True, cls=TransformerSeq2Seq, **options):
    """A model with random weights, large enough that it says different things."""
    tokenizer = TranslationTokenizer.train(
        SOURCES, TARGETS, vocab_size=40 if shared else 35, shared=shared, src_lang="en",
        tgt_lang="de",
    )  # fmt: skip
    model = cls(**{**SIZES.get(cls, {}), **options})
    model._adopt(tokenizer)
    model.configure_model()
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        mean = float(name.endswith("norm.weight"))
        weight.data.normal_(mean, 0.3 if weight.dim() > 1 else 0.05, generator=generator)
    return model.eval()


@pytest.fixture
def save(tmp_path):
    def write(model):
        path = tmp_path / "model.ckpt"
        checkpoint = {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "pytorch-lightning_version": "2.6.6",
            "litseq": describe(type(model), model.tokenizer),
        }
        SafeCheckpointIO().save_checkpoint(checkpoint, path)
        return path

    return write
