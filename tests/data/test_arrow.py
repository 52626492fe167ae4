"""Rows that are read by number are those that ``datasets`` reads."""

import pickle
import subprocess
import sys

import datasets
import numpy as np
import pytest

from litseq.data import arrow
from litseq.data.arrow import ArrowRows, numbers_of


@pytest.fixture
def folder(tmp_path):
    """Two files of several chunks each, some rows of which are empty."""
    rows = [{"ids": list(range(i % 5)), "n": i * 7, "text": "ä" * (i % 3)} for i in range(40)]
    features = datasets.Features(
        {
            "ids": datasets.List(datasets.Value("int32")),
            "n": datasets.Value("int32"),
            "text": datasets.Value("string"),
        }
    )
    for name, part in (("b", rows[25:]), ("a", rows[:25])):
        made = datasets.Dataset.from_list(part, features=features)
        made.map(
            lambda row: row, cache_file_name=str(tmp_path / f"{name}.arrow"), writer_batch_size=7,
            features=features, new_fingerprint=name,
        )  # fmt: skip
    return tmp_path


@pytest.fixture
def expected(folder):
    files = sorted(folder.glob("*.arrow"))
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(f)) for f in files])


def test_rows_are_those_of_datasets(folder, expected, monkeypatch):
    monkeypatch.setattr(arrow, "_CHUNK", 6)
    found = ArrowRows(folder)
    assert len(found) == len(expected) == 40
    assert found.column_names == expected.column_names
    assert numbers_of(found.table.column("n")).tolist() == expected["n"][:]
    assert list(found.iter_texts("text")) == expected["text"][:]
    for rows in ([39, 0, 6, 7, 24, 25, 25], [], [13]):
        given = np.array(rows, dtype=np.int64)
        there = expected[rows]
        assert [ids.tolist() for ids in found.sequences("ids", given)] == there["ids"]
        assert found.texts("text", given) == list(found.iter_texts("text", given)) == there["text"]


def test_sequences_are_no_copies(folder):
    found = ArrowRows(folder)
    first, second = (found.sequences("ids", np.array([4]))[0] for _ in range(2))
    assert first.base is not None
    assert np.shares_memory(first, second)


def test_workers_map_the_files_themselves(folder):
    found = ArrowRows(folder)
    copy = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 500
    assert copy.table == found.table


@pytest.mark.parametrize("row", [40, -1, -2])
def test_a_row_that_is_not_there(folder, row):
    rows = ArrowRows(folder)
    for read, name in ((rows.texts, "text"), (rows.sequences, "ids")):
        with pytest.raises(IndexError, match=f"row {row} is not among the 40"):
            read(name, np.array([3, row]))


def test_a_start_from_the_cache_does_without_datasets(tmp_path):
    """Whose import takes half a second, and 90 MB."""
    (tmp_path / "a.tsv").write_text("".join(f"a b {i}\tc d {i}\n" for i in range(50)))
    code = f"""
import sys
from litseq import TranslationDataModule
data = TranslationDataModule(
    "en", "de", train={str(tmp_path / "a.tsv")!r}, vocab_size=30, cache_dir={str(tmp_path)!r}
)
data.prepare_data()
data.setup("fit")
rows = sum(len(batch["id"]) for batch in data.train_dataloader())
print(rows, data.texts("train", [49])[1][0], *sorted({"datasets", "pandas"} & sys.modules.keys()))
"""
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in said] == [
        ["50", "c", "d", "49", "datasets", "pandas"],
        ["50", "c", "d", "49"],
    ]


@pytest.mark.parametrize("names", [(), ("XDG_CACHE_HOME",), ("HF_HOME", "XDG_CACHE_HOME")])
def test_the_cache_is_below_that_of_datasets(names, tmp_path):
    code = """
import datasets
from litseq.data.corpora import default_cache_dir
assert default_cache_dir().parent == datasets.config.HF_DATASETS_CACHE, default_cache_dir()
"""
    environment = {"HOME": str(tmp_path)} | {name: f"{tmp_path}/{name}" for name in names}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
