"""``litseq completion``: what a shell needs to complete commands, options and class names."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, NoReturn, get_args

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from litseq.cli import Seq2SeqCLI, command_parser
from litseq.cli_messages import COMMANDS

__all__ = ["declare", "main"]

Shell = Literal["bash", "zsh", "fish"]


def declare(parser: ArgumentParser) -> None:
    """Declares the argument of ``main``: the shell stands alone."""
    parser.add_argument("shell", choices=get_args(Shell), help="Which shell.")


def main(shell: Shell) -> None:
    """Prints a script that completes litseq's commands and options in a shell.

    bash: litseq completion bash > ~/.litseq.bash, and in ~/.bashrc: source ~/.litseq.bash

    Args:
        shell: Which shell.

    Raises:
        ValueError: If shtab is not installed, which writes the script.
    """
    if find_spec("shtab") is None:
        raise ValueError(
            "completion needs shtab, which is not installed: pip install 'litseq[completion]'."
        )
    set_parsing_settings(add_print_completion_argument=True)
    try:
        _OnlyParser(["fit"])
    except _Built as built:
        parser = built.parser
    commands: Any = parser._subcommands_action
    for name in COMMANDS:
        if name != "completion":
            commands.add_subcommand(name, command_parser(name)[1])
    parser.parse_args([f"--print_completion=shtab-{shell}"])


class _Built(Exception):
    def __init__(self, parser: LightningArgumentParser) -> None:
        self.parser = parser


class _OnlyParser(Seq2SeqCLI):
    """Builds the parser of Lightning's commands and runs none."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> NoReturn:  # noqa: ANN401
        raise _Built(parser)
