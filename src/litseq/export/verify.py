"""Whether an exported model does what the checkpoint does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litseq.data.collate import collate
from litseq.decoding import SearchOptions
from litseq.engines import CTranslate2Translator, MarianTranslator
from litseq.evaluation import corpus_scores
from litseq.losses import IGNORE
from litseq.task import Seq2Seq
from litseq.textfiles import open_input, read_lines
from litseq.translator import TextTranslator, Translator
from litseq.types import Batch

__all__ = [
    "MAX_LENGTH",
    "TOLERANCE",
    "bleu_of_both",
    "compare",
    "compare_marian",
    "read_references",
    "read_sentences",
    "sentences_of",
]

TOLERANCE = 1e-4
"""How far a score may be from ours, as a share of the largest: sums have another order there."""

LOSS = 0.1
"""Nats that a token's log-probability may be off on average where weights are rounded."""

MAX_LENGTH = 100
"""Tokens that a translation has at most while the two are compared."""

_BATCH = 32


def read_sentences(name: str | None) -> list[str] | None:
    """Reads what two models are compared on, one sentence a line; a blank one is left out there.

    Args:
        name: The file; None: none is given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no sentence, or something else than text.
    """
    if name is None:
        return None
    with open_input(name) as file:
        texts = list(read_lines(file, name))
    if not any(text.strip() for text in texts):
        raise ValueError(f"{name} holds no sentence to compare on.")
    return texts


def read_references(name: str, texts: Sequence[str] | None) -> list[str]:
    """Reads the translations of the sentences.

    Args:
        name: The file.
        texts: What ``read_sentences`` read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are no sentences, or more or fewer than lines.
    """
    if texts is None:
        raise ValueError(f"{name} holds translations of what? Give the sentences by --input.")
    with open_input(name) as file:
        references = list(read_lines(file, name))
    if len(references) != len(texts):
        raise ValueError(
            f"{name} has {len(references)} lines for {len(texts)} sentences of --input; give one "
            f"for each."
        )
    return references


@torch.no_grad()
def compare(
    model: Seq2Seq,
    theirs: Translator | MarianTranslator | CTranslate2Translator,
    *,
    texts: Sequence[str] | None = None,
    exact: bool = True,
) -> dict[str, Any]:
    """Runs a model and what was made of it on the same sentences.

    Args:
        model: The one, in evaluation mode on the CPU.
        theirs: The other.
        texts: Sentences; None: 64 of random pieces.
        exact: Whether nothing was rounded: then scores and greedy translations have to be equal.

    Returns:
        Number of sentences; the largest logit; the largest and the mean gap between two logits, or
        two log-probabilities of a token where the other tells nothing else; how many translations
        are equal with a beam of 1 and of 4 (of those that end before the limit).

    Raises:
        ValueError: If scores or greedy translations differ.
    """
    ours, tokenizer = model.translator(), model.tokenizer
    assert ours is not None
    assert tokenizer is not None
    texts = sentences_of(model, texts)
    encoded = tokenizer.encode_source(texts)
    equal, ended_beam = {1: 0, 4: 0}, 0
    largest, sum_of_gaps, count = 0.0, 0.0, 0
    largest_gaps = []
    for start in range(0, len(texts), _BATCH):
        sources = encoded[start : start + _BATCH]
        batch = collate(sources, pad_id=ours.pad_id)
        for beam_size in equal:
            options = SearchOptions(
                beam_size=beam_size, length_penalty=1.0, length_offset=0, max_len_a=0,
                max_len_b=MAX_LENGTH,
            )  # fmt: skip
            other = [best.tokens for best, *_ in theirs.search(batch, options)]
            for [mine, *_], tokens in zip(ours.search(batch, options), other, strict=True):
                # at the limit Marian takes what is more probable, and we take what has ended
                ended = tokens[-1:] == (ours.eos_id,)
                ended_beam += beam_size > 1 and ended
                if beam_size == 1 or ended:
                    equal[beam_size] += mine.tokens == tokens
        # teacher forcing along what it says itself, where it has to be right
        said = collate(sources, other, pad_id=ours.pad_id)
        logits = ours.logits(said)
        largest = max(largest, float(logits.abs().max()))
        gap = _gaps(logits, theirs, said)
        largest_gaps.append(gap.max())
        sum_of_gaps += float(gap.sum(dtype=torch.float64))
        count += gap.numel()
    report = {
        "sentences": len(texts),
        "largest_logit": largest,
        "largest_gap": float(torch.stack(largest_gaps).max()),  # NaN if one is
        "mean_gap": sum_of_gaps / count,
        "equal_greedy": equal[1],
        "ended_beam": ended_beam,
        "equal_beam": equal[4],
    }
    _check(report, exact=exact)
    return report


def _gaps(
    logits: Tensor, theirs: Translator | MarianTranslator | CTranslate2Translator, batch: Batch
) -> Tensor:
    labels = batch["labels"]
    token = labels != IGNORE
    if isinstance(theirs, CTranslate2Translator):
        chosen = labels.clamp(min=0)[..., None]
        log_probs = logits.log_softmax(-1).gather(-1, chosen)[..., 0]
        return (theirs.log_probs(batch) - log_probs)[token].abs()
    return (theirs.logits(batch) - logits)[token].abs().flatten()


def _check(report: dict[str, Any], *, exact: bool) -> None:
    if not exact:
        if not report["mean_gap"] <= LOSS:
            raise ValueError(
                f"rounding the weights moves the log-probability of a token by "
                f"{report['mean_gap']:.2g} nats on average, which is above {LOSS}; nothing was "
                f"written: export it with more bits."
            )
        return
    if not report["largest_gap"] <= TOLERANCE * report["largest_logit"]:
        raise ValueError(
            f"logits of the two models differ by {report['largest_gap']:.1e}, where the largest is "
            f"{report['largest_logit']:.3g}; nothing was written."
        )
    if report["equal_greedy"] < report["sentences"]:
        raise ValueError(
            f"only {report['equal_greedy']} of {report['sentences']} greedy translations of the "
            f"two models are equal; nothing was written."
        )


def compare_marian(
    model: Seq2Seq, folder: Path, *, texts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Compares a model with what transformers makes of a folder.

    Returns:
        What ``compare`` does.

    Raises:
        ValueError: If ids, logits or greedy translations differ.
        ModuleNotFoundError: If transformers is not installed.
    """
    assert model.tokenizer is not None
    theirs = MarianTranslator.load(folder, model.tokenizer)
    texts = sentences_of(model, texts)
    ids = model.tokenizer.encode_source(texts)
    for number, (text, encoded) in enumerate(zip(texts, ids, strict=True), 1):
        if theirs.reader(text).input_ids != encoded:
            raise ValueError(
                f"sentence {number}, {text!r}, has other ids in MarianTokenizer than here; leave "
                f"it out if it spells a special piece such as </s>."
            )
    return compare(model, theirs, texts=texts)


def bleu_of_both(
    model: Seq2Seq, theirs: TextTranslator, *, texts: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    """Scores the translations of a test set by both, searched as the model's options say.

    Returns:
        BLEU of the checkpoint and of the export, and the signature.
    """
    ours, tokenizer = model.translator(), model.tokenizer
    assert ours is not None
    assert tokenizer is not None
    found: dict[str, Any] = {}
    for name, translator in (("checkpoint", ours), ("export", theirs)):
        translations = translator.translate(
            texts, model.search_options, max_tokens=4096, max_src_len=256,
            device=torch.device("cpu"),
        )  # fmt: skip
        scores = corpus_scores(
            [translation.text for translation in translations],
            references,
            tgt_lang=tokenizer.tgt_lang,
            ter=False,
        )
        found |= {name: scores.bleu, "signature": scores.signatures["bleu"]}
    return found


def sentences_of(model: Seq2Seq, texts: Sequence[str] | None) -> list[str]:
    """Returns those that are not blank; random ones where none are given."""
    return _random_texts(model) if texts is None else [text for text in texts if text.strip()]


def _random_texts(model: Seq2Seq) -> list[str]:
    """Draws 64 sentences of random source pieces, always the same."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    generator = torch.Generator().manual_seed(0)
    special = {tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id}
    known = [i for i in range(tokenizer.src_vocab_size) if i not in special]
    texts: list[str] = []
    while len(texts) < 64:
        length = int(torch.randint(1, 30, (), generator=generator))
        drawn = torch.randint(len(known), (length,), generator=generator)
        text = tokenizer.decode_source(known[int(i)] for i in drawn)
        if text.strip():
            texts.append(text)
    return texts
