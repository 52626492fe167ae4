"""Attention of Hugging Face models, through the outputs that they offer themselves.

Known by what they can do, so that nothing is imported. Their fused attention gives no weights: for
the time of a capture they run their plain one, and afterwards everything is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    In training mode these weights have passed dropout, as the model returns them.

    Args:
        model: A model of the transformers library.
        record: Called with every layer's weights, kind by kind.
    """
    before = {module: _traces(module) for module in model.modules()}
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")

    def ask(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "output_attentions": True}

    def read(_: nn.Module, args: object, kwargs: object, output: object) -> None:
        found = False
        for name, kind in _OUTPUTS.items():
            for layer, weights in enumerate(getattr(output, name, None) or ()):
                # a model of one stack does not say which
                record(kind or self_attention_kind(weights), weights, f"{name}.{layer}")
                found = True
        if not found:
            raise ValueError(
                f"{type(model).__name__} returned a {type(output).__name__} without attention "
                f"weights; call it with return_dict=True."
            )

    model.register_forward_pre_hook(ask, with_kwargs=True)
    model.register_forward_hook(read, with_kwargs=True)
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
        for module, (hooks, attributes) in before.items():
            # the library's own hooks, too, which it would leave for the next time
            for table, known in hooks.items():
                for key in getattr(module, table).keys() - known:
                    del getattr(module, table)[key]
            for name in module.__dict__.keys() - attributes:
                delattr(module, name)


_OUTPUTS: dict[str, AttentionKind | None] = {
    "encoder_attentions": "encoder",
    "decoder_attentions": "decoder",
    "cross_attentions": "cross",
    "attentions": None,
}

_HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
)


def _traces(module: nn.Module) -> tuple[dict[str, set[int]], set[str]]:
    """The hooks that are there, by table, and the names of the attributes."""
    hooks = {table: set(getattr(module, table)) for table in _HOOK_TABLES}
    return hooks, set(module.__dict__)
