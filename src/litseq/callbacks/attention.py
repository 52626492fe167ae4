"""Attention of the same few sentences while a model trains: heatmaps, and curves per head."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, get_args

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from litseq.attention import Reader, capture_attention
from litseq.attention.summaries import summarize
from litseq.callbacks.examples import choose_examples, keep_batch, savable
from litseq.callbacks.outputs import run_folder
from litseq.callbacks.probes import (
    Labels,
    View,
    find_labels,
    run_module,
    sharding_of,
    unchanged,
    views,
)
from litseq.data.collate import collate
from litseq.heatmaps import draw_attention, render, write_png
from litseq.types import AttentionKind

__all__ = ["AttentionLogger"]

_log = logging.getLogger(__name__)

Scalar = Literal["entropy", "confidence", "coverage", "diagonality", "agreement"]

_P = ParamSpec("_P")


def _guarded(
    hook: Callable[Concatenate[AttentionLogger, _P], None],
) -> Callable[Concatenate[AttentionLogger, _P], None]:
    """Whatever fails in a hook is told in one warning; it must not stop training."""

    @functools.wraps(hook)
    def guarded(self: AttentionLogger, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:
            self._disable(f"{type(error).__name__}: {' '.join(str(error).split())}")

    return guarded


class AttentionLogger(Callback):
    """Shows where a model looks, for the same few sentences, while it trains.

    Works on any LightningModule that holds attention which ``litseq.attention.capture_attention``
    can see: litseq's own, torch's ``nn.MultiheadAttention`` and ``nn.Transformer``, models of the
    transformers library, and any other by ``readers``. Training runs as ever: now and then, between
    two steps, the sentences pass once through the unchanged module in evaluation mode. Weights,
    losses and random numbers are, bit by bit, those of a run without the callback; what ``forward``
    logs by ``self.log`` is not logged of the sentences.

    Heatmaps go to ``attention/`` in the run's folder, and to W&B or TensorBoard where the run has
    them; curves go to every logger: ``attention/entropy/cross.1.0`` is the normalised entropy of
    head 0 in layer 1 (1 = looks at all alike, 0 = at one token), the other numbers are means over a
    layer's heads, as ``litseq.attention.summaries.summarize`` defines them.

    How the sentences run: by the module's ``attention_probe(batch)``, if it has that method, or its
    ``forward``, which gets what it names of a mapping or as many parts of a tuple as it needs.
    Tokens are named by litseq's or Hugging Face's tokenizer of the module or the DataModule.

    A module without attention, sharded parameters, and any failure are told in one warning, and
    training goes on without the callback. Rank zero does it all.

    Checkpoints hold the sentences, so that a resumed run shows the same ones, up to about 1 MB;
    larger ones are chosen anew. Several of these callbacks in one Trainer differ in when they fire,
    in kinds, in layers, or in whether they have texts.

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
        ValueError: If a number is not positive, a name is unknown, layers are not a sequence of
            numbers, or it would never fire.
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
        _check(num_samples, every_n_steps, every_n_epochs, max_tokens, kinds, layers, scalars)
        self.num_samples = num_samples
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.texts = texts
        self.kinds = kinds
        self.layers = tuple(layers)
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

    @_guarded
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder; nothing is made yet."""
        self._out, self._next_step, self._fired_at = None, float("inf"), -1
        # mypy: the attribute is set by a part of the Trainer
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = run_folder(trainer) / "attention"  # on every rank
        if self._disabled or not trainer.is_global_zero:
            return
        if sharding := sharding_of(trainer):
            self._disable(f"{sharding} may shard parameters, which no rank has whole")
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

    @_guarded
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
        keep_batch(self._seen, batch, most=self.num_samples)

    @_guarded
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
        if self._out is None or self._fired_at >= 0:
            return
        if not self._batches and not self.texts:
            reason = "no validation ran that it could choose sentences from; give texts"
        else:
            rules = []
            if self.every_n_steps is not None:
                rules.append(f"every {self.every_n_steps} step(s)")
            if self.every_n_epochs is not None:
                rules.append(f"after the validations of every {self.every_n_epochs} epoch(s)")
            reason = (
                f"it fires {' and '.join(rules)}, and none came in the {trainer.global_step} "
                f"steps of training"
            )
        _log.warning("AttentionLogger showed nothing: %s.", reason)

    # ---- what ----

    @_guarded
    def _fire(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fired_at == trainer.global_step or not (self._batches or self.texts):
            return
        self._fired_at = trainer.global_step
        if not self._batches:
            self._batches = [self._encode(pl_module, trainer)]
        try:
            sentences = self._look(trainer, pl_module)
        except NotImplementedError as error:  # what a module says whose forward is not written
            self._disable(
                f"looked for attention_probe(batch) and forward(...) of "
                f"{type(pl_module).__name__} to run the sentences by, and found neither ({error}); "
                f"give it one of them, or give AttentionLogger a probe"
            )
            return
        self._log_scalars(trainer, sentences)
        if self._draws:
            self._log_heatmaps(trainer, sentences)

    def _disable(self, reason: str) -> None:
        self._disabled, self._out, self._next_step, self._seen = True, None, float("inf"), []
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
            if room < 1:  # a checkpoint of more sentences
                break
            with (
                unchanged(pl_module),
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
        if not sums:  # only padding, or no scalars wanted
            return
        means = {key: sum(values) / len(values) for key, values in sums.items()}
        for logger in trainer.loggers:
            logger.log_metrics(means, trainer.global_step)

    def _log_heatmaps(self, trainer: Trainer, sentences: Sequence[Sequence[View]]) -> None:
        drawn: list[tuple[str, Any, str]] = []
        for number, view in self._chosen(sentences):
            pixels = render(self._draw(trainer, view, number))
            assert self._out is not None
            path = self._out / view.name / f"sample{number}-step{trainer.global_step:08}.png"
            write_png(path, pixels)
            drawn.append((f"attention/{view.name}/sample{number}", pixels, str(path)))
        if not drawn and self.layers:
            self._draws = False
            names = dict.fromkeys(view.name for sentence in sentences for view in sentence)
            _log.warning(
                "AttentionLogger draws no heatmaps, only curves: there is no map of kinds=%s and "
                "layers=%s; there are: %s.",
                self.kinds,
                list(self.layers),
                ", ".join(names) or "none",
            )
        # By what a logger can do rather than by its class, so that the loggers of both Lightning
        # packages serve.
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            for tag, pixels, file in drawn:
                if hasattr(logger, "log_image"):  # W&B; pictures of one tag must be of one size
                    logger.log_image(tag, [file], step=trainer.global_step)
                if add_image is not None:  # TensorBoard
                    add_image(tag, pixels, trainer.global_step, dataformats="HWC")

    def _chosen(self, sentences: Sequence[Sequence[View]]) -> Iterator[tuple[int, View]]:
        numbers: dict[AttentionKind, int] = {}  # of layers
        for view in (view for sentence in sentences for view in sentence):
            numbers[view.kind] = max(numbers.get(view.kind, 0), view.layer + 1)
        kinds = self.kinds or (("cross",) if "cross" in numbers else tuple(numbers))
        for number, sentence in enumerate(sentences):
            for view in sentence:
                names = {view.layer, view.layer - numbers[view.kind]}  # from the first, the last
                if view.kind in kinds and not names.isdisjoint(self.layers):
                    yield number, view

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

    @property
    def state_key(self) -> str:
        """Tells several of these callbacks in one Trainer apart; ``num_samples`` may change."""
        return self._generate_state_key(
            every_n_steps=self.every_n_steps,
            every_n_epochs=self.every_n_epochs,
            texts=bool(self.texts),
            kinds=self.kinds and list(self.kinds),
            layers=self.layers,
        )

    def state_dict(self) -> dict[str, Any]:
        """The sentences, where a checkpoint can hold them."""
        return {"batches": savable(self._batches)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the sentences of the checkpoint, unless there are texts."""
        if not self.texts:
            self._batches = list(state_dict["batches"])


def _check(
    num_samples: int,
    every_n_steps: int | None,
    every_n_epochs: int | None,
    max_tokens: int,
    kinds: Sequence[str] | None,
    layers: Sequence[int],
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
    if not isinstance(layers, Sequence) or not all(isinstance(n, int) for n in layers):
        raise ValueError(
            f"layers must be a sequence of whole numbers such as [-1], got {layers!r}."
        )
    for name, given, known in (
        ("kinds", kinds or (), get_args(AttentionKind)),
        ("scalars", scalars, get_args(Scalar)),
    ):
        unknown = [value for value in given if value not in known]
        if unknown:
            raise ValueError(f"{name} are {', '.join(known)}, got {unknown[0]!r}.")
