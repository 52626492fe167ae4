"""One way in: the search that the options ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from litseq.decoding.attention import Attending
from litseq.decoding.beam import beam_search
from litseq.decoding.contract import MemoryT, StateT, StepModel
from litseq.decoding.greedy import greedy_search
from litseq.decoding.hypothesis import Hypothesis
from litseq.decoding.options import SearchOptions
from litseq.decoding.sampling import sample_search

__all__ = ["generate"]


def generate(
    model: StepModel[MemoryT, StateT],
    memory: MemoryT,
    *,
    src_lengths: Tensor,
    options: SearchOptions,
    bos_id: int,
    eos_id: int,
    suppress: tuple[int, ...] = (),
    ids: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Searches as the options say, in inference mode.

    Args:
        model: Gives the next token's logits; in evaluation mode. Where it has a ``max_tgt_len``, no
            sequence becomes longer.
        memory: What the model's encoder made of B sentences.
        src_lengths: Number of source tokens, int64 (B,), on the model's device; sets the length
            limits.
        options: Which search, and how.
        bos_id: Id of the token that every sequence begins with.
        eos_id: Id of the token that ends a sequence.
        suppress: Ids that are never chosen; the other log-probabilities stay what they are.
        ids: A number for each sentence, as its place in the corpus. Sampling ties its random
            numbers to them; None = 0 to B - 1, so that every batch draws with the same ones.

    Returns:
        One or more hypotheses per sentence, at most ``options.n_best``, the best first.

    Raises:
        ValueError: If the model gives no token a finite log-probability, or attention is to be kept
            of a model that has none.
    """
    if options.attention:
        return generate(
            Attending(model),
            memory,
            src_lengths=src_lengths,
            options=replace(options, attention=False),
            bos_id=bos_id,
            eos_id=eos_id,
            suppress=suppress,
            ids=ids,
        )
    max_len = options.max_len(src_lengths)
    longest = getattr(model, "max_tgt_len", None)
    max_len = max_len if longest is None else max_len.clamp(max=longest)
    if options.sample:
        return sample_search(
            model,
            memory,
            n_best=options.n_best,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            bos_id=bos_id,
            eos_id=eos_id,
            max_len=max_len,
            suppress=suppress,
            length_penalty=options.length_penalty,
            length_offset=options.length_offset,
            ids=ids,
        )
    if options.beam_size == 1:
        best = greedy_search(
            model,
            memory,
            bos_id=bos_id,
            eos_id=eos_id,
            max_len=max_len,
            suppress=suppress,
            length_penalty=options.length_penalty,
            length_offset=options.length_offset,
        )
        return [[hypothesis] for hypothesis in best]
    return beam_search(
        model,
        memory,
        beam_size=options.beam_size,
        length_penalty=options.length_penalty,
        length_offset=options.length_offset,
        n_best=options.n_best,
        patience=options.patience,
        bos_id=bos_id,
        eos_id=eos_id,
        max_len=max_len,
        suppress=suppress,
    )
