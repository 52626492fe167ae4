"""Measures how fast litseq trains and translates, beside other toolkits and the machine's limit.

    python scripts/benchmark.py train --size small
    python scripts/benchmark.py train --size base --max-tokens 1024 --batches 2
    python scripts/benchmark.py train --size rnn --python joeynmt=PYTHON --python opennmt=PYTHON
    python scripts/benchmark.py translate --ckpt CKPT

The corpus is Multi30k unless ``--train`` names another. Each toolkit trains on batches made by its
own rule within the same budget of tokens; with ``--same-batches``, all train on litseq's, so that
nothing but their models is compared. Tokens are counted without padding. In each of ``--rounds``
rounds, in an order that is drawn, each contestant begins as a process of its own, warms up, and
works alone; what is reported is the median, and the ratio of two in the same round. Peers take part
where they are installed; ``--python NAME=PYTHON`` says in which environment.

A record goes to ``docs/results/benchmark.json``, and the tables to ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doc_tables import fill, markdown
from litseq.heap import COMPACT
from litseq.textfiles import whole_file

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "docs" / "results" / "benchmark.json"
WORKER = Path(__file__).with_name("benchmark_worker.py")

VOCAB_SIZE = 8000
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "kind": "transformer", "d_model": 256, "num_heads": 4, "num_layers": 3,
        "dim_feedforward": 1024,
    },
    "base": {
        "kind": "transformer", "d_model": 512, "num_heads": 8, "num_layers": 6,
        "dim_feedforward": 2048,
    },
    "rnn": {
        "kind": "rnn", "d_model": 384, "num_heads": 1, "num_layers": 1, "dim_feedforward": 0,
    },
}  # fmt: skip
PRECISIONS = ("32-true", "bf16-mixed")
TRAINEES = ("litseq", "trainer", "torch", "marian", "joeynmt", "opennmt")
TRANSLATORS = ("litseq", "litseq-int8", "marian", "ctranslate2", "ctranslate2-int8")
TRAINEES_ON_REQUEST = ("compact", "opennmt-compact", "compiled")
COMPACT_ONES = ("compact", "opennmt-compact")
"""Who has the settings of glibc that ``litseq fit`` has."""
PACKAGES = {"marian": "transformers", "joeynmt": "joeynmt", "opennmt": "OpenNMT-py"}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "translate"))
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="small", help="Of translate, what --ckpt is."
    )
    parser.add_argument("--ckpt", help="translate: a Transformer that litseq trained.")
    parser.add_argument("--who", nargs="+", help="Contestants. Default: all that are installed.")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--train", default="data/multi30k/train", help="Prefix of .en and .de.")
    parser.add_argument("--test", default="data/multi30k/test_2016_flickr.en", help="Sentences.")
    parser.add_argument(
        "--references", help="Of --test. Default: the file beside it that ends in .de."
    )
    parser.add_argument("--max-tokens", type=int, default=4096, help="Padded tokens of a batch.")
    parser.add_argument("--batches", type=int, default=4, help="train: batches of a round.")
    parser.add_argument("--same-batches", action="store_true", help="train: litseq's for all.")
    parser.add_argument("--batch-size", type=int, default=64, help="translate: sentences.")
    parser.add_argument("--beam-size", type=int, default=4)
    parser.add_argument("--max-len", type=int, default=60, help="translate: tokens at most.")
    parser.add_argument("--sentences", type=int, default=320, help="translate: how many.")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help="Write record and documentation.")
    parser.add_argument("--machine", help="Under its name stands what is measured elsewhere, too.")
    args = parser.parse_args()
    if args.what == "train":
        usual, more = TRAINEES, TRAINEES_ON_REQUEST
    elif args.precision == "32-true":
        usual, more = TRANSLATORS, ("compiled",)
    else:  # the others have a precision of their own
        usual, more = ("litseq", "marian"), ()
    known = (*usual, *more)
    args.who = list(dict.fromkeys(("litseq", *(args.who or usual))))  # all are compared with it
    check_names([*args.who, *(item.partition("=")[0] for item in args.python)], known)
    with tempfile.TemporaryDirectory() as folder:
        work = (train_work if args.what == "train" else translate_work)(args, Path(folder))
        result = measure(work, args, Path(folder))
    header, rows = (train_table if args.what == "train" else translate_table)(result)
    print(markdown(header, rows))
    if args.record:
        keep(result, header, rows, machine=args.machine)


def check_names(names: Iterable[str], known: Sequence[str]) -> None:
    """Ends the program where somebody is named who does not take part."""
    for name in names:
        if name not in known:
            sys.exit(f"{name!r} is no contestant here; choose among {', '.join(known)}.")


# ---- the work ----


def sizes_of(size: str, *, longest: int, vocab_size: int = VOCAB_SIZE) -> dict[str, Any]:
    """Of a model that all train alike, for sentences of so many tokens at most."""
    shared = {"dropout": 0.1, "label_smoothing": 0.1}
    return SIZES[size] | shared | {"vocab_size": vocab_size, "longest": longest}


def train_work(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The first batches of an epoch, for each contestant."""
    from litseq import TranslationDataModule

    data = TranslationDataModule(
        "en", "de", train=args.train, vocab_size=VOCAB_SIZE, max_tokens=args.max_tokens
    )
    data.prepare_data()
    data.setup("fit")
    ours = [
        (batch["input_ids"], batch["labels"].masked_fill(batch["labels"] == -100, 0))
        for batch in islice(data.train_dataloader(), args.batches)
    ]
    batches = dict.fromkeys((*TRAINEES, *TRAINEES_ON_REQUEST), ours)
    if not args.same_batches:
        pairs = encoded_pairs(args.train, data.tokenizer)
        for name, rule in RULES.items():
            batches[name] = own_batches(pairs, rule, args.max_tokens, args.batches)
    longest = max(side.size(1) for own in batches.values() for pair in own for side in pair)
    sizes = sizes_of(args.size, longest=longest, vocab_size=data.tokenizer.tgt_vocab_size)
    return {
        "batches": batches,
        "sizes": sizes,
        "precision": args.precision,
        "threads": args.threads,
        "tokens": {
            name: sum(int((tgt != 0).sum()) for _, tgt in own) for name, own in batches.items()
        },
        "positions": {name: sum(tgt.numel() for _, tgt in own) for name, own in batches.items()},
        "flops": sum(flops_of(src, tgt, sizes) for src, tgt in ours),
    }


# How they put sentences together: shuffled (a plain loop, JoeyNMT's token sampler), grouped by the
# source's length in so many sentences (``group_by_length`` of transformers), sorted by the lengths
# of source and target (OpenNMT-py, whose bucket holds all of a small corpus).
RULES = {
    "torch": "shuffled", "joeynmt": "shuffled", "marian": "grouped", "opennmt": "sorted",
    "opennmt-compact": "sorted",
}  # fmt: skip


def encoded_pairs(prefix: str, tokenizer: Any) -> list[tuple[list[int], list[int]]]:  # noqa: ANN401
    """All training pairs as ids, in an order that is drawn once."""
    src, tgt = (
        Path(f"{prefix}.{lang}").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        for lang in ("en", "de")
    )
    pairs = list(zip(tokenizer.encode_source(src), tokenizer.encode_target(tgt), strict=True))
    random.Random(0).shuffle(pairs)
    return pairs


def own_batches(
    pairs: list[tuple[list[int], list[int]]], rule: str, max_tokens: int, count: int
) -> list[tuple[Tensor, Tensor]]:
    """Batches by a rule of another toolkit, the first so many of an epoch."""
    from litseq.data.collate import collate

    made: list[list[tuple[list[int], list[int]]]] = [[]]
    if rule == "grouped":
        longest = [max(len(s), len(t)) for s, t in pairs]
        size = int(max_tokens / statistics.mean(longest))
        for first in range(0, len(pairs), 50 * size):
            group = sorted(pairs[first : first + 50 * size], key=lambda pair: -len(pair[0]))
            made += [group[i : i + size] for i in range(0, len(group), size)]
    else:
        if rule == "sorted":
            pairs = sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])))
        most = 0
        for pair in pairs:
            most = max(most, *map(len, pair))
            if most * (len(made[-1]) + 1) > max_tokens:
                made.append([])
                most = max(map(len, pair))
            made[-1].append(pair)
    made = [batch for batch in made if batch]
    random.Random(1).shuffle(made)
    found = []
    for batch in made[:count]:
        tensors = collate([s for s, _ in batch], [t for _, t in batch])
        found.append(
            (tensors["input_ids"], tensors["labels"].masked_fill(tensors["labels"] == -100, 0))
        )
    return found


def flops_of(src: Tensor, tgt: Tensor, sizes: dict[str, Any]) -> int:
    """Floating-point operations of the products that a training step needs, padding left out.

    A product of (n, d) and (d, m) is 2 n d m forward and twice that backward. Embeddings, norms,
    activations and the softmax are not counted, nor is what causal attention need not look at.
    """
    if sizes["kind"] == "rnn":
        return rnn_flops(src, tgt, sizes)
    d, f, layers = sizes["d_model"], sizes["dim_feedforward"], sizes["num_layers"]
    s, t = (side.ne(0).sum(1).double() for side in (src, tgt))
    encoder = s * (4 * d * d + 2 * d * f) + 2 * s * s * d
    own = t * (4 * d * d + 2 * d * f) + t * (t + 1) * d
    cross = t * 2 * d * d + s * 2 * d * d + 2 * s * t * d
    products = layers * (encoder + own + cross) + t * d * sizes["vocab_size"]
    return 3 * 2 * int(products.sum())


def rnn_flops(src: Tensor, tgt: Tensor, sizes: dict[str, Any]) -> int:
    """The same for a bidirectional GRU and Bahdanau's decoder, both of one layer."""
    d = sizes["d_model"]
    s, t = (side.ne(0).sum(1).double() for side in (src, tgt))
    encoder = s * 2 * 3 * (d * d + d * d) + s * 2 * d * d  # two directions; keys
    attention = t * d * d + s * t * d + s * t * 2 * d  # query, energy, context
    decoder = t * 3 * (3 * d * d + d * d) + t * 4 * d * d  # input and context, state; readout
    products = encoder + attention + decoder + t * d * sizes["vocab_size"]
    return 3 * 2 * int(products.sum())


def translate_work(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Sentences of a test set, sorted by length, in batches of so many."""
    from litseq import Seq2Seq
    from litseq.data.collate import collate
    from litseq.export.command import main as export

    if not args.ckpt:
        sys.exit("give a checkpoint to translate with: --ckpt CKPT.")
    model = Seq2Seq.load_from_checkpoint(args.ckpt)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    width = SIZES[args.size]["d_model"]
    if getattr(model.network, "d_model", width) != width:
        sys.exit(
            f"{args.ckpt} is {model.network.d_model} wide and size {args.size} is {width}; give "
            "the --size that it is, under which its table is kept."
        )
    texts = Path(args.test).read_text(encoding="utf-8").splitlines()[: args.sentences]
    path = Path(args.references) if args.references else Path(args.test).with_suffix(".de")
    references = path.read_text(encoding="utf-8").splitlines()
    if len(references) < len(texts):
        sys.exit(f"{path} has {len(references):,} lines for {len(texts):,} of {args.test}.")
    ids = tokenizer.encode_source(texts)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    ids = [ids[i] for i in order]
    for name, to, quantization in (
        ("marian", "marian", "float32"),
        ("ctranslate2", "ctranslate2", "float32"),
        ("ctranslate2-int8", "ctranslate2", "int8"),
    ):
        if name in args.who:
            export(
                ckpt=args.ckpt, output=str(folder / name), to=to, quantization=quantization
            )  # fmt: skip
    size = args.batch_size
    return {
        "ckpt": args.ckpt,
        "sources": [
            collate(ids[first : first + size])["input_ids"] for first in range(0, len(ids), size)
        ],
        "pieces": tokenizer.target_pieces(range(tokenizer.tgt_vocab_size)),
        "beam_size": args.beam_size,
        "max_len": args.max_len,
        "precision": args.precision,
        "threads": args.threads,
        "sentences": len(ids),
        "references": [references[i] for i in order],
        "sizes": {"vocab_size": tokenizer.tgt_vocab_size},
        **{name: str(folder / name) for name in TRANSLATORS},
    }


# ---- the contestants ----


def one_round(
    mode: str, name: str, work: Path, python: str, threads: int, *, worker: Path
) -> dict[str, Any]:
    """What a contestant says of itself (``facts``) and of its round.

    Raises:
        RuntimeError: If it does not do the work.
    """
    said = subprocess.run(
        [python, str(worker), mode, name, str(work)], capture_output=True, text=True, check=False,
        env=environment(threads, compact=name in COMPACT_ONES),
    )  # fmt: skip
    if said.returncode:
        last = (said.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise RuntimeError(f"{name}: {last}")
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def environment(threads: int, *, compact: bool) -> dict[str, str]:
    """Of a process that computes on so many threads, and has the settings of glibc or not."""
    settings = {"GLIBC_TUNABLES": COMPACT} if compact else {}
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1", **settings}


def measure(
    work: dict[str, Any], args: argparse.Namespace, folder: Path, *, worker: Path = WORKER
) -> dict[str, Any]:
    """Lets all contestants work, one after another."""
    path = folder / "work.pt"
    torch.save(work, path)
    pythons = dict(item.split("=", 1) for item in args.python)
    names = ["limit", *args.who]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(args.rounds):
        # who comes after whom makes a difference
        for name in random.Random(number).sample(names, len(names)):
            if len(found[name]) < number:  # not here
                continue
            python = pythons.get(name, sys.executable)
            try:
                said = one_round(args.what, name, path, python, args.threads, worker=worker)
            except RuntimeError as error:
                if number or name in ("limit", "litseq"):
                    raise
                print(f"left out: {error}", file=sys.stderr)
                continue
            found[name].append(said)
            print(f"round {number + 1}: {name} {said['round']['seconds']:.2f} s", file=sys.stderr)
    told = (
        "tokens",
        "positions",
        "flops",
        "sizes",
        "precision",
        "threads",
        "sentences",
        "beam_size",
    )
    return {
        "what": args.what,
        "size": args.size,
        "max_tokens": args.max_tokens,
        "batches": args.batches,
        "same_batches": args.same_batches,
        "rounds": args.rounds,
        "batch_size": args.batch_size,
        **{name: work[name] for name in told if name in work},
        "machine": _machine(),
        "versions": _versions(pythons),
        "contestants": {
            name: {
                "facts": _facts([said["facts"] for said in rounds], work),
                "rounds": [_brief(said["round"]) for said in rounds],
            }
            for name, rounds in found.items()
            if rounds
        },
    }


def _facts(of_rounds: list[dict[str, Any]], work: dict[str, Any]) -> dict[str, Any]:
    """Those of the first round, but for memory, whose median it is."""
    facts = _bleu(of_rounds[0], work) | _brief(of_rounds[0])
    facts["memory"] = median(found["memory"] for found in of_rounds)
    return facts


def median(numbers: Iterable[float | None]) -> float | None:
    """The one in the middle; None where nobody counts."""
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None


def _bleu(found: dict[str, Any], work: dict[str, Any]) -> dict[str, float]:
    """How good translations are, by sacreBLEU; nothing of whoever does not translate."""
    if "outputs" not in found:
        return {}
    from litseq import Seq2Seq, corpus_scores

    tokenizer = Seq2Seq.load_from_checkpoint(work["ckpt"]).tokenizer
    assert tokenizer is not None
    texts = [tokenizer.decode([i for i in ids if i > 3]) for ids in found["outputs"]]
    return {"bleu": corpus_scores(texts, work["references"]).bleu}


def _brief(found: dict[str, Any]) -> dict[str, Any]:
    outputs = found.pop("outputs", None)
    if outputs is not None:
        found["output_tokens"] = sum(map(len, outputs))
    return found


def _machine() -> str:
    """The processor, and what it has for bfloat16, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    about = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if unit in about.get("flags", "").split()]
    return " ".join([about.get("model name", platform.machine()), *units])


def _versions(pythons: dict[str, str]) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "ctranslate2"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for name, python in pythons.items():
        if name not in PACKAGES:
            continue
        code = f"from importlib.metadata import version; print(version({PACKAGES[name]!r}))"
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        found[PACKAGES[name]] = said.stdout.strip()
    return found


# ---- the tables ----


def _seconds(result: dict[str, Any], name: str) -> list[float]:
    return [found["seconds"] for found in result["contestants"][name]["rounds"]]


def ratio(result: dict[str, Any], name: str) -> str:
    """How many times as long one takes as litseq in the same round: median, least and most."""
    ours, theirs = _seconds(result, "litseq"), _seconds(result, name)
    work = result.get("tokens")  # where they did not do the same
    more = work["litseq"] / work[name] if work else 1.0
    return spread(more * b / a for a, b in zip(ours, theirs, strict=True))


def spread(ratios: Iterable[float]) -> str:
    """Median, least and most."""
    found = sorted(ratios)
    return f"{statistics.median(found):.2f} ({found[0]:.2f}–{found[-1]:.2f})"


def _gflops(result: dict[str, Any]) -> float:
    """What the machine's largest products reach, the median of the rounds, in 1e9 a second."""
    rounds = result["contestants"]["limit"]["rounds"]
    return statistics.median(found[result["precision"]] for found in rounds)


def train_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Target tokens a second, and what they are of the bound."""
    bound = _gflops(result) * 1e9 * result["tokens"]["litseq"] / result["flops"]
    header = [
        "who", "target tokens a second", "times as long as litseq", "of the bound",
        "no padding", "operator calls a step", "peak memory, MB",
    ]  # fmt: skip
    rows = [["the bound", f"{bound:,.0f}", "", "100%", "", "", ""]]
    for name, contestant in result["contestants"].items():
        if name == "limit":
            continue
        tokens = result["tokens"][name]
        rate = tokens / statistics.median(_seconds(result, name))
        calls, memory = (contestant["facts"].get(name) for name in ("calls", "memory"))
        rows.append(
            [
                name,
                f"{rate:,.0f}",
                ratio(result, name),
                f"{rate / bound:.0%}",
                f"{tokens / result['positions'][name]:.0%}",
                "" if calls is None else f"{calls:,}",
                "" if memory is None else f"{memory / 1e6:,.0f}",
            ]
        )
    if not any(row[-1] for row in rows):  # nobody counts memory there
        return header[:-1], [row[:-1] for row in rows]
    return header, rows


def translate_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Sentences a second."""
    header = ["who", "sentences a second", "tokens a second", "times as long as litseq", "BLEU"]
    rows = []
    for name, contestant in result["contestants"].items():
        if name == "limit":
            continue
        seconds = statistics.median(_seconds(result, name))
        tokens = contestant["rounds"][0]["output_tokens"]
        rows.append(
            [
                name,
                f"{result['sentences'] / seconds:,.0f}",
                f"{tokens / seconds:,.0f}",
                ratio(result, name),
                f"{contestant['facts']['bleu']:.1f}",
            ]
        )
    return header, rows


def keep(
    result: dict[str, Any], header: list[str], rows: list[list[str]], *, machine: str | None
) -> None:
    """Writes record and table; what was measured before under other options stays."""
    key = f"{result['what']}-{result['size']}-{result['precision']}"
    if result["same_batches"]:
        key += "-same"
    if result["what"] == "translate":
        size = None if result["size"] == "small" else result["size"]
        key = table_key("translate", size, but_float32(result["precision"]), result["beam_size"])
    write(key, result, header, rows, machine=machine)


def but_float32(precision: str) -> str | None:
    """Of a table's name: float32 goes without saying."""
    return None if precision == PRECISIONS[0] else precision


def table_key(*parts: object) -> str:
    """Name of a table on the page, of what there is."""
    return "-".join(str(part) for part in parts if part)


def write(
    key: str,
    result: object,
    header: list[str],
    rows: list[list[str]],
    *,
    machine: str | None = None,
) -> None:
    """Puts a result into the record, and its table onto the page."""
    key = table_key(key, machine)
    records = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    with whole_file(RESULTS) as file:
        file.write(json.dumps(records | {key: result}, indent=1) + "\n")
    fill(PAGE, key, header, rows)


if __name__ == "__main__":
    main()
