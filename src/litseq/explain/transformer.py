"""What a report shows of a Transformer: every attention, and some heads number by number."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor

from litseq.attention.summaries import confidence, summarize
from litseq.explain.arrays import Json, array, as_bytes, digest, numbers, size
from litseq.explain.forward import Forward, Method, Room
from litseq.layers.dot_product import attention_weights
from litseq.layers.multihead import MultiheadAttention
from litseq.layers.positions import LearnedPositions, NoPositions, SinusoidalPositions
from litseq.models import Transformer
from litseq.types import AttentionKind

__all__ = ["Head", "TransformerExplainer"]

_POSITIONS = {
    SinusoidalPositions: "sinusoidal",
    LearnedPositions: "learned",
    NoPositions: "none",
}
_MOST_TELLING: tuple[AttentionKind, ...] = ("cross", "encoder", "decoder")


@dataclass(frozen=True)
class Head:
    """One head of a Transformer.

    Attributes:
        kind: Its attention.
        layer: Its encoder or decoder layer, from 0.
        head: Its number in the layer, from 0.
    """

    kind: AttentionKind
    layer: int
    head: int

    @classmethod
    def parse(cls, text: str) -> Head:
        """Reads ``cross:2:4``: kind, layer and head, counted from 1 as on the page.

        Raises:
            ValueError: If the text is something else.
        """
        kinds = get_args(AttentionKind)
        found = re.fullmatch(rf"({'|'.join(kinds)}):([1-9]\d*):([1-9]\d*)", text)
        if found is None:
            raise ValueError(
                f"a head is written kind:layer:head, such as cross:2:4, got {text!r}; kinds are "
                f"{', '.join(kinds)}, layers and heads count from 1."
            )
        kind = cast("AttentionKind", found[1])
        return cls(kind, int(found[2]) - 1, int(found[3]) - 1)

    def __str__(self) -> str:
        return f"{self.kind}:{self.layer + 1}:{self.head + 1}"


@dataclass(frozen=True)
class _Attention:
    """One attention of the model as it computed, for one sentence.

    Attributes:
        kind: Who looks at whom.
        layer: Encoder or decoder layer, from 0.
        module: What computed.
        q: Queries, float (H, T, d_k).
        k: Keys, float (H, S, d_k).
        v: Values, float (H, S, d_k).
        output: The model's weighted sums, float (H, T, d_k).
        weights: float32 (H, T, S).
    """

    kind: AttentionKind
    layer: int
    module: MultiheadAttention
    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    weights: Tensor

    @property
    def confidence(self) -> Tensor:
        """How sure each head is, on the average over its queries, float (H,)."""
        return confidence(self.weights).mean(-1)


class TransformerExplainer:
    """Watches every attention of a Transformer, and what the decoder layers get of the encoder.

    Args:
        network: The model, in evaluation mode.
        heads: Heads to show number by number, before others.

    Raises:
        ValueError: If the model has no such head.
    """

    architecture = "transformer"

    def __init__(self, network: Transformer, heads: Sequence[Head] = ()) -> None:
        self._network = network
        self._attentions: dict[tuple[AttentionKind, int], MultiheadAttention] = {}
        for number, encoder_layer in enumerate(network.encoder_layers):
            self._attentions["encoder", number] = encoder_layer.self_attn
        for number, decoder_layer in enumerate(network.decoder_layers):
            self._attentions["decoder", number] = decoder_layer.self_attn
        for number, decoder_layer in enumerate(network.decoder_layers):
            if decoder_layer.cross_attn is not None:
                self._attentions["cross", number] = decoder_layer.cross_attn
        for head in heads:
            self._check(head)
        self._heads = tuple(dict.fromkeys(heads))

    def _check(self, head: Head) -> None:
        module = self._attentions.get((head.kind, head.layer))
        if module is None or head.head >= module.num_heads:
            layers = ", ".join(
                f"{kind}:{number + 1} (heads 1 to {attention.num_heads})"
                for (kind, number), attention in self._attentions.items()
                if kind == head.kind
            )
            raise ValueError(f"the model has no head {head}; it has {layers}.")

    def methods(self) -> Iterable[Method]:
        """The positions, every product of attention, and the projections of the cross-attention.

        The encoder's output is handed to a decoder layer as an argument of the projection of keys
        and values, and nowhere else.
        """
        yield self._network.positions, "forward"
        for (kind, _), module in self._attentions.items():
            yield module.product, "forward"
            if kind == "cross":
                yield module, "queries"
                yield module, "keys_values"

    def describe(self, seen: Forward, room: Room) -> tuple[Json, Json]:
        """Describes a forward pass; heads of maps, and heads in numbers, as many as fit."""
        attentions = list(self._seen(seen))
        order = list(self._by_interest(attentions))
        detail = {
            "d_model": self._network.d_model,
            "d_k": attentions[0].q.size(-1),
            "scale": _scale(attentions[0].module),
            "positions": self._positions(seen),
            "embedding": self._embedding(seen),
            "memory": self._memory(seen),
        }
        spent = size(detail)

        heads: list[Json] = []
        first = _numbers(*order[0])
        # it is the arithmetic that the page is about; in a very long sentence maps take the rest
        if spent + size(first) <= 0.8 * room.limit:
            heads.append(first)
            spent += size(first)

        kept = _fitting(order, room.limit - spent)
        maps = [_map(a, kept[a.kind, a.layer]) for a in attentions if kept[a.kind, a.layer]]
        spent += size(maps)
        left_out: Json = {}
        if hidden := len(order) - sum(map(len, kept.values())):
            left_out["maps"] = hidden

        for attention, number in order[len(heads) :] if heads else ():
            head = _numbers(attention, number)
            spent += size(head)
            if spent > room.wanted:
                break
            heads.append(head)
        if len(heads) < len(order):
            left_out["heads"] = len(order) - len(heads)
        return {**detail, "attention": maps, "heads": heads}, left_out

    def _seen(self, seen: Forward) -> Iterator[_Attention]:
        for (kind, layer), module in self._attentions.items():
            (call,) = seen.calls.of(module.product)
            q, k, v = call.args
            masks = {name: call.kwargs[name] for name in ("attn_mask", "is_causal")}
            weights = attention_weights(q, k, scale=module.product.scale, **masks)
            yield _Attention(kind, layer, module, q[0], k[0], v[0], call.output[0], weights[0])

    def _by_interest(self, attentions: Sequence[_Attention]) -> Iterator[tuple[_Attention, int]]:
        """All heads: those asked for, the surest of each kind's last layer, then the rest."""
        places = {(a.kind, a.layer): a for a in attentions}
        found: list[tuple[AttentionKind, int, int]] = [
            (head.kind, head.layer, head.head) for head in self._heads
        ]
        for kind in _MOST_TELLING:
            last = [a for a in attentions if a.kind == kind][-1]
            found.append((kind, last.layer, int(last.confidence.argmax())))
        for attention in reversed(attentions):
            sure = attention.confidence.argsort(descending=True, stable=True)
            found += [(attention.kind, attention.layer, head) for head in sure.tolist()]
        for kind, layer, head in dict.fromkeys(found):
            yield places[kind, layer], head

    def _positions(self, seen: Forward) -> Json:
        rotary = self._network.rotary
        kind = "rotary" if rotary else _POSITIONS[type(self._network.positions)]
        # two are enough to compare a formula with
        count = min(2 if kind in ("sinusoidal", "rotary") else 8, seen.src.size(1))
        # sines and cosines of the width of a head, if they turn; else of the width of embeddings
        return {"kind": kind, "src": array(rotary(count) if rotary else self._codes(count))}

    def _codes(self, count: int) -> Tensor:
        """Asks the module itself: zeros in, codes out, float (count, D)."""
        like = self._network.output.weight
        zeros = like.new_zeros(1, count, self._network.d_model)
        codes: Tensor = self._network.positions(zeros)[0]
        return codes

    def _embedding(self, seen: Forward) -> Json:
        source, _ = seen.calls.of(self._network.positions)  # the target's comes second
        (x,) = source.args
        token = min(1, x.size(1) - 1)  # at position 0 every sine is 0
        return {
            "token": token,
            "vector": array(x[0, token]),
            "code": array(self._codes(token + 1)[token]),
            "sum": array(source.output[0, token]),
            "factor": math.sqrt(self._network.d_model),
        }

    def _memory(self, seen: Forward) -> Json:
        layers = []
        for number in range(len(self._network.decoder_layers)):
            layer: Json = {"layer": number, "digest": None, "query_digest": None}
            if (module := self._attentions.get(("cross", number))) is not None:
                (product,) = seen.calls.of(module.product)
                (queries,) = seen.calls.of(module, "queries")
                (keys_values,) = seen.calls.of(module, "keys_values")
                q, k, v = product.args
                layer["query_digest"] = _origin([q], queries.args[0], [queries.output])
                layer["digest"] = _origin([k, v], keys_values.args[0], keys_values.output)
            layers.append(layer)
        (output,) = seen.memory.output
        return {
            "shape": list(output.shape),
            "digest": digest(output),
            "first": numbers(output[0, :4]),
            "layers": layers,
        }


def _origin(used: Sequence[Tensor], given: Tensor, made: Sequence[Tensor]) -> str:
    """Digest of the rows that a projection was given, if the attention used what it made of them.

    Otherwise something came between them, and the digest is that of what was used.
    """
    if all(map(torch.equal, used, made)):
        return digest(given)
    return digest(*used)


def _scale(module: MultiheadAttention) -> float:
    scale = module.product.scale
    return 1 / math.sqrt(module.head_dim) if scale is None else scale


def _map(attention: _Attention, heads: list[int]) -> Json:
    norms = _value_norms(attention)[heads]
    longest = norms.max().clamp(min=torch.finfo(norms.dtype).tiny)
    return {
        "kind": attention.kind,
        "layer": attention.layer,
        "heads": heads,
        "weights": array(as_bytes(attention.weights[heads])),
        "value_norms": {
            **array((norms / longest * 255).round().to(torch.uint8)),
            "max": numbers([longest])[0],
        },
        "summary": {
            name: numbers(values, digits=4)
            for name, values in summarize(attention.weights[None]).items()
        },
    }


def _fitting(
    order: Iterable[tuple[_Attention, int]], room: int
) -> dict[tuple[AttentionKind, int], list[int]]:
    """Chooses whose maps are kept: as many heads as fit, by kind and layer, sorted."""
    kept: dict[tuple[AttentionKind, int], list[int]] = defaultdict(list)
    for attention, head in order:
        room -= size(array(as_bytes(attention.weights[head])))
        if room < 0:
            break
        kept[attention.kind, attention.layer].append(head)
    return defaultdict(list, {place: sorted(heads) for place, heads in kept.items()})


def _value_norms(attention: _Attention) -> Tensor:
    """How long each value is as it enters the residual stream, float (H, S).

    A head's values pass through its own columns of W_O. A long look at a short value moves nothing.

    Source: Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102.
    """
    heads, _, width = attention.v.shape
    columns = attention.module.out_proj.weight.view(-1, heads, width)
    moved = torch.einsum("hsk,dhk->hsd", attention.v, columns)
    norms: Tensor = torch.linalg.vector_norm(moved, dim=-1)
    return norms


def _numbers(attention: _Attention, head: int) -> Json:
    return {
        "kind": attention.kind,
        "layer": attention.layer,
        "head": head,
        "q": array(attention.q[head]),
        "k": array(attention.k[head]),
        "v": array(attention.v[head]),
        "weights": array(attention.weights[head]),
        "output": array(attention.output[head]),
    }
