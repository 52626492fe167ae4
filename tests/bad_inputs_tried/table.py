"""All bad inputs, in the order of the documentation; their numbers count from 1."""

from __future__ import annotations

from bad_inputs_tried import configurations, exports, files, imports, surroundings, texts
from bad_inputs_tried.case import Case

__all__ = ["CASES"]

CASES: list[Case] = [
    case
    for part in (texts, configurations, files, imports, exports, surroundings)
    for case in part.CASES
]
