"""The contract that every model keeps, and all that the rest of litseq knows of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from litseq.types import DecoderState, Memory

__all__ = ["ProjectingModel", "Seq2SeqModel"]


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


class ProjectingModel(Seq2SeqModel):
    """A model that ends with one linear map to the vocabulary, as all of litseq's do.

    Training asks for what goes into it, by ``decode_hidden``, and puts map and loss together: so
    logits, by far the largest tensor of a step, never all stand in memory
    (``litseq.projected_loss``).

    Attributes:
        output: The map, D to V.
    """

    output: nn.Linear

    @abstractmethod
    def decode_hidden(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """Does what ``decode`` does, up to the last map; float (B, T, D)."""

    def decode(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """Scores every next token of a given target; see ``Seq2SeqModel.decode``."""
        logits: Tensor = self.output(self.decode_hidden(tgt_in, memory))
        return logits

    def forward(
        self, src: Tensor, src_key_padding_mask: Tensor, tgt_in: Tensor, *, project: bool = True
    ) -> Tensor:
        """Encodes the source and decodes the given target.

        Args:
            src: Token ids, int64 (B, S).
            src_key_padding_mask: bool (B, S); True = padding.
            tgt_in: Token ids that begin with BOS, int64 (B, T).
            project: Whether to give logits, float (B, T, V), or what ``output`` makes them of,
                float (B, T, D).
        """
        memory = self.encode(src, src_key_padding_mask)
        return self.decode(tgt_in, memory) if project else self.decode_hidden(tgt_in, memory)
