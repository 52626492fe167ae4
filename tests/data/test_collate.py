import numpy as np
import pytest
import torch

from litseq.data import collate

SRC = [[5, 6, 7, 3], [8, 3]]
TGT = [[9, 3], [10, 11, 12, 13, 3]]


def test_pads_at_the_end():
    batch = collate(SRC, TGT, ids=[4, 1])
    expected = {
        "input_ids": [[5, 6, 7, 3], [8, 3, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "labels": [[9, 3, -100, -100, -100], [10, 11, 12, 13, 3]],
        "id": [4, 1],
    }
    assert list(batch) == list(expected)
    for name, rows in expected.items():
        assert torch.equal(batch[name], torch.tensor(rows, dtype=torch.int64))


def test_arrays_give_the_same_as_lists():
    lists = collate(SRC, TGT, ids=[4, 1])
    arrays = collate(
        [np.array(ids, dtype=np.int32) for ids in SRC],
        [np.array(ids, dtype=np.int32) for ids in TGT],
        ids=np.array([4, 1]),
    )
    for name, tensor in lists.items():
        assert torch.equal(arrays[name], tensor)


def test_pads_with_the_tokenizers_own_id():
    assert collate(SRC, pad_id=22)["input_ids"][1].tolist() == [8, 3, 22, 22]


def test_leaves_out_what_is_not_given():
    assert list(collate(SRC)) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "no sequences"),
        (([[3], []],), r"src\[1\] is empty"),
        (([[3]], [[]]), r"tgt\[0\] is empty"),
        (([[3]], [[3], [3]]), "tgt has 2 entries for 1 source"),
    ],
)
def test_refuses_what_makes_no_batch(arguments, message):
    with pytest.raises(ValueError, match=message):
        collate(*arguments)


def test_refuses_another_number_of_ids():
    with pytest.raises(ValueError, match="ids has 3 entries for 2 source"):
        collate(SRC, ids=[1, 2, 3])
