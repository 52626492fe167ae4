"""The contract that every model keeps, and all that the rest of litseq knows of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from litseq.types import DecoderState, Memory

__all__ = ["Seq2SeqModel"]


class Seq2SeqModel(nn.Module, ABC):
    """An encoder that reads a source sequence and a decoder that writes a target sequence.

    A model is used in two ways that must agree: ``decode`` sees the whole target at once, as in
    training; ``init_state`` and ``step`` go token by token, as in generation. Padding stands at the
    end of a sequence and changes nothing before it, so ``decode`` needs no mask for the target.

    Attributes:
        max_tgt_len: Tokens that a target can have at most, EOS counted; None: any number.
    """

    max_tgt_len: int | None = None

    @abstractmethod
    def encode(self, src: Tensor, src_key_padding_mask: Tensor) -> Memory:
        """Reads the source.

        Args:
            src: Token ids, int64 (B, S), each row with at least one token.
            src_key_padding_mask: bool (B, S); True = padding.
        """

    @abstractmethod
    def decode(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """Scores every next token of a given target (teacher forcing).

        Args:
            tgt_in: Token ids that begin with BOS, int64 (B, T).
            memory: What ``encode`` returned, B rows.

        Returns:
            Logits, float (B, T, V); position t sees ``tgt_in[:, :t + 1]`` alone.
        """

    @abstractmethod
    def init_state(self, memory: Memory) -> DecoderState:
        """Prepares generation: the state before the first token is read."""

    @abstractmethod
    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Reads one more token and scores the next.

        Args:
            token: Token ids, int64 (B,).
            state: The state before ``token``.

        Returns:
            Logits, float (B, V), and the state after ``token``.
        """

    def forward(self, src: Tensor, src_key_padding_mask: Tensor, tgt_in: Tensor) -> Tensor:
        """Encodes the source and decodes the given target; logits, float (B, T, V)."""
        return self.decode(tgt_in, self.encode(src, src_key_padding_mask))
