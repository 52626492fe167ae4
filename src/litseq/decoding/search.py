"""One way in: the search that the options ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from litseq.decoding.attention import Attending
from litseq.decoding.beam import beams
from litseq.decoding.contract import MemoryT, StateT, StepModel
from litseq.decoding.greedy import greedy
from litseq.decoding.hypothesis import Hypothesis
from litseq.decoding.options import SearchOptions
from litseq.decoding.sampling import sample_search
from litseq.decoding.turns import Sources

__all__ = ["generate", "generate_all", "length_limits"]


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
    max_len = length_limits(model, src_lengths, options)
    return generate_all(
        model,
        [Sources.of(memory, max_len, ids)],
        options=options,
        bos_id=bos_id,
        eos_id=eos_id,
        suppress=suppress,
    )


def length_limits(model: object, src_lengths: Tensor, options: SearchOptions) -> Tensor:
    """How long the outputs may become: as the options say, and as long as the model can write.

    Args:
        model: Where it has a ``max_tgt_len``, no sequence becomes longer.
        src_lengths: Number of source tokens, int64 (B,).
        options: How to search.
    """
    longest = getattr(model, "max_tgt_len", None)
    max_len = options.max_len(src_lengths)
    return max_len if longest is None else max_len.clamp(max=longest)


def generate_all(
    model: StepModel[MemoryT, StateT],
    sources: Iterable[Sources[MemoryT]],
    *,
    options: SearchOptions,
    bos_id: int,
    eos_id: int,
    suppress: tuple[int, ...] = (),
) -> list[list[Hypothesis]]:
    """Does what ``generate`` does for more sentences than are searched at once.

    With a beam, and greedily, they enter as others leave, so that steps stay full to the end, where
    the model's states can ``join``. Sampling takes as many as there is room for, then the next.

    Args:
        model: Gives the next token's logits; in evaluation mode.
        sources: The sentences, in order; an iterator is asked when there is room.
        options: Which search, and how.
        bos_id: Id of the token that every sequence begins with.
        eos_id: Id of the token that ends a sequence.
        suppress: Ids that are never chosen.

    Returns:
        One or more hypotheses per sentence, at most ``options.n_best``, the best first.

    Raises:
        ValueError: As ``generate`` does.
    """
    if options.attention:
        return generate_all(
            Attending(model),
            sources,
            options=replace(options, attention=False),
            bos_id=bos_id,
            eos_id=eos_id,
            suppress=suppress,
        )
    if options.sample:
        return [
            hypotheses
            for part in sources
            for memory, max_len, ids in part.parts()
            for hypotheses in sample_search(
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
        ]
    if options.beam_size == 1:
        best = greedy(
            model,
            sources,
            bos_id=bos_id,
            eos_id=eos_id,
            suppress=suppress,
            length_penalty=options.length_penalty,
            length_offset=options.length_offset,
        )
        return [[hypothesis] for hypothesis in best]
    return beams(
        model,
        sources,
        beam_size=options.beam_size,
        length_penalty=options.length_penalty,
        length_offset=options.length_offset,
        n_best=options.n_best,
        patience=options.patience,
        bos_id=bos_id,
        eos_id=eos_id,
        suppress=suppress,
    )
