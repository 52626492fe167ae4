"""One forward pass under observation: what every kind of model is explained from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from litseq.explain.arrays import Json
from litseq.models import Seq2SeqModel
from litseq.types import Memory

__all__ = ["Call", "Calls", "Explainer", "Forward", "Method", "Room", "forward", "watch"]

Method = tuple[nn.Module, str]
"""A method of a module, by its name."""


class Call(NamedTuple):
    """One call of a method.

    Attributes:
        args: What was passed by position.
        kwargs: What was passed by name.
        output: What came back.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


class Calls:
    """Everything that was seen, by module and method."""

    def __init__(self) -> None:
        self._calls: dict[Method, list[Call]] = defaultdict(list)

    def add(self, method: Method, call: Call) -> None:
        """Adds a call."""
        self._calls[method].append(call)

    def of(self, module: nn.Module, name: str = "forward") -> list[Call]:
        """The calls of a module's method, in their order."""
        return self._calls.get((module, name), [])


@contextmanager
def watch(methods: Iterable[Method]) -> Iterator[Calls]:
    """Records calls while the block runs, and leaves nothing behind.

    Args:
        methods: What to record. ``forward`` is seen by a hook; any other method is shadowed on its
            instance, since torch has hooks for the forward pass alone.

    Yields:
        The calls, growing as they happen.
    """
    calls = Calls()

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
        calls.add((module, "forward"), Call(args, kwargs, output))

    def shadow(module: nn.Module, name: str) -> Callable[..., Any]:
        method = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the method takes
            output = method(*args, **kwargs)
            calls.add((module, name), Call(args, kwargs, output))
            return output

        return call

    with ExitStack() as stack:
        for module, name in dict.fromkeys(methods):
            if name == "forward":
                handle = module.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
                continue
            before = vars(module).get(name)  # somebody else's, such as a test's
            setattr(module, name, shadow(module, name))
            if before is None:
                stack.callback(delattr, module, name)
            else:
                stack.callback(setattr, module, name, before)
        yield calls


@dataclass(frozen=True)
class Forward:
    """What a model did with one sentence and a given translation.

    Attributes:
        src: Source ids, int64 (1, S), EOS at the end.
        tgt_in: Target ids behind BOS, int64 (1, T).
        tgt: The ids to predict, int64 (T,).
        memory: What the encoder handed over, of one row.
        logits: float32 (T, V).
        calls: What was watched.
    """

    src: Tensor
    tgt_in: Tensor
    tgt: Tensor
    memory: Memory
    logits: Tensor
    calls: Calls


@dataclass(frozen=True)
class Room:
    """How many bytes of a page a sentence may take.

    Attributes:
        wanted: What a short sentence should take at most.
        limit: What no sentence may exceed, if it can be helped.
    """

    wanted: int
    limit: int


class Explainer(Protocol):
    """Knows one architecture: what to watch in it, and what to make of that."""

    @property
    def architecture(self) -> str:
        """Which page it makes, once all sentences are described."""

    def methods(self) -> Iterable[Method]:
        """What to watch."""

    def describe(self, seen: Forward, room: Room) -> tuple[Json, Json]:
        """Describes a forward pass.

        Returns:
            The sentence's ``detail``, and what was left out of it to save room, by name.
        """


def forward(
    network: Seq2SeqModel, src: Tensor, tgt: Tensor, *, bos_id: int, methods: Iterable[Method] = ()
) -> Forward:
    """Runs the network over one sentence and a given translation.

    Args:
        network: In evaluation mode.
        src: Source ids, int64 (S,).
        tgt: Target ids without BOS, int64 (T,).
        bos_id: Id that begins every target.
        methods: What to watch.
    """
    tgt_in = torch.cat((tgt.new_tensor([bos_id]), tgt[:-1]))[None]
    with watch(methods) as calls:
        memory = network.encode(src[None], torch.zeros_like(src[None], dtype=torch.bool))
        logits = network.decode(tgt_in, memory)
    return Forward(src[None], tgt_in, tgt, memory, logits[0].float(), calls)
