"""Whether an exported model does what the checkpoint does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from litseq.decoding import SearchOptions
from litseq.task import Seq2Seq
from litseq.textfiles import open_input, read_lines

__all__ = ["MAX_LENGTH", "TOLERANCE", "compare_marian", "read_sentences"]

TOLERANCE = 1e-4
"""How far a logit may be from ours, as a share of the largest: sums have another order there."""

_BATCH = 32
MAX_LENGTH = 100
"""Tokens that a translation has at most while the two are compared."""


def read_sentences(name: str | None) -> list[str] | None:
    """Reads what two models are compared on: the lines of a file that are not blank.

    Args:
        name: The file; None: none is given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no sentence, or something else than text.
    """
    if name is None:
        return None
    with open_input(name) as file:
        texts = [line for line in read_lines(file, name) if line.strip()]
    if not texts:
        raise ValueError(f"{name} holds no sentence to compare on.")
    return texts


@torch.no_grad()
def compare_marian(
    model: Seq2Seq, folder: Path, *, texts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Runs model and export on the same sentences.

    Args:
        model: What was exported.
        folder: What ``write_marian`` wrote.
        texts: Sentences; None: 64 of random pieces.

    Returns:
        Number of sentences, the largest logit, the largest gap between two, how many translations
        are equal with a beam of 1 and of 4 (of those that end before the limit), and the version
        of transformers.

    Raises:
        ValueError: If ids, logits or greedy translations differ.
        ModuleNotFoundError: If transformers is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "an export to Marian is compared by transformers, which is not installed: pip install "
            "'litseq[huggingface]'.",
            name=error.name,
        ) from error
    tokenizer, network = model.tokenizer, model.network
    assert tokenizer is not None
    assert network is not None
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    theirs: Any = transformers.MarianMTModel.from_pretrained(folder)
    theirs.eval()
    reader: Any = transformers.MarianTokenizer.from_pretrained(folder)
    texts = _random_texts(model) if texts is None else list(texts)
    ids = tokenizer.encode_source(texts)
    for number, (text, encoded) in enumerate(zip(texts, ids, strict=True), 1):
        if reader(text).input_ids != encoded:
            raise ValueError(
                f"sentence {number}, {text!r}, has other ids in MarianTokenizer than here; leave "
                f"it out if it spells a special piece such as </s>."
            )
    gap, largest, equal, ended_beam = 0.0, 0.0, {1: 0, 4: 0}, 0
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        inputs = reader(batch, return_tensors="pt", padding=True)
        memory = network.encode(inputs.input_ids, inputs.attention_mask == 0)
        for beam_size in equal:
            options = SearchOptions(
                beam_size=beam_size, length_penalty=1.0, length_offset=0, max_len_a=0,
                max_len_b=MAX_LENGTH,
            )  # fmt: skip
            ours = model.translate(batch, options=options)
            generated = theirs.generate(
                **inputs, num_beams=beam_size, length_penalty=1.0, max_length=MAX_LENGTH + 1
            )
            for text, others in zip(ours, generated.tolist(), strict=True):
                # at the limit theirs takes what is more probable, and ours what has ended
                ended = tokenizer.eos_id in others
                ended_beam += beam_size > 1 and ended
                if beam_size == 1 or ended:
                    equal[beam_size] += text == tokenizer.decode(others)
            # teacher forcing along what it says itself, where it has to be right
            logits = network.decode(generated, memory)
            difference = theirs(**inputs, decoder_input_ids=generated).logits - logits
            largest = max(largest, float(logits.abs().max()))
            gap = max(gap, float(difference.abs().max()))
    if not gap <= TOLERANCE * largest:
        raise ValueError(
            f"the exported model's logits differ from the checkpoint's by {gap:.1e}, where the "
            f"largest is {largest:.3g}; nothing was written."
        )
    if equal[1] < len(texts):
        raise ValueError(
            f"only {equal[1]} of {len(texts)} greedy translations of the exported model equal the "
            f"checkpoint's; nothing was written."
        )
    return {
        "sentences": len(texts),
        "largest_logit": largest,
        "largest_logit_gap": gap,
        "equal_greedy": equal[1],
        "ended_beam": ended_beam,
        "equal_beam": equal[4],
        "transformers": transformers.__version__,
    }


def _random_texts(model: Seq2Seq) -> list[str]:
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
