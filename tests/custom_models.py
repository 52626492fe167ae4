"""Models of somebody's own: the example's, and others by what of their attention can be seen."""

import importlib.util
from pathlib import Path

from torch import nn

from litseq.types import Memory

_PATH = Path(__file__).parent.parent / "examples" / "custom_model.py"
_SPEC = importlib.util.spec_from_file_location("custom_model", _PATH)
example = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(example)


class LooksAtItself(example.Gru):
    """The source looks at itself; the target has only a mean of it."""

    def encode(self, src, src_key_padding_mask):
        memory = super().encode(src, src_key_padding_mask)
        output, _ = self.attention(
            *3 * (memory.output,), key_padding_mask=src_key_padding_mask, need_weights=False
        )
        return Memory(output, src_key_padding_mask)

    def _read(self, tokens, state):
        x, hidden = self.decoder(self.tgt_embedding(tokens), state.hidden[None].contiguous())
        return self.output(x), example.State(hidden[0], state.memory)


class Blind(LooksAtItself):
    """No attention at all."""

    encode = example.Gru.encode

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.attention = nn.Identity()


def task_of(network):
    class Custom(example.GruSeq2Seq):
        def build_network(self, vocab_size, src_vocab_size):
            h = self.hparams
            return network(
                src_vocab_size or vocab_size, vocab_size, width=h.width, num_heads=h.num_heads
            )

    return Custom


CUSTOM = {"custom_cross": example.Gru, "custom_attention": LooksAtItself, "custom": Blind}
