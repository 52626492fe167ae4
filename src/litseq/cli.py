"""The command line: Lightning's fit, validate, test and predict, and litseq's own commands."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

import litseq.architectures  # noqa: F401 - its classes are then known by their short names
from litseq import checkpoints
from litseq.callbacks import TranslationWriter
from litseq.callbacks.idle import RefuseIdleRun
from litseq.cli_imports import (
    HELP,
    HELP_OF_CHECKPOINTS,
    import_allowed,
    restrict_imports,
)
from litseq.cli_messages import (
    COMMANDS,
    PrintableFormatter,
    callback_twice,
    check_configs,
    explain,
    options,
    overview,
    say_os_error,
    too_little_memory,
)
from litseq.cli_outputs import check_names, check_new
from litseq.cli_resume import NEWEST, continue_log, continue_run, find_checkpoint, logger_names
from litseq.cli_runs import SaveRunConfig, prepare_wandb
from litseq.data import TranslationDataModule
from litseq.precision import check_precision
from litseq.pretrained import is_pretrained
from litseq.task import Seq2Seq
from litseq.textfiles import leave_closed_pipe, printable

__all__ = ["Seq2SeqCLI", "command_parser", "main"]

log = logging.getLogger("litseq")

_DESCRIPTION = "litseq: sequence-to-sequence learning inside PyTorch Lightning."
# main says what is wrong, in one line; an abbreviation could be a misspelling
_PARSING: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
_DATA = f"{TranslationDataModule.__module__}.{TranslationDataModule.__qualname__}"
_WITHOUT_CHECKPOINT = ("compare", "completion")
_NO_PATHS = (*NEWEST, "null", "hpc")  # what --ckpt_path may be beside a path
_USER_ERRORS = (ValueError, OSError, MisconfigurationException)


class Seq2SeqCLI(LightningCLI):
    """LightningCLI for sequence-to-sequence tasks.

    A checkpoint brings its model and data along: ``litseq test --ckpt_path best.ckpt`` needs
    nothing else and writes beside the checkpoint's run. Configuration files override what the
    checkpoint says, and flags override both. The tokenizer is always the checkpoint's.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self._checkpoint: dict[str, Any] | None = None
        self._goes_on = False  # in the run that the checkpoint is of
        super().__init__(
            Seq2Seq,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            seed_everything_default=1,
            trainer_defaults={"callbacks": [TranslationWriter(), RefuseIdleRun()]},
            parser_kwargs={
                "prog": "litseq",
                "description": _DESCRIPTION,
                **_PARSING,
                **{command: {"epilog": HELP, **_PARSING} for command in self.subcommands()},
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
        words = restrict_imports(sys.argv[1:] if args is None else args)
        check_configs(words)
        self._checkpoint_defaults(words)
        self.config = parser.parse_args(words)

    def _checkpoint_defaults(self, args: list[str]) -> None:
        given = dict(options(args))
        path, command = given.get("--ckpt_path"), args[0] if args else None
        if path is None or path in _NO_PATHS or command not in self.subcommands():
            return
        if is_pretrained(Path(path)):
            raise ValueError(
                f"{path} is a folder of save_pretrained, and --ckpt_path takes a file: 'litseq "
                f"average {path} -o plain.ckpt' makes one of it; then name its data with -c."
            )
        self._checkpoint = checkpoint = _reader(command)(path)
        defaults: dict[str, Any] = {}
        # a class of the user's own, which the configuration names, and so imports
        named = bool({"-c", "--config", "--model"} & given.keys())
        if not named:
            import_allowed()
        try:
            cls = checkpoints.find_class(checkpoint, Seq2Seq)  # type: ignore[type-abstract]
        except ValueError:
            if not named:
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
        if config.ckpt_path in NEWEST:
            self._find_checkpoint(config)
        if self._checkpoint is None and config.ckpt_path not in (None, *_NO_PATHS):
            # named in a file, not by a flag
            self._checkpoint = _reader(self.subcommand)(config.ckpt_path)
        if self.subcommand == "fit":
            return
        if config.ckpt_path is None:
            log.warning("no --ckpt_path is given: the model is untrained.")
        elif self._checkpoint and self._checkpoint["litseq"]["tokenizer"]:
            if config.get("data.init_args.tokenizer", "") is None:
                config["data.init_args.tokenizer"] = config.ckpt_path

    def _find_checkpoint(self, config: Namespace) -> None:
        """Puts a file in the place of ``last`` or ``best``; by ``last`` the run itself goes on."""
        which, fitting = config.ckpt_path, self.subcommand == "fit"
        found = find_checkpoint(config, which)
        if found is None and fitting and which == "last":
            log.warning("--ckpt_path last: there is no run yet, so training begins from scratch.")
            config.ckpt_path = None
            return
        if found is None:
            raise FileNotFoundError(
                f"--ckpt_path {which}: there is no run; give its configuration, -c "
                f"RUN/config.yaml, or a checkpoint file."
            )
        run, path = found
        config.ckpt_path = str(path)
        log.info("%s: %s", which, path)
        if not fitting:
            config.trainer.logger = False  # what comes out belongs to that run
        elif which == "last":
            self._checkpoint = _reader(self.subcommand)(str(path))
            if run is not None:
                continue_run(config, run, logger_names(self._checkpoint))
            self._goes_on = True

    def after_instantiate_classes(self) -> None:
        """Compares what is asked with device and checkpoint before any work; gets W&B ready."""
        check_names(self.trainer)
        if self.subcommand == "fit" and not self._goes_on:
            check_new(self.trainer)
        check_precision(
            self.config[self.subcommand].trainer.precision,
            self.trainer.strategy.root_device,
            training=self.subcommand == "fit",
        )
        if self._checkpoint:
            checkpoints.check_class(self._checkpoint, type(self.model))
            if "state_dict" in self._checkpoint and self.model.hparams["vocab_size"] is not None:
                checkpoints.check_sizes(self._checkpoint, self.model)
            if self._goes_on and self.trainer.is_global_zero and "run" in self._checkpoint:
                for logger in self.trainer.loggers:
                    continue_log(logger, self._checkpoint["run"])
        prepare_wandb(self.trainer)


def _reader(command: str | None) -> Callable[[str], dict[str, Any]]:
    return checkpoints.read_for_resuming if command == "fit" else checkpoints.read


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; the console script ``litseq``.

    Args:
        args: Words of the command line. None: those of this process.
    """
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    _silence_what_no_user_can_act_on()
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        try:
            _run(words, explicit=args is not None)
        finally:
            if sys.stdout is not None:  # it is where it was closed before
                sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_pipe()
    except ArgumentError as error:
        _fail(explain(str(error), words), error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SIGTERMException:  # of a run without RunCheckpoint: nothing is saved, so no success
        raise SystemExit(143) from None
    except SystemExit as end:
        if end.code == 1 and isinstance(end.__context__, KeyboardInterrupt):  # by Lightning
            raise SystemExit(130) from None
        raise
    except _USER_ERRORS as error:
        cause = _innermost(error)
        if not isinstance(cause, _USER_ERRORS):
            raise cause  # noqa: B904 - its own traceback says where it comes from
        _fail(_one_line(cause), error)
    except (RuntimeError, MemoryError) as error:
        if not (message := too_little_memory(error) or callback_twice(error)):
            raise
        _fail(message, error)
    finally:
        log.removeHandler(handler)


def command_parser(name: str) -> tuple[Any, ArgumentParser]:
    """Returns the module of a command that is not Lightning's, and the parser of its arguments."""
    module = import_module(COMMANDS[name][0])
    parser = ArgumentParser(
        prog=f"litseq {name}",
        epilog=None if name in _WITHOUT_CHECKPOINT else HELP_OF_CHECKPOINTS,
        description=(inspect.getdoc(module.main) or "").partition("\n\nArgs:")[0],
        **_PARSING,
    )
    if hasattr(module, "declare"):
        module.declare(parser)
    else:
        parser.add_function_arguments(module.main, as_group=False, as_positional=False)
    return module, parser


def _run(words: list[str], *, explicit: bool) -> None:
    if words[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return
    commands = [*Seq2SeqCLI.subcommands(), *COMMANDS]
    if words[0] in COMMANDS:
        words = restrict_imports(words)
        module, parser = command_parser(words[0])
        given = parser.parse_args(words[1:]).as_dict()
        import_allowed()
        module.main(**given)
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
    message = say_os_error(error) if isinstance(error, OSError) else str(error)
    if "\nOriginal Traceback" in message:  # of a worker process; its lines are indented
        message = re.sub(r"(?ms)\A.*?^[\w.]+: ", "", message)
    return " ".join(message.split())


def _fail(message: str, error: BaseException | None) -> NoReturn:
    if os.environ.get("LITSEQ_TRACEBACK") and error is not None:
        raise error
    sys.stderr.write(f"litseq: error: {printable(message)}\n")
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
