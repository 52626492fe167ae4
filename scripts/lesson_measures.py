"""What the lesson says in numbers, measured on the runs of ``scripts/ablate.py``.

Each function takes trained models and returns plain numbers and tensors; ``lesson_pictures`` draws
them, ``lesson`` writes them into the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import litseq
from litseq.data.demo import load_demo
from litseq.layers.dot_product import DotProductAttention, attention_weights
from litseq.layers.positions import sinusoids

SENTENCE = "June 23, 2025, 7:00 PM"
"""The lesson's example, from the demo's test set: no model has seen it in training."""

TWINS = ("16 kilometers per hour", "61 kilometers per hour")
"""The same tokens in another order."""


def load(runs: Path, name: str, *, seed: int = 1) -> litseq.Seq2Seq:
    """Loads the best checkpoint of one of ``scripts/ablate.py``'s runs, in evaluation mode."""
    path = runs / name / f"seed-{seed}" / "checkpoints/best.ckpt"
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}; make it: python scripts/ablate.py --seeds {seed} "
            f"--only {name}"
        )
    return litseq.Seq2Seq.load_from_checkpoint(path)


@dataclass(frozen=True)
class Example:
    """One sentence as a model sees it.

    Attributes:
        module: The trained model.
        text: What the model made of the sentence.
        src: Source ids that end with EOS, int64 (1, S).
        tgt_in: The model's own translation behind BOS, int64 (1, T).
        src_pieces: What the S ids stand for.
        tgt_pieces: What the T outputs stand for; the last is EOS.
    """

    module: litseq.Seq2Seq
    text: str
    src: Tensor
    tgt_in: Tensor
    src_pieces: list[str]
    tgt_pieces: list[str]

    @classmethod
    def of(cls, module: litseq.Seq2Seq, sentence: str) -> Example:
        """Translates the sentence and reads the translation back in."""
        tokenizer = module.tokenizer
        assert tokenizer is not None
        text = module.translate([sentence])[0]
        src = tokenizer.encode_source([sentence])[0]
        tgt = tokenizer.encode_target([text])[0]
        bos = module.hparams["bos_id"]
        return cls(
            module,
            text,
            torch.tensor([src]),
            torch.tensor([[bos, *tgt[:-1]]]),
            tokenizer.source_pieces(src),
            tokenizer.target_pieces(tgt),
        )

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Logits of the translation under teacher forcing, float (T, V)."""
        network = self.module.network
        assert network is not None
        no_padding = torch.zeros_like(self.src, dtype=torch.bool)
        logits: Tensor = network(self.src, no_padding, self.tgt_in)
        return logits[0]


# ---- the recurrent models ----


@torch.inference_mode()
def hidden_states(example: Example, *, num_replacements: int = 40) -> dict[str, Any]:
    """Follows the encoder through time, and asks what its last state still knows of each token.

    Returns:
        ``states``, float (S, H), and ``influence``, float (S - 1,): how far the context vector
        moves, relative to its length, when a token gives way to another one, on average over
        ``num_replacements`` others.
    """
    network: Any = example.module.network
    src = example.src

    def read(ids: Tensor) -> Tensor:
        mask = torch.zeros_like(ids, dtype=torch.bool)
        states: Tensor = network.encoder(network.src_embedding(ids), mask)[0]
        return states

    states = read(src)[0]
    generator = torch.Generator().manual_seed(0)
    vocab_size = network.src_embedding.num_embeddings
    influence = []
    for place in range(src.size(1) - 1):  # EOS stays
        others = torch.randint(4, vocab_size, (num_replacements,), generator=generator)
        changed = src.repeat(num_replacements, 1)
        changed[:, place] = others
        moved = (read(changed)[:, -1] - states[-1]).norm(dim=-1) / states[-1].norm()
        influence.append(moved.mean())
    return {"states": states, "influence": torch.stack(influence)}


def attention_steps(example: Example) -> dict[str, Tensor]:
    """Scores and weights of every step of a recurrent model with attention.

    Returns:
        ``scores`` and ``weights``, each float (T, S).
    """
    attend: Any = example.module.network.attend  # type: ignore[union-attr]
    seen: list[tuple[Tensor, Tensor]] = []
    hook = attend.register_forward_pre_hook(
        lambda module, args: seen.append((module.scores(args[0], args[1])[0], args[0]))
    )
    with hook:
        example.run()
    scores = torch.cat([scores for scores, _ in seen])
    return {"scores": scores, "weights": scores.softmax(-1)}


# ---- the Transformer ----


@dataclass(frozen=True)
class Product:
    """The queries and keys of one attention, each float (1, H, T, d_k), and who may see whom."""

    kind: str
    q: Tensor
    k: Tensor
    is_causal: bool

    def dots(self) -> Tensor:
        """Dot products before any division, float (H, T, S)."""
        return (self.q @ self.k.transpose(-2, -1))[0]

    def weights(self) -> Tensor:
        """Attention weights, float (H, T, S)."""
        return attention_weights(self.q, self.k, is_causal=self.is_causal)[0]


@contextmanager
def products(network: nn.Module) -> Iterator[list[Product]]:
    """Collects what enters each attention of a litseq Transformer, in the order of the calls."""
    found: list[Product] = []

    def keep(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        kind, causal = str(module.kind), bool(options.get("is_causal"))
        found.append(Product(kind, args[0].detach(), args[1].detach(), causal))

    hooks = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in network.modules()
        if isinstance(module, DotProductAttention)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attentions(example: Example) -> dict[str, list[Product]]:
    """Every attention of a Transformer on one sentence, by kind, first layer first."""
    network = example.module.network
    assert network is not None
    with products(network) as found:
        example.run()
    return {
        kind: [product for product in found if product.kind == kind]
        for kind in ("encoder", "decoder", "cross")
    }


def arithmetic(product: Product, *, query: int, pieces: list[str]) -> dict[str, Any]:
    """One query's way to its weights, in the head that is surest of itself.

    Returns:
        Head number from 0, d_k, and for the three keys with the largest weights: piece, place,
        dot product, dot product divided by sqrt(d_k), weight, and weight without the division.
    """
    dots, weights = product.dots()[:, query], product.weights()[:, query]  # (H, S)
    head = int(weights.max(-1).values.argmax())
    undivided = dots[head].softmax(-1)
    width = product.q.size(-1)
    return {
        "head": head,
        "d_k": width,
        "query": pieces[query],
        "keys": [
            {
                "piece": pieces[place],
                "place": place,
                "dot": float(dots[head, place]),
                "score": float(dots[head, place]) / math.sqrt(width),
                "weight": float(weights[head, place]),
                "undivided": float(undivided[place]),
            }
            for place in weights[head].topk(3).indices.tolist()
        ],
    }


def layer_overlap(maps: list[Product]) -> float:
    """Share of the attention that the first and the last layer have in common, 0 to 1."""
    first, last = maps[0].weights().mean(0), maps[-1].weights().mean(0)  # (T, S)
    return float(torch.minimum(first, last).sum(-1).mean())


# ---- positions and scores ----


def position_products(num_positions: int = 64, d_model: int = 128) -> dict[str, Any]:
    """The codes, and the product of any two of them.

    Returns:
        ``codes``, float (P, D); ``products``, float (P, P); ``spread``: how much products of equal
        distance differ at most.
    """
    codes = sinusoids(num_positions, d_model).double()
    gram = codes @ codes.T
    spread = max(
        float(gram.diagonal(distance).max() - gram.diagonal(distance).min())
        for distance in range(num_positions)
    )
    return {"codes": codes, "products": gram, "spread": spread}


def random_scores(widths: tuple[int, ...], *, num_keys: int = 18) -> dict[str, list[float]]:
    """What independent queries and keys of variance 1 give, by width and divided or not.

    Returns:
        Per width: ``variance`` of the dot products; ``largest``, the mean of each softmax's largest
        weight, and ``gradient``, the mean Frobenius norm of its derivative, both with and without
        (``_undivided``) the division by sqrt(d_k).
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"variance": []}
    for width in widths:
        q, k = (
            torch.randn(2000, n, width, generator=generator, dtype=torch.float64)
            for n in (1, num_keys)
        )
        dots = (q @ k.transpose(1, 2))[:, 0]  # (2000, S)
        found["variance"].append(float(dots.var()))
        for suffix, scores in (("", dots / math.sqrt(width)), ("_undivided", dots)):
            w = scores.softmax(-1)
            jacobian = torch.diag_embed(w) - w[:, :, None] * w[:, None, :]
            found.setdefault(f"largest{suffix}", []).append(float(w.max(-1).values.mean()))
            gradient = float(jacobian.norm(dim=(1, 2)).mean())
            found.setdefault(f"gradient{suffix}", []).append(gradient)
    return found


def score_spread(module: litseq.Seq2Seq, *, num_sentences: int = 50) -> dict[str, float]:
    """How large a Transformer's dot products are on the demo's test sentences.

    Returns:
        Over all encoder self-attentions: ``std`` of the dot products of one query, before any
        division, and ``largest``, the mean largest weight as the model computes it.
    """
    network, tokenizer = module.network, module.tokenizer
    assert network is not None
    assert tokenizer is not None
    sources = [source for source, _ in load_demo("en", "zh", split="test")[:num_sentences]]
    scale = next(m.scale for m in network.modules() if isinstance(m, DotProductAttention))
    deviations, largest = [], []
    with products(network.eval()) as found, torch.inference_mode():
        for ids in tokenizer.encode_source(sources):
            src = torch.tensor([ids])
            network.encode(src, torch.zeros_like(src, dtype=torch.bool))
    for product in found:
        dots = product.dots()
        factor = 1 / math.sqrt(product.q.size(-1)) if scale is None else scale
        deviations.append(dots.std(-1).flatten())
        largest.append((dots * factor).softmax(-1).max(-1).values.flatten())
    return {"std": float(torch.cat(deviations).mean()), "largest": float(torch.cat(largest).mean())}


def untrained(module: litseq.Seq2Seq, *, seed: int = 1) -> litseq.Seq2Seq:
    """The same model before its first step."""
    torch.manual_seed(seed)
    fresh = type(module)(**module.hparams)
    fresh.configure_model()
    fresh.tokenizer = module.tokenizer
    return fresh.eval()
