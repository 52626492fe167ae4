"""Ids that are not SentencePiece's: a vocabulary beside the model, as programs like Marian have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["NumberedProcessor", "PieceIds"]

_SPECIAL = ("pad_id", "unk_id", "bos_id", "eos_id")
_SPACE = "\u2581"


@dataclass(frozen=True)
class PieceIds:
    """Which id a piece has: its place in a list.

    Attributes:
        source: The source's pieces.
        target: The target's pieces; the same ones where both sides have one vocabulary.
        pad_id: Id of padding, in both lists.
        unk_id: Id of pieces that are not in the list.
        bos_id: Id that begins every target; may be that of padding.
        eos_id: Id that ends every source and target.

    Raises:
        ValueError: If a piece stands twice in a list, or a special id in neither of them.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int

    def __post_init__(self) -> None:
        for side in ("source", "target"):
            pieces = getattr(self, side)
            if len(set(pieces)) < len(pieces):
                twice = next(piece for piece in pieces if pieces.count(piece) > 1)
                raise ValueError(f"{twice!r} stands twice among the {side} pieces; keep one.")
        size = min(len(self.source), len(self.target))
        for name in _SPECIAL:
            if not 0 <= getattr(self, name) < size:
                raise ValueError(
                    f"{name} must be an id of both sides, which have {len(self.source)} and "
                    f"{len(self.target)} pieces, got {getattr(self, name)}."
                )

    @property
    def shared(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source == self.target

    def as_dict(self) -> dict[str, Any]:
        """Lists and numbers, as a file can hold them; the target is None where it is the source."""
        lists = {"source": list(self.source), "target": list(self.target)}
        return {**asdict(self), **lists, **({"target": None} if self.shared else {})}

    @classmethod
    def from_dict(cls, values: Any, *, origin: str) -> PieceIds:  # noqa: ANN401 - from a file
        """Reads what ``as_dict`` gave.

        Args:
            values: The dictionary.
            origin: What error messages call it.

        Raises:
            ValueError: If it is something else.
        """
        values = values if isinstance(values, dict) else {}
        source, target = values.get("source"), values.get("target")
        target = source if target is None else target
        lists = all(
            isinstance(pieces, list) and all(isinstance(piece, str) for piece in pieces)
            for pieces in (source, target)
        )
        if not lists or not all(type(values.get(name)) is int for name in _SPECIAL):
            raise ValueError(f"{origin} holds damaged piece ids; use it as litseq wrote it.")
        try:
            return cls(tuple(source), tuple(target), **{name: values[name] for name in _SPECIAL})
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error


class NumberedProcessor:
    """One side: SentencePiece cuts a text into pieces, whose ids are looked up.

    As Hugging Face's MarianTokenizer does it: a piece that is not in the list is unknown, and a
    text that begins with ``>>...<<``, a language token mostly, begins with that as one piece.

    Args:
        processor: A ``SentencePieceProcessor``.
        pieces: The pieces in the order of their ids.
        unk_id: Id of pieces that are not among them.
    """

    def __init__(self, processor: Any, pieces: Sequence[str], unk_id: int) -> None:  # noqa: ANN401
        self.processor = processor
        self._pieces = pieces
        self._ids: Mapping[str, int] = {piece: i for i, piece in enumerate(pieces)}
        self._unk_id = unk_id

    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self._pieces)

    def piece_to_id(self, piece: str) -> int:
        """Looks up a piece; the unknown one's id where there is no such piece."""
        return self._ids.get(piece, self._unk_id)

    def id_to_piece(self, i: int) -> str:
        """The piece of an id."""
        return self._pieces[i]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Cuts texts into ids, without EOS."""
        begun = list(map(self.begin, texts))
        cut = self.processor.encode([rest for _, rest in begun], out_type=str, num_threads=1)
        return [
            [*code, *map(self.piece_to_id, pieces)]
            for (code, _), pieces in zip(begun, cut, strict=True)
        ]

    def begin(self, text: str) -> tuple[list[int], str]:
        """Takes what is one piece off the beginning of a text: its id, if any, and the rest."""
        end = text.find("<<") + 2
        if not text.startswith(">>") or end < 2:
            return [], text
        return [self.piece_to_id(text[:end])], text[end:]

    def renumber(self, ids: Iterable[int]) -> list[int]:
        """Turns ids of SentencePiece into those of the pieces."""
        return [self.piece_to_id(self.processor.id_to_piece(i)) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Joins ids to text. Pieces of the other side stand as they are, unknown ones as " ⁇ "."""
        unknown = self.processor.id_to_piece(self.processor.unk_id())
        pieces = [unknown if i == self._unk_id else self._pieces[i] for i in ids]
        text: str = self.processor.decode_pieces(pieces)
        return text.replace(_SPACE, " ").strip()
