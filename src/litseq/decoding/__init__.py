"""Generation with any model that can ``init_state`` and ``step``: greedy, beam search, sampling."""

from litseq.decoding.attention import Attending
from litseq.decoding.beam import beam_search
from litseq.decoding.contract import SearchState, StepModel
from litseq.decoding.greedy import greedy_search
from litseq.decoding.hypothesis import Hypothesis, length_norm
from litseq.decoding.options import SearchOptions
from litseq.decoding.sampling import sample_search
from litseq.decoding.search import generate, generate_all, length_limits
from litseq.decoding.turns import Sources

__all__ = [
    "Attending",
    "Hypothesis",
    "SearchOptions",
    "SearchState",
    "Sources",
    "StepModel",
    "beam_search",
    "generate",
    "generate_all",
    "greedy_search",
    "length_limits",
    "length_norm",
    "sample_search",
]
