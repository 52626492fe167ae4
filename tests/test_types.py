from dataclasses import dataclass
from typing import Any

import pytest
import torch

from litseq.types import DecoderState, ScoredText, Translation, WordAlignment

BEST, SECOND = ScoredText("b", -0.5, -1.0, 2), ScoredText("c", -0.7, -2.1, 3)


@dataclass(frozen=True)
class State(DecoderState):
    """A state of any content."""

    content: Any


def test_reorder_takes_rows_in_any_nesting_of_tuples():
    x = torch.arange(6).view(3, 2)
    content, position, nothing = (
        State((State((x, (x + 6,))), 4, None)).reorder(torch.tensor([2, 0, 0, 1])).content
    )
    assert content.content[0].tolist() == [[4, 5], [0, 1], [0, 1], [2, 3]]
    assert content.content[1][0].tolist() == [[10, 11], [6, 7], [6, 7], [8, 9]]
    assert (position, nothing) == (4, None)


@pytest.mark.parametrize(
    "kind", [list, set, lambda x: dict(enumerate(x))], ids=["list", "set", "dict"]
)
def test_reorder_refuses_what_it_would_leave_in_order(kind):
    content = kind([torch.zeros(3)])
    message = f"cannot be taken inside of a {type(content).__name__}; use a tuple"
    for state in (State(content), State((content,))):
        with pytest.raises(TypeError, match=message):
            state.reorder(torch.tensor([0]))


def test_a_translation_as_a_record():
    record = {
        "id": 7,
        "source": "a",
        "text": "b",
        "score": -0.5,
        "log_prob": -1.0,
        "num_tokens": 2,
        "hypotheses": [
            {"text": "b", "score": -0.5, "log_prob": -1.0, "num_tokens": 2},
            {"text": "c", "score": -0.7, "log_prob": -2.1, "num_tokens": 3},
        ],
    }
    assert Translation(7, "a", (BEST, SECOND)).as_dict() == record
    assert Translation(7, "a", (BEST, SECOND), "").as_dict() == {**record, "reference": ""}


def test_an_alignment_joins_the_record():
    alignment = WordAlignment(("x", "y"), ("b",), ((1, 0),))
    text = ScoredText("b", -0.5, -1.0, 2, alignment)
    words = {"alignment": "1-0", "src_words": ["x", "y"], "tgt_words": ["b"]}
    assert text.as_dict() == {**BEST.as_dict(), **words}
    record = Translation(7, "x y", (text, SECOND)).as_dict()
    assert record["alignment"] == record["hypotheses"][0]["alignment"] == "1-0"
    assert "alignment" not in record["hypotheses"][1]
