import threading

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from litseq.data import corpora
from litseq.data.arrow import ArrowRows
from litseq.data.demo import load_demo
from litseq.data.readers import Columns

COLUMNS = Columns("en", "de", None, None, True)


def write_tsv(path, pairs):
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    return str(path)


def pairs_of(folder):
    data = ArrowRows(folder)
    return list(zip(data.iter_texts("source"), data.iter_texts("target"), strict=True))


def test_files_are_joined_in_order(tmp_path):
    names = [write_tsv(tmp_path / f"{n}.tsv", [(f"{n}{i}", "t") for i in range(3)]) for n in "ba"]
    folder = corpora.cache_files(names, columns=COLUMNS, cache_dir=tmp_path / "cache")
    assert [source for source, _ in pairs_of(folder)] == ["b0", "b1", "b2", "a0", "a1", "a2"]


def test_the_cache_follows_contents_not_names(tmp_path):
    def cache(name, **changes):
        columns = Columns(**{**vars(COLUMNS), **changes})
        return corpora.cache_files(name, columns=columns, cache_dir=tmp_path / "cache")

    first = cache(write_tsv(tmp_path / "a.tsv", [("x", "y")]))
    assert cache(write_tsv(tmp_path / "b.tsv", [("x", "y")])) == first
    assert cache(str(tmp_path / "a.tsv"), need_target=False) != first
    changed = cache(write_tsv(tmp_path / "a.tsv", [("x", "z")]))
    assert changed != first
    assert (pairs_of(first), pairs_of(changed)) == ([("x", "y")], [("x", "z")])


def test_more_rows_than_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "_CHUNK", 4)
    pairs = [(f"s{i}", f"t{i}") for i in range(11)]
    name = write_tsv(tmp_path / "a.tsv", pairs)
    folder = corpora.cache_files(name, columns=COLUMNS, cache_dir=tmp_path / "cache")
    assert pairs_of(folder) == pairs


def test_zero_pairs(tmp_path):
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(ValueError, match=r"empty\.tsv: 0 pairs"):
        corpora.cache_files(str(tmp_path / "empty.tsv"), columns=COLUMNS, cache_dir=tmp_path)


def test_a_failed_reading_leaves_nothing(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\n" * 3 + "bad\n")
    with pytest.raises(ValueError, match=r"a\.tsv:4"):
        corpora.cache_files(str(tmp_path / "a.tsv"), columns=COLUMNS, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "text").iterdir()) == []


def test_build_once_builds_once_whoever_is_first(tmp_path):
    """Two at a time: both build, one wins, and the folder is whole."""
    folder, calls, meet = tmp_path / "x" / "folder", [], threading.Barrier(2)

    def build(draft):
        meet.wait(timeout=10)
        calls.append(draft)
        (draft / "data").write_text("whole")

    threads = [threading.Thread(target=corpora.build_once, args=(folder, build)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 2
    assert corpora.build_once(folder, build) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert (folder / "data").read_text() == "whole"


def test_demo(tmp_path):
    folder = corpora.cache_demo("val", src_lang="en", tgt_lang="zh", cache_dir=tmp_path)
    assert pairs_of(folder) == load_demo("en", "zh", split="val")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset in a folder, which ``datasets`` loads as it loads one from the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "set").mkdir()
    for split, number in (("train", 5), ("validation", 2)):
        rows = [{"translation": {"de": f"{split} t{i}", "en": f"s{i}"}} for i in range(number)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / f"{split}-0.parquet")
    return str(tmp_path / "set")


def test_hub(hub, tmp_path):
    def cache(split):
        return corpora.cache_hub(
            hub, config=None, split=split, columns=COLUMNS, cache_dir=tmp_path / "cache"
        )

    assert corpora.hub_splits(hub, None) == ["train", "validation"]
    assert pairs_of(cache("validation")) == [(f"s{i}", f"validation t{i}") for i in range(2)]
    assert len(pairs_of(cache("train[:3]"))) == 3
    assert cache("train[:3]") != cache("train")
    with pytest.raises(ValueError, match=r"cannot load dataset \S+set \[nope\]: .*nope"):
        cache("nope")


def test_split_by_source_is_exact_disjoint_and_keeps_equal_sources_together():
    sources = [f"sentence {i % 150}" for i in range(200)]
    parts = corpora.split_by_source(sources, val_size=30, test_size=0.1, seed=3)
    assert sorted(np.concatenate(parts)) == list(range(200))
    groups = [{sources[i] for i in part} for part in parts]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert len(parts[1]) in (30, 31)
    assert len(parts[2]) in (20, 21)
    assert all((np.diff(part) > 0).all() for part in parts)


def test_split_by_source_does_not_hang_on_order_and_changes_with_the_seed():
    sources = [f"sentence {i}" for i in range(50)]

    def val(texts, seed):
        _, rows, _ = corpora.split_by_source(texts, val_size=9, test_size=0, seed=seed)
        return {texts[i] for i in rows}

    assert val(sources, 1) == val(sources[::-1], 1)
    assert val(sources, 1) != val(sources, 2)
    assert len(val(sources, 1)) == 9


def test_split_by_source_is_the_same_everywhere():
    parts = corpora.split_by_source("abcdefgh", val_size=2, test_size=1, seed=0)
    # Frozen: another cut would let a model be tested on what it was trained on.
    assert [part.tolist() for part in parts] == [[0, 1, 3, 6, 7], [2, 5], [4]]


@pytest.mark.parametrize("size", [-1, 1.5])
def test_split_by_source_refuses_odd_sizes(size):
    with pytest.raises(ValueError, match=f"val_size must be .* got {size}"):
        corpora.split_by_source("abc", val_size=size, test_size=0, seed=0)


@pytest.mark.parametrize("size", [4, 5, 0.99])
def test_split_by_source_leaves_something_to_train_on(size):
    with pytest.raises(ValueError, match="leave none of the 4 pairs"):
        corpora.split_by_source("abcd", val_size=0, test_size=size, seed=0)


def test_cut(tmp_path):
    pairs = [(f"s{i}", f"t{i}") for i in range(20)]
    name = write_tsv(tmp_path / "a.tsv", pairs)
    whole = corpora.cache_files(name, columns=COLUMNS, cache_dir=tmp_path)
    options = {"val_size": 4, "test_size": 3, "seed": 0, "cache_dir": tmp_path}
    found = {
        part: pairs_of(corpora.cache_cut(whole, part, **options))
        for part in ("train", "val", "test")
    }
    assert [len(part) for part in found.values()] == [13, 4, 3]
    assert sorted(pair for part in found.values() for pair in part) == sorted(pairs)
