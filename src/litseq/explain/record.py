"""Everything that a report shows of some translations, as one JSON object."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import litseq
from litseq.attention.words import word_numbers
from litseq.data.tokenizer import TranslationTokenizer
from litseq.decoding import Hypothesis, SearchOptions
from litseq.explain.arrays import Json, numbers, size
from litseq.explain.custom import CustomExplainer
from litseq.explain.forward import Explainer, Forward, Room, forward
from litseq.explain.rnn import RnnExplainer
from litseq.explain.rnn_attention import RnnAttentionExplainer
from litseq.explain.transformer import Head, TransformerExplainer
from litseq.models import Rnn, RnnAttention, Seq2SeqModel, Transformer
from litseq.task import Seq2Seq
from litseq.translator import Translator
from litseq.types import Batch

__all__ = ["FORMAT", "explain_translations"]

_log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when a page could no longer read the record of an older litseq."""

_TOP = 5
_WANTED = 165_000  # bytes of a sentence; a page of 300 KB has room for them
_LIMIT = 2_600_000  # bytes of all sentences; a page should never be larger than 3 MB
_MAX_LEFT_OUT = 10_000  # source times target tokens: beyond, leaving tokens out takes minutes


def explain_translations(
    module: Seq2Seq,
    texts: Sequence[str],
    *,
    translations: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    options: SearchOptions | None = None,
    heads: Sequence[Head] = (),
    max_src_len: int = 256,
) -> Json:
    """Translates sentences and writes down how each translation came about.

    The search runs first. Then the model reads source and translation once more, teacher-forced,
    while its parts are watched: what is recorded belongs to the translation that came out, and its
    log-probability must be the one that the search found.

    Args:
        module: With network and tokenizer, such as one from a checkpoint.
        texts: Source sentences.
        translations: Explains these instead of searching, one for each source.
        references: Shown beside, one for each source.
        options: How to search; all hypotheses of the beam are recorded. None: as the module says.
        heads: Heads of a Transformer to record number by number, before others; as many follow as
            there is room for.
        max_src_len: Tokens that are read at most of a source, or of a given translation; longer
            ones are cut, with a warning.

    Returns:
        The record that ``litseq.explain.page`` draws: ``model``, ``search`` and ``sentences``, all
        of which JSON can hold.

    Raises:
        ValueError: If there is no text, a text is blank or not UTF-8, the numbers of texts differ,
            the module has no tokenizer or no such head, its weights are damaged, or if teacher
            forcing finds another log-probability than the search.
    """
    _check_texts(texts, translations, references)
    if max_src_len < 2:
        raise ValueError(
            f"max_src_len must be at least 2, a token and EOS, got {max_src_len}; the default is "
            f"256."
        )
    if not isinstance(module.tokenizer, TranslationTokenizer):
        raise ValueError(
            "explaining a translation needs a litseq tokenizer; load a litseq checkpoint that "
            "holds one."
        )
    module.configure_model()
    assert module.network is not None
    h: Any = module.hparams
    writer = _Writer(
        Translator(
            module.tokenizer,
            pad_id=h.pad_id,
            bos_id=h.bos_id,
            eos_id=h.eos_id,
            model=module.network,
        ),
        module.tokenizer,
        _explainer(module.network, heads),
        options=_whole_beam(options or module.search_options),
        max_len=max_src_len,
        device=module.device,
    )
    limit = _LIMIT // len(texts)
    room = Room(wanted=min(_WANTED, limit), limit=limit)
    nothing = [None] * len(texts)
    training = module.training
    module.eval()
    try:
        sentences = [
            writer.sentence(number, *parts, room=room)
            for number, parts in enumerate(
                zip(texts, translations or nothing, references or nothing, strict=True), 1
            )
        ]
    finally:
        module.train(training)
    return {
        "format": FORMAT,
        "litseq": litseq.__version__,
        # a model of somebody's own is known only now
        "model": _model(module, writer.explainer.architecture),
        "search": {
            "beam_size": writer.options.beam_size,
            "length_penalty": writer.options.length_penalty,
            "length_offset": writer.options.length_offset,
        },
        "sentences": sentences,
    }


def _check_texts(
    texts: Sequence[str], translations: Sequence[str] | None, references: Sequence[str] | None
) -> None:
    if not texts:
        raise ValueError("there is no sentence to explain; give one or more.")
    for name, others in (("translations", translations), ("references", references)):
        if others is not None and len(others) != len(texts):
            raise ValueError(
                f"{len(others)} {name} do not fit {len(texts)} sentences; give one for each."
            )
    everything = (
        ("sentence", texts),
        ("translation", translations or ()),
        ("reference", references or ()),
    )
    for name, given in everything:
        for number, text in enumerate(given, 1):
            if not text.strip() and name != "reference":
                raise ValueError(f"{name} {number} is blank; there is nothing to explain.")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"{name} {number} is not UTF-8, {text!r}; convert it to UTF-8.")


def _explainer(network: Seq2SeqModel, heads: Sequence[Head]) -> Explainer:
    if isinstance(network, Transformer):
        return TransformerExplainer(network, heads)
    if heads:
        raise ValueError(
            f"only a Transformer has heads, got {heads[0]} for {type(network).__name__}; leave "
            f"out the head."
        )
    if isinstance(network, RnnAttention):
        return RnnAttentionExplainer(network)
    if isinstance(network, Rnn):
        return RnnExplainer(network)
    return CustomExplainer(network)


def _whole_beam(options: SearchOptions) -> SearchOptions:
    return replace(options, n_best=options.beam_size, sample=False)


def _model(module: Seq2Seq, architecture: str) -> Json:
    assert module.network is not None
    assert module.tokenizer is not None
    own = inspect.signature(type(module)).parameters.keys() - inspect.signature(Seq2Seq).parameters
    return {
        "architecture": architecture,
        "class": type(module).__name__,
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "options": {
            name: value
            for name, value in module.hparams.items()
            if name in own and _is_shown(value)
        },
        "src_lang": module.tokenizer.src_lang,
        "tgt_lang": module.tokenizer.tgt_lang,
        "src_vocab_size": module.tokenizer.src_vocab_size,
        "tgt_vocab_size": module.tokenizer.tgt_vocab_size,
    }


def _is_shown(value: object) -> bool:
    """Whether an option may be on a page for others: paths of this machine may not."""
    if isinstance(value, str):
        return not {"/", "\\"} & set(value)
    return value is None or isinstance(value, (bool, int, float))


class _Writer:
    """Writes the record of one sentence after the other."""

    def __init__(
        self,
        translator: Translator,
        tokenizer: TranslationTokenizer,
        explainer: Explainer,
        *,
        options: SearchOptions,
        max_len: int,
        device: torch.device,
    ) -> None:
        self.translator = translator
        self.tokenizer = tokenizer
        self.explainer = explainer
        self.options = options
        self.max_len = max_len
        self.device = device

    @torch.inference_mode()
    def sentence(
        self, number: int, text: str, translation: str | None, reference: str | None, *, room: Room
    ) -> Json:
        """Writes one sentence; with a translation it does not search."""
        tokenizer, bos_id = self.tokenizer, self.translator.bos_id
        src = self._ids(tokenizer.encode_source([text])[0], f"sentence {number}")
        found: list[Hypothesis] = []
        if translation is None:
            ones = torch.ones_like(src)[None]
            batch = Batch(input_ids=src[None], attention_mask=ones)
            (found,) = self.translator.search(batch, self.options)
            tgt = src.new_tensor(found[0].tokens)
        else:
            tgt = self._ids(tokenizer.encode_target([translation])[0], f"translation {number}")
        seen = forward(
            self.translator.model, src, tgt, bos_id=bos_id, methods=self.explainer.methods()
        )
        log_probs = _chosen(seen.logits, tgt)
        log_prob = math.fsum(log_probs.tolist())
        if not math.isfinite(log_prob):
            raise ValueError(
                f"sentence {number}: the model gives the translation a log-probability of "
                f"{log_prob}; its weights are damaged, or training diverged."
            )
        if found:
            _check_log_prob(number, found[0].log_prob, log_prob)
        left_out: Json = {}
        without: list[float | None] = []
        if src.numel() * tgt.numel() <= _MAX_LEFT_OUT:
            without = [*numbers(self._leave_one_out(seen)), None]
        else:
            left_out["leave_one_out"] = True
        src_tokens = tokenizer.source_pieces(src.tolist())
        tgt_tokens = tokenizer.target_pieces(tgt.tolist())
        tgt_in = seen.tgt_in[0].tolist()
        sentence = {
            "source": text,
            "output": tokenizer.decode(tgt.tolist()),
            "reference": reference,
            "forced": translation is not None,
            "finished": int(tgt[-1]) == self.translator.eos_id,
            "log_prob": log_prob,
            "search_log_prob": found[0].log_prob if found else None,
            "score": found[0].score if found else None,
            "src": {
                "tokens": src_tokens,
                "ids": src.tolist(),
                "words": word_numbers(src_tokens),
            },
            "tgt": {
                "tokens": tgt_tokens,
                "ids": tgt.tolist(),
                "words": word_numbers(tgt_tokens),
            },
            "tgt_in": {"tokens": tokenizer.target_pieces(tgt_in), "ids": tgt_in},
            "steps": self._steps(seen.logits, log_probs),
            "candidates": [self._candidate(hypothesis) for hypothesis in found],
            "leave_one_out": without,
        }
        spent = size(sentence)
        detail, less = self.explainer.describe(
            seen, Room(wanted=room.wanted - spent, limit=room.limit - spent)
        )
        return {**sentence, "left_out": {**left_out, **less}, "detail": detail}

    def _ids(self, ids: list[int], name: str) -> Tensor:
        if len(ids) > self.max_len:
            _log.warning(
                "%s has %d tokens and was cut to max_src_len=%d.", name, len(ids), self.max_len
            )
            ids = [*ids[: self.max_len - 1], self.translator.eos_id]
        return torch.tensor(ids, device=self.device)

    def _steps(self, logits: Tensor, log_probs: Tensor) -> list[Json]:
        """What each step thought of its token, and of the best ones."""
        top = logits.topk(min(_TOP, logits.size(1)))
        best = logits.log_softmax(-1).gather(1, top.indices).exp()
        columns = (top.indices.tolist(), map(numbers, best), map(numbers, top.values))
        return [
            {
                "prob": prob,
                "logsumexp": total,
                "top": [
                    {"token": token, "id": i, "prob": p, "logit": logit}
                    for token, i, p, logit in zip(
                        self.tokenizer.target_pieces(ids), ids, probs, values, strict=True
                    )
                ],
            }
            for prob, total, ids, probs, values in zip(
                numbers(log_probs.exp()), numbers(logits.logsumexp(-1)), *columns, strict=True
            )
        ]

    def _candidate(self, hypothesis: Hypothesis) -> Json:
        return {
            "text": self.tokenizer.decode(hypothesis.tokens),
            "tokens": self.tokenizer.target_pieces(hypothesis.tokens),
            "log_prob": hypothesis.log_prob,
            "score": hypothesis.score,
        }

    def _leave_one_out(self, seen: Forward) -> Tensor:
        """The log-probability of the same translation without each source token but EOS."""
        (src,) = seen.src
        totals = [
            _chosen(
                forward(
                    self.translator.model,
                    torch.cat((src[:place], src[place + 1 :])),
                    seen.tgt,
                    bos_id=self.translator.bos_id,
                ).logits,
                seen.tgt,
            ).sum()
            for place in range(src.numel() - 1)
        ]
        return torch.stack(totals) if totals else seen.logits.new_empty(0)


def _chosen(logits: Tensor, tgt: Tensor) -> Tensor:
    """Log-probabilities of the given tokens, float (T,)."""
    return logits.log_softmax(-1).gather(1, tgt[:, None])[:, 0]


def _check_log_prob(number: int, searched: float, forced: float) -> None:
    # float32 on both sides, over other shapes; a wrong hypothesis is off by whole nats
    if not math.isclose(searched, forced, rel_tol=1e-4, abs_tol=1e-3):
        raise ValueError(
            f"sentence {number}: the search found a log-probability of {searched:.6f}, teacher "
            f"forcing the same tokens {forced:.6f}; decode and step of the model disagree."
        )
