"""Beam search over a batch of sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from litseq.decoding.attention import last_attention
from litseq.decoding.contract import MemoryT, StateT, StepModel, reorder_beams
from litseq.decoding.hypothesis import Hypothesis, best_first, length_norm, make_hypothesis
from litseq.decoding.options import check_beam, check_length_norm, check_max_len
from litseq.decoding.ranking import next_log_probs, top_k
from litseq.decoding.tree import Tree
from litseq.decoding.turns import Group, Rows, Sources, places_that_stay, take_turns
from litseq.layers.linear import packed_weights

__all__ = ["beam_search", "beams"]


@dataclass(frozen=True)
class _Sentences(Rows):
    """Where the search stands in the n sentences that are there.

    Attributes:
        number: The sentence's number among all, int64 (n,).
        max_len: Its length limit, int64 (n,).
        length: Tokens of its living sequences, BOS not counted, int64 (n,).
        alive: Nodes of the living sequences, the most probable first, int64 (n, K); of BOS, (n, 1).
        log_prob: Their log-probabilities, float (n, K); -inf where there are fewer than K.
        ended: Nodes of the best finished sequences, int64 (n, n_best).
        score: Their scores, the best first, float (n, n_best); -inf where there are fewer.
        num_ended: How many have finished so far, int64 (n,).
        over: Whether its search has ended, bool (n,).
    """

    number: Tensor
    max_len: Tensor
    length: Tensor
    alive: Tensor
    log_prob: Tensor
    ended: Tensor
    score: Tensor
    num_ended: Tensor
    over: Tensor


@dataclass(frozen=True)
class _Candidates:
    """The 2K best one-token extensions of each sentence's living sequences, best first.

    Attributes:
        beam: Which living sequence is extended, int64 (n, 2K).
        token: By which token, int64 (n, 2K).
        token_log_prob: The token's log-probability, float (n, 2K).
        log_prob: The log-probability of the extended sequence, float (n, 2K); -inf where there are
            fewer than 2K extensions.
    """

    beam: Tensor
    token: Tensor
    token_log_prob: Tensor
    log_prob: Tensor


def _extend(log_prob: Tensor, log_probs: Tensor, *, beam_size: int) -> _Candidates:
    """Ranks the extensions of living sequences.

    Args:
        log_prob: Log-probabilities of the living sequences, float (n, width).
        log_probs: Those of their next tokens, float (n * width, V).
        beam_size: K.
    """
    num_sentences, width = log_prob.shape
    # No beam gives more than K + 1: K that stay alive and one EOS.
    size = min(beam_size + 1, log_probs.size(1))
    token_log_prob, token = top_k(log_probs, size)
    token_log_prob = token_log_prob.masked_fill(token_log_prob.isnan(), -torch.inf)
    token_log_prob = token_log_prob.view(num_sentences, width * size)
    token = token.view(num_sentences, width * size)
    total = log_prob.repeat_interleave(size, dim=1) + token_log_prob
    # 2K, since K of them may end at this step and K must stay alive.
    total, order = total.sort(dim=1, descending=True, stable=True)
    total, order = total[:, : 2 * beam_size], order[:, : 2 * beam_size]
    missing = (0, 2 * beam_size - order.size(1))
    total, order = F.pad(total, missing, value=-torch.inf), F.pad(order, missing)
    return _Candidates(
        beam=order // size,
        token=token.gather(1, order),
        token_log_prob=token_log_prob.gather(1, order),
        log_prob=total,
    )


def _settle(
    left: _Sentences, found: _Candidates, *, node: Tensor, norm: Tensor, eos_id: int
) -> tuple[_Sentences, Tensor, Tensor]:
    """Puts each candidate where it belongs: among the finished, among the living, or nowhere.

    Args:
        left: The sentences before this step.
        found: Their ranked candidates.
        node: The candidates' nodes, int64 (n, 2K).
        norm: What the candidates' log-probabilities are divided by, float (n, 1).
        eos_id: Id of the token that ends a sequence.

    Returns:
        The sentences after this step; of the living sequences the one that each extends and its
        last token, both int64 (n, K).
    """
    beam_size, n_best = node.size(1) // 2, left.ended.size(1)
    ends = found.token == eos_id

    score = (found.log_prob / norm).masked_fill(~ends, -torch.inf)
    score, node_ended = score[:, :beam_size], node[:, :beam_size]
    num_ended = left.num_ended + (score > -torch.inf).sum(1)
    # Of equal scores the one that ended first stays first, since the sort is stable.
    score, order = torch.cat([left.score, score], dim=1).sort(dim=1, descending=True, stable=True)
    ended = torch.cat([left.ended, node_ended], dim=1).gather(1, order)

    lives = ends.to(torch.int8).sort(dim=1, stable=True).indices[:, :beam_size]
    # With a tiny vocabulary fewer than K go on, and what ends here fills their places as dead.
    log_prob = found.log_prob.masked_fill(ends, -torch.inf).gather(1, lives)
    settled = replace(
        left,
        alive=node.gather(1, lives),
        log_prob=log_prob,
        ended=ended[:, :n_best],
        score=score[:, :n_best],
        num_ended=num_ended,
    )
    return settled, found.beam.gather(1, lives), found.token.gather(1, lives)


def _places(flags: list[bool], device: torch.device) -> Tensor:
    """The places of those that are set, int64."""
    return torch.tensor([i for i, flag in enumerate(flags) if flag], device=device)


def _hypotheses(
    done: list[_Sentences],
    tree: Tree,
    *,
    eos_id: int,
    n_best: int,
    length_penalty: float,
    length_offset: float,
) -> list[list[Hypothesis]]:
    """Reads the finished sequences, then unfinished ones in places left empty; in batch order."""
    number, nodes = [], []
    for part in done:
        number += part.number.tolist()
        ended = part.ended.masked_fill(part.score == -torch.inf, tree.ROOT)
        alive = part.alive.masked_fill(part.log_prob == -torch.inf, tree.ROOT)
        for row in torch.cat([ended, alive], dim=1).tolist():
            # Without any, the root: the empty sequence, an error that names the cause.
            nodes.append([node for node in row if node != tree.ROOT][:n_best] or [tree.ROOT])
    sequences = iter(tree.sequences([node for row in nodes for node in row]))
    found = []
    for row in nodes:
        hypotheses = [
            make_hypothesis(
                tokens,
                log_probs,
                length_penalty=length_penalty,
                length_offset=length_offset,
                attention=attention,
            )
            for tokens, log_probs, attention in islice(sequences, len(row))
        ]
        found.append(best_first(hypotheses, eos_id=eos_id))
    in_order = sorted(range(len(number)), key=number.__getitem__)
    return [found[i] for i in in_order]


def beam_search(
    model: StepModel[MemoryT, StateT],
    memory: MemoryT,
    *,
    beam_size: int,
    length_penalty: float,
    n_best: int,
    bos_id: int,
    eos_id: int,
    max_len: Tensor,
    suppress: tuple[int, ...] = (),
    length_offset: float = 5.0,
    patience: float | None = None,
) -> list[list[Hypothesis]]:
    """Keeps the K best unfinished sequences of each sentence alive, and the best finished ones.

    At each step the one-token extensions of a sentence's K sequences are ranked by log-probability.
    Those of the first K that end with EOS are finished; the first K that do not end stay alive.

    A search ends for a sentence as soon as no sequence that is alive can still enter its ``n_best``
    finished ones. A log-probability can only fall, so ``log_prob / length_norm(max_len)`` bounds
    from above every score that a sequence can still reach; the best bound is compared with the last
    of the ``n_best``. Nothing is lost by stopping: without this rule the search would return the
    same. A beam of one is greedy search: it ends with its first EOS.

    With ``patience`` p, it also ends once p K of its sequences have finished, and ``n_best`` at
    least.

    A sequence that reaches its limit stays unfinished: no EOS is forced. Unfinished sequences fill
    the places that finished ones leave empty, and rank behind them.

    Equal log-probabilities are ranked by beam, then by token id, so the result depends on nothing
    but the sentence.

    Args:
        model: Gives the next token's logits; in evaluation mode.
        memory: What the model's encoder made of B sentences.
        beam_size: Number of sequences kept alive per sentence, K.
        length_penalty: Exponent of ``length_norm``, at least 0.
        n_best: Number of hypotheses per sentence, at most ``beam_size``.
        bos_id: Id of the token that every sequence begins with.
        eos_id: Id of the token that ends a sequence.
        max_len: Length limit of each sentence in tokens, EOS counted and BOS not, int64 (B,), on
            the model's device.
        suppress: Ids that are never chosen; the other log-probabilities stay what they are.
        length_offset: See ``length_norm``; at least 0.
        patience: p, above 0; None or inf: it ends when nothing better can come.

    Returns:
        For each sentence its hypotheses, best score first: ``n_best``, or fewer where fewer
        sequences have a probability above 0.

    Raises:
        ValueError: If an option is out of its range or the model gives no token a finite
            log-probability.

    Source: Sutskever et al. (2014), section 3.2, https://arxiv.org/abs/1409.3215; the length
    penalty and the beam of Vaswani et al. (2017), section 6.1, https://arxiv.org/abs/1706.03762;
    patience is Kasai et al. (2022), https://arxiv.org/abs/2204.05424.
    """
    return beams(
        model,
        [Sources.of(memory, max_len)],
        beam_size=beam_size,
        length_penalty=length_penalty,
        n_best=n_best,
        bos_id=bos_id,
        eos_id=eos_id,
        suppress=suppress,
        length_offset=length_offset,
        patience=patience,
    )


@torch.inference_mode()
@packed_weights()
def beams(
    model: StepModel[MemoryT, StateT],
    sources: Iterable[Sources[MemoryT]],
    *,
    beam_size: int,
    length_penalty: float,
    n_best: int,
    bos_id: int,
    eos_id: int,
    suppress: tuple[int, ...],
    length_offset: float,
    patience: float | None,
) -> list[list[Hypothesis]]:
    """Does what ``beam_search`` does for many sentences."""
    check_beam(beam_size=beam_size, n_best=n_best, patience=patience)
    check_length_norm(length_penalty=length_penalty, length_offset=length_offset)
    enough = None
    if patience is not None and math.isfinite(patience):
        enough = max(n_best, math.ceil(patience * beam_size))
    tree = Tree()
    norm = torch.empty(0)  # of each length
    num_sentences = 0
    done: list[_Sentences] = []

    def begin(memory: MemoryT, max_len: Tensor) -> Group[_Sentences, StateT] | None:
        nonlocal norm, num_sentences
        check_max_len(max_len)
        number = torch.arange(num_sentences, num_sentences + len(max_len), device=max_len.device)
        num_sentences += len(number)
        logits, state = model.step(torch.full_like(number, bos_id), model.init_state(memory))
        log_probs = next_log_probs(logits, suppress)
        longest = int(max_len.max())
        if longest >= len(norm):
            norm = log_probs.new_tensor(
                [length_norm(n, length_penalty, length_offset) for n in range(longest + 1)]
            )
        left = _Sentences(
            number=number,
            max_len=max_len,
            length=torch.zeros_like(number),
            alive=number.new_full((len(number), 1), tree.ROOT),
            log_prob=log_probs.new_zeros(len(number), 1),
            ended=number.new_full((len(number), n_best), tree.ROOT),
            score=log_probs.new_full((len(number), n_best), -torch.inf),
            num_ended=torch.zeros_like(number),
            over=torch.zeros_like(number, dtype=torch.bool),
        )
        return settle(left, log_probs, state)

    def advance(group: Group[_Sentences, StateT]) -> Group[_Sentences, StateT] | None:
        logits, state = model.step(group.token.flatten(), group.state)
        return settle(group.rows, next_log_probs(logits, suppress), state)

    def settle(
        left: _Sentences, log_probs: Tensor, state: StateT
    ) -> Group[_Sentences, StateT] | None:
        """Makes the living sequences one token longer, (n, 1) after BOS, then (n, K)."""
        width = left.alive.size(1)  # 1 after BOS, then K
        found = _extend(left.log_prob, log_probs, beam_size=beam_size)
        first_row = torch.arange(len(left.alive), device=log_probs.device).unsqueeze(1) * width
        node = tree.grow(
            left.alive.gather(1, found.beam),
            found.token,
            found.token_log_prob,
            row=first_row + found.beam,
            attention=last_attention(state),
        )
        length = left.length + 1
        left, beam, token = _settle(
            replace(left, length=length), found, node=node, norm=norm[length, None], eos_id=eos_id
        )
        bound = left.log_prob[:, 0] / norm[left.max_len]
        full = length >= left.max_len
        going = (bound > left.score[:, -1]) & ~full & ~left.over
        if beam_size == 1:
            going &= left.score[:, 0] == -torch.inf
        if enough is not None:
            going &= left.num_ended < enough
        new = ~going & ~left.over
        left = replace(left, over=~going)
        row = first_row + beam
        in_place = (row.flatten() == torch.arange(row.numel(), device=row.device)).all()
        # The only place of a step that waits for the device.
        told = torch.stack([left.over, new, full, in_place.expand_as(new)]).tolist()
        over, just_over, limits, (stays, *_) = told
        if any(just_over):
            done.append(left.take(_places(just_over, row.device)))
        if all(over):
            return None
        on = None
        places = places_that_stay(over, must=any(limits), width=row.size(1))
        if places is not None:
            on = torch.tensor(places, device=row.device)
            left, row, token = left.take(on), row[on], token[on]
        if not stays or on is not None:
            state = reorder_beams(state, row, on)
        return Group(left, token, state)

    take_turns(sources, begin=begin, advance=advance)
    if not done:
        return []
    return _hypotheses(
        done,
        tree,
        eos_id=eos_id,
        n_best=n_best,
        length_penalty=length_penalty,
        length_offset=length_offset,
    )
