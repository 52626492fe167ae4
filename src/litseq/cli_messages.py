"""What is wrong with a command line or a configuration file, in one line with a remedy."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from litseq.data import TranslationDataModule
from litseq.task import Seq2Seq

__all__ = ["explain"]


def explain(message: str, args: Sequence[str]) -> str:
    """Rewrites a parser's message.

    Args:
        message: What jsonargparse says, on one line or many.
        args: Words of the command line; the configuration files that they name are searched for
            the culprit.

    Returns:
        One line: where, what, and what to do.
    """
    message = " ".join(message.split())
    if found := re.search(r"(?:accept option|Option) '([\w.]+)'", message):
        return _unknown_key(found[1], args)
    if found := re.search(r"class_path '([^']+)'|import path string: (\S+)", message):
        return _unknown_class(found[1] or found[2], args)
    if "required: fit.model" in message or re.search(r"required: \w+\.model", message):
        return f"no model given; name a configuration with -c, or --model {' | '.join(_models())}."
    if found := re.fullmatch(
        r'Parser key "([\w.]+)": Expected an? <class \'(\w+)\'>\.? Got value: (.*)', message
    ):
        return f"{_where(found[1], args)}{found[1]} must be {found[2]}, got {found[3]!r}."
    return message


def _unknown_key(path: str, args: Sequence[str]) -> str:
    keys = [key for key in path.split(".") if key not in ("class_path", "init_args")]
    unknown = next((key for key in keys if key not in _known_keys()), keys[-1])
    near = difflib.get_close_matches(unknown, _known_keys(), n=1)
    remedy = f"did you mean {near[0]!r}?" if near else "'litseq fit --help' lists the keys."
    return f"{_where(unknown, args)}unknown key {unknown!r}; {remedy}"


def _unknown_class(name: str, args: Sequence[str]) -> str:
    known = [*_models(), TranslationDataModule.__name__]
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"litseq has {', '.join(known)}."
    return (
        f"{_where(name, args)}there is no class {name!r}; {remedy} A class of your own needs its "
        f"full path, and its package must be importable."
    )


def _models() -> list[str]:
    return sorted(cls.__name__ for cls in Seq2Seq.__subclasses__() if "." in cls.__module__)


def _known_keys() -> set[str]:
    makers: tuple[type, ...] = (Trainer, TranslationDataModule, Seq2Seq, *Seq2Seq.__subclasses__())
    keys = {name for maker in makers for name in inspect.signature(maker).parameters}
    return keys - {"self", "options"} | {
        "model", "data", "trainer", "seed_everything", "ckpt_path", "config",
    }  # fmt: skip


def _where(word: str, args: Sequence[str]) -> str:
    """Finds a word in the configuration files: "FILE, line N: ", or nothing."""
    pattern = re.compile(rf"(?<![\w.]){re.escape(word)}(?![\w.])")
    for path in _config_files(args):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if pattern.search(line.partition(" #")[0]):
                return f"{path}, line {number}: "
    return ""


def _config_files(args: Sequence[str]) -> Iterator[Path]:
    for position, word in enumerate(args):
        option, _, value = word.partition("=")
        if option in ("-c", "--config"):
            path = Path(value or next(iter(args[position + 1 :]), ""))
            if path.is_file():
                yield path
