"""Texts to ids once, kept in Arrow files; and batches out of these."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from litseq.data.arrow import ArrowRows, numbers_of
from litseq.data.collate import collate
from litseq.data.corpora import TEXTS, build_once
from litseq.data.filters import SideCounts
from litseq.data.plans import Ints
from litseq.data.tokenizer import TranslationTokenizer
from litseq.types import Batch

__all__ = [
    "EncodedSplit",
    "SubwordSampling",
    "TextEncoder",
    "cache_tokens",
    "counts_of",
    "resample",
    "sequences_of",
]

_FORMAT = 1  # part of every cache key: raise it when the same text gives other columns
_ROWS_PER_PROCESS = 20_000  # below this a process costs more than it brings
_ROWS_TOGETHER = 10_000  # so that counts lie together, and reading them brings in little else


def cache_tokens(
    texts: Path,
    tokenizer: TranslationTokenizer,
    *,
    max_chars: int,
    num_proc: int | None,
    cache_dir: Path,
    desc: str,
) -> Path:
    """Encodes a folder of texts into a folder of ids, in parallel and with a progress bar.

    Args:
        texts: What one of the functions in ``corpora`` returned.
        tokenizer: Its fingerprint names the folder.
        max_chars: Characters of a text that are encoded at most.
        num_proc: Number of processes; None: what size and machine call for.
        cache_dir: Where the folder is made.
        desc: What the progress bar says.

    Returns:
        The folder. A row has ``src`` (ids with EOS), ``src_len`` (how many), ``src_unk`` (unknown
        ones), ``src_known`` (neither unknown nor special nor a bare space), ``src_chars`` and
        ``src_hash`` (of the text); where there is a target, the same of ``tgt``.
    """
    parts = f"{_FORMAT} {texts.name} {tokenizer.fingerprint} {max_chars}"
    key = hashlib.sha256(parts.encode()).hexdigest()[:32]

    def build(draft: Path) -> None:
        import datasets  # half a second: who has all in the cache does without

        ArrowRows(texts)  # or the error that says what to do
        data = datasets.Dataset.from_file(str(texts / TEXTS))
        processes = num_proc or _choose_num_proc(len(data))
        data.with_format("arrow").map(
            TextEncoder(tokenizer, max_chars),
            batched=True,
            remove_columns=data.column_names,
            features=datasets.Features.from_arrow_schema(_schema("target" in data.column_names)),
            batch_size=_ROWS_TOGETHER,
            writer_batch_size=_ROWS_TOGETHER,
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(draft / "tokens.arrow"),
            new_fingerprint=key,
            desc=desc,
        )

    return build_once(cache_dir / "tokens" / key, build)


def _choose_num_proc(num_rows: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 1 + num_rows // _ROWS_PER_PROCESS)


def _schema(with_target: bool) -> pa.Schema:
    fields = []
    for side in ("src", "tgt") if with_target else ("src",):
        fields.append((side, pa.list_(pa.int32())))
        fields += [(f"{side}_{name}", pa.int32()) for name in ("len", "unk", "known", "chars")]
        fields.append((f"{side}_hash", pa.int64()))
    return pa.schema(fields)


@dataclass(frozen=True)
class TextEncoder:
    """What ``datasets.map`` calls; a class so that worker processes can be sent it.

    Attributes:
        tokenizer: Makes the ids.
        max_chars: Characters of a text that are encoded at most.
    """

    tokenizer: TranslationTokenizer
    max_chars: int

    def __call__(self, rows: Any) -> Any:  # noqa: ANN401 - a pyarrow.Table each
        """Encodes the columns ``source`` and, where there is one, ``target``."""
        columns = self._encode("src", rows.column("source").to_pylist())
        if "target" in rows.column_names:
            columns |= self._encode("tgt", rows.column("target").to_pylist())
        return pa.table(columns)

    def _encode(self, side: str, texts: list[str]) -> dict[str, Any]:
        tokenizer = self.tokenizer
        is_source = side == "src"
        encode = tokenizer.encode_source if is_source else tokenizer.encode_target
        space = tokenizer.source_space_id if is_source else tokenizer.target_space_id
        unk, silent = tokenizer.unk_id, {tokenizer.unk_id, tokenizer.eos_id, space}
        ids = encode([text[: self.max_chars] for text in texts])
        counts = {
            "len": map(len, ids),
            "unk": (row.count(unk) for row in ids),
            "known": (sum(i not in silent for i in row) for row in ids),
            "chars": map(len, texts),
        }
        return {
            side: pa.array(ids, pa.list_(pa.int32())),
            **{f"{side}_{name}": pa.array(n, pa.int32()) for name, n in counts.items()},
            f"{side}_hash": pa.array(map(_hash, texts), pa.int64()),
        }


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@dataclass(frozen=True)
class SubwordSampling:
    """How training texts are cut anew in each epoch; see ``TranslationTokenizer.sample_source``.

    Raises:
        ValueError: If the tokenizer cannot sample like that.
    """

    tokenizer: TranslationTokenizer
    alpha: float
    nbest_size: int
    seed: int
    max_chars: int

    def __post_init__(self) -> None:
        # Now, rather than with the first batch and within a worker process.
        for sample in (self.tokenizer.sample_source, self.tokenizer.sample_target):
            sample([], alpha=self.alpha, nbest_size=self.nbest_size, seed=self.seed)


class EncodedSplit:
    """One split: raw texts and ids, both memory-mapped, and the batches made of them.

    Args:
        texts: A folder of texts, as made in ``corpora``.
        tokens: The folder that ``cache_tokens`` made of it.
        max_src_len: Longer sources are cut to this many tokens, EOS kept at the end.
        max_tgt_len: Longer targets likewise.
        pad_id: Id that fills ``input_ids``.
        with_target: Whether batches have ``labels``, if there are targets.
        sampling: How to cut texts anew in each epoch; None: always as stored.
    """

    def __init__(
        self,
        texts: Path,
        tokens: Path,
        *,
        max_src_len: int,
        max_tgt_len: int,
        pad_id: int,
        with_target: bool = True,
        sampling: SubwordSampling | None = None,
    ) -> None:
        self.fingerprint = tokens.name
        self._texts = ArrowRows(texts)
        self._tokens = ArrowRows(tokens)
        if len(self._texts) != len(self._tokens):
            raise ValueError(
                f"{tokens} holds {len(self._tokens):,} rows for {len(self._texts):,} texts, so "
                f"files are missing; remove it, and run again."
            )
        self._max_len = {"src": max_src_len, "tgt": max_tgt_len}
        self._pad_id = pad_id
        self.with_target = with_target and "tgt" in self._tokens.column_names
        self._sampling = sampling

    def __len__(self) -> int:
        return len(self._tokens)

    def column(self, name: str) -> NDArray[Any]:
        """A numeric column of the folder of ids, such as ``src_len`` or ``tgt_hash``, (N,)."""
        return numbers_of(self._tokens.table.column(name))

    def counts(self, side: str) -> SideCounts:
        """What was counted when ``src`` or ``tgt`` was encoded."""
        return counts_of(self._tokens.table, side)

    def lengths(self, side: str) -> NDArray[np.int64]:
        """Token counts of ``src`` or ``tgt`` with EOS as batches have them, (N,)."""
        stored = self.column(f"{side}_len").astype(np.int64)
        return np.minimum(stored, self._max_len[side])

    def texts(self, ids: Ints) -> tuple[list[str], list[str] | None]:
        """Raw sources and, where there are any, raw targets."""
        texts, both = self._texts, "target" in self._texts.column_names
        return texts.texts("source", ids), texts.texts("target", ids) if both else None

    def load_batch(self, ids: NDArray[np.int64], epoch: int) -> Batch:
        """Makes the batch of some examples.

        Args:
            ids: Their numbers, (B,).
            epoch: Number of the epoch; it matters to subword sampling alone.
        """
        src = self._sequences("src", ids)
        tgt = self._sequences("tgt", ids) if self.with_target else None
        if self._sampling is not None:
            sources, targets = self.texts(ids)
            resample(
                self._sampling,
                src,
                tgt,
                sources=sources,
                targets=targets,
                ids=ids,
                epoch=epoch,
                max_src_len=self._max_len["src"],
                max_tgt_len=self._max_len["tgt"],
            )
        return collate(src, tgt, ids=ids, pad_id=self._pad_id)

    def _sequences(self, side: str, rows: Ints) -> list[NDArray[np.int32]]:
        limit = self._max_len[side]
        found = self._tokens.sequences(side, rows)
        return [_truncate(ids, limit) if len(ids) > limit else ids for ids in found]


def counts_of(rows: Any, side: str) -> SideCounts:  # noqa: ANN401 - a pyarrow.Table
    """What a ``TextEncoder`` counted in ``src`` or ``tgt``."""
    names = {"tokens": "len", "unknown": "unk", "known": "known", "chars": "chars"}
    return SideCounts(**{k: numbers_of(rows.column(f"{side}_{n}")) for k, n in names.items()})


def sequences_of(rows: Any, side: str) -> list[NDArray[np.int32]]:  # noqa: ANN401 - a pyarrow.Table
    """The ids that a ``TextEncoder`` made of ``src`` or ``tgt``."""
    column = rows.column(side).combine_chunks()
    ends = np.cumsum(column.value_lengths().to_numpy())
    return np.split(column.flatten().to_numpy(), ends[:-1]) if len(ends) else []


def resample(
    sampling: SubwordSampling,
    src: list[NDArray[np.int32]],
    tgt: list[NDArray[np.int32]] | None,
    *,
    sources: Sequence[str],
    targets: Sequence[str] | None,
    ids: NDArray[np.int64],
    epoch: int,
    max_src_len: int,
    max_tgt_len: int,
) -> None:
    """Replaces sequences by random cuts of the same text, where these keep the limit.

    A cut follows from seed, epoch and number of the row, not from a running state nor from the
    batch: so neither resuming nor other batches change anything.

    Args:
        sampling: How to cut.
        src: Source ids, B sequences; changed in place.
        tgt: Target ids likewise; None where there is no target.
        sources: Their texts.
        targets: Their texts.
        ids: Numbers of the rows, (B,).
        epoch: Number of the epoch.
        max_src_len: Source tokens at most, EOS counted.
        max_tgt_len: Target tokens at most, EOS counted.
    """
    seeds = np.random.SeedSequence([sampling.seed, epoch]).generate_state(2, np.uint64).tolist()
    tokenizer = sampling.tokenizer
    sides = [(src, sources, tokenizer.sample_source, seeds[0], max_src_len)]
    if tgt is not None and targets is not None:
        sides.append((tgt, targets, tokenizer.sample_target, seeds[1], max_tgt_len))
    for sequences, texts, sample, seed, limit in sides:
        cuts = sample(
            [text[: sampling.max_chars] for text in texts],
            alpha=sampling.alpha,
            nbest_size=sampling.nbest_size,
            seed=seed,
            streams=ids.tolist(),
        )
        for i, cut in enumerate(cuts):
            if len(cut) <= limit:
                sequences[i] = np.array(cut, dtype=np.int32)


def _truncate(ids: NDArray[np.int32], limit: int) -> NDArray[np.int32]:
    return np.append(ids[: limit - 1], ids[-1])  # the last one is EOS
