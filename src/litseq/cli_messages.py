"""What is wrong with a command line or a configuration file, in one line with a remedy."""

from __future__ import annotations

import difflib
import errno
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import yaml
from lightning.pytorch import Trainer, callbacks, loggers

import litseq
from litseq.cli_imports import FLAG, ROOTS
from litseq.data import TranslationDataModule
from litseq.task import Seq2Seq
from litseq.textfiles import printable

__all__ = [
    "COMMANDS",
    "PrintableFormatter",
    "callback_twice",
    "check_configs",
    "explain",
    "options",
    "overview",
    "say_os_error",
    "too_little_memory",
]

_MAX_VALUES = 100_000  # of a configuration file; far more than a long one has

COMMANDS = {
    "translate": ("litseq.translate", "translate text with a checkpoint"),
    "explain": ("litseq.explain.command", "show on one page how a translation came about"),
    "compare": ("litseq.evaluation.command", "say whether one system is better than another"),
    "average": ("litseq.average", "average the weights of checkpoints into one"),
    "export": ("litseq.export.command", "write a checkpoint as another program reads it"),
    "import": ("litseq.export.import_command", "make a checkpoint of another program's model"),
    "selftest": ("litseq.selftest", "check that a checkpoint computes what it must"),
    "completion": ("litseq.completion", "print what a shell needs to complete options"),
}
"""Commands beside Lightning's own: name to module and help.

The module's ``main`` takes the options; where its signature does not say enough of them, its
``declare`` adds them to a parser.
"""


_FROM_LIGHTNING = {
    "fit": "train a model, or go on with a run: --ckpt_path last",
    "validate": "score a checkpoint on the validation set",
    "test": "score a checkpoint on the test set",
    "predict": "translate the sources of the prediction set",
}


def overview() -> str:
    """What ``litseq --help`` prints."""
    lines = ["usage: litseq COMMAND [OPTIONS]", ""]
    lines += ["Sequence-to-sequence learning inside PyTorch Lightning.", ""]
    commands = {**_FROM_LIGHTNING, **{name: purpose for name, (_, purpose) in COMMANDS.items()}}
    lines += [f"  {name:<11} {purpose}" for name, purpose in commands.items()]
    lines += ["", "  litseq fit -c configs/demo.yaml     trains on the demo that is built in"]
    lines += ["  litseq COMMAND --help               has the options of a command", ""]
    lines += ["LITSEQ_TRACEBACK=1 shows where an error comes from."]
    return "\n".join(lines) + "\n"


def options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields each option with its value, from ``--option value`` and ``--option=value`` alike."""
    for position, word in enumerate(args):
        if word.startswith("-"):
            option, _, value = word.partition("=")
            yield option, value or next(iter(args[position + 1 :]), "")


def check_configs(args: Sequence[str]) -> None:
    """Checks that the configuration files of a command line can be read.

    Args:
        args: Words of the command line.

    Raises:
        FileNotFoundError: If a file is missing; names those beside it.
        ValueError: If a file is a folder, or holds something else than keys in YAML; names the
            line.
    """
    for path in _config_files(args):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give a configuration file.")
        if not path.exists():
            there = sorted(p.name for p in path.parent.glob("*.y*ml"))
            raise FileNotFoundError(
                f"no configuration file at {path}; beside it: {', '.join(there) or 'no YAML file'}."
            )
        try:
            text = path.read_bytes().decode("utf-8")
            _check_tree(yaml.compose(text, yaml.SafeLoader), path)
            content = yaml.safe_load(text)
        except UnicodeDecodeError as error:
            line = path.read_bytes().count(b"\n", 0, error.start) + 1
            byte = error.object[error.start]
            raise ValueError(
                f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; convert the file to UTF-8."
            ) from error
        except RecursionError as error:
            raise ValueError(f"{path}: its brackets or lists are nested too deep.") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}, line {mark.line + 1}" if mark else str(path)
            problem = getattr(error, "problem", None) or str(error)
            raise ValueError(
                f"{where}: not YAML ({' '.join(problem.split())}); brackets and quotes must be "
                f"closed, and lines are indented by spaces, never by tabs."
            ) from error
        if not isinstance(content, dict):
            kind = "nothing" if content is None else f"a {type(content).__name__}"
            raise ValueError(f"{path} holds {kind}; it needs keys such as model, data or trainer.")


def _check_tree(root: yaml.Node | None, path: Path) -> None:
    """Refuses a key that stands twice, and aliases that stand for more than anybody writes."""
    sizes: dict[int, float] = {}  # by node: how many values it stands for, aliases written out

    def size(node: yaml.Node | None) -> float:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # what holds itself has no end
            sizes[id(node)] = 1 + sum(map(size, _parts(node, path)))
        return sizes[id(node)]

    if size(root) > _MAX_VALUES:
        raise ValueError(
            f"{path}: its aliases (*name) stand for more than {_MAX_VALUES:,} values; write out "
            f"what they mean."
        )


def _parts(node: yaml.CollectionNode, path: Path) -> Iterator[yaml.Node]:
    keys = set()
    for part in node.value:
        if isinstance(part, yaml.Node):
            yield part
            continue
        key, value = part
        if isinstance(key, yaml.ScalarNode) and key.value in keys:
            raise ValueError(
                f"{path}, line {key.start_mark.line + 1}: the key {key.value!r} stands here for "
                f"the second time; keep one."
            )
        keys.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        yield value


def explain(message: str, args: Sequence[str]) -> str:
    """Rewrites a parser's message.

    Args:
        message: What jsonargparse says, on one line or many.
        args: Words of the command line; they and the configuration files that they name are
            searched for the culprit.

    Returns:
        One line: where, what, and what to do.
    """
    if "is abstract" in message or re.search(r"required: \w+\.model", message):
        models = " | ".join(sorted(cls.__name__ for cls in Seq2Seq.__subclasses__()))
        return f"no model given; name a configuration with -c, or --model {models}."
    if found := re.search(r"arguments are required: (\w+)$", message):
        return f"--{found[1]} is missing; {_help(args)} says what it is."
    if found := re.fullmatch(r"argument (?:.*/)?(\S+): expected one argument", message):
        return f"{found[1]} needs a value; {_help(args)} says which."
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        word = found[1].partition("=")[0]
        if word.startswith("--"):
            return _unknown_key(word[2:], None, args)
        return f"unexpected word {found[1]!r}; {_help(args)} lists the options."
    if found := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return _not_allowed(found[1], args)
    owners = re.findall(r"Problem with given class_path '([^']+)'", message)
    name = owners[-1] if owners else None  # the innermost
    if found := re.search(r"accept option '([\w.]+)'|Option '([\w.]+)' is not accepted", message):
        return _unknown_key(found[1] or found[2], name, args)
    missing = r"import path string: (\S+)|No module named '(.+?)'|module '(.+?)' has no attribute"
    if found := re.search(missing, message):
        path = found[1] or name or ""
        if path.startswith(found[1] or found[2] or found[3]):  # else the class's file has a bug
            return _unknown_class(path, args)
    return _wrong_value(message, args) or " ".join(message.split())


class PrintableFormatter(logging.Formatter):
    """Shows what is logged without control characters: it may quote a file's name or contents."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the text of a record."""
        return printable(super().format(record))


def say_os_error(error: OSError) -> str:
    """Says what the operating system refused, and what to do."""
    if error.strerror is None:
        return str(error)
    if error.errno == errno.ENOENT and error.filename is None:
        return "the working folder is no longer there; change to one that is."
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror[0].lower()}{error.strerror[1:]}; {_remedy(error.errno)}."


def _remedy(number: int | None) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room, or write elsewhere"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "get the right to it, or give another path"
    return "LITSEQ_TRACEBACK=1 says more"


def too_little_memory(error: Exception) -> str | None:
    """Says that memory did not suffice, if that is what an error means."""
    message = str(error)
    if not isinstance(error, MemoryError) and not re.search(
        r"(?i)can't allocate memory|out of memory", message
    ):
        return None
    wanted = re.search(r"(?i)tried to allocate ([\d.]+ \w+)", message)
    return (
        f"there is not enough memory{f' for {wanted[1]}' if wanted else ''}; make the model, "
        f"max_tokens or beam_size smaller."
    )


def callback_twice(error: Exception) -> str | None:
    """Says which callback stands twice, if that is what Lightning complains of."""
    found = re.search(r"more than one stateful callback of type `(\w+)`", str(error))
    if not found:
        return None
    return f"{found[1]} stands twice among trainer.callbacks, with the same settings; remove one."


def _help(args: Sequence[str]) -> str:
    return f"'litseq {args[0]} --help'" if args[0].isalpha() else "'litseq --help'"


def _unknown_key(path: str, owner: str | None, args: Sequence[str]) -> str:
    """Says which key is unknown, to a class or, without one, to the command."""
    known = _keys_of_command(args) if owner is None else _keys_of(_import(owner))
    keys = [key for key in path.split(".") if key not in ("class_path", "init_args")]
    unknown = next((key for key in keys if key not in known), keys[-1])
    near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)
    if near := near or [key for key in known if key.startswith(unknown)]:
        remedy = f"did you mean {known[near[0]]!r}?"
    elif owner is None:
        remedy = f"{_help(args)} lists the keys."
    else:
        remedy = f"it has {', '.join(sorted(known))}."
    place = _where([rf"{re.escape(unknown)}\W*:"], args)
    whose = f" of {owner.rpartition('.')[2]}" if owner else ""
    return f"{place}unknown key {unknown!r}{whose}; {remedy}"


def _keys_of_command(args: Sequence[str]) -> dict[str, str]:
    if args[0] in COMMANDS:
        return _keys_of(import_module(COMMANDS[args[0]][0]).main)
    keys = {key: key for key in ("model", "data", "trainer", "seed_everything", "ckpt_path")}
    makers: dict[str, Sequence[Callable[..., object]]] = {
        "model": [Seq2Seq, *Seq2Seq.__subclasses__()],
        "data": [TranslationDataModule],
        "trainer": [Trainer],
    }
    for section, group in makers.items():
        keys |= {key: f"{section}.{key}" for maker in group for key in _keys_of(maker)}
    return keys


def _keys_of(maker: Callable[..., object]) -> dict[str, str]:
    """The arguments of a class and of those it inherits from, or of a function."""
    functions = [maker]
    if isinstance(maker, type):
        functions = [vars(base)["__init__"] for base in maker.__mro__ if "__init__" in vars(base)]
    return {
        key: key
        for function in functions
        for key, parameter in inspect.signature(function).parameters.items()
        if key != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def _import(path: str) -> Callable[..., object]:
    module, _, name = path.rpartition(".")
    found: Callable[..., object] = getattr(import_module(module), name)
    return found


def _not_allowed(path: str, args: Sequence[str]) -> str:
    """Says which flag lets a configuration import something."""
    place = _where([rf"{re.escape(path)}(?![\w.])"], args)
    package = path.partition(".")[0]
    return (
        f"{place}{path} is not imported: a configuration may name what is in {', '.join(ROOTS)}; "
        f"if you trust {package} and whoever wrote the configuration, add {FLAG} {package}."
    )


def _unknown_class(path: str, args: Sequence[str]) -> str:
    known = {
        name: f"{home.__name__}.{name}"
        for home in (loggers, callbacks, litseq)
        for name in home.__all__
        if name[0].isupper()
    }
    near = difflib.get_close_matches(path.rpartition(".")[2], known, n=1)
    remedy = f"did you mean {known[near[0]]!r}? A" if near else "a"
    place = _where([rf"{re.escape(path)}(?![\w.])"], args)
    return (
        f"{place}there is no class {path!r}; {remedy} class of your own needs its full path, and "
        f"its package must be importable."
    )


def _wrong_value(message: str, args: Sequence[str]) -> str | None:
    """Explains the innermost complaint about a value, if there is one."""
    innermost = re.search(r'(?s).*Parser key "([\w.]+)":(.*)', message)
    if innermost is None:
        return None
    key, problem = innermost[1].rpartition(".")[2], innermost[2]
    if found := re.match(r"\s*Expected an? (.+)\. Got value: (.*)", problem):
        errors, value = [f"Expected a {found[1]}"], found[2]
    else:
        problem, _, given = problem.partition("Errors:")[2].partition("Given value type:")
        errors = [error.strip() for error in re.split(r"\n\s*- ", problem)[1:]]
        value = re.sub(r".*Given value: (NestedArg\(key='.*', val=)?", "", given, flags=re.DOTALL)
        value = value.removesuffix(")").strip("'") if "NestedArg" in given else value
    if not errors:
        return None
    place = _where([rf"{key}\W*:.*{re.escape(value)}", rf"{key}\W*:"], args)
    kinds = [re.match(r"Expected an? (.+)|.*\b(subclass of .+)", error) for error in errors]
    if kinds[0] is None:
        return f"{place}{' '.join(errors[0].split())}; LITSEQ_TRACEBACK=1 says more."
    wanted = " or ".join(_kind(kind[1] or kind[2]) for kind in kinds if kind)
    return f"{place}{key} must be {wanted}, got {value!r}."


def _kind(name: str) -> str:
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", name):
        return f"one of {found[1]}"
    found = re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", name)
    return {"NoneType": "null"}.get(found[1], found[1]) if found else f"a {name}"


def _where(patterns: Iterable[str], args: Sequence[str]) -> str:
    """Finds where something was said: "--option: " or "FILE, line N: " or nothing."""
    for pattern in patterns:
        for place, text in _places(args):
            if re.search(rf"(?<![\w.]){pattern}", text):
                return f"{place}: "
    return ""


def _places(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option, value in options(args):
        yield option, f"{option.rpartition('.')[2].lstrip('-')}: {value}"
    for path in _config_files(args):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            yield f"{path}, line {number}", re.sub(r"(^|\s)#.*", "", line)


def _config_files(args: Sequence[str]) -> Iterator[Path]:
    for option, value in options(args):
        # jsonargparse takes a configuration itself, or a URL, where it takes a file
        if option in ("-c", "--config") and value and not re.search(r"\n|\{|://", value):
            yield Path(value)
