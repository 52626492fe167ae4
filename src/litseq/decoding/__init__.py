"""Generation with any model that can ``init_state`` and ``step``: greedy, beam search, sampling."""

from litseq.decoding.attention import Attending
from litseq.decoding.beam import beam_search
from litseq.decoding.contract import SearchState, StepModel
from litseq.decoding.greedy import greedy_search
from litseq.decoding.hypothesis import Hypothesis, length_norm
from litseq.decoding.options import SearchOptions
from litseq.decoding.sampling import sample_search
from litseq.decoding.search import generate

__all__ = [
    "Attending",
    "Hypothesis",
    "SearchOptions",
    "SearchState",
    "StepModel",
    "beam_search",
    "generate",
    "greedy_search",
    "length_norm",
    "sample_search",
]
