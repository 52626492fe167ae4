"""Attention of the same few sentences while a model trains: heatmaps, and curves per head."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from litseq.attention import Reader, capture_attention
from litseq.attention.summaries import summarize
from litseq.callbacks.outputs import run_folder
from litseq.callbacks.probes import (
    Labels,
    View,
    choose_examples,
    find_labels,
    is_plain,
    run_module,
    views,
)
from litseq.data.collate import collate
from litseq.heatmaps import draw_attention, render, write_png
from litseq.types import AttentionKind

__all__ = ["AttentionLogger"]

_log = logging.getLogger(__name__)

Scalar = Literal["entropy", "confidence", "coverage", "diagonality", "agreement"]

# Both Lightning packages have them; by name, one check serves both.
_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}


class AttentionLogger(Callback):
    """Shows where a model looks, for the same few sentences, while it trains.

    Works on any LightningModule that holds attention which ``litseq.attention.capture_attention``
    can see: litseq's own, torch's ``nn.MultiheadAttention`` and ``nn.Transformer``, models of the
    transformers library, and any other by ``readers``. Training runs as ever: now and then, between
    two steps, the sentences pass once through the unchanged module in evaluation mode. Weights,
    losses and random numbers are, bit by bit, those of a run without the callback.

    Heatmaps go to ``attention/`` in the run's folder, and to W&B or TensorBoard where the run has
    them; curves go to every logger: ``attention/entropy/cross.1.0`` is the normalised entropy of
    head 0 in layer 1 (1 = looks at all alike, 0 = at one token), the other numbers are means over a
    layer's heads, as ``litseq.attention.summaries.summarize`` defines them.

    How the sentences run: by the module's ``attention_probe(batch)``, if it has that method, or its
    ``forward``, which gets what it names of a mapping or as many parts of a tuple as it takes.
    Tokens are named by litseq's or Hugging Face's tokenizer of the module or the DataModule.

    A module without attention, sharded parameters, and any failure are told in one warning, and
    training goes on without the callback. Rank zero does it all.

    Args:
        num_samples: Number of sentences, spread evenly over the first validation batches.
        every_n_steps: Fires when so many optimizer steps are done. None: not by steps.
        every_n_epochs: Fires after the validations of every n-th epoch. None: not by epochs.
        texts: Sentences of your own instead: source and target each, cut by a litseq tokenizer.
        kinds: Whose heatmaps are drawn. None: cross-attention, or where there is none, every kind.
        layers: Which layers' heatmaps are drawn, within each kind; negative ones count from the
            last.
        scalars: Which numbers become curves.
        metric: Key of a score that titles mention, where the run has it.
        max_tokens: Rows and columns of a heatmap at most.
        probe: Runs the module, in place of the rule above: a function of module and batch.
        labels: Names tokens, in place of the tokenizer: a function of a list of ids and of whether
            they are the source's.
        readers: How to see attention of other classes; see ``capture_attention``.

    Raises:
        ValueError: If a number is not positive, a name is unknown, or it would never fire.
    """

    def __init__(
        self,
        num_samples: int = 4,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = 1,
        texts: Sequence[tuple[str, str]] | None = None,
        kinds: Sequence[AttentionKind] | None = None,
        layers: Sequence[int] = (-1,),
        scalars: Sequence[Scalar] = ("entropy", "coverage", "diagonality"),
        metric: str = "val/bleu",
        max_tokens: int = 40,
        probe: Callable[[Any, Any], Any] | None = None,
        labels: Labels | None = None,
        readers: Mapping[type[nn.Module], Reader] | None = None,
    ) -> None:
        _check(num_samples, every_n_steps, every_n_epochs, max_tokens, kinds, scalars)
        self.num_samples = num_samples
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.texts = texts
        self.kinds = kinds
        self.layers = layers
        self.scalars = scalars
        self.metric = metric
        self.max_tokens = max_tokens
        self.probe = run_module if probe is None else probe
        self.labels = labels
        self.readers = readers
        self._out: Path | None = None  # None: nothing to do
        self._batches: list[Any] = []  # the sentences
        self._seen: list[Any] = []  # batches to choose them from
        self._disabled = False
        self._draws = True
        self._fired_at = -1
        self._next_step = float("inf")

    # ---- when ----

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder; nothing is made yet."""
        self._out, self._next_step = None, float("inf")
        # mypy: the attribute is set by a part of the Trainer
        if stage != "fit" or trainer.fast_dev_run or self._disabled:  # type: ignore[attr-defined]
            return
        folder = run_folder(trainer) / "attention"  # on every rank
        if not trainer.is_global_zero:
            return
        sharding = {c.__name__ for c in type(trainer.strategy).__mro__} & _SHARDING
        if sharding:
            self._disable(f"{sharding.pop()} may shard parameters, which no rank has whole")
            return
        self._out = folder
        self._draws = importlib.util.find_spec("matplotlib") is not None
        if not self._draws:
            _log.warning(
                "AttentionLogger draws no heatmaps, only curves: pip install matplotlib for them."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says which step is the first to fire."""
        if self._out is not None and self.every_n_steps is not None:
            self._plan(trainer.global_step, self.every_n_steps)

    def _plan(self, step: int, every: int) -> None:
        self._next_step = (step // every + 1) * every

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - whatever training_step returns
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
    ) -> None:
        """Compares two numbers; fires every ``every_n_steps``."""
        if trainer.global_step < self._next_step:
            return
        assert self.every_n_steps is not None
        self._plan(trainer.global_step, self.every_n_steps)
        self._fire(trainer, pl_module)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401 - whatever the loader yields
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first batches of the first validation, the sanity check included."""
        if self._out is None or self._batches or self.texts or dataloader_idx:
            return
        if len(self._seen) < self.num_samples:
            # A normal tensor of its own: it will be used outside of inference mode.
            with torch.inference_mode(False):
                self._seen.append(_on_cpu(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses the sentences, the first time; fires every ``every_n_epochs``."""
        if self._out is None:
            return
        if self._seen:
            self._batches, self._seen = choose_examples(self._seen, self.num_samples), []
        every = self.every_n_epochs
        if every and not trainer.sanity_checking and (trainer.current_epoch + 1) % every == 0:
            self._fire(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so if nothing was ever shown."""
        if self._out is not None and not self._batches and not self._disabled:
            self._disable("no validation ran that it could choose sentences from; give texts")

    # ---- what ----

    def _fire(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fired_at == trainer.global_step or not (self._batches or self.texts):
            return
        self._fired_at = trainer.global_step
        try:
            if not self._batches:
                self._batches = [self._encode(pl_module, trainer)]
            sentences = self._look(trainer, pl_module)
            self._log_scalars(trainer, sentences)
            if self._draws:
                self._log_heatmaps(trainer, sentences)
        except NotImplementedError as error:  # what a module says whose forward is not written
            self._disable(
                f"looked for attention_probe(batch) and forward(...) of "
                f"{type(pl_module).__name__} to run the sentences by, and found neither ({error}); "
                f"give it one of them, or give AttentionLogger a probe"
            )
        except Exception as error:  # whatever it is, it must not stop training
            self._disable(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _disable(self, reason: str) -> None:
        self._disabled, self._out, self._next_step = True, None, float("inf")
        _log.warning("AttentionLogger shows nothing from here on: %s.", reason.rstrip("."))

    def _encode(self, pl_module: LightningModule, trainer: Trainer) -> Any:  # noqa: ANN401
        owners = (pl_module, getattr(trainer, "datamodule", None))
        tokenizers = [getattr(owner, "tokenizer", None) for owner in owners]
        tokenizer = next((t for t in tokenizers if hasattr(t, "encode_source")), None)
        if tokenizer is None or not self.texts:
            raise ValueError(
                f"texts need a litseq tokenizer, and {type(pl_module).__name__} has none; leave "
                f"texts out to see validation sentences"
            )
        sources, targets = zip(*self.texts, strict=True)
        return dict(
            collate(
                tokenizer.encode_source(sources),
                tokenizer.encode_target(targets),
                pad_id=tokenizer.pad_id,
            )
        )

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> list[list[View]]:
        labels = self.labels or find_labels(pl_module, getattr(trainer, "datamodule", None))
        sentences: list[list[View]] = []
        for batch in self._batches:
            room = len(self.texts) if self.texts else self.num_samples - len(sentences)
            with (
                _unchanged(pl_module),
                trainer.precision_plugin.forward_context(),
                capture_attention(pl_module, max_examples=room, readers=self.readers) as maps,
            ):
                output = self.probe(pl_module, move_data_to_device(batch, pl_module.device))
            if not len(maps):
                raise ValueError(
                    f"the forward pass of {type(pl_module).__name__} ran none of its attention"
                )
            sentences += views(maps, batch, output, labels=labels, max_rows=room)
        return sentences

    def _log_scalars(self, trainer: Trainer, sentences: Sequence[Sequence[View]]) -> None:
        sums: dict[str, list[float]] = {}
        for view in (view for sentence in sentences for view in sentence):
            summary = summarize(view.weights[None])
            for name in self.scalars:
                if name not in summary or (name == "coverage" and view.kind != "cross"):
                    continue
                key = f"attention/{name}/{view.name}"
                if name == "entropy":
                    for head, value in enumerate(summary[name].tolist()):
                        sums.setdefault(f"{key}.{head}", []).append(value)
                else:
                    sums.setdefault(key, []).append(float(summary[name].mean()))
        means = {key: sum(values) / len(values) for key, values in sums.items()}
        for logger in trainer.loggers:
            logger.log_metrics(means, trainer.global_step)

    def _log_heatmaps(self, trainer: Trainer, sentences: Sequence[Sequence[View]]) -> None:
        drawn: dict[str, list[tuple[int, Any, str]]] = {}
        for number, sentence in enumerate(sentences):
            for view in self._chosen(sentence):
                pixels = render(self._draw(trainer, view, number))
                assert self._out is not None
                path = self._out / view.name / f"sample{number}-step{trainer.global_step:08}.png"
                write_png(path, pixels)
                drawn.setdefault(f"attention/{view.name}", []).append((number, pixels, str(path)))
        # By what a logger can do rather than by its class, so that the loggers of both Lightning
        # packages serve.
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            for key, pictures in drawn.items():
                if hasattr(logger, "log_image"):  # W&B
                    paths = [path for _, _, path in pictures]
                    captions = [f"sentence {number}" for number, _, _ in pictures]
                    logger.log_image(key, paths, step=trainer.global_step, caption=captions)
                if add_image is not None:  # TensorBoard
                    for number, pixels, _ in pictures:
                        tag = f"{key}/sample{number}"
                        add_image(tag, pixels, trainer.global_step, dataformats="HWC")

    def _chosen(self, sentence: Sequence[View]) -> Iterator[View]:
        kinds = {view.kind for view in sentence}
        default = ("cross",) if "cross" in kinds else tuple(kinds)
        for view in sentence:
            number = 1 + max(other.layer for other in sentence if other.kind == view.kind)
            wanted = {layer + number if layer < 0 else layer for layer in self.layers}
            if view.kind in (self.kinds or default) and view.layer in wanted:
                yield view

    def _draw(self, trainer: Trainer, view: View, number: int) -> Any:  # noqa: ANN401 - a Figure
        scores = [] if view.log_prob is None else [f"log-prob per token {view.log_prob:.2f}"]
        if self.metric in trainer.callback_metrics:
            scores.append(f"{self.metric} {float(trainer.callback_metrics[self.metric]):.2f}")
        title = f"{view.name} · sentence {number} · step {trainer.global_step:,}"
        entropy = summarize(view.weights[None])["entropy"].tolist()
        return draw_attention(
            view.weights,
            query_tokens=view.query_tokens,
            key_tokens=view.key_tokens,
            title="\n".join([title, " · ".join(scores)]) if scores else title,
            panel_titles=[f"head {head}: entropy {e:.2f}" for head, e in enumerate(entropy)],
            query_label=view.query_label,
            key_label=view.key_label,
            max_tokens=self.max_tokens,
        )

    # ---- resuming ----

    def state_dict(self) -> dict[str, Any]:
        """The sentences, where a checkpoint can hold them."""
        return {"batches": self._batches if is_plain(self._batches) else []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the sentences of the checkpoint, unless there are texts."""
        if not self.texts:
            self._batches = list(state_dict["batches"])


@contextmanager
def _unchanged(module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and all random numbers come back."""
    modes = {part: part.training for part in module.modules()}
    device = module.device
    # Only these have generators of their own that torch can fork by device.
    devices = [device] if device.type in ("cuda", "xpu") else []
    with (
        torch.random.fork_rng(devices, device_type=device.type if devices else None),
        # Not inference mode: what a module keeps for later steps must allow gradients there.
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        try:
            module.eval()
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
            torch.clear_autocast_cache()  # it may hold weights without their gradients' way back


def _on_cpu(batch: Any) -> Any:  # noqa: ANN401
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    return apply_to_collection(batch, Tensor, lambda t: t.detach().to("cpu", copy=True))


def _check(
    num_samples: int,
    every_n_steps: int | None,
    every_n_epochs: int | None,
    max_tokens: int,
    kinds: Sequence[str] | None,
    scalars: Sequence[str],
) -> None:
    for name, value in (
        ("num_samples", num_samples),
        ("every_n_steps", every_n_steps),
        ("every_n_epochs", every_n_epochs),
        ("max_tokens", max_tokens),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if every_n_steps is None and every_n_epochs is None:
        raise ValueError("every_n_steps and every_n_epochs are both None; give one of them.")
    for name, given, known in (
        ("kinds", kinds or (), get_args(AttentionKind)),
        ("scalars", scalars, get_args(Scalar)),
    ):
        unknown = [value for value in given if value not in known]
        if unknown:
            raise ValueError(f"{name} are {', '.join(known)}, got {unknown[0]!r}.")
