"""The command line: Lightning's fit, validate, test and predict, and litseq's own commands."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import litseq.architectures  # noqa: F401 - its classes are then known by their short names
from litseq import checkpoints
from litseq.callbacks import TranslationWriter
from litseq.cli_messages import COMMANDS, check_configs, explain, options
from litseq.cli_runs import SaveRunConfig, prepare_wandb
from litseq.data import TranslationDataModule
from litseq.task import Seq2Seq

__all__ = ["Seq2SeqCLI", "main"]

log = logging.getLogger("litseq")

_DESCRIPTION = "litseq: sequence-to-sequence learning inside PyTorch Lightning."
_EPILOG = "Other commands: " + "; ".join(
    f"litseq {name}: {purpose}" for name, (_, purpose) in COMMANDS.items()
)
_EPILOG += ". LITSEQ_TRACEBACK=1 shows where an error comes from."
# main says what is wrong, in one line; an abbreviation could be a misspelling
_PARSING: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
_DATA = f"{TranslationDataModule.__module__}.{TranslationDataModule.__qualname__}"
_NO_PATHS = ("null", "best", "last", "hpc")  # what Lightning's ckpt_path may be beside a path
_USER_ERRORS = (ValueError, OSError, MisconfigurationException)


class Seq2SeqCLI(LightningCLI):
    """LightningCLI for sequence-to-sequence tasks.

    A checkpoint brings its model and data along: ``litseq test --ckpt_path best.ckpt`` needs
    nothing else and writes beside the checkpoint's run. Configuration files override what the
    checkpoint says, and flags override both. The tokenizer is always the checkpoint's.
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
            parser_kwargs={
                "prog": "litseq",
                "description": _DESCRIPTION,
                "epilog": _EPILOG,
                **_PARSING,
                **{command: dict(_PARSING) for command in self.subcommands()},
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=None if args is None else list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Makes the demo the default data."""
        parser.set_defaults({"data": {"class_path": _DATA}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Reads the checkpoint first: what it says is the default of everything else."""
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list):
            check_configs(given)
            self._checkpoint_defaults(given)
        super().parse_arguments(parser, args)

    def _checkpoint_defaults(self, args: list[str]) -> None:
        given = dict(options(args))
        path, command = given.get("--ckpt_path"), args[0] if args else None
        if path is None or path in _NO_PATHS or command not in self.subcommands():
            return
        self._checkpoint = checkpoint = checkpoints.read(path)
        defaults: dict[str, Any] = {}
        try:
            cls = checkpoints.find_class(checkpoint, Seq2Seq)  # type: ignore[type-abstract]
        except ValueError:
            # a class of the user's own, which the configuration names, and so imports
            if not {"-c", "--config", "--model"} & given.keys():
                raise
        else:
            defaults["model"] = {
                "class_path": f"{cls.__module__}.{cls.__qualname__}",
                "init_args": checkpoint["hyper_parameters"],
            }
        if command != "fit":
            ours = "TranslationDataModule" in checkpoint  # Lightning keeps its state there
            if not ours and not {"-c", "--config", "--data"} & given.keys():
                raise ValueError(
                    f"{path} was not trained with a TranslationDataModule; name its data with -c "
                    f"CONFIG or --data CLASS."
                )
            defaults["data"] = {
                "class_path": _DATA,
                "init_args": {
                    **(checkpoint["datamodule_hyper_parameters"] if ours else {}),
                    "tokenizer": None,  # the checkpoint's own, see below
                },
            }
            # what comes out belongs to the run of the checkpoint, not to a new one
            defaults["trainer"] = {"logger": False}
        self._parser(command).set_defaults(defaults)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let the checkpoint override what the user says."""

    def before_instantiate_classes(self) -> None:
        """Takes the tokenizer out of the checkpoint, where the configuration would train one."""
        config = self.config[self.subcommand]
        if self._checkpoint is None and config.ckpt_path not in (None, *_NO_PATHS):
            self._checkpoint = checkpoints.read(config.ckpt_path)  # named in a file, not by a flag
        if self.subcommand == "fit":
            return
        if config.ckpt_path is None:
            log.warning("no --ckpt_path is given: the model is untrained.")
        elif self._checkpoint and self._checkpoint["litseq"]["tokenizer"]:
            if config.get("data.init_args.tokenizer", "") is None:
                config["data.init_args.tokenizer"] = config.ckpt_path

    def after_instantiate_classes(self) -> None:
        """Compares the model with the checkpoint's before any work is done; gets W&B ready."""
        if self._checkpoint:
            checkpoints.check_class(self._checkpoint, type(self.model))
        prepare_wandb(self.trainer)


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; the console script ``litseq``.

    Args:
        args: Words of the command line. None: those of this process.
    """
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    _silence_what_no_user_can_act_on()
    handler = logging.StreamHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        _run(words, explicit=args is not None)
    except ArgumentError as error:
        _fail(explain(str(error), words), error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except _USER_ERRORS as error:
        cause = _innermost(error)
        if not isinstance(cause, _USER_ERRORS):
            raise cause  # noqa: B904 - its own traceback says where it comes from
        _fail(_one_line(cause), error)
    finally:
        log.removeHandler(handler)


def _run(words: list[str], *, explicit: bool) -> None:
    commands = [*Seq2SeqCLI.subcommands(), *COMMANDS]
    if words[0] in COMMANDS:
        module = import_module(COMMANDS[words[0]][0])
        parser = ArgumentParser(
            prog=f"litseq {words[0]}",
            description=(inspect.getdoc(module.main) or "").partition("\n\nArgs:")[0],
            **_PARSING,
        )
        if hasattr(module, "declare"):
            module.declare(parser)
        else:
            parser.add_function_arguments(module.main, as_group=False, as_positional=False)
        module.main(**parser.parse_args(words[1:]).as_dict())
    elif words[0] in commands or words[0].startswith("-"):
        Seq2SeqCLI(words if explicit or len(sys.argv) < 2 else None)
    else:
        raise ValueError(f"there is no command {words[0]!r}; choose among {', '.join(commands)}.")


def _innermost(error: BaseException) -> BaseException:
    """Unwraps an error of a constructor from what jsonargparse says about its type."""
    while str(error).startswith("Does not validate") and error.__cause__ is not None:
        error = error.__cause__
    return error


def _one_line(error: BaseException) -> str:
    message = str(error)
    if "\nOriginal Traceback" in message:  # of a worker process; its lines are indented
        message = re.sub(r"(?ms)\A.*?^[\w.]+: ", "", message)
    return " ".join(message.split())


def _fail(message: str, error: BaseException | None) -> NoReturn:
    if os.environ.get("LITSEQ_TRACEBACK") and error is not None:
        raise error
    sys.stderr.write(f"litseq: error: {message}\n")
    raise SystemExit(2)


def _silence_what_no_user_can_act_on() -> None:
    # advertisements, a deprecation inside of Lightning, and callbacks that only training needs
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    for message in (
        "`isinstance\\(treespec",
        "Be aware that when using `ckpt_path`",
        "The dirpath has changed",
    ):
        warnings.filterwarnings("ignore", message=message)
