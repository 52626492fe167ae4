"""Batches: every example once, nothing but padding is added."""

import numpy as np
import torch
from bounded import EXAMPLES, bounded
from hypothesis import given
from hypothesis import strategies as st

from litseq.data.buckets import plan_batches
from litseq.data.collate import collate

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


@EXAMPLES
def test_batches_are_a_partition(examples):
    @bounded(examples)
    @given(
        lengths=LENGTHS,
        max_tokens=st.integers(1, 120),
        max_sentences=st.none() | st.integers(1, 9),
        shuffle=st.booleans(),
        seed=st.integers(0, 2**31 - 1),
        epoch=st.integers(0, 5),
    )
    def check(lengths, max_tokens, max_sentences, shuffle, seed, epoch):
        src, tgt = np.array(lengths).T
        options = {"max_tokens": max_tokens, "max_sentences": max_sentences, "shuffle": shuffle}
        batches = plan_batches(src, tgt, **options, seed=seed, epoch=epoch).batches()
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        for batch in batches:
            longest = max(src[batch].max(), tgt[batch].max())
            assert len(batch) == 1 or len(batch) * longest <= max_tokens
            assert max_sentences is None or len(batch) <= max_sentences
        again = plan_batches(src, tgt, **options, seed=seed, epoch=epoch).batches()
        assert [b.tolist() for b in again] == [b.tolist() for b in batches]
        other = plan_batches(src, tgt, **options, seed=seed, epoch=epoch + 1).batches()
        assert len(other) == len(batches)

    check()


SEQUENCES = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6)


@EXAMPLES
def test_a_batch_holds_its_sequences_and_padding(examples):
    @bounded(examples)
    @given(SEQUENCES, st.data())
    def check(src, data):
        tgt = data.draw(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9),
                                 min_size=len(src), max_size=len(src)))  # fmt: skip
        batch = collate(src, tgt, ids=list(range(len(src))), pad_id=0)
        mask = batch["attention_mask"].bool()
        for i, (source, target) in enumerate(zip(src, tgt, strict=True)):
            assert batch["input_ids"][i][mask[i]].tolist() == source
            assert batch["labels"][i][batch["labels"][i] != -100].tolist() == target
        assert torch.equal(batch["input_ids"][~mask], torch.zeros(int((~mask).sum())).long())
        assert batch["input_ids"].shape == (len(src), max(map(len, src)))
        assert batch["labels"].shape == (len(src), max(map(len, tgt)))
        assert torch.equal(mask, mask.cummin(1).values)  # padding stands at the end

    check()
