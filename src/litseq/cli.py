"""The command line: Lightning's fit, validate, test and predict, and litseq's own commands."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

import litseq.architectures  # noqa: F401 - its classes are then known by their short names
from litseq import checkpoints
from litseq.callbacks import TranslationWriter, run_folder
from litseq.cli_messages import explain
from litseq.data import TranslationDataModule
from litseq.task import Seq2Seq

__all__ = ["Seq2SeqCLI", "main"]

log = logging.getLogger("litseq")

COMMANDS = {"translate": ("litseq.translate", "translate text with a checkpoint")}
"""Commands beside Lightning's own: name to module, whose ``main`` takes the options, and help."""

_DESCRIPTION = "litseq: sequence-to-sequence learning inside PyTorch Lightning."
_EPILOG = "Other commands: " + "; ".join(
    f"litseq {name}: {purpose}" for name, (_, purpose) in COMMANDS.items()
)


class _OneLineErrors:
    """Says in one line what is wrong, with status 2, as ``argparse`` does after its usage."""

    words: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program."""
        _fail(explain(message, self.words), ex)


class TrainerParser(_OneLineErrors, LightningArgumentParser):
    """The parser of Lightning's commands."""


class CommandParser(_OneLineErrors, ArgumentParser):
    """The parser of litseq's own commands."""


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration of ``fit`` in the run's folder, and never over that of another run.

    Lightning's own saves for every command, into a folder that W&B runs share, and gives up when a
    file is there already.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes ``config.yaml`` once, on rank zero."""
        if stage != "fit" or self.already_saved:
            return
        self.already_saved = True
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        path = folder / self.config_filename
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, path, skip_none=False, overwrite=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.save(str(path), base_path=str(folder), policy="now")


class Seq2SeqCLI(LightningCLI):
    """LightningCLI for sequence-to-sequence tasks.

    A checkpoint brings its model along: ``litseq test --ckpt_path best.ckpt`` needs no ``--model``,
    configuration files override what the checkpoint says, and flags override both. For validate,
    test and predict the DataModule takes the checkpoint's tokenizer.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self._checkpoint: dict[str, Any] | None = None
        super().__init__(
            Seq2Seq,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            seed_everything_default=1,
            trainer_defaults={"callbacks": [TranslationWriter()]},
            parser_class=TrainerParser,
            parser_kwargs={"description": _DESCRIPTION, "epilog": _EPILOG},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=None if args is None else list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Makes the demo the default data."""
        parser.set_defaults(
            {"data": {"class_path": f"{TranslationDataModule.__module__}.TranslationDataModule"}}
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Reads the checkpoint first: what it says is the default of everything else."""
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list):
            self._checkpoint_defaults(given)
        super().parse_arguments(parser, args)

    def _checkpoint_defaults(self, args: list[str]) -> None:
        path = _value_of("--ckpt_path", args)
        command = args[0] if args else None
        if path in (None, "best", "last", "hpc") or command not in self.subcommands():
            return
        checkpoint = checkpoints.read(str(path))
        cls = checkpoints.find_class(checkpoint, Seq2Seq)  # type: ignore[type-abstract]
        defaults: dict[str, Any] = {
            "model": {
                "class_path": f"{cls.__module__}.{cls.__qualname__}",
                "init_args": checkpoint["hyper_parameters"],
            }
        }
        if command != "fit":
            defaults["data"] = {
                "class_path": f"{TranslationDataModule.__module__}.TranslationDataModule",
                "init_args": {"tokenizer": str(path)},
            }
        self._parser(command).set_defaults(defaults)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let the checkpoint override what the user says."""

    def before_instantiate_classes(self) -> None:
        """Keeps W&B from asking for a key that is not there."""
        config = self.config[self.subcommand]
        loggers = config.trainer.logger
        loggers = loggers if isinstance(loggers, list) else [loggers]
        if any("WandbLogger" in str(getattr(logger, "class_path", "")) for logger in loggers):
            _wandb_offline_unless_logged_in()


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; the console script ``litseq``.

    Args:
        args: Words of the command line. None: those of this process.
    """
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    _OneLineErrors.words = words
    try:
        if words[0] in COMMANDS:
            command: Callable[..., None] = import_module(COMMANDS[words[0]][0]).main
            auto_cli(
                command,
                args=words[1:],
                as_positional=False,
                prog=f"litseq {words[0]}",
                description=(inspect.getdoc(command) or "").partition("\n\nArgs:")[0],
                parser_class=CommandParser,
            )
        else:
            Seq2SeqCLI(words if args is not None or len(sys.argv) < 2 else None)
    except (ValueError, OSError) as error:
        _fail(" ".join(str(error).split()), error)


def _fail(message: str, error: BaseException | None) -> NoReturn:
    if os.environ.get("LITSEQ_TRACEBACK") and error is not None:
        raise error
    sys.stderr.write(f"litseq: error: {message}\n")
    raise SystemExit(2)


def _value_of(option: str, args: Sequence[str]) -> str | None:
    """Finds the last value of an option in ``--option value`` or ``--option=value``."""
    value = None
    for position, word in enumerate(args):
        if word == option:
            value = next(iter(args[position + 1 :]), None)
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


def _wandb_offline_unless_logged_in() -> None:
    import wandb

    if os.environ.get("WANDB_MODE") or wandb.api.api_key:
        return
    os.environ["WANDB_MODE"] = "offline"
    log.warning(
        "not logged in to W&B: the run is kept offline; 'wandb sync FOLDER' sends it later."
    )
