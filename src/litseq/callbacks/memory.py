"""Whether a training step fits into memory, found out before the first one."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from litseq.heap import give_back
from litseq.sharding import local
from litseq.types import Batch

__all__ = ["MemoryCheck"]

_log = logging.getLogger(__name__)

_MEASURED_ROWS = 8  # a first try has a share of 1 / 8 of the sentences
_FIRST_BUDGET = 1024  # large enough to tell what a token takes, and small beside any memory
_SHARES = {"cuda": 0.9, "cpu": 0.7}
"""How much of what is free the largest step may take.

Memory comes in pieces that later batches do not fill. On a CPU, training then takes a third more
than its largest step alone; a GPU's allocator keeps what it has.
"""
_STEP = 64  # what is chosen is a multiple of it
_NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory", re.I)


class _Loader(Protocol):
    """What is asked of a loader."""

    max_tokens: int

    def largest_batches(self) -> list[Batch]:
        """The batches of an epoch that take the most memory."""


class MemoryCheck(Callback):
    """Takes the largest batch through forward and backward before step 1, and says what it needs.

    One line tells what a step takes and what there is. Where it does not fit, the run ends with an
    error that names the ``max_tokens`` that would, rather than hours later. The memory of the
    optimizer counts: two values per parameter, as Adam keeps, while it has none yet.

    Nothing of it stays: weights, gradients, optimizer, buffers, random numbers, logs and the
    loader's position are those of before. On a CPU an eighth of the batch is tried first, since a
    system that runs out of memory gives no error, and only Linux says how much was used; elsewhere
    the check is left out.

    Works for any module with automatic optimization whose training loader has
    ``largest_batches()``, as ``TokenBucketLoader`` has; for another, one line says so.

    It also finds the number where a DataModule is told ``max_tokens: auto``.

    Args:
        max_tokens_at_most: The largest ``max_tokens`` that it chooses; larger batches seldom train
            faster, and make fewer steps of an epoch.

    Raises:
        ValueError: At the start of training, if a step does not fit.
    """

    def __init__(self, max_tokens_at_most: int = 16_384) -> None:
        if max_tokens_at_most < _STEP:
            raise ValueError(
                f"max_tokens_at_most must be at least {_STEP}, got {max_tokens_at_most}."
            )
        self.max_tokens_at_most = max_tokens_at_most
        self._chosen: int | None = None

    def choose_max_tokens(self, trainer: Trainer, make_loader: Callable[[int], _Loader]) -> int:
        """Finds the largest ``max_tokens`` that fits into the memory of every rank.

        A step on batches of 1,024 tokens is measured; as many as would fit by that are then tried,
        and fewer until they fit. What the optimizer will keep counts.

        Args:
            trainer: In ``fit``, the module on its device.
            make_loader: Makes a training loader with that many ``max_tokens``.

        Returns:
            A multiple of 64, the same on every rank.

        Raises:
            ValueError: If no batch fits, the memory of the device is not known, or the module
                optimizes by hand.
        """
        module = trainer.lightning_module
        if not module.automatic_optimization:  # its step would train
            raise ValueError(
                f"max_tokens cannot be 'auto' where {type(module).__name__} optimizes by hand; "
                f"give a number."
            )
        free = _free_of_rank(trainer, module.device)
        if free is None:
            raise ValueError(
                "max_tokens cannot be 'auto' where the memory of the device is not known; give a "
                "number."
            )
        usable = int(_SHARES[module.device.type] * free)

        def tried(max_tokens: int) -> tuple[_Trial, bool, int]:
            trial = _worst(trainer, module, make_loader(max_tokens), usable)
            # a little less, for memory may grow faster than batches
            possible = torch.tensor(int(0.95 * trial.possible), device=module.device)
            possible = trainer.strategy.reduce(possible, reduce_op="min")
            return trial, _all_fit(trainer, trial), int(possible) // _STEP * _STEP

        def less(size: int, trial: _Trial, possible: int) -> tuple[int, int]:
            """What to try after what did not fit, and the most that still may fit."""
            fewer = 7 * size // 8 // _STEP * _STEP
            size = min(possible, fewer)
            if not trainer.strategy.reduce_boolean_decision(trial.is_guess):
                return size, size
            return size if size > found else fewer, fewer

        most = limit = self.max_tokens_at_most // _STEP * _STEP
        found, size = 0, min(_FIRST_BUDGET, most)
        with _as_before(module):
            trial, fits, possible = tried(size)
            if fits:
                found, size = size, min(possible, most)
            else:
                size, most = less(size, trial, possible)
            while size > found:
                larger, fits, possible = tried(size)
                if fits:
                    found, trial = size, larger
                    if possible >= 1.2 * found:  # the first batch, a small one, misled
                        size = min(possible, most)
                else:
                    size, most = less(size, larger, possible)
        if found == 0:
            raise ValueError(
                f"no max_tokens fits: {trial.what} takes {trial.need / 1e9:.2f} GB or more, and "
                f"{free / 1e9:.2f} GB are free; take a smaller model."
            )
        if trainer.is_global_zero:
            _log.info(
                "data.max_tokens: auto is %d%s: %s, the largest, takes %.2f GB; %.2f GB are free.",
                found,
                " (max_tokens_at_most)" if found == limit else "",
                trial.what,
                trial.need / 1e9,
                free / 1e9,
            )
        self._chosen = found
        return found

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tries, unless ``choose_max_tokens`` has just done so."""
        loader: Any = trainer.train_dataloader
        if not hasattr(loader, "largest_batches"):
            _log.warning(
                "MemoryCheck checks nothing: %s has no largest_batches().", type(loader).__name__
            )
            return
        if not pl_module.automatic_optimization:  # its step would train
            _log.warning(
                "MemoryCheck checks nothing: %s optimizes by hand.", type(pl_module).__name__
            )
            return
        if loader.max_tokens == self._chosen:
            return
        free = _free_of_rank(trainer, pl_module.device)
        if free is None:
            _log.warning("MemoryCheck checks nothing: the memory of this device is not known.")
            return
        with _as_before(pl_module):
            worst = _worst(trainer, pl_module, loader, free)
        possible = int(_SHARES[pl_module.device.type] * worst.possible)
        if worst.need <= worst.free and trainer.is_global_zero:
            _log.info(
                "%s, the largest, takes %.2f GB; %.2f GB are free, enough for data.max_tokens up "
                "to about %d (now %d).",
                worst.what,
                worst.need / 1e9,
                worst.free / 1e9,
                max(possible, loader.max_tokens),
                loader.max_tokens,
            )
        if not _all_fit(trainer, worst):
            if worst.need <= worst.free:
                raise ValueError("a training step does not fit into the memory of another rank.")
            advice = "take a smaller model"
            if possible >= 0.05 * loader.max_tokens:
                advice = (
                    f"lower data.max_tokens from {loader.max_tokens} to about {possible}, "
                    f"and raise trainer.accumulate_grad_batches to keep the size of a step"
                )
            raise ValueError(
                f"{worst.what} takes {worst.need / 1e9:.2f} GB or more, and "
                f"{worst.free / 1e9:.2f} GB are free; {advice}."
            )


class _Trial(NamedTuple):
    """What a batch takes.

    Attributes:
        what: The batch in words.
        need: Bytes of a step on it.
        free: Bytes that there were.
        possible: Padded tokens of a batch that would take all of that.
        is_guess: Whether a few of its sentences were tried, and never all.
    """

    what: str
    need: int
    free: int
    possible: int
    is_guess: bool


def _worst(trainer: Trainer, module: LightningModule, loader: _Loader, free: int) -> _Trial:
    trials = [_try(trainer, module, batch, free) for batch in loader.largest_batches()]
    return max(trials, key=lambda trial: trial.need / max(trial.free, 1))


def _all_fit(trainer: Trainer, trial: _Trial) -> bool:
    return trainer.strategy.reduce_boolean_decision(trial.need <= trial.free)


def _try(trainer: Trainer, module: LightningModule, batch: Batch, free: int) -> _Trial:
    device = module.device
    values: dict[str, Any] = dict(batch)
    parameters = [local(p) for p in module.parameters() if p.requires_grad]
    fixed = sum(p.numel() * p.element_size() for p in parameters)  # gradients
    kept = 0 if any(o.state for o in trainer.optimizers) else 2 * fixed  # the optimizer's
    num_sentences = len(batch["input_ids"])

    def needed(rows: int) -> int:
        part = {name: value[:rows] for name, value in values.items()}
        try:
            return kept + _peak(device, lambda: _step(trainer, module, part))
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
                raise
            return 2 * free  # more than there is; nobody knows how much

    need = 0
    if device.type == "cpu" and num_sentences > _MEASURED_ROWS:
        few = max(num_sentences // _MEASURED_ROWS, min(4, num_sentences // 2))
        # more than once, for libraries take something at first and keep it
        need = min(needed(few) for _ in range(3))
        need = (need - kept - fixed) * num_sentences // few + kept + fixed
    # together, for a sharded network needs all ranks to run
    whole = trainer.strategy.reduce_boolean_decision(need <= free)
    if whole:
        need = needed(num_sentences)
        if device.type == "cpu":  # again, without what planning kernels of this size takes
            need = min(need, needed(num_sentences))
    src, tgt = (values[name].size(1) if name in values else 0 for name in ("input_ids", "labels"))
    what = f"a training step on {num_sentences} sentences of {src} source and {tgt} target tokens"
    share = max(free - kept - fixed, 0) / max(need - kept - fixed, 1)
    if not whole:
        share *= 0.8  # measured on a few sentences, and no more than a guess
    return _Trial(what, need, free, int(share * num_sentences * max(src, tgt)), not whole)


def _step(trainer: Trainer, module: LightningModule, batch: dict[str, Any]) -> None:
    """Forward and backward; leaves no gradient."""
    plugin = trainer.precision_plugin
    batch = trainer.strategy.batch_to_device(plugin.convert_input(batch), module.device)
    try:
        with plugin.train_step_context():
            # as Lightning itself calls it
            indexed = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
            output = module.training_step(batch, *([0] if indexed else []))
        loss: Any = output["loss"] if isinstance(output, Mapping) else output
        loss.backward()
    finally:
        module.zero_grad(set_to_none=True)


@contextmanager
def _as_before(module: LightningModule) -> Iterator[None]:
    """Undoes what a training step leaves on a module, and lets it log nothing."""
    attributes = dict(vars(module))
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    grads = [(parameter, parameter.grad) for parameter in module.parameters()]
    devices = [module.device] if module.device.type == "cuda" else []
    # a Trainer may ask for its loaders within validation, where no gradient is computed
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        try:
            module.zero_grad(set_to_none=True)
            vars(module).update(log=_nothing, log_dict=_nothing)
            yield
        finally:
            vars(module).clear()
            vars(module).update(attributes)
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
            for parameter, grad in grads:
                parameter.grad = grad


def _nothing(*_: object, **__: object) -> None:
    """Stands in for ``log``."""


def _peak(device: torch.device, work: Callable[[], None]) -> int:
    """Most bytes that work took beside those that were taken before."""
    give_back()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            work()
            return torch.cuda.max_memory_allocated(device) - before
        finally:
            torch.cuda.empty_cache()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _free_of_rank(trainer: Trainer, device: torch.device) -> int | None:
    """Bytes that are left for this rank; None if unknown."""
    gc.collect()
    give_back()
    free = _free(device) if device.type in ("cpu", "cuda") else None
    if free is not None and device.type == "cpu":
        free //= trainer.world_size // trainer.num_nodes  # the ranks of a machine share it
        trainer.strategy.barrier()  # or else what another one tries would count as taken
    return free


def _free(device: torch.device) -> int | None:
    """Bytes that are left: of a GPU, or of the machine, container and process; None if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        Path("/proc/self/clear_refs").write_text("5")
        free = 1024 * int(_find(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo")))
    except (OSError, ValueError):
        return None
    import resource  # there is none on every system

    limited = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if limited != resource.RLIM_INFINITY:
        free = min(free, limited - _status("VmSize"))
    for limit, used in (("memory.max", "memory.current"), _CGROUP_1):
        try:
            most, now = (int((_CGROUPS / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # "max": no limit
            continue
        free = min(free, most - now)
    return free


_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")


def _status(name: str) -> int:
    return 1024 * int(_find(rf"{name}:\s+(\d+) kB", Path("/proc/self/status")))


def _find(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{path} has no {pattern}.")
    return found[1]
