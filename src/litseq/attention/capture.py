"""Looks at the attention of any model while it runs, and leaves no trace.

    with capture_attention(model) as maps:
        model(src, src_key_padding_mask, tgt_in)
    maps.find("cross", -1).weights  # the last decoder layer's, (B, H, T, S)

Outside of the block a model has no hook, and fused attention never holds its weights: to be able to
look costs nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from litseq.attention.huggingface import attention_outputs, is_huggingface
from litseq.attention.maps import AttentionMap, AttentionMaps
from litseq.attention.readers import READERS, Reader, Seen
from litseq.types import AttentionKind

__all__ = ["capture_attention"]


@contextmanager
def capture_attention(
    module: nn.Module,
    *,
    layers: Collection[int] | None = None,
    kinds: Collection[AttentionKind] | None = None,
    max_examples: int | None = None,
    readers: Mapping[type[nn.Module], Reader] | None = None,
) -> Iterator[AttentionMaps]:
    """Records the attention weights of everything that runs inside of the block.

    Knows litseq's models and tasks, ``torch.nn.MultiheadAttention`` and what is built of it
    (``nn.Transformer`` and its parts, whose fast path, with zeros in place of padding, is switched
    off inside the block), and the models of the transformers library. Compiled models run eagerly
    inside the block, so what was compiled stays as it is. The model computes what it always
    computes: weights are worked out beside it, in float32, without dropout (the transformers
    library's are its own). Only the thread that opened the block is watched.

    Several calls of one attention give several maps, but for the time steps of a litseq decoder
    that looks at the same memory again and again: these are joined to one map.

    Args:
        module: A model, or anything that contains one, such as a LightningModule.
        layers: Numbers of the layers to keep, from 0, within each kind. None: all.
        kinds: Kinds to keep. None: all.
        max_examples: Keeps that many rows of a batch. None: all.
        readers: How to read modules of other classes: class to a function of the module, the
            positional and the named arguments of its call, and its output, which yields ``Seen``
            (kind and weights).

    Yields:
        The maps, growing while the model runs.

    Raises:
        ValueError: If an argument is not possible, or the module holds no attention that could be
            seen.
    """
    _check(layers, kinds, max_examples)
    recorder = _Recorder(layers, kinds, max_examples)
    known = {**READERS, **(readers or {})}
    with ExitStack() as stack:
        inside: set[nn.Module] = set()  # of models that report by themselves
        found = False
        for name, part in module.named_modules():
            name = name.replace("_orig_mod.", "")
            if part not in inside and is_huggingface(part):
                inside.update(part.modules())
                stack.enter_context(attention_outputs(part, recorder.named(name)))
                found = True
            reader = next((known[c] for c in type(part).__mro__ if c in known), None)
            if reader is not None and part not in inside:
                handle = part.register_forward_hook(recorder.hook(name, reader), with_kwargs=True)
                stack.callback(handle.remove)
                found = True
        if not found:
            raise ValueError(
                f"{type(module).__name__} holds no attention: looked for "
                f"{', '.join(c.__name__ for c in known)} and models of the transformers library; "
                f"name a reader for another class."
            )
        stack.enter_context(_plain_paths)
        yield recorder.maps


class _Recorder:
    """Turns what is seen into maps."""

    def __init__(
        self,
        layers: Collection[int] | None,
        kinds: Collection[AttentionKind] | None,
        max_examples: int | None,
    ) -> None:
        self.maps = AttentionMaps()
        self._layers, self._kinds, self._max_examples = layers, kinds, max_examples
        self._thread = threading.get_ident()
        self._numbers: dict[AttentionKind, dict[str, int]] = {}
        # the last keys of each module and the place of the map that they belong to
        self._last: dict[str, tuple[Tensor, int]] = {}

    def hook(self, name: str, reader: Reader) -> Any:  # noqa: ANN401 - torch's own type is private
        """Makes the forward hook of one module."""

        def look(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
        ) -> None:
            if threading.get_ident() != self._thread:
                return
            device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                for seen in reader(module, args, kwargs, output):
                    self._add(seen, name)

        return look

    def named(self, prefix: str) -> Any:  # noqa: ANN401 - a function
        """Makes the function that records the maps of a model below ``prefix``."""

        def record(kind: AttentionKind, weights: Tensor, name: str) -> None:
            if threading.get_ident() == self._thread:
                self._add(Seen(kind, weights), f"{prefix}.{name}" if prefix else name)

        return record

    def _add(self, seen: Seen, module: str) -> None:
        numbers = self._numbers.setdefault(seen.kind, {})
        layer = numbers.setdefault(module, len(numbers))
        if self._kinds is not None and seen.kind not in self._kinds:
            return
        if self._layers is not None and layer not in self._layers:
            return
        weights = seen.weights if seen.weights.dim() == 4 else seen.weights.unsqueeze(1)
        # a copy: the model may write into its own
        weights = weights[: self._max_examples].detach().to("cpu", torch.float32, copy=True)
        last, place = self._last.get(module, (None, 0))
        # steps of one query each; the beams of a sentence ask together, and are no positions
        if seen.keys is not None and seen.keys is last and weights.size(2) == 1:
            before = self.maps._maps[place]
            joined = torch.cat((before.weights, weights), 2)
            self.maps._maps[place] = replace(before, weights=joined)
            return
        if seen.keys is not None:
            self._last[module] = seen.keys, len(self.maps)
        self.maps._maps.append(AttentionMap(seen.kind, layer, weights, module))


class _PlainPaths:
    """Switches off what runs past the modules: compiled code and torch's fused encoder layers.

    Both switches are the process's own, so of several captures the first one in turns them and the
    last one out turns them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                mha = torch.backends.mha
                self._undo.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
                mha.set_fastpath_enabled(False)
                if "torch._dynamo" in sys.modules:  # or nothing is compiled; a second to import
                    self._undo.enter_context(torch.compiler.set_stance("force_eager"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()


_plain_paths = _PlainPaths()


def _check(
    layers: Collection[int] | None,
    kinds: Collection[AttentionKind] | None,
    max_examples: int | None,
) -> None:
    for kind in kinds or ():
        if kind not in get_args(AttentionKind):
            known = ", ".join(get_args(AttentionKind))
            raise ValueError(f"kinds are {known}, got {kind!r}; choose among them.")
    for layer in layers or ():
        if layer < 0:
            raise ValueError(f"layers are numbered from 0, got {layer}.")
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}.")
