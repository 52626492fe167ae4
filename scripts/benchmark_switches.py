"""A contestant of ``benchmark_without.py``: litseq without one of the things that make it fast.

    python scripts/benchmark_switches.py train NAME WORK       # started by benchmark_without.py

It puts the plain way in the place of the fast one, and is then a contestant as any other, that
does each round twice, the second time to time its operators.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor, nn

import benchmark_worker
from litseq import heap, projected_loss
from litseq.decoding import beam, turns
from litseq.layers import linear, multihead
from litseq.layers.dot_product import DotProductAttention
from litseq.layers.dropout import Dropout, Kept
from litseq.losses import TokenLoss, token_loss


def main() -> None:
    """Switches off what is named, and serves."""
    _, mode, name, _ = sys.argv
    if name in SWITCHES[mode]:
        switch_off(mode, name)
        sys.argv[2] = "litseq"
    contestants = CONTESTANTS[mode]
    contestants["litseq"] = watched(contestants["litseq"])
    benchmark_worker.main()


def watched(build: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    """A contestant that also says what its operators took."""

    def build_watched(work: dict[str, Any]) -> Callable[..., Any]:
        run = build(work)

        def both(*part: int) -> dict[str, Any]:
            found: dict[str, Any] = run(*part)
            if part:  # somebody else is watching
                return found
            with benchmark_worker.Watch() as watch, timed_draws(watch):
                run()
            return found | {"operators": watch.seconds}

        return both

    return build_watched


@contextmanager
def timed_draws(watch: benchmark_worker.Watch) -> Iterator[None]:
    """Counts litseq's own draws of dropout among the operators; torch's are some."""
    draw = Dropout.draw

    def timed(self: Dropout, shape: Sequence[int]) -> Kept:
        before, begin = watch.seconds, time.perf_counter()
        found = draw(self, shape)
        watch.seconds = before + time.perf_counter() - begin
        return found

    with patch.object(Dropout, "draw", timed):
        yield


def switch_off(mode: str, name: str) -> None:
    """Does without what is named, from here on."""
    for switch in SWITCHES[mode][name]:
        setattr(*switch)


class Switch(NamedTuple):
    """What stands in place of something fast."""

    owner: Any
    name: str
    value: Any


def _kept_logits(
    hidden: Tensor, projection: nn.Linear, labels: Tensor, *, label_smoothing: float
) -> TokenLoss:
    return token_loss(projection(hidden), labels, label_smoothing=label_smoothing)


def _split(
    rows: Tensor, size: tuple[int, int], *, parts: int, num_heads: int
) -> tuple[Tensor, ...]:
    heads = rows[: size[0] * size[1]].view(*size, parts, num_heads, -1)
    return heads.permute(2, 0, 3, 1, 4).unbind(0)


def _join(heads: Tensor, num_rows: int) -> Tensor:
    rows = heads.transpose(1, 2).flatten(2).flatten(0, 1)
    return F.pad(rows, (0, 0, 0, num_rows - len(rows)))


CONTESTANTS = {"train": benchmark_worker.TRAINEES, "translate": benchmark_worker.TRANSLATORS}
FREED = [Switch(heap, "keep_freed", lambda: None)]
SWITCHES: dict[str, dict[str, list[Switch]]] = {
    "train": {
        "no logits": [Switch(projected_loss, "projected_loss", _kept_logits)],
        "oneDNN's products": [Switch(linear, "_trained_as", lambda x, weight, bias: None)],
        "a byte that says who is dropped": [Switch(Dropout, "is_fast", lambda self, x: False)],
        "attention as one step of autograd": [
            Switch(DotProductAttention, "_is_trained_written_out", lambda self, q: False)
        ],
        "one copy for heads": [
            Switch(multihead, "split_heads", _split),
            Switch(multihead, "join_heads", _join),
        ],
        "freed memory that is kept": FREED,
    },
    "translate": {
        "packed weights": [Switch(linear.Packing, "takes", lambda self, x, weight: False)],
        "sources and targets stored once": [
            Switch(beam, "reorder_beams", lambda state, row, on: state.reorder(row.flatten()))
        ],
        "attention of a step written out": [
            Switch(
                DotProductAttention,
                "_is_fast_written_out",
                lambda self, q, *, few_queries: False,
            )
        ],
        "maxima of 64 tokens each": [Switch(beam, "top_k", lambda values, k: values.topk(k))],
        "the last wait": [Switch(turns, "_SHARE", sys.maxsize)],
        "freed memory that is kept": FREED,
    },
}
"""What is switched off, by what it speeds up, as docs/performance.md has it."""

for _switches in SWITCHES.values():
    _switches["all of these"] = [switch for some in _switches.values() for switch in some]


if __name__ == "__main__":
    main()
