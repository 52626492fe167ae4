"""Checkpoints and tokenizers that are damaged, foreign or hostile."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bad_inputs_tried.case import Case, World

__all__ = ["CASES"]


class Code:
    """What a pickle must not be able to do."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("the-code-ran",)


class Evaluated:
    """The same, by a function that every Python has."""

    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("__import__('os').mkdir('the-code-ran')",)


class Nested:
    """A pickle that unpickles another one, by torch's own function."""

    def __reduce__(self) -> tuple[object, ...]:
        return torch.storage._load_from_bytes, (pickle.dumps(Code()),)


def load(world: World) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(world.ckpt, weights_only=True)
    return content


def save(change: Callable[[dict[str, Any]], object]) -> Callable[[World], None]:
    """Writes ``bad.ckpt``, a checkpoint that has been changed in place."""

    def make(world: World) -> None:
        content = load(world)
        change(content)
        torch.save(content, "bad.ckpt")

    return make


def put(*path: str, value: object) -> Callable[[World], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return save(change)


def raw(change: Callable[[bytes], bytes], name: str = "bad.ckpt") -> Callable[[World], None]:
    def make(world: World) -> None:
        Path(name).write_bytes(change(world.ckpt.read_bytes()))

    return make


def archive(world: World) -> None:
    with zipfile.ZipFile("bad.ckpt", "w") as file:
        file.writestr("archive/a.txt", "one red house")


def plain(world: World) -> None:
    torch.save({"state_dict": load(world)["state_dict"]}, "bad.ckpt")


def tensor(world: World) -> None:
    torch.save(torch.zeros(3), "bad.ckpt")


def unreachable(key: str) -> Callable[[World], None]:
    return save(lambda content: content.pop(key))


TEST = "test -c {home}/data.yaml --ckpt_path "
COMMANDS = {
    "fit": "fit {data} --trainer.max_epochs 5 --ckpt_path bad.ckpt",
    "validate": "validate -c {home}/data.yaml --ckpt_path bad.ckpt",
    "test": "test -c {home}/data.yaml --ckpt_path bad.ckpt",
    "predict": "predict -c {home}/data.yaml --ckpt_path bad.ckpt",
    "translate": "translate --ckpt bad.ckpt",
    "explain": "explain one --out x.html --ckpt bad.ckpt",
    "tokenizer": "fit {data} --data.tokenizer bad.ckpt",
}
HOSTILE = {
    "pickle": (
        "a pickle that runs a command",
        raw(lambda _: pickle.dumps(Code())),
        "is not a checkpoint, or was cut short",
    ),
    "eval": ("a builtin called by a pickle", put("more", value=Evaluated()), "holds eval, which"),
    "nested": (
        "a pickle within a pickle",
        put("more", value=Nested()),
        r"holds torch\.storage\._load_from_bytes, which is neither a tensor nor",
    ),
    "hyper": (
        "a pickle among the hyperparameters",
        put("hyper_parameters", "lr", value=Code()),
        r"holds \w+\.mkdir, which is neither a tensor nor",
    ),
}
NO_TOKENIZER = r"bad\.ckpt is no checkpoint, is damaged, or holds more than tensors"


def checkpoint(
    name: str, wrong: str, make: Callable[[World], None] | None, expect: str, words: str = ""
) -> Case:
    return Case(name, "checkpoint", wrong, words or TEST + "bad.ckpt", expect, make=make)


def tokenizer(name: str, wrong: str, content: bytes, expect: str) -> Case:
    def make(world: World) -> None:
        Path("bad.model").write_bytes(content)

    words = "fit {data} --data.tokenizer bad.model"
    return Case(name, "tokenizer", wrong, words, expect, make=make)


def model(**options: object) -> bytes:
    import io

    import sentencepiece

    sink = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three dog cat"] * 50), model_writer=sink, vocab_size=30,
        minloglevel=3, hard_vocab_limit=False, **options,
    )  # fmt: skip
    return sink.getvalue()


def bare(world: World) -> None:
    Path("bad.model").write_bytes(model())


def cut_model(world: World) -> None:
    good = model(pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    Path("bad.model").write_bytes(good[: len(good) // 2])


def own_model(world: World) -> None:
    Path("bad.model").write_bytes(model(pad_id=0, unk_id=1, bos_id=2, eos_id=3))


def tokenizer_folder(change: Callable[[Path], object]) -> Callable[[World], None]:
    def make(world: World) -> None:
        from litseq.data import TranslationTokenizer

        TranslationTokenizer.load(world.ckpt).save("bad")
        change(Path("bad"))

    return make


FOLDER = "fit {data} --data.tokenizer bad"
CASES = [
    checkpoint(
        "empty",
        "no byte",
        raw(lambda _: b""),
        r"bad\.ckpt \(0 bytes\) is not a checkpoint, or was cut short; use another",
    ),
    checkpoint(
        "text",
        "a text",
        raw(lambda _: b"one red house\n"),
        r"bad\.ckpt \(14 bytes\) is not a checkpoint, or was cut short; use another",
    ),
    checkpoint(
        "cut",
        "cut short",
        raw(lambda whole: whole[: len(whole) // 2]),
        r"bad\.ckpt \([\d,]+ bytes\) is not a checkpoint, or was cut short; use",
    ),
    checkpoint(
        "zeros",
        "a block of zeros in its middle",
        raw(lambda whole: whole[:2000] + bytes(1000) + whole[3000:]),
        r"bad\.ckpt is damaged; use another checkpoint of the run\.",
    ),
    checkpoint(
        "zip",
        "a zip archive of something else",
        archive,
        r"bad\.ckpt is damaged; use another checkpoint of the run\.",
    ),
    checkpoint(
        "weights",
        "weights alone, as torch.save writes them",
        plain,
        r"bad\.ckpt was not written by litseq: it has no 'litseq' entry; give a \.ckpt",
    ),
    checkpoint(
        "tensor",
        "a single tensor",
        tensor,
        r"bad\.ckpt was not written by litseq: it has no 'litseq' entry; give a \.ckpt",
    ),
    checkpoint(
        "newer",
        "a newer format",
        put("litseq", "format_version", value=99),
        r"bad\.ckpt has format version 99, this litseq reads up to 1; install a newer",
    ),
    checkpoint(
        "version",
        "a format that is no number",
        put("litseq", "format_version", value="x"),
        r"bad\.ckpt lacks format_version; use the file as litseq wrote it\.",
    ),
    checkpoint(
        "hollow",
        "nothing about litseq in it",
        put("litseq", value={}),
        r"bad\.ckpt lacks class, format_version, tokenizer; use the file as litseq",
    ),
    checkpoint(
        "weightless",
        "no weights",
        unreachable("state_dict"),
        r"bad\.ckpt lacks state_dict; use the file as litseq wrote it\.",
    ),
    checkpoint(
        "partial",
        "a weight is missing",
        save(lambda c: c["state_dict"].pop("network.output.bias")),
        r"the checkpoint does not fit the model: network\.output\.bias is absent in",
    ),
    checkpoint(
        "shape",
        "a weight of another shape",
        save(lambda c: c["state_dict"].update({"network.output.bias": torch.zeros(3)})),
        r"the checkpoint does not fit the model: network\.output\.bias is \(3,\) in the",
    ),
    checkpoint(
        "huge",
        "a width of a billion",
        put("hyper_parameters", "d_model", value=10**12),
        r"bad\.ckpt declares d_model=1000000000000, but its 34 weights are at most 72",
    ),
    checkpoint(
        "option",
        "an option that the model does not know",
        put("hyper_parameters", "old", value=1),
        "unknown key 'old' of TransformerSeq2Seq; it has activation, activation_dropout,",
    ),
    checkpoint(
        "options",
        "hyperparameters that are a list",
        put("hyper_parameters", value=[1]),
        r"bad\.ckpt lacks hyper_parameters; use the file as litseq wrote it\.",
    ),
    checkpoint(
        "class",
        "a class that nobody has imported",
        put("litseq", "class", value="somebodys.Model"),
        "no model given; name a configuration with -c, or --model",
    ),
    checkpoint(
        "tokenizer",
        "a tokenizer that is none",
        put("litseq", "tokenizer", "source_model", value=torch.zeros(9, dtype=torch.uint8)),
        r"bad\.ckpt is not a SentencePiece model \(9 bytes; INTERNAL:",
    ),
    checkpoint(
        "tokenizer-state",
        "a tokenizer that is a text",
        put("litseq", "tokenizer", value="x"),
        r"bad\.ckpt lacks tokenizer; use the file as litseq wrote it\.",
    ),
    checkpoint(
        "scheduler",
        "a class to import among the hyperparameters",
        put("hyper_parameters", "lr_scheduler", value={"class_path": "os.system"}),
        r"os\.system is not imported: a configuration may name what is in litseq,",
    ),
    checkpoint(
        "instantiator",
        "Lightning's key that names a function to call",
        put("hyper_parameters", "_instantiator", value="os.mkdir"),
        "unknown key '_instantiator' of TransformerSeq2Seq; it has",
    ),
    checkpoint(
        "missing",
        "no file at that name",
        None,
        r"no checkpoint at .*/last\.ckptx; beside it: best\.ckpt",
        TEST + "{ckpt}x",
    ),
    checkpoint(
        "folder",
        "a folder",
        None,
        r"runs is a folder \(with best\.ckpt, last\.ckpt\); give a checkpoint file\.",
        TEST + "{home}/runs",
    ),
    checkpoint(
        "url",
        "a checkpoint on a server",
        None,
        r"no checkpoint at http:/127\.0\.0\.1:9/a\.ckpt; beside it: no \.ckpt file\.",
        TEST + "http://127.0.0.1:9/a.ckpt",
    ),
    checkpoint(
        "url-translate",
        "a checkpoint on a server",
        None,
        r"no checkpoint at http:/127\.0\.0\.1:9/a\.ckpt; beside it: no \.ckpt file\.",
        "translate --ckpt http://127.0.0.1:9/a.ckpt",
    ),
    checkpoint(
        "other-model",
        "a checkpoint of another model",
        None,
        "the checkpoint is a TransformerSeq2Seq, the model is a RnnSeq2Seq; choose",
        TEST + "{ckpt} --model RnnSeq2Seq",
    ),
    checkpoint(
        "other-size",
        "a checkpoint of another width",
        None,
        "the checkpoint does not fit the model:",
        TEST + "{ckpt} --model.d_model 36",
    ),
    checkpoint(
        "other-vocabulary",
        "a checkpoint of another vocabulary",
        None,
        r"vocab_size is 64 but the tokenizer \(sha256 \w+\) has 50; leave",
        "fit {data} --trainer.max_epochs 5 --ckpt_path {ckpt} --data.vocab_size 50",
    ),
    *(
        checkpoint(
            f"{name}-{command}",
            f"{wrong}, read by `{command}`",
            make,
            NO_TOKENIZER if command == "tokenizer" else expect,
            words,
        )
        for name, (wrong, make, expect) in HOSTILE.items()
        for command, words in COMMANDS.items()
    ),
    tokenizer(
        "empty",
        "an empty SentencePiece model",
        b"",
        r"bad\.model is not a SentencePiece model \(0 bytes; it is empty\)\.",
    ),
    tokenizer(
        "text",
        "a text named .model",
        b"one red house\n" * 20,
        r"bad\.model is not a SentencePiece model \(280 bytes; INTERNAL:",
    ),
    tokenizer(
        "random",
        "random bytes",
        bytes(range(256)) * 8,
        r"bad\.model is not a SentencePiece model \([\d,]+ bytes; INTERNAL:",
    ),
    Case(
        "cut",
        "tokenizer",
        "a SentencePiece model cut short",
        "fit {data} --data.tokenizer bad.model",
        r"bad\.model is not a SentencePiece model \([\d,]+ bytes; INTERNAL:",
        make=cut_model,
    ),
    Case(
        "bare",
        "tokenizer",
        "a model without a padding piece",
        "fit {data} --data.tokenizer bad.model",
        r"bad\.model defines no pad piece; train it with --pad_id=0 --unk_id=1",
        make=bare,
    ),
    Case(
        "other",
        "tokenizer",
        "another tokenizer than the checkpoint's",
        TEST + "{ckpt} --data.tokenizer bad.model",
        r"vocab_size is 64 but the tokenizer \(sha256 \w+\) has 18; leave",
        make=own_model,
    ),
    Case(
        "folder",
        "tokenizer",
        "a folder without a tokenizer",
        "fit {data} --data.tokenizer {home}",
        r" holds no tokenizer\.json \(it holds cache, corpus, data\.yaml, model\.yaml,",
    ),
    Case(
        "json",
        "tokenizer",
        "a damaged tokenizer.json",
        FOLDER,
        r"bad/tokenizer\.json is damaged \(JSONDecodeError\('Expecting property name",
        make=tokenizer_folder(lambda f: (f / "tokenizer.json").write_text("{")),
    ),
    Case(
        "json-list",
        "tokenizer",
        "a tokenizer.json that is a list",
        FOLDER,
        r"bad/tokenizer\.json is damaged \(TypeError\('list indices must be integers or",
        make=tokenizer_folder(lambda f: (f / "tokenizer.json").write_text("[]")),
    ),
    Case(
        "json-bytes",
        "tokenizer",
        "a tokenizer.json that is not UTF-8",
        FOLDER,
        r"bad/tokenizer\.json is damaged \(UnicodeDecodeError\('utf-8', b'\\xff', 0, 1,",
        make=tokenizer_folder(lambda f: (f / "tokenizer.json").write_bytes(b"\xff")),
    ),
    Case(
        "part",
        "tokenizer",
        "a model is missing from the folder",
        FOLDER,
        r"bad/shared\.model is missing; save the tokenizer again\.",
        make=tokenizer_folder(lambda f: (f / "shared.model").unlink()),
    ),
    Case(
        "swapped",
        "tokenizer",
        "a model that has been replaced",
        FOLDER,
        r"the models in bad have fingerprint \w+, but its tokenizer\.json",
        make=tokenizer_folder(
            lambda f: (f / "shared.model").write_bytes(
                model(pad_id=0, unk_id=1, bos_id=2, eos_id=3)
            )
        ),
    ),
]
