"""``litseq average``: the mean of the weights of several checkpoints, as one checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from inspect import Parameter, signature
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from litseq import architectures, checkpoints, shards
from litseq.checkpoint_io import SafeCheckpointIO, is_sharded
from litseq.task import Seq2Seq
from litseq.textfiles import check_output

__all__ = ["average", "declare", "main"]

_log = logging.getLogger(__name__)

# What test, predict and translate need; all else is the state of a training.
_KEPT = (
    "pytorch-lightning_version",
    "hparams_name",
    "hyper_parameters",
    "datamodule_hparams_name",
    "datamodule_hyper_parameters",
    "TranslationDataModule",
    "litseq",
)


def declare(parser: ArgumentParser) -> None:
    """Declares the arguments of ``main``: paths stand alone, and the output has a short name."""
    parser.add_argument("paths", nargs="+", help="Checkpoints; with --last, the folder of a run.")
    parser.add_argument("-o", "--output", required=True, help="The checkpoint to write.")
    parser.add_function_arguments(main, as_group=False, skip={"paths", "output"})


def main(paths: list[str], *, output: str, last: int | None = None) -> None:
    """Averages the weights of checkpoints into one, which often translates better than each.

    The result tests, predicts, translates and explains like any checkpoint; it holds no state of a
    training, so there is nothing to resume. A checkpoint in shards is a folder; averaged alone, it
    becomes one plain file.

    Args:
        paths: Checkpoints; with ``last``, the folder of a run or of its checkpoints.
        output: The checkpoint to write, whole or not at all.
        last: Average as many checkpoints of the folder: those of the highest steps.

    Raises:
        FileNotFoundError: If a file or a folder is missing.
        ValueError: If a checkpoint is damaged, or two do not belong together; names both and the
            first difference.
        OSError: If the output cannot be written.
    """
    files = list(map(Path, paths)) if last is None else _last(paths, last)
    target = Path(output)
    check_output(target)
    if target.resolve() in {file.resolve() for file in files}:
        raise ValueError(f"{target} is averaged itself; write to another file.")
    result = average(files)
    SafeCheckpointIO().save_checkpoint(result, target)
    origins = result["litseq"]["average"]
    steps = ", ".join(str(origin["step"]) for origin in origins)
    of = "the average" if len(origins) > 1 else "the weights"
    _log.info("%s holds %s of %d checkpoints: steps %s.", target, of, len(origins), steps)


def _last(paths: Sequence[str], last: int) -> list[Path]:
    if last < 1:
        raise ValueError(f"last must be at least 1, got {last}.")
    folder = Path(paths[0])
    if len(paths) > 1 or not folder.is_dir():
        raise ValueError(
            f"--last {last} looks into one folder, got {' '.join(paths)}; give the folder of a run."
        )
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    found, unreadable = checkpoints.generations(folder)
    for path, problem in unreadable:
        _log.warning("%s %s and is left out.", path, problem)
    # a run may have the same step under several names, such as best and last
    by_step = {generation.step: generation.path for generation in reversed(found)}
    if len(by_step) < last:
        raise ValueError(
            f"{folder} holds checkpoints of {len(by_step)} steps, which is less than --last {last};"
            f" lower it."
        )
    return [by_step[step] for step in sorted(by_step)[-last:]]


def average(paths: Sequence[Path]) -> dict[str, Any]:
    """Averages the weights of checkpoints; of weight averaging, those that are the average.

    The mean is kept in float64, with one checkpoint at a time in memory. Where files differ in the
    type of a weight, the result has the more precise one. Integers and truth values, such as the
    count of a batch norm, have no mean: they come from the checkpoint of the highest step, like all
    that is no weight.

    Args:
        paths: Checkpoints, files or folders of shards, in any order.

    Returns:
        A checkpoint for ``SafeCheckpointIO``; its ``litseq`` entry says under ``average`` what it
        was made of.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a checkpoint is damaged or not of litseq, if two differ in class,
            hyper-parameters, tokenizer or shapes, or if a weight is not finite.
    """
    mean, agreed = _Mean(), None
    origins: list[dict[str, Any]] = []
    newest: dict[str, Any] = {}
    for path in paths:
        if is_sharded(path):
            checkpoint = shards.read(path)
            checkpoints.check_contents(path, checkpoint)
        else:
            checkpoint = checkpoints.read(path)
        facts = _facts(checkpoint)
        agreed = agreed or facts
        _check_same(paths[0], agreed, path, facts)
        weights = checkpoint.pop("state_dict")
        mean.add(weights, path)
        origins.append({"step": _step(checkpoint), "file": path.name})
        if origins[-1]["step"] == max(origin["step"] for origin in origins):
            newest = {name: checkpoint[name] for name in _KEPT if name in checkpoint}
            newest["state_dict"] = {n: w for n, w in weights.items() if not _has_mean(w)}
        del checkpoint, weights  # before the next one is read
    origins.sort(key=lambda origin: (origin["step"], origin["file"]))
    for one, other in pairwise(origins):
        if one["step"] == other["step"]:
            _log.warning(
                "%s and %s are of the same step %d, which counts twice.",
                one["file"],
                other["file"],
                one["step"],
            )
    newest["litseq"] = {**newest["litseq"], "average": origins}
    newest["state_dict"] = mean.result() | newest["state_dict"]
    return newest


class _Mean:
    """The running mean of weights, which equal weights leave as they are to the last bit."""

    def __init__(self) -> None:
        self._count = 0
        self._means: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._ties: dict[str, str] = {}  # a weight that the first file holds under a former name

    def add(self, weights: dict[str, Any], path: Path) -> None:
        self._count += 1
        addresses: dict[tuple[int, torch.Size], str] = {}
        for name, weight in weights.items():
            if not _has_mean(weight):
                continue
            value = weight.to(torch.promote_types(weight.dtype, torch.float64))
            if self._count == 1:
                self._means[name] = value.clone()
                self._dtypes[name] = weight.dtype
                tied_to = addresses.setdefault((weight.data_ptr(), weight.shape), name)
                if weight.numel() and tied_to != name:
                    self._ties[name] = tied_to
                if value.isnan().any():
                    raise ValueError(
                        f"{path}: {name} is not finite (NaN); leave out the checkpoint of a "
                        f"training that failed."
                    )
                continue
            self._dtypes[name] = torch.promote_types(self._dtypes[name], weight.dtype)
            mean = self._means[name]
            # an infinite entry that never changes, as of a mask, stays
            change = (value - mean).masked_fill_(value == mean, 0)
            if not change.isfinite().all():
                raise ValueError(
                    f"{path}: {name} is not finite, there or in a checkpoint before it; leave out "
                    f"the checkpoint of a training that failed."
                )
            mean += change / self._count

    def result(self) -> dict[str, Tensor]:
        weights = {name: mean.to(self._dtypes[name]) for name, mean in self._means.items()}
        for name, other in self._ties.items():
            if torch.equal(weights[name], weights[other]):
                weights[name] = weights[other]
        return weights


def _has_mean(weight: object) -> bool:
    return isinstance(weight, Tensor) and (weight.is_floating_point() or weight.is_complex())


def _step(checkpoint: dict[str, Any]) -> int:
    """The step of a checkpoint, or the last one of those that it averages."""
    origins = checkpoint["litseq"].get("average", ())
    last = max((origin["step"] for origin in origins), default=0)
    return int(checkpoint.get("global_step", last))


def _facts(checkpoint: dict[str, Any]) -> dict[str, object]:
    """What has to agree, in the order in which a difference explains the next ones."""
    tokenizer = checkpoints.tokenizer_of(checkpoint)
    return {
        "the class": checkpoint["litseq"]["class"],
        "the tokenizer": tokenizer and f"sha256 {tokenizer.fingerprint[:12]}",
        **_defaults(checkpoint["litseq"]["class"]),
        **checkpoint["hyper_parameters"],
        **{name: _kind(weight) for name, weight in checkpoint["state_dict"].items()},
    }


def _defaults(name: str) -> dict[str, object]:
    """Of options that a run may not name yet, because it began with an earlier version."""
    module, _, name = name.rpartition(".")
    ours = getattr(architectures, name, Seq2Seq) if module == architectures.__name__ else Seq2Seq
    options = chain(*(signature(cls).parameters.values() for cls in (Seq2Seq, ours)))
    return {one.name: one.default for one in options if one.default is not Parameter.empty}


def _kind(weight: object) -> str:
    if not isinstance(weight, Tensor):
        return type(weight).__name__
    return f"{tuple(weight.shape)}{'' if _has_mean(weight) else f' of {weight.dtype}'}"


def _check_same(one: Path, ours: dict[str, object], other: Path, theirs: dict[str, object]) -> None:
    for name in [*ours, *(theirs.keys() - ours.keys())]:
        mine, its = ours.get(name, "absent"), theirs.get(name, "absent")
        if mine != its:
            raise ValueError(
                f"{one} and {other} do not belong together: {name} is {mine} in the one and {its} "
                f"in the other; average checkpoints of one run."
            )
