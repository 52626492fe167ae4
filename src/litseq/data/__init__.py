"""From parallel text to batches: corpora, tokenizer, filters, length buckets, the DataModule."""

from litseq.data.buckets import BatchPlan, TokenBucketLoader, plan_batches
from litseq.data.collate import collate
from litseq.data.datamodule import TranslationDataModule
from litseq.data.tokenizer import TranslationTokenizer

__all__ = [
    "BatchPlan",
    "TokenBucketLoader",
    "TranslationDataModule",
    "TranslationTokenizer",
    "collate",
    "plan_batches",
]
