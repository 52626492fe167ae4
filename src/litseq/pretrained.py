"""A model as a folder of plain files, as the Hugging Face Hub keeps them.

``model.safetensors`` holds the weights, ``config.json`` the class and its options, and the
tokenizer's files stand beside: no file of a folder can hold code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from litseq.data.tokenizer import TranslationTokenizer

__all__ = ["CONFIG", "WEIGHTS", "is_pretrained", "read_pretrained", "write_pretrained"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_TOKENIZER = "tokenizer.json"
_KEYS = {"litseq": dict, "hyper_parameters": dict, "tied": dict}


def is_pretrained(path: Path) -> bool:
    """Whether a path is such a folder, whole or not."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def write_pretrained(
    folder: Path,
    *,
    state_dict: Mapping[str, Tensor],
    hyper_parameters: Mapping[str, Any],
    about: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    tokenizer: TranslationTokenizer | None,
) -> None:
    """Writes weights, configuration and tokenizer.

    Args:
        folder: Made if it is not there.
        state_dict: The weights; those that are one tensor are written once.
        hyper_parameters: Constructor arguments.
        about: What ``checkpoints.describe`` says; the tokenizer in it is left out.
        data: Options of the DataModule that the model was trained with.
        tokenizer: The model's.

    Raises:
        ModuleNotFoundError: If safetensors is not installed.
        ValueError: If an option cannot be written as JSON.
    """
    try:
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    weights, tied = _once(state_dict)
    config = {
        "litseq": {name: value for name, value in about.items() if name != "tokenizer"},
        "hyper_parameters": dict(hyper_parameters),
        "tied": tied,
        **({} if data is None else {"data": dict(data)}),
    }
    try:
        text = json.dumps(config, ensure_ascii=False, indent=1)
    except TypeError as error:
        raise ValueError(f"an option of the model cannot be written as JSON: {error}.") from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save(weights, {"format": "pt"}))
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)


def read_pretrained(folder: Path) -> dict[str, Any]:
    """Reads a folder as the checkpoint that it was made of.

    Raises:
        ValueError: If a file is damaged, or safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ValueError(str(_missing(error))) from error
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); save the model again.") from error
    wrong = [
        name
        for name, kind in _KEYS.items()
        if not isinstance(config, dict) or not isinstance(config.get(name), kind)
    ]
    if wrong:
        raise ValueError(
            f"{path} has no {', '.join(wrong)}, so litseq did not write it; give a folder that "
            f"save_pretrained or 'litseq export --to safetensors' made."
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} is damaged ({error}); save the model again."
        ) from error
    for name, other in config["tied"].items():
        if other not in weights:
            raise ValueError(f"{path} ties {name} to {other}, which {WEIGHTS} has not.")
        weights[name] = weights[other]
    tokenizer = None
    if (folder / _TOKENIZER).exists():
        tokenizer = TranslationTokenizer.load(folder).state_dict()
    data = config.get("data")
    return {
        "state_dict": weights,
        "hyper_parameters": config["hyper_parameters"],
        "litseq": {**config["litseq"], "tokenizer": tokenizer},
        "pytorch-lightning_version": version("lightning"),  # in whose layout this is
        **({} if data is None else {"datamodule_hyper_parameters": data}),
    }


def _once(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights that are different tensors, and the names of the others: name to name."""
    weights: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, weight in state_dict.items():
        key = (weight.data_ptr(), tuple(weight.shape), weight.stride())
        first = names.setdefault(key, name) if weight.numel() else name
        if first == name:
            # of its own memory: a part of another tensor could not be written
            weights[name] = weight.detach().cpu().clone().contiguous()
        else:
            tied[name] = first
    return weights, tied


def _missing(error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        "weights in safetensors need that package, which is not installed: pip install "
        "'litseq[huggingface]'.",
        name=error.name,
    )
