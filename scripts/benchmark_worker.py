"""One contestant of the benchmark in one round, in a process of its own.

    python scripts/benchmark_worker.py train litseq WORK       # started by benchmark.py

WORK is a file of ``torch.save``: what is to be done, plain values and tensors. The process warms
up, works once more, and prints a line of JSON. A process of its own gives each contestant its own
allocator, threads and memory to be measured, and lets a peer live in another Python environment:
for peers, nothing of litseq is imported.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Work = dict[str, Any]


def main() -> None:
    """Lets one contestant work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("train", "translate"))
    parser.add_argument("name")
    parser.add_argument("work")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a toolkit prints goes to the other stream

    work = torch.load(args.work, weights_only=True)
    torch.set_num_threads(work["threads"])
    if args.mode == "train" and args.name != "limit":
        work["batches"] = work["batches"][args.name if args.name in work["batches"] else "litseq"]
    torch.manual_seed(0)
    contestants = TRAINEES if args.mode == "train" else TRANSLATORS
    run = limit(work) if args.name == "limit" else contestants[args.name](work)
    held = memory("VmRSS")
    first = run()  # caches are filled, kernels are chosen, code is compiled
    facts = {**first, **extras(run, work, args)}
    found = run()
    most = memory("VmHWM")
    facts["memory"] = None if most is None or held is None else most - held
    print(json.dumps({"facts": facts, "round": found}), file=answers, flush=True)


def memory(name: str) -> int | None:
    """Bytes that this process holds (VmRSS), or held at most (VmHWM); None if nobody counts.

    Not ``ru_maxrss``, which begins with what the process was forked from.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    (line,) = (line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


class Watch(TorchDispatchMode):
    """Counts and times what reaches torch's kernels, autograd's own calls among it.

    Attributes:
        calls: How many.
        seconds: What they took, without what is between them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seconds = 0.0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        begin = time.perf_counter()
        found = func(*args, **(kwargs or {}))
        self.seconds += time.perf_counter() - begin
        self.calls += 1
        return found


def extras(run: Callable[..., Any], work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """Operator calls of one training step, where the loop is ours."""
    if args.mode == "translate" or args.name in ("limit", "trainer", "compiled"):
        return {}
    with Watch() as watch:
        run(1)
    return {"calls": watch.calls}


def limit(work: Work) -> Callable[..., dict[str, Any]]:
    """Products of large matrices: as fast as this machine can multiply, in 1e9 a second."""
    size = 2048
    pairs = {
        name: torch.randn(2, size, size).to(dtype)
        for name, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16))
    }
    copied = torch.empty_like(torch.empty(2**27, dtype=torch.uint8))
    source = torch.zeros_like(copied)

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return min(times)

    def run() -> dict[str, Any]:
        begin = time.perf_counter()
        found: dict[str, Any] = {
            name: 2 * size**3 / 1e9 / best(lambda pair=pair: pair[0] @ pair[1])
            for name, pair in pairs.items()
        }
        found["memory_gb"] = 2 * copied.numel() / 1e9 / best(lambda: copied.copy_(source))
        return {**found, "seconds": time.perf_counter() - begin}

    return run


# ---- training ----


def loop(model: nn.Module, work: Work) -> Callable[..., dict[str, Any]]:
    """The plainest training loop, the same for all models.

    Args:
        model: Gives the loss of (src, tgt), int64 (B, S) and (B, T), padded with 0.
        work: ``batches``, ``precision``.
    """
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9, fused=True
    )

    def run(most: int | None = None, *, batches: Any = None) -> dict[str, Any]:  # noqa: ANN401
        begin = time.perf_counter()
        for src, tgt in batches or work["batches"][:most]:
            optimizer.zero_grad()
            with autocast(work):
                loss = model(src, tgt)
            loss.backward()
            optimizer.step()
        return {"seconds": time.perf_counter() - begin, "loss": float(loss.detach())}

    return run


def autocast(work: Work) -> AbstractContextManager[Any]:
    """What Lightning's ``bf16-mixed`` does."""
    if work["precision"] == "32-true":
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16)


def peer(name: str) -> Callable[[Work], Callable[..., dict[str, Any]]]:
    """A model of another toolkit in the plain loop."""

    def build(work: Work) -> Callable[..., dict[str, Any]]:
        from benchmark_peers import PEERS, Sizes

        return loop(PEERS[name](Sizes(**work["sizes"])), work)

    return build


class Ours(nn.Module):
    """A litseq network and its loss."""

    def __init__(self, network: nn.Module, label_smoothing: float) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """Mean loss of a token."""
        from litseq.projected_loss import projected_loss
        from litseq.types import shift_right

        labels = tgt.masked_fill(tgt == 0, -100)
        tgt_in = shift_right(labels, bos_id=2, pad_id=0)
        hidden = self.network(src, src == 0, tgt_in, project=False)
        loss, _, num_tokens = projected_loss(
            hidden, self.network.output, labels, label_smoothing=self.label_smoothing
        )
        return loss / num_tokens


def network_of(sizes: dict[str, Any]) -> nn.Module:
    """The litseq network of the work's sizes."""
    from litseq import RnnAttention, Transformer

    if sizes["kind"] == "rnn":
        return RnnAttention(
            sizes["vocab_size"],
            embedding_dim=sizes["d_model"],
            hidden_size=sizes["d_model"],
            num_layers=sizes["num_layers"],
            dropout=sizes["dropout"],
        )
    return Transformer(
        sizes["vocab_size"],
        d_model=sizes["d_model"],
        num_heads=sizes["num_heads"],
        num_encoder_layers=sizes["num_layers"],
        num_decoder_layers=sizes["num_layers"],
        dim_feedforward=sizes["dim_feedforward"],
        **dropouts(sizes),
    )


def dropouts(sizes: dict[str, Any]) -> dict[str, float]:
    """Everywhere, as peers have it, some of which know one number for all."""
    names = ("dropout", "attention_dropout", "activation_dropout")
    return dict.fromkeys(names, sizes["dropout"])


def litseq(work: Work) -> Callable[..., dict[str, Any]]:
    """Network and loss in the plain loop."""
    return our_loop(network_of(work["sizes"]).train(), work)


def compiled(work: Work) -> Callable[..., dict[str, Any]]:
    """The same, compiled with dynamic shapes."""
    return our_loop(torch.compile(network_of(work["sizes"]).train(), dynamic=True), work)


def our_loop(network: nn.Module, work: Work) -> Callable[..., dict[str, Any]]:
    """The plain loop, in a process that keeps freed memory as ``litseq fit`` does."""
    from litseq.heap import keep_freed

    keep_freed()
    return loop(Ours(network, work["sizes"]["label_smoothing"]), work)


def trainer(work: Work) -> Callable[..., dict[str, Any]]:
    """``Seq2Seq`` under Lightning's Trainer, which logs as configs/multi30k do."""
    import lightning.pytorch as pl

    from litseq import RnnAttentionSeq2Seq, TokenThroughput, TransformerSeq2Seq

    sizes = dict(work["sizes"])
    kind, layers = sizes.pop("kind"), sizes.pop("num_layers")
    sizes.pop("longest")
    if kind == "rnn":
        names = ("vocab_size", "dropout", "label_smoothing")
        model = RnnAttentionSeq2Seq(
            embedding_dim=sizes["d_model"],
            hidden_size=sizes["d_model"],
            num_layers=layers,
            share_embeddings=False,
            **{name: sizes[name] for name in names},
        )
    else:
        sizes |= dropouts(sizes)
        model = TransformerSeq2Seq(num_encoder_layers=layers, num_decoder_layers=layers, **sizes)
    batches = [
        {
            "input_ids": src,
            "attention_mask": (src != 0).long(),
            "labels": tgt.masked_fill(tgt == 0, -100),
        }
        for src, tgt in work["batches"]
    ]

    class Loader:
        """Not a list, which Lightning takes for many loaders."""

        def __init__(self, most: int | None) -> None:
            self.batches = batches[:most]

        def __iter__(self) -> Iterator[Any]:
            return iter(self.batches)

        def __len__(self) -> int:
            return len(self.batches)

    class Clock(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.begin = time.perf_counter()

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.seconds = time.perf_counter() - self.begin

    def run(most: int | None = None) -> dict[str, Any]:
        import logging
        import tempfile

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        model.trainer = None
        gc.collect()  # or the optimizer of the last run would stand beside that of this one
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            pl.Trainer(
                max_epochs=1, accelerator="cpu", precision=work["precision"],
                callbacks=[clock, TokenThroughput()], log_every_n_steps=20,
                logger=pl.loggers.CSVLogger(folder), enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            ).fit(model, Loader(most))  # fmt: skip
        return {"seconds": clock.seconds}

    return run


TRAINEES: dict[str, Callable[[Work], Callable[..., dict[str, Any]]]] = {
    "litseq": litseq,
    "trainer": trainer,
    "compiled": compiled,
    "compact": litseq,  # in an environment of its own
    **{name: peer(name) for name in ("torch", "marian", "joeynmt", "opennmt")},
    "opennmt-compact": peer("opennmt"),
}


# ---- translating ----


def searches(
    translate: Callable[[Sequence[Tensor]], list[list[int]]], work: Work
) -> Callable[..., Any]:
    """Translates all batches; counts the tokens that came out, EOS included."""

    def run() -> dict[str, Any]:
        begin = time.perf_counter()
        with torch.inference_mode(), autocast(work):
            found = translate(work["sources"])
        return {"seconds": time.perf_counter() - begin, "outputs": found}

    return run


def each(translate: Callable[[Tensor], list[list[int]]]) -> Callable[..., list[list[int]]]:
    """Lets somebody translate batch after batch."""
    return lambda sources: [ids for src in sources for ids in translate(src)]


def options_of(work: Work) -> Any:  # noqa: ANN401 - litseq's SearchOptions
    """As all have them: divided by the length, over when as many have ended as the beam is wide."""
    from litseq.decoding import SearchOptions

    return SearchOptions(
        beam_size=work["beam_size"], length_penalty=1.0, length_offset=0.0, patience=1.0,
        max_len_a=0, max_len_b=work["max_len"],
    )  # fmt: skip


def litseq_search(
    *, int8: bool = False, compiled: bool = False
) -> Callable[[Work], Callable[..., dict[str, Any]]]:
    """Litseq's own search, in a process that keeps freed memory as ``litseq translate`` does."""

    def build(work: Work) -> Callable[..., dict[str, Any]]:
        from litseq import Seq2Seq
        from litseq.heap import keep_freed

        keep_freed()
        model = Seq2Seq.load_from_checkpoint(work["ckpt"]).eval()
        if compiled:
            for name in ("encode", "step"):
                way = torch.compile(getattr(model.network, name), dynamic=True)
                setattr(model.network, name, way)
        translator = model.translator(int8=int8)
        assert translator is not None
        options = options_of(work)

        def translate(sources: Sequence[Tensor]) -> list[list[int]]:
            batches = ({"input_ids": src, "attention_mask": (src != 0).long()} for src in sources)
            return [list(found[0].tokens) for found in translator.search_all(batches, options)]

        return searches(translate, work)

    return build


def marian_search(work: Work) -> Callable[..., dict[str, Any]]:
    """``generate`` of transformers on the exported model."""
    from transformers import MarianMTModel

    model = MarianMTModel.from_pretrained(work["marian"]).eval()

    def translate(src: Tensor) -> list[list[int]]:
        found = model.generate(
            input_ids=src, attention_mask=(src != 0).long(), num_beams=work["beam_size"],
            max_new_tokens=work["max_len"], length_penalty=1.0, early_stopping=True,
        )  # fmt: skip
        rows = found[:, 1:].tolist()
        return [row[: row.index(3) + 1] if 3 in row else row for row in rows]

    return searches(each(translate), work)


def ctranslate2_search(folder: str) -> Callable[[Work], Callable[..., dict[str, Any]]]:
    """CTranslate2 alone, on pieces that are cut already."""

    def build(work: Work) -> Callable[..., dict[str, Any]]:
        import ctranslate2

        engine = ctranslate2.Translator(
            work[folder], device="cpu", inter_threads=1, intra_threads=work["threads"]
        )
        pieces = work["pieces"]
        ids = {piece: i for i, piece in enumerate(pieces)}

        def translate(src: Tensor) -> list[list[int]]:
            sources = [[pieces[i] for i in row if i > 3] for row in src.tolist()]
            found = engine.translate_batch(
                sources, beam_size=work["beam_size"], max_decoding_length=work["max_len"],
                length_penalty=1.0, return_end_token=True, max_input_length=0,
            )  # fmt: skip
            return [[ids[piece] for piece in one.hypotheses[0]] for one in found]

        return searches(each(translate), work)

    return build


TRANSLATORS: dict[str, Callable[[Work], Callable[..., dict[str, Any]]]] = {
    "litseq": litseq_search(),
    "litseq-int8": litseq_search(int8=True),
    "compiled": litseq_search(compiled=True),
    "marian": marian_search,
    "ctranslate2": ctranslate2_search("ctranslate2"),
    "ctranslate2-int8": ctranslate2_search("ctranslate2-int8"),
}


if __name__ == "__main__":
    main()
