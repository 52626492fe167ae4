"""Attention of Hugging Face models, through the outputs that they offer themselves.

Known by what they can do, so that nothing is imported. Their fused attention gives no weights: for
the time of a capture they run their plain one, and afterwards everything is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from litseq.attention.readers import self_attention_kind
from litseq.types import AttentionKind

__all__ = ["attention_outputs", "is_huggingface"]

Record = Callable[[AttentionKind, Tensor, str], None]
"""Takes a map's kind, its weights, float (B, H, T, S), and where it comes from."""


def is_huggingface(module: nn.Module) -> bool:
    """Whether a module is a model of the transformers library."""
    return hasattr(module, "set_attn_implementation") and hasattr(module, "config")


@contextmanager
def attention_outputs(model: Any, record: Record) -> Iterator[None]:  # noqa: ANN401 - duck typed
    """Asks a model for its attention weights at every call, and takes back every change.

    The innermost models are asked, such as encoder and decoder of a translation model, since
    generation calls them one by one. In training mode the weights have passed dropout, as the model
    returns them.

    Args:
        model: A model of the transformers library.
        record: Called with every layer's weights.
    """
    models = [(name, part) for name, part in model.named_modules() if is_huggingface(part)]
    inner = [(name, part) for name, part in models if not any(map(is_huggingface, _below(part)))]
    before = [(part, part.config._attn_implementation) for _, part in models]
    known = {part: (set(part._forward_hooks), _MARK in vars(part)) for part in model.modules()}
    model.set_attn_implementation("eager")
    with ExitStack() as handles:
        for name, part in inner:
            ask = part.register_forward_pre_hook(_ask, with_kwargs=True)
            read = part.register_forward_hook(_Read(name, record))
            handles.callback(ask.remove)
            handles.callback(read.remove)
        try:
            yield
        finally:
            for part, implementation in before:  # from the outermost to the innermost
                part.set_attn_implementation(implementation)
            for part, (hooks, marked) in known.items():
                _forget(part, hooks, marked)


_MARK = "_output_capturing_hooks_installed"
"""Where the library notes that it has hooks of its own, which it leaves for the next time."""


def _below(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if part is not module)


def _forget(module: nn.Module, hooks: set[int], marked: bool) -> None:
    """Removes the hooks that the library itself has added."""
    for key, hook in list(module._forward_hooks.items()):
        if key not in hooks and hook.__module__.startswith("transformers."):
            del module._forward_hooks[key]
    if not marked and _MARK in vars(module):
        delattr(module, _MARK)


def _ask(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "output_attentions": True}


class _Read:
    """A forward hook that records what a model returned."""

    def __init__(self, name: str, record: Record) -> None:
        self.name, self.record = name, record

    def __call__(self, module: Any, args: object, output: object) -> None:  # noqa: ANN401
        prefix = f"{self.name}." if self.name else ""
        across = getattr(output, "cross_attentions", None) or ()
        is_decoder = bool(across) or getattr(module.config, "is_decoder", False)
        for layer, weights in enumerate(getattr(output, "attentions", None) or ()):
            kind = "decoder" if is_decoder else self_attention_kind(weights)
            self.record(kind, weights, f"{prefix}attentions.{layer}")
        for layer, weights in enumerate(across):
            self.record("cross", weights, f"{prefix}cross_attentions.{layer}")
