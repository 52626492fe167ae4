"""A model of your own: four methods, and it trains, decodes, explains and exports like ours.

A GRU that reads, a GRU that writes, and nn.MultiheadAttention between them. In this folder, where
``python -m`` finds the module; the demo's configuration brings everything but the model:

    OWN="--allow_import custom_model"
    python -m litseq fit -c ../configs/demo.yaml $OWN --model custom_model.GruSeq2Seq
    python -m litseq test $OWN --ckpt_path CKPT
    echo "May 3, 2021" | python -m litseq translate $OWN --ckpt CKPT
    python -m litseq explain $OWN --ckpt CKPT "May 3, 2021"
    python -m litseq export $OWN --ckpt CKPT --to onnx -o made
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from litseq import Seq2Seq, Seq2SeqModel
from litseq.types import DecoderState, Memory


@dataclass(frozen=True)
class State(DecoderState):
    """What the decoder needs to go on; every tensor has a row for each sentence."""

    hidden: Tensor  # (B, D)
    memory: Memory


class Gru(Seq2SeqModel):
    """The network: ``decode`` sees the whole target, ``step`` one token; both must agree."""

    def __init__(self, src_vocab_size: int, vocab_size: int, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.src_embedding = nn.Embedding(src_vocab_size, width)
        self.tgt_embedding = nn.Embedding(vocab_size, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.output = nn.Linear(width, vocab_size)

    def encode(self, src: Tensor, src_key_padding_mask: Tensor) -> Memory:
        return Memory(self.encoder(self.src_embedding(src))[0], src_key_padding_mask)

    def init_state(self, memory: Memory) -> State:
        tokens = ~memory.key_padding_mask[..., None]
        return State((memory.output * tokens).sum(1) / tokens.sum(1), memory)

    def decode(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        return self._read(tgt_in, self.init_state(memory))[0]

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = self._read(token[:, None], state)
        return logits[:, 0], state

    def _read(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x, hidden = self.decoder(self.tgt_embedding(tokens), state.hidden[None].contiguous())
        source, padding = state.memory.output, state.memory.key_padding_mask
        found, _ = self.attention(x, source, source, key_padding_mask=padding, need_weights=False)
        return self.output(x + found), State(hidden[0], state.memory)


class GruSeq2Seq(Seq2Seq):
    """The same as a class that a configuration can name.

    Args:
        width: Size of embeddings and states.
        num_heads: Heads of the attention.
        options: Arguments of ``Seq2Seq``.
    """

    def __init__(self, *, width: int = 128, num_heads: int = 4, **options: Any) -> None:
        super().__init__(**options)

    def build_network(self, vocab_size: int, src_vocab_size: int | None) -> Gru:
        h = self.hparams
        return Gru(src_vocab_size or vocab_size, vocab_size, width=h.width, num_heads=h.num_heads)
