"""One sequence per row, token by token: the loop of greedy search and sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from litseq.decoding.attention import gather_attention, last_attention
from litseq.decoding.contract import MemoryT, StateT, StepModel
from litseq.decoding.hypothesis import Hypothesis, make_hypothesis
from litseq.decoding.options import check_length_norm, check_max_len
from litseq.decoding.ranking import next_log_probs
from litseq.layers.linear import packed_weights

__all__ = ["greedy_search", "unroll"]


@torch.inference_mode()
@packed_weights()
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
    check_length_norm(length_penalty=length_penalty, length_offset=length_offset)
    check_max_len(max_len)
    return unroll(
        model,
        model.init_state(memory),
        choose=lambda log_probs, row, length: log_probs.argmax(dim=-1),
        bos_id=bos_id,
        eos_id=eos_id,
        max_len=max_len,
        suppress=suppress,
        length_penalty=length_penalty,
        length_offset=length_offset,
    )


def unroll(
    model: StepModel[MemoryT, StateT],
    state: StateT,
    *,
    choose: Callable[[Tensor, Tensor, int], Tensor],
    bos_id: int,
    eos_id: int,
    max_len: Tensor,
    suppress: Sequence[int],
    length_penalty: float,
    length_offset: float,
) -> list[Hypothesis]:
    """Writes one sequence per row of ``state``; a row leaves the batch when its sequence ends.

    Args:
        model: Gives the next token's logits.
        state: The state before BOS, N rows.
        choose: Called with the next log-probabilities, float (n, V), the numbers of the n rows that
            are left, int64 (n,), and the length with this token; returns token ids, int64 (n,).
        bos_id: Id of the token that every sequence begins with.
        eos_id: Id of the token that ends a sequence.
        max_len: Length limit of each row, int64 (N,).
        suppress: Ids that are never chosen.
        length_penalty: Enters the scores alone.
        length_offset: See ``length_norm``.

    Returns:
        N hypotheses.
    """
    num_rows = max_len.size(0)
    row = torch.arange(num_rows, device=max_len.device)
    token = torch.full_like(row, bos_id)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    attention: list[Tensor] = []
    for length in count(1):
        if row.numel() == 0:
            break
        logits, state = model.step(token, state)
        log_probs = next_log_probs(logits, suppress)
        token = choose(log_probs, row, length)
        steps.append((row, token, log_probs.gather(1, token.unsqueeze(1)).squeeze(1)))
        looked = last_attention(state)
        if looked is not None:
            attention.append(looked)
        # The only place of a step that waits for the device.
        going = ((token != eos_id) & (length < max_len)).tolist()
        if all(going):
            continue
        places = [i for i, on in enumerate(going) if on]
        left = torch.tensor(places, dtype=torch.int64, device=row.device)
        row, token, max_len = row[left], token[left], max_len[left]
        if left.numel() > 0:
            state = state.reorder(left)

    # of each sequence: tokens, their log-probabilities, its row in each step
    written: list[tuple[list[int], list[float], list[int]]] = [
        ([], [], []) for _ in range(num_rows)
    ]
    for step in steps:
        parts = zip(*(part.tolist() for part in step), strict=True)
        for place, (i, chosen, log_prob) in enumerate(parts):
            for items, item in zip(written[i], (chosen, log_prob, place), strict=True):
                items.append(item)
    return [
        make_hypothesis(
            tokens,
            log_probs,
            length_penalty=length_penalty,
            length_offset=length_offset,
            attention=gather_attention(attention, places),
        )
        for tokens, log_probs, places in written
    ]
