"""What a command line and its configurations may import: litseq, Lightning, parts of torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module

from jsonargparse import set_parsing_settings

__all__ = [
    "FLAG",
    "HELP",
    "HELP_OF_CHECKPOINTS",
    "ROOTS",
    "import_allowed",
    "import_flags",
    "restrict_imports",
]

FLAG = "--allow_import"
"""Adds a package; stands on the command line alone, as often as needed."""

ROOTS = ("litseq", "lightning", "torch.nn", "torch.optim")
"""Packages whose classes and functions a configuration may name."""

HELP = (
    f"Configurations name classes of {', '.join(ROOTS)}; {FLAG} PACKAGE, as often as needed, lets "
    f"them name those of another package, such as your own, which is then imported."
)

HELP_OF_CHECKPOINTS = (
    f"A checkpoint of a model of your own needs {FLAG} MODULE, the module of its class, which is "
    f"then imported."
)

# jsonargparse's settings are those of the process, and an entry stays for ever
_added: list[str] = []  # by the flags of the newest command
_known: set[str] = set()  # by those of any command


def restrict_imports(words: Iterable[str]) -> list[str]:
    """Lets configurations import from a few packages alone, for as long as the process lives.

    To import a module is to run it, and to name a class or a function in a configuration is to
    import its module. So any other name is refused before anything is imported. Only the flag
    ``--allow_import PACKAGE`` adds packages: whoever runs a command says what it may run, never a
    file that somebody else may have written.

    Args:
        words: Words of the command line.

    Returns:
        The words without those flags.

    Raises:
        ValueError: If a package is not named as Python names it, or is jsonargparse, by which a
            configuration could change these rules.
    """
    rest, packages = _split(words)
    for package in packages:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", package):
            raise ValueError(
                f"{FLAG} needs the name of a package, such as mypackage or mypackage.models, got "
                f"{package!r}."
            )
        if package.partition(".")[0] == "jsonargparse":
            raise ValueError(f"{FLAG} {package}: it decides what may be imported, and stays out.")
    _known.update(packages)
    within = tuple(f"{package}." for package in (*ROOTS, *packages))
    denied = {name for name in _known if not f"{name}.".startswith(within)}
    set_parsing_settings(
        # a class in a value of any type stays the text that it is
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *denied],
        import_path_allowlist=[*ROOTS, *packages, *(_known - denied)],
    )
    _added[:] = packages
    return rest


def import_allowed() -> None:
    """Imports what the newest command allows, so that checkpoints can be of its classes.

    Raises:
        ValueError: If there is no such module, or importing it fails.
    """
    for name in _added:
        parent, _, last = name.rpartition(".")
        try:
            try:
                import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name or not hasattr(import_module(parent or name), last):
                    raise
        except Exception as error:  # whatever is wrong with somebody's code
            raise ValueError(
                f"{FLAG} {name}: {type(error).__name__}: {error}; it must be importable from here, "
                f"installed or in a folder of PYTHONPATH."
            ) from error


def import_flags() -> list[str]:
    """The flags of the newest command, for one that goes on with its run."""
    return [f"{FLAG}={package}" for package in _added]


def _split(words: Iterable[str]) -> tuple[list[str], list[str]]:
    rest, packages = [], []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name == FLAG:
            packages.append(value if equals else next(remaining, ""))
        else:
            rest.append(word)
    return rest, packages
