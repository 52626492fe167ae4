"""From subwords to words: which pieces belong together, and what their attention adds up to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

__all__ = ["join_words", "merge_weights", "word_numbers"]

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes the space before a word
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ENDS = {"<pad>", "<s>", "</s>"}
# Han, Kana and their punctuation: written without spaces. Hangul is written with them.
_UNSPACED = re.compile(
    "[\u2e80-\u2fdf\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff65"
    "\U00020000-\U0003ffff]"
)


def word_numbers(pieces: Sequence[str]) -> list[int]:
    """Numbers the words and says which of them each piece belongs to.

    A word begins where SentencePiece marks a space. Chinese and Japanese have none: there every
    piece is a word of its own. The bytes of one character stay together, an unknown character is a
    part of its word, and what begins, ends and fills a sentence stands alone.

    Args:
        pieces: SentencePiece's pieces of one sentence, as it writes them.

    Returns:
        A number for each piece, from 0, never falling.
    """
    numbers: list[int] = []
    before = ""  # the text of the last piece: empty where the next one surely begins a word
    number = -1
    for text in _texts(pieces):
        if text is None:  # another byte of the same character
            numbers.append(number)
            continue
        if not before or text.startswith(_SPACE) or text in _ENDS:
            begins = True
        else:
            apart = _UNSPACED.match(text) or _UNSPACED.match(before[-1])
            begins = before != _SPACE and apart is not None
        number += begins
        numbers.append(number)
        before = "" if text in _ENDS else text
    return numbers


def join_words(pieces: Sequence[str]) -> list[str]:
    """Writes the words out, in the order of ``word_numbers``."""
    words: list[str] = []
    for number, text in zip(word_numbers(pieces), _texts(pieces), strict=True):
        if number == len(words):
            words.append("")
        words[number] += (text or "").replace(_SPACE, "")
    return words


def merge_weights(weights: Tensor, query_words: Sequence[int], key_words: Sequence[int]) -> Tensor:
    """Turns weights between pieces into weights between words.

    The pieces of a key add up, since together they are what is looked at; those of a query are
    averaged, since each of them looks. Rows still sum to 1.

    Args:
        weights: float (..., T, S).
        query_words: The word of each of the T queries, from ``word_numbers``.
        key_words: The word of each of the S keys.

    Returns:
        float (..., words of the queries, words of the keys).

    Raises:
        ValueError: If there is not one number for each query and key.
    """
    shape = (len(query_words), len(key_words))
    if weights.shape[-2:] != shape:
        raise ValueError(
            f"weights of {tuple(weights.shape[-2:])} need a word for each query and key, got "
            f"{shape}; leave out padding from both."
        )
    rows, columns = _membership(weights, query_words), _membership(weights, key_words)
    merged: Tensor = (rows / rows.sum(0)).T @ weights @ columns
    return merged


def _membership(weights: Tensor, words: Sequence[int]) -> Tensor:
    """1 where a piece belongs to a word, float (pieces, words)."""
    columns = {word: column for column, word in enumerate(sorted(set(words)))}
    member = weights.new_zeros(len(words), len(columns))
    member[range(len(words)), [columns[word] for word in words]] = 1
    return member


def _texts(pieces: Sequence[str]) -> list[str | None]:
    """The text of each piece; a character in bytes stands at its first one, the others are None."""
    texts: list[str | None] = []
    start, content = 0, bytearray()

    def close() -> None:
        if content:
            texts[start] = content.decode("utf-8", errors="replace")
            content.clear()

    for piece in pieces:
        byte = _BYTE.fullmatch(piece)
        if byte is None:
            close()
            texts.append(piece)
            continue
        value = int(byte[1], 16)
        if not content or not 0x80 <= value < 0xC0:  # the first byte of a character
            close()
            start = len(texts)
            texts.append("")
        else:
            texts.append(None)
        content.append(value)
    close()
    return texts
