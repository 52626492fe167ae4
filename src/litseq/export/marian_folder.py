"""The files of a Hugging Face Marian model, none of which is trusted."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from litseq.checkpoint_io import DamagedCheckpointError, load_file

__all__ = ["JsonFile", "Weights", "show"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LONGEST_SHOWN = 60


def show(value: object) -> str:
    """Writes a value as JSON has it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} ..."


class JsonFile:
    """A JSON object, whose values are checked as they are asked for.

    Args:
        path: The file.
        values: What it holds.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    @classmethod
    def read(cls, path: Path, *, optional: bool = False) -> JsonFile:
        """Reads a file.

        Args:
            path: The file.
            optional: Whether a file that is not there is an empty one.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else than a JSON object.
        """
        if optional and not path.exists():
            return cls(path, {})
        _check_there(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}); download it again.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}; it needs keys and values.")
        return cls(path, values)

    def refuse(self, key: str, remedy: str) -> NoReturn:
        """Raises ``ValueError`` that names a key and its value."""
        raise ValueError(f"{self.path}: {key} is {show(self.values.get(key))}; {remedy}.")

    def _value(self, key: str, default: object) -> Any:  # noqa: ANN401 - from a file
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None, *, least: int, most: int) -> int:
        """A whole number, which must be there unless it has a default.

        Raises:
            ValueError: If it is missing, no whole number or out of its range.
        """
        if key not in self.values and default is None:
            raise ValueError(f"{self.path} has no {key}; it is not of a Marian model.")
        value = self._value(key, default)
        if type(value) is not int or not least <= value <= most:
            self.refuse(key, f"it must be a whole number from {least:,} to {most:,}")
        return value

    def number(self, key: str, default: float, *, below: float = math.inf) -> float:
        """A number of at least 0.

        Raises:
            ValueError: If it is something else.
        """
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < below:
            limit = "" if below == math.inf else f" and below {below:g}"
            self.refuse(key, f"it must be a number of at least 0{limit}")
        return float(value)

    def truth(self, key: str, default: bool) -> bool:
        """A truth value; null is the default.

        Raises:
            ValueError: If it is something else.
        """
        value = self._value(key, default)
        if type(value) is not bool:
            self.refuse(key, "it must be true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A text that is not empty; null is the default.

        Raises:
            ValueError: If it is something else.
        """
        value = self._value(key, default)
        if isinstance(value, dict):  # a token with what transformers notes of it
            value = value.get("content")
        if not isinstance(value, str) or not value:
            self.refuse(key, "it must be a text")
        return value


class Weights:
    """The tensors of a folder, taken out one by one.

    Args:
        folder: Holds ``model.safetensors`` or ``pytorch_model.bin``.

    Raises:
        FileNotFoundError: If it holds neither.
        ValueError: If the file is damaged or holds more than tensors.
        ModuleNotFoundError: If safetensors is needed and not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = self.find(folder)
        read = _read_safetensors if self.path.suffix == ".safetensors" else _read_pickled
        self._tensors: dict[str, Any] = read(self.path)

    @staticmethod
    def find(folder: Path) -> Path:
        """Finds the file.

        Raises:
            FileNotFoundError: If there is none.
        """
        for name in _WEIGHTS:
            if (path := folder / name).is_file():
                return path
        raise FileNotFoundError(
            f"{folder} holds neither {' nor '.join(_WEIGHTS)}; a model in several files has to be "
            f"saved as one."
        )

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """Names of the tensors that are left."""
        return sorted(map(str, self._tensors))

    def take(self, name: str, *shape: int) -> Tensor:
        """Takes a tensor out.

        Args:
            name: Its name.
            shape: What it must be, as config.json says.

        Returns:
            float32.

        Raises:
            ValueError: If there is no such tensor, or it is of another shape or kind, or not
                finite.
        """
        if name not in self._tensors:
            raise ValueError(f"{self.path} has no {name}, which config.json calls for.")
        weight = self._tensors.pop(name)
        if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point:
            kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"{self.path}: {name} is {kind}; it must be of floating point.")
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"{self.path}: {name} is {tuple(weight.shape)}, and by config.json it would be "
                f"{shape}; the two do not belong together."
            )
        whole = weight.layout is torch.strided and (
            weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()
        )
        if not whole or not weight.isfinite().all():
            raise ValueError(f"{self.path}: {name} is not finite, or less than its shape says.")
        return weight.float()

    def take_one(self, names: Sequence[str], *shape: int) -> Tensor:
        """Takes out what may stand under several names, and must be the same under each.

        Raises:
            ValueError: As ``take``, and if two differ.
        """
        there = [name for name in names if name in self] or [*names[:1]]
        first, *others = (self.take(name, *shape) for name in there)
        for name, other in zip(there[1:], others, strict=True):
            if not torch.equal(first, other):
                raise ValueError(
                    f"{self.path}: {there[0]} and {name} differ, and by config.json they are one."
                )
        return first


def _check_there(path: Path) -> None:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir())[:8]
        raise FileNotFoundError(
            f"there is no file {path}; the folder holds {', '.join(there) or 'nothing'}."
        )


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is read by safetensors, which is not installed: pip install "
            f"'litseq[huggingface]'.",
            name=error.name,
        ) from error
    try:
        return dict(load(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); download it again.") from error


def _read_pickled(path: Path) -> dict[str, Any]:
    try:
        if zipfile.is_zipfile(path):
            weights = load_file(path)
        else:  # as torch wrote them before 1.6
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except DamagedCheckpointError as error:
        raise ValueError(f"{path} {error.damage}; download it again.") from error
    except Exception as error:  # torch.load raises a dozen kinds
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values, which might run "
            f"code; it is not read."
        ) from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds a {type(weights).__name__} in place of weights by name.")
    return weights
