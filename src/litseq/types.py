"""What crosses the borders between litseq's parts: the batch, the memory, the decoder's state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import NotRequired, Self

__all__ = [
    "AttentionKind",
    "Batch",
    "DecoderState",
    "Memory",
    "ScoredText",
    "SharingState",
    "Translation",
    "WordAlignment",
    "check_batch",
    "compute_dtype",
    "shift_right",
    "stack_rows",
]

AttentionKind = Literal["encoder", "decoder", "cross"]
"""Who looks at whom: the source at itself, the target at its past, or the target at the source."""


class Batch(TypedDict):
    """One batch at every Lightning border: the mapping that Hugging Face collators produce.

    Attributes:
        input_ids: Source token ids, int64 (B, S), padded at the end.
        attention_mask: int64 (B, S); 1 = token, 0 = padding.
        labels: Target token ids that end with EOS, int64 (B, T); -100 = padding. Absent where there
            is no target, as in prediction.
        id: The examples' numbers in their split, int64 (B,).
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: NotRequired[Tensor]
    id: NotRequired[Tensor]


def shift_right(labels: Tensor, *, bos_id: int, pad_id: int) -> Tensor:
    """Makes what a decoder reads of what it has to say: BOS before it, and all but the last token.

    Args:
        labels: int64 (B, T); -100 = padding.
        bos_id: Id that begins every target.
        pad_id: Id of padding.
    """
    tokens = F.pad(labels[:, :-1], (1, 0), value=bos_id)
    return tokens.masked_fill(tokens == -100, pad_id)


def check_batch(batch: object, *, src_vocab_size: int, tgt_vocab_size: int, labels: bool) -> None:
    """Refuses, in one line, what a foreign loader yields and a model cannot read.

    Args:
        batch: What should be a ``Batch``.
        src_vocab_size: Number of source tokens.
        tgt_vocab_size: Number of target tokens.
        labels: Whether there must be ``labels``.

    Raises:
        TypeError: If it is no mapping, or something in it is no tensor of whole numbers.
        ValueError: If something is missing, the shapes do not fit, or an id is out of range.
    """
    wanted = ("input_ids", "attention_mask", *(("labels",) if labels else ()))
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"a batch must be a mapping with {', '.join(wanted)}, as Hugging Face's collators make "
            f"it, got a {type(batch).__name__}; let the loader's collate_fn make one, such as "
            f"litseq.data.collate."
        )
    for name in wanted:
        if name not in batch:
            raise ValueError(
                f"a batch must have {', '.join(wanted)}, and {name} is missing among "
                f"{', '.join(map(str, batch)) or 'nothing'}; let the loader's collate_fn add it."
            )
        value = batch[name]
        if not isinstance(value, Tensor) or value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} of a batch must be an int64 tensor, got {kind}.")
        if value.dim() != 2 or len(value) != len(batch["input_ids"]):
            raise ValueError(
                f"{name} of a batch must be (B, length), one row for each of its sentences, got "
                f"{tuple(value.shape)} beside input_ids {tuple(batch['input_ids'].shape)}."
            )
    if batch["attention_mask"].shape != batch["input_ids"].shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, got "
            f"{tuple(batch['attention_mask'].shape)} and {tuple(batch['input_ids'].shape)}."
        )
    for name, size in (("input_ids", src_vocab_size), ("labels", tgt_vocab_size)):
        if name not in wanted:
            continue
        ids = batch[name]
        allowed = (ids >= 0) & (ids < size)
        if name == "labels":
            allowed |= ids == -100
        if not bool(allowed.all()):
            padding = ", and -100 where there is padding" if name == "labels" else ""
            raise ValueError(
                f"{name} of a batch must be from 0 to {size - 1}, the vocabulary's last id"
                f"{padding}, got {int(ids[~allowed][0])}."
            )


def _take_rows(value: Any, index: Tensor) -> Any:  # noqa: ANN401 - walks any nesting of tuples
    """Takes rows of every tensor in a nesting of tuples and records; keeps what is no tensor.

    Args:
        value: A tensor with the batch as its first dimension, or what holds such.
        index: Row numbers, int64 (N,).

    Raises:
        TypeError: If there is a list, a dict or a set instead of a tuple.
    """
    if isinstance(value, Tensor):
        return value.index_select(0, index)
    if isinstance(value, _Rows):
        return value.reorder(index)
    if isinstance(value, tuple):
        return tuple(_take_rows(item, index) for item in value)
    if isinstance(value, (dict, list, set)):
        raise TypeError(
            f"the rows of a state's tensors cannot be taken inside of a {type(value).__name__}; "
            f"use a tuple."
        )
    return value


@dataclass(frozen=True)
class _Rows:
    """A record whose tensors, also those in tuples, have the batch as their first dimension."""

    def reorder(self, index: Tensor) -> Self:
        """Takes rows of the batch: repeats, drops or permutes them.

        Args:
            index: Row numbers, int64 (N,).

        Returns:
            The same record for N rows. What is not a tensor is kept as it is.

        Raises:
            TypeError: If a field holds a list, a dict or a set instead of a tuple.
        """
        return dataclasses.replace(
            self,
            **{f.name: _take_rows(getattr(self, f.name), index) for f in dataclasses.fields(self)},
        )


@dataclass(frozen=True)
class Memory(_Rows):
    """What an encoder hands to its decoder.

    Attributes:
        output: The encoder states that the decoder may look at, float (B, S, D). The recurrent
            model without attention has a single one (S = 1): the context vector.
        key_padding_mask: bool (B, S); True = padding.
        state: Final hidden state of a recurrent encoder, one float (B, L, H) for a GRU or tanh
            cell, two for an LSTM (hidden, cell), 2 H wide where it reads in both directions; empty
            for the Transformer.
    """

    output: Tensor
    key_padding_mask: Tensor
    state: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class DecoderState(_Rows):
    """Everything that a decoder needs to go on after the tokens it has read.

    Each model derives its own; generation only carries it along and calls ``reorder``. One that has
    a method ``join(other)`` too, which puts the rows of another state behind its own, lets the last
    sentences of a batch wait for those of others.
    """


def compute_dtype(x: Tensor) -> torch.dtype:
    """What to compute in where half precision does not suffice: float32, or float64 as x has it."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def stack_rows(
    parts: Sequence[Tensor], *, dim: int, size: int, fill: float = 0, at_end: bool = False
) -> Tensor:
    """Puts rows of some tensors one behind the other, each of the size that is asked for.

    Args:
        parts: Of equal shapes but for the first dimension, their rows, and for ``dim``.
        dim: The dimension that is filled up or cut.
        size: Its size then.
        fill: What it is filled up with.
        at_end: Whether the last values are kept, and stand at the end; else the first.
    """
    same = []
    for part in parts:
        kept = min(part.size(dim), size)
        start = part.size(dim) - kept if at_end else 0
        missing = (size - kept, 0) if at_end else (0, size - kept)
        after = (0, 0) * (part.dim() - dim - 1)  # pad counts dimensions from the last
        same.append(F.pad(part.narrow(dim, start, kept), (*after, *missing), value=fill))
    return torch.cat(same)


@dataclass(frozen=True)
class SharingState(DecoderState):
    """A state of n sources and N targets, N / n for each source, which all of them share.

    Fields that ``OF_SOURCE`` names have a row for each source, all others one for each target.
    """

    OF_SOURCE: ClassVar[tuple[str, ...]]

    @property
    def targets_each(self) -> int:
        """Targets of each source, N / n."""
        raise NotImplementedError

    def reorder(self, index: Tensor) -> Self:
        """Takes targets, int64 (N,); each has its source for itself then."""
        each = self.targets_each
        return self._take(index, index if each <= 1 else index // each)

    def reorder_beams(self, index: Tensor, sentences: Tensor | None) -> Self:
        """Takes K targets of each source, int64 (n, K), which go on sharing it."""
        return self._take(index.flatten(), sentences)

    def _take(self, targets: Tensor, sources: Tensor | None) -> Self:
        found = {}
        for field in dataclasses.fields(self):
            value, rows = getattr(self, field.name), targets
            if field.name in self.OF_SOURCE:
                if sources is None:
                    continue
                rows = sources
            found[field.name] = _take_rows(value, rows)
        return dataclasses.replace(self, **found)


@dataclass(frozen=True)
class WordAlignment:
    """Which source word each target word comes from.

    Attributes:
        src_words: The words of the source, from its subwords.
        tgt_words: The words of the hypothesis.
        pairs: Numbers of a source and a target word, both from 0.
    """

    src_words: tuple[str, ...]
    tgt_words: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """The Pharaoh format: ``0-0 1-2``, source and target."""
        return " ".join(f"{s}-{t}" for s, t in sorted(self.pairs))


@dataclass(frozen=True)
class ScoredText:
    """One hypothesis as text.

    Attributes:
        text: Detokenised text.
        score: What the search ranked by: the length-normalised log-probability.
        log_prob: Sum of the tokens' log-probabilities, EOS included, in nats.
        num_tokens: Number of target tokens, EOS included.
        alignment: Which source words it comes from, where that was asked for.
    """

    text: str
    score: float
    log_prob: float
    num_tokens: int
    alignment: WordAlignment | None = None

    def as_dict(self) -> dict[str, Any]:
        """Says the same in plain values.

        Returns:
            ``text``, ``score``, ``log_prob`` and ``num_tokens``; with an alignment also
            ``alignment`` (``0-0 1-2``), ``src_words`` and ``tgt_words``.
        """
        record = {name: getattr(self, name) for name in ("text", "score", "log_prob", "num_tokens")}
        if self.alignment is None:
            return record
        return {
            **record,
            "alignment": str(self.alignment),
            "src_words": list(self.alignment.src_words),
            "tgt_words": list(self.alignment.tgt_words),
        }


@dataclass(frozen=True)
class Translation:
    """What the model made of one source sentence.

    Attributes:
        id: The example's number in its split.
        source: Raw source text.
        hypotheses: Best first; one or more.
        reference: Raw reference text; None where there is none.
    """

    id: int
    source: str
    hypotheses: tuple[ScoredText, ...]
    reference: str | None = None

    @property
    def text(self) -> str:
        """The best hypothesis."""
        return self.hypotheses[0].text

    def as_dict(self) -> dict[str, Any]:
        """The record that every JSON output of litseq holds: one line of a ``.jsonl`` file.

        Returns:
            ``id`` and ``source``; what ``ScoredText.as_dict`` says of the best hypothesis;
            ``hypotheses``, a list of the same for each; ``reference``, where there is one.
        """
        hypotheses = [item.as_dict() for item in self.hypotheses]
        record = {"id": self.id, "source": self.source, **hypotheses[0], "hypotheses": hypotheses}
        return record if self.reference is None else {**record, "reference": self.reference}

    def to(self, device: torch.device | str) -> Self:
        """Itself: it holds no tensor.

        ``trainer.predict`` moves what ``predict_step`` returned to the CPU, and Lightning refuses
        frozen dataclasses there unless they know how to move themselves.
        """
        return self
