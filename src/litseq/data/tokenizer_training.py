"""Learning a SentencePiece model, and what its trainer's complaints mean."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece

__all__ = ["check_user_symbols", "one_line", "train_model"]

_SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>")
# SentencePiece's own default. The unigram trainer adds up its counts per thread, so the number is
# part of the result and must not follow the machine.
_TRAINING_THREADS = 16


def one_line(text: str) -> str:
    """What SentencePiece reads of a text: one line without spaces at its ends."""
    # SentencePiece trims U+0020 alone; an ideographic or no-break space would pass for a text. Its
    # training reads lines, so a line feed has no piece.
    return text.strip().replace("\n", " ")


def check_user_symbols(symbols: Sequence[str]) -> None:
    """Raises ``ValueError`` if texts cannot each be one piece."""
    for symbol in symbols:
        if not symbol.strip():
            raise ValueError(f"user_symbols must not be empty, got {symbol!r}.")
        if symbol in _SPECIAL_PIECES:
            raise ValueError(f"user_symbols must not hold {symbol!r}: it names a special piece.")
    twice = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
    if twice:
        raise ValueError(f"user_symbols holds {', '.join(map(repr, twice))} more than once.")


def train_model(texts: Iterable[str], language: str, options: Mapping[str, Any]) -> bytes:
    """Learns a model.

    Args:
        texts: What to learn from.
        language: What error messages call them.
        options: Arguments of SentencePiece's trainer.

    Returns:
        The model, serialized.

    Raises:
        ValueError: If the texts are empty or cannot give that vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=map(one_line, texts),
            model_writer=model,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            num_threads=_TRAINING_THREADS,
            max_sentence_length=65_536,  # bytes; the library's 4192 would skip long lines unseen
            minloglevel=3,
            **options,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), language, options)) from error
    return model.getvalue()


def _explain(message: str, language: str, options: Mapping[str, Any]) -> str:
    """Says in one line what SentencePiece's trainer complained about, and what to do."""
    vocab_size = options["vocab_size"]
    if found := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        return (
            f"vocab_size={vocab_size} is too large for the {language} training text; "
            f"set it to at most {found[1]} for this corpus."
        )
    if found := re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message):
        return (
            f"vocab_size={found[1]} is smaller than the {found[2]} single characters and special "
            f"pieces of the {language} training text; raise vocab_size to at least {found[2]} or "
            f"lower character_coverage={options['character_coverage']}."
        )
    if "character_coverage()" in message:
        return (
            f"character_coverage must lie between 0.98 and 1, got {options['character_coverage']}."
        )
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return f"the {language} training text is empty: there is nothing to train a tokenizer on."
    if "insert_id" in message:
        return f"vocab_size={vocab_size} leaves no room beside the four special pieces; raise it."
    return f"SentencePiece could not be trained on the {language} text: {' '.join(message.split())}"
