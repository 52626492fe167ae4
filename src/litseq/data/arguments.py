"""What the numbers among the DataModule's arguments may be."""

from collections.abc import Mapping
from typing import Any

__all__ = ["check_numbers"]

_LEAST = {
    "seed": 0,
    "num_workers": 0,
    "num_proc": 1,
    "max_chars": 1,
    "subword_sampling": 0,
    "vocab_size": 1,
    "max_tokens": 1,
    "max_sentences": 1,
    "eval_max_tokens": 1,
    "shuffle_buffer": 1,
    "max_bad_lines": 0,
}
_MOST = dict.fromkeys(_LEAST, 2**31 - 1) | {"num_workers": 512, "num_proc": 512}


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Finds before any work what would otherwise show after it, or in other words.

    Args:
        arguments: Those of ``TranslationDataModule``, by name.

    Raises:
        ValueError: If a number is too small or too large, or ``max_tokens`` is another word.
    """
    max_tokens = arguments["max_tokens"]
    if isinstance(max_tokens, str) and max_tokens != "auto":
        raise ValueError(f"max_tokens must be a number or auto, got {max_tokens!r}.")
    for name, minimum in _LEAST.items():
        value = arguments[name]
        if value is None or (name == "max_tokens" and value == "auto"):
            continue
        if not value >= minimum:  # NaN is not
            raise ValueError(f"{name} must be at least {minimum}, got {value}.")
        if value > _MOST[name]:
            raise ValueError(f"{name} must be at most {_MOST[name]:,}, got {value:,}.")
    if arguments["model_type"] == "bpe" and arguments["subword_sampling"] > 1:
        raise ValueError(
            f"subword_sampling is a probability where model_type is bpe, got "
            f"{arguments['subword_sampling']}; give one up to 1, such as 0.1."
        )
