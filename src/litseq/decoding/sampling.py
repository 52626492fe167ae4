"""Sampling from the model's distribution, whole or cut to its head."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from litseq.decoding.contract import MemoryT, StateT, StepModel
from litseq.decoding.greedy import unroll
from litseq.decoding.hypothesis import Hypothesis, best_first
from litseq.decoding.options import check_length_norm, check_max_len, check_sampling
from litseq.decoding.turns import Sources
from litseq.layers.linear import packed_weights

__all__ = ["sample_search"]

_BITS = 24
"""Bits of a random number: as many as float32 holds, so that none is rounded up to 1."""

_HEAD = 256
"""Number of tokens among which the nucleus is looked for first: sorting all of them is slow."""


@torch.inference_mode()
@packed_weights()
def sample_search(
    model: StepModel[MemoryT, StateT],
    memory: MemoryT,
    *,
    n_best: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    bos_id: int,
    eos_id: int,
    max_len: Tensor,
    suppress: tuple[int, ...] = (),
    length_penalty: float = 0.0,
    length_offset: float = 5.0,
    ids: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Draws every token from the model's distribution.

    ``top_k``, then temperature, then ``top_p`` shape the distribution that is drawn from; the
    hypothesis carries the log-probabilities of the model itself.

    Each sequence has random numbers of its own that follow from the seed, the sentence's id and the
    sample's number, and thus depend neither on the batch around it nor on the device; sentences
    with equal ids share them. The tokens that are drawn depend on the logits too, whose last bits
    may differ with both.

    Args:
        model: Gives the next token's logits; in evaluation mode.
        memory: What the model's encoder made of B sentences.
        n_best: Number of sequences drawn for each sentence; equal ones may be among them.
        temperature: Divides the log-probabilities; below 1 sharpens, above 1 flattens.
        top_k: Only the k most probable tokens can be drawn, and those equal to the last of them;
            0 = all of them.
        top_p: Only the most probable tokens that together reach this probability can be drawn, the
            one that crosses it included (the nucleus), and those equal to it; 1 = all of them.
        seed: Seed of the random numbers; None takes one from torch's global generator.
        bos_id: Id of the token that every sequence begins with.
        eos_id: Id of the token that ends a sequence.
        max_len: Length limit of each sentence in tokens, EOS counted and BOS not, int64 (B,), on
            the model's device. A sequence that reaches it stays unfinished: no EOS is forced.
        suppress: Ids that are never drawn; the others share their probability in drawing, but not
            in the log-probabilities of the hypothesis.
        length_penalty: Enters the score alone.
        length_offset: See ``length_norm``.
        ids: A number for each sentence, as its place in the corpus; None = 0 to B - 1.

    Returns:
        ``n_best`` hypotheses per sentence, best score first, the unfinished behind the finished.

    Raises:
        ValueError: If an option is out of its range, ``ids`` has not one number per sentence, or
            the model gives no token a finite log-probability.

    Source: Holtzman et al. (2020), section 3.1 (nucleus), https://arxiv.org/abs/1904.09751.
    """
    check_length_norm(length_penalty=length_penalty, length_offset=length_offset)
    check_max_len(max_len)
    check_sampling(n_best=n_best, temperature=temperature, top_k=top_k, top_p=top_p)
    num_sentences = max_len.size(0)
    ids = range(num_sentences) if ids is None else ids
    if len(ids) != num_sentences:
        raise ValueError(
            f"ids needs one number per sentence, got {len(ids)} for {num_sentences} sentences; "
            f"pass the batch's own ids, or None."
        )
    if num_sentences == 0:
        return []
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    uniform = _uniform(seed, ids=ids, num_samples=n_best, length=int(max_len.max()))
    uniform = uniform.to(max_len.device)  # (B * n_best, longest)

    def choose(log_probs: Tensor, row: Tensor, length: Tensor) -> Tensor:
        probs = (_keep_top_k(log_probs, top_k) / temperature).softmax(dim=-1)
        return _draw(_keep_top_p(probs, top_p), uniform[row, length - 1])

    drawn = unroll(
        model,
        [Sources.of(memory, max_len)],
        choose=choose,
        bos_id=bos_id,
        eos_id=eos_id,
        suppress=suppress,
        length_penalty=length_penalty,
        length_offset=length_offset,
        each=n_best,
    )
    return [
        best_first(drawn[first : first + n_best], eos_id=eos_id)
        for first in range(0, len(drawn), n_best)
    ]


def _uniform(seed: int, *, ids: Sequence[int], num_samples: int, length: int) -> Tensor:
    """Random numbers in [0, 1), float32 (B * num_samples, length); each row is its own stream."""
    rows = []
    for sentence in ids:
        for sample in range(num_samples):
            stream = random.Random(f"{seed} {sentence} {sample}")  # hashed: no two streams alike
            rows.append([stream.getrandbits(_BITS) for _ in range(length)])
    return torch.tensor(rows, dtype=torch.float32) / (1 << _BITS)


def _draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Draws one token per row by inverting the cumulative distribution.

    Args:
        probs: Probabilities, float (N, V); they need not add up to 1.
        uniform: Random numbers in [0, 1), float (N,).

    Returns:
        Token ids, int64 (N,), each of a probability above 0.
    """
    reached = probs.cumsum(dim=-1)
    target = uniform.unsqueeze(1).to(probs) * reached[:, -1:]
    # The first sum above the target is raised by a probability above 0. NaNs end beyond the row.
    token: Tensor = torch.searchsorted(reached, target, right=True)
    return token.clamp(max=probs.size(1) - 1).squeeze(1)


def _keep_top_k(log_probs: Tensor, top_k: int) -> Tensor:
    """Sets all but the k largest of each row to -inf; what equals the k-th stays, float (N, V)."""
    if not 0 < top_k < log_probs.size(1):
        return log_probs
    least = log_probs.topk(top_k, dim=-1).values[:, -1:]
    return log_probs.masked_fill(log_probs < least, -torch.inf)


def _keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Sets all but the nucleus of each row to 0; what equals its least stays, float (N, V)."""
    if top_p >= 1:
        return probs
    size = min(_HEAD, probs.size(1))
    largest = probs.topk(size, dim=-1).values
    while size < probs.size(1) and bool((largest.sum(dim=-1) < top_p).any()):
        size = min(8 * size, probs.size(1))
        largest = probs.topk(size, dim=-1).values
    before = F.pad(largest.cumsum(dim=-1)[:, :-1], (1, 0))  # 0 for the first: it always stays
    least = largest.masked_fill(before >= top_p, torch.inf).amin(dim=-1, keepdim=True)
    return probs.masked_fill(probs < least, 0.0)
