"""Where a run may write: names stay within their folder, and no run takes another's."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

__all__ = ["check_names", "check_new"]

_NAME = re.compile(r"(?!\.+$)[\w.,=+@ -]{1,100}")  # letters of any script


def check_names(trainer: Trainer) -> None:
    """Checks the names of a run and of its checkpoints.

    Folders that are meant as such, ``save_dir`` and ``dirpath``, are for the user to choose. A name
    becomes a part of a path below them, and must not lead out of it.

    Raises:
        ValueError: If a name would; says which.
    """
    for logger in trainer.loggers:
        for what, name in (("name", logger.name), ("version", logger.version)):
            # a logger without either is none that makes folders; a slash makes one more below
            parts = name.split("/") if isinstance(name, str) and name else []
            if not all(map(_NAME.fullmatch, parts)):
                raise ValueError(
                    f"the {what} of {type(logger).__name__} must be letters, digits, spaces or any "
                    f"of '.,=+@-_', 100 at most, got {name!r}."
                )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # mypy: set at run time
        filename = getattr(callback, "filename", None) if isinstance(callback, Checkpoint) else None
        if filename and (PurePath(filename).is_absolute() or ".." in PurePath(filename).parts):
            raise ValueError(
                f"the filename of {type(callback).__name__} must stay in its folder, got "
                f"{filename!r}; choose the folder by dirpath."
            )


def check_new(trainer: Trainer) -> None:
    """Checks that training begins in a folder of its own.

    Raises:
        ValueError: If another run's configuration lies there.
    """
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, CSVLogger) and (Path(logger.log_dir) / "config.yaml").exists():
            raise ValueError(
                f"{logger.log_dir} holds a run already, which would be written over; leave the "
                f"logger's version out, or go on with that run by --ckpt_path last."
            )
