"""From parallel text to batches: corpora, tokenizer, filters, length buckets, the DataModule."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from litseq.data.buckets import BatchPlan, TokenBucketLoader, plan_batches
from litseq.data.collate import collate
from litseq.data.tokenizer import TranslationTokenizer

if TYPE_CHECKING:
    from litseq.data.datamodule import TranslationDataModule
    from litseq.data.stream_loader import StreamLoader

__all__ = [
    "BatchPlan",
    "StreamLoader",
    "TokenBucketLoader",
    "TranslationDataModule",
    "TranslationTokenizer",
    "collate",
    "plan_batches",
]


# They load Hugging Face's datasets, which takes half a second that no other part needs.
_LAZY = {"StreamLoader": "stream_loader", "TranslationDataModule": "datamodule"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class
    if name not in _LAZY:
        raise AttributeError(f"module 'litseq.data' has no attribute {name!r}")
    return getattr(import_module(f"litseq.data.{_LAZY[name]}"), name)
