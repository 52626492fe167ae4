"""From parallel text to batches: corpora, tokenizer, filters, length buckets, the DataModule."""

from typing import TYPE_CHECKING, Any

from litseq.data.buckets import BatchPlan, TokenBucketLoader, plan_batches
from litseq.data.collate import collate
from litseq.data.tokenizer import TranslationTokenizer

if TYPE_CHECKING:
    from litseq.data.datamodule import TranslationDataModule

__all__ = [
    "BatchPlan",
    "TokenBucketLoader",
    "TranslationDataModule",
    "TranslationTokenizer",
    "collate",
    "plan_batches",
]


# It loads Hugging Face's datasets, which takes half a second that no other part needs.
def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class
    if name != "TranslationDataModule":
        raise AttributeError(f"module 'litseq.data' has no attribute {name!r}")
    from litseq.data.datamodule import TranslationDataModule

    return TranslationDataModule
