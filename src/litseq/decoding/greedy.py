"""One sequence per row, token by token: the loop of greedy search and sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from litseq.decoding.attention import gather_attention, last_attention
from litseq.decoding.contract import MemoryT, StateT, StepModel
from litseq.decoding.hypothesis import Hypothesis, make_hypothesis
from litseq.decoding.options import check_length_norm, check_max_len
from litseq.decoding.ranking import first_maximum, next_log_probs
from litseq.decoding.turns import Group, Rows, Sources, places_that_stay, take_turns
from litseq.layers.linear import packed_weights

__all__ = ["greedy", "greedy_search", "unroll"]


def greedy_search(
    model: StepModel[MemoryT, StateT],
    memory: MemoryT,
    *,
    bos_id: int,
    eos_id: int,
    max_len: Tensor,
    suppress: tuple[int, ...] = (),
    length_penalty: float = 0.0,
    length_offset: float = 5.0,
) -> list[Hypothesis]:
    """Takes the most probable token at every step, the lowest id where several are.

    Args:
        model: Gives the next token's logits; in evaluation mode.
        memory: What the model's encoder made of B sentences.
        bos_id: Id of the token that every sequence begins with.
        eos_id: Id of the token that ends a sequence.
        max_len: Length limit of each sentence in tokens, EOS counted and BOS not, int64 (B,), on
            the model's device. A sequence that reaches it stays unfinished: no EOS is forced.
        suppress: Ids that are never chosen; the other log-probabilities stay what they are.
        length_penalty: Enters the score alone, so that it compares with beam search's.
        length_offset: See ``length_norm``.

    Returns:
        One hypothesis per sentence.

    Raises:
        ValueError: If an option is out of its range, a limit is below 1, or the model gives no
            token a finite log-probability.
    """
    return greedy(
        model,
        [Sources.of(memory, max_len)],
        bos_id=bos_id,
        eos_id=eos_id,
        suppress=suppress,
        length_penalty=length_penalty,
        length_offset=length_offset,
    )


@torch.inference_mode()
@packed_weights()
def greedy(
    model: StepModel[MemoryT, StateT],
    sources: Iterable[Sources[MemoryT]],
    *,
    bos_id: int,
    eos_id: int,
    suppress: tuple[int, ...],
    length_penalty: float,
    length_offset: float,
) -> list[Hypothesis]:
    """Does what ``greedy_search`` does for many sentences."""
    check_length_norm(length_penalty=length_penalty, length_offset=length_offset)
    return unroll(
        model,
        sources,
        choose=lambda log_probs, row, length: first_maximum(log_probs),
        bos_id=bos_id,
        eos_id=eos_id,
        suppress=suppress,
        length_penalty=length_penalty,
        length_offset=length_offset,
    )


def unroll(
    model: StepModel[MemoryT, StateT],
    sources: Iterable[Sources[MemoryT]],
    *,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    bos_id: int,
    eos_id: int,
    suppress: Sequence[int],
    length_penalty: float,
    length_offset: float,
    each: int = 1,
) -> list[Hypothesis]:
    """Writes sequences that go their ways; those that have ended leave together.

    Args:
        model: Gives the next token's logits.
        sources: Sentences that wait, B in all.
        choose: Called with the next log-probabilities, float (n, V), the numbers of the n sequences
            that are there, int64 (n,), and their lengths with this token, int64 (n,); returns token
            ids, int64 (n,).
        bos_id: Id of the token that every sequence begins with.
        eos_id: Id of the token that ends a sequence.
        suppress: Ids that are never chosen.
        length_penalty: Enters the scores alone.
        length_offset: See ``length_norm``.
        each: Sequences of each sentence.

    Returns:
        B times ``each`` hypotheses.

    Raises:
        ValueError: If a limit is below 1.
    """
    begun: list[int] = []  # at which step each sequence has
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    attention: list[Tensor] = []

    def begin(memory: MemoryT, max_len: Tensor) -> Group[_Sequences, StateT] | None:
        check_max_len(max_len)
        state = model.init_state(memory)
        if each > 1:
            every = torch.arange(len(max_len), device=max_len.device).repeat_interleave(each)
            max_len, state = max_len[every], state.reorder(every)
        number = torch.arange(len(begun), len(begun) + len(max_len), device=max_len.device)
        begun.extend([len(steps)] * len(max_len))
        length = torch.zeros_like(number)
        rows = _Sequences(number, length, max_len, ended=torch.zeros_like(number, dtype=torch.bool))
        return Group(rows, torch.full_like(number, bos_id), state)

    def advance(group: Group[_Sequences, StateT]) -> Group[_Sequences, StateT] | None:
        logits, state = model.step(group.token, group.state)
        log_probs = next_log_probs(logits, suppress)
        rows = replace(group.rows, length=group.rows.length + 1)
        token = choose(log_probs, rows.number, rows.length)
        steps.append((rows.number, token, log_probs.gather(1, token.unsqueeze(1)).squeeze(1)))
        looked = last_attention(state)
        if looked is not None:
            attention.append(looked)
        full = rows.length >= rows.max_len
        rows = replace(rows, ended=rows.ended | (token == eos_id) | full)
        # The only place of a step that waits for the device.
        *ended, must = torch.cat([rows.ended, full.any().view(1)]).tolist()
        if all(ended):
            return None
        places = places_that_stay(ended, must=must)
        if places is not None:
            stay = torch.tensor(places, device=token.device)
            rows, token, state = rows.take(stay), token[stay], state.reorder(stay)
        return Group(rows, token, state)

    take_turns(sources, begin=begin, advance=advance)

    # of each sequence: tokens, their log-probabilities, its row in each step
    written: list[tuple[list[int], list[float], list[int]]] = [([], [], []) for _ in begun]
    for step in steps:
        parts_of_step = zip(*(part.tolist() for part in step), strict=True)
        for place, (i, chosen, log_prob) in enumerate(parts_of_step):
            if written[i][0][-1:] == [eos_id]:  # it has ended, and waits to leave
                continue
            for items, item in zip(written[i], (chosen, log_prob, place), strict=True):
                items.append(item)
    return [
        make_hypothesis(
            tokens,
            log_probs,
            length_penalty=length_penalty,
            length_offset=length_offset,
            attention=gather_attention(attention[begin:], places),
        )
        for begin, (tokens, log_probs, places) in zip(begun, written, strict=True)
    ]


@dataclass(frozen=True)
class _Sequences(Rows):
    """The sequences that are there.

    Attributes:
        number: Its number among all, int64 (n,).
        length: Its length, int64 (n,).
        max_len: The limit of that, int64 (n,).
        ended: Whether it has ended, bool (n,).
    """

    number: Tensor
    length: Tensor
    max_len: Tensor
    ended: Tensor
