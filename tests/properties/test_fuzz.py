"""Damaged files of every format: each is read, or refused with its name; nothing else happens."""

import gzip
import io
import json
import os
import random
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import litseq
from litseq import checkpoints
from litseq.cli_messages import check_configs
from litseq.data import TranslationTokenizer
from litseq.data.readers import Columns, find_file, read_file
from litseq.task import Seq2Seq

NUM = [60, pytest.param(1200, marks=pytest.mark.slow)]
PAIRS = [("one red dog", "ein roter hund"), ("犬 猫", "hund katze"), ("two  cats", "grün")] * 9
COLUMNS = Columns("en", "de", None, None, True)


def parquet():
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"en": a, "de": b} for a, b in PAIRS]), sink)
    return sink.getvalue()


TSV = "".join(f"{a}\t{b}\n" for a, b in PAIRS).encode()
JSONL = "".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in PAIRS).encode()
FORMATS = {
    "a.tsv": TSV,
    "a.jsonl": JSONL,
    "a.parquet": parquet(),
    "a.tsv.gz": gzip.compress(TSV, mtime=0),
    "a.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "a.parquet.gz": gzip.compress(parquet(), mtime=0),
    "a.en": "".join(f"{a}\n" for a, _ in PAIRS).encode(),
}


def mutants(content, number):
    """Copies with flipped, lost, doubled or foreign bytes, the same ones in every run."""
    rng = random.Random(0)
    for _ in range(number):
        data = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            place = rng.randrange(len(data) + 1)
            kind = rng.randrange(5)
            if kind == 0 and place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            elif kind == 1 and place < len(data):
                data[place] = rng.choice([0, 10, 13, 34, 123, 255, rng.randrange(256)])
            elif kind == 2:
                del data[place : place + rng.choice([1, 2, 50])]
            elif kind == 3:
                data[place:place] = data[place : place + rng.choice([1, 8, 200])]
            else:
                del data[max(place, 1) :]
        yield bytes(data)


@pytest.mark.parametrize("number", NUM)
@pytest.mark.parametrize("name", FORMATS)
def test_pairs(name, number, tmp_path):
    path = tmp_path / name
    (tmp_path / "a.de").write_bytes("".join(f"{b}\n" for _, b in PAIRS).encode())
    outcomes = {"read": 0, "refused": 0}
    for data in mutants(FORMATS[name], number):
        path.write_bytes(data)
        prefix = str(path).removesuffix(".en")
        for skip in (None, lambda error: None):
            try:
                pairs = list(read_file(find_file(prefix, COLUMNS), COLUMNS, skip=skip))
            except (ValueError, OSError) as error:
                assert str(tmp_path / "a.") in str(error)  # noqa: PT017
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                if name == "a.en" and skip is None:
                    assert len(pairs) == data.count(b"\n") + (not data.endswith(b"\n"))
                for source, target in pairs:
                    source.encode("utf-8")
                    target.encode("utf-8")
                    assert "\n" not in source or name != "a.en"
    # else the mutants are too harmless, or too harsh; gzip has a checksum
    assert outcomes["refused"]
    assert outcomes["read"] or name.endswith(".gz")


@pytest.mark.parametrize("number", NUM)
def test_sentencepiece_models(number, tmp_path):
    tokenizer = TranslationTokenizer.train(["one red dog"] * 9, ["hund"] * 9, vocab_size=25)
    tokenizer.save(tmp_path / "good")
    model = (tmp_path / "good" / "shared.model").read_bytes()
    # a crash of the library would end the process: of a child, which says so
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(300)
            read_models(model, number, tmp_path / "a.model")
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def read_models(model, number, path):
    for data in mutants(model, number):
        path.write_bytes(data)
        try:
            tokenizer = TranslationTokenizer.load(path)
        except ValueError as error:
            assert "a.model" in str(error)  # noqa: PT017
            continue
        ids = tokenizer.encode_source(["one red dog 犬", "", "</s>"])
        for row in ids:
            assert all(0 <= i < tokenizer.src_vocab_size for i in row)
            tokenizer.decode(row)


@pytest.mark.parametrize("number", NUM)
def test_checkpoints(number, fitted, tmp_path):
    whole = fitted.ckpt.read_bytes()
    path, refused = tmp_path / "a.ckpt", 0
    for data in mutants(whole, max(20, number // 3)):
        path.write_bytes(data)
        try:
            checkpoints.read(path)
            Seq2Seq.load_from_checkpoint(path)
        except (ValueError, OSError) as error:
            assert "checkpoint" in str(error) or "a.ckpt" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 5


CONFIG = """
model:
  class_path: litseq.TransformerSeq2Seq
  init_args: {d_model: 24, num_heads: 3, lr: 2.0e-2, betas: [0.9, 0.98]}
trainer: &here
  max_epochs: 3
  callbacks:
    - class_path: litseq.TranslationSamples
      init_args: {num_samples: 3}
"""


@pytest.mark.parametrize("number", NUM)
def test_configurations(number, elsewhere):
    path = elsewhere / "a.yaml"
    for i, data in enumerate(mutants(CONFIG.encode(), number)):
        path.write_bytes(data)
        try:
            check_configs(["fit", "-c", str(path)])
        except ValueError as error:
            assert "a.yaml" in str(error)  # noqa: PT017
        if i % 4 == 0:
            outcome = litseq("fit", "-c", "a.yaml", "--print_config")
            assert outcome.status in (0, 2), data
            assert "Traceback" not in outcome.err
            assert not outcome.status or outcome.err.splitlines()[-1].startswith("litseq: error: ")
