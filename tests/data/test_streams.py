"""A stream gives every pair once, the same for any number of ranks and workers, and resumes."""

import datasets
import numpy as np
import pytest

from litseq.data.encoding import SubwordSampling, TextEncoder
from litseq.data.filters import PairFilter
from litseq.data.readers import Columns, find_file
from litseq.data.stream_loader import StreamLoader
from litseq.data.streams import FileStream, HubStream
from litseq.data.tokenizer import TranslationTokenizer

NOUNS = "dog cat bird horse table chair house tree river stone".split()
COLUMNS = Columns("en", "de", None, None, True)
NUM_PAIRS = 203


def pair(i):
    return f"{i} " + f"{NOUNS[i % 10]} " * (i % 7 + 1) + "here", f"hier {i} " * (i % 5 + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    pairs = [pair(i) for i in range(NUM_PAIRS)]
    for side, lang in enumerate(("en", "de")):
        (folder / f"all.{lang}").write_text("".join(f"{p[side]}\n" for p in pairs))
    for name, part in {"one": pairs[:90], "two": pairs[90:]}.items():
        (folder / f"{name}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in part))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    texts = [(folder / f"all.{lang}").read_text().splitlines() for lang in ("en", "de")]
    return TranslationTokenizer.train(*texts, src_lang="en", tgt_lang="de", vocab_size=60)


def from_files(folder, *names):
    return FileStream([find_file(str(folder / name), COLUMNS) for name in names], COLUMNS)


def from_hub(folder):
    data = datasets.load_dataset(
        "csv",
        data_files=[str(folder / "one.tsv"), str(folder / "two.tsv")],
        delimiter="\t",
        column_names=["en", "de"],
        split="train",
        streaming=True,
        cache_dir=str(folder / "cache"),
    )
    return HubStream(data, "pairs [train]", COLUMNS)


def make(stream, tokenizer, *, sampling=None, pair_filter=None, **options):
    defaults = {"shuffle_buffer": 64, "max_tokens": 120, "seed": 3}
    return StreamLoader(
        stream,
        TextEncoder(tokenizer, 5000),
        pair_filter or PairFilter(100, 100, None, 5000),
        sampling=sampling,
        **(defaults | options),
    )


def content(batch):
    return {name: value.tolist() for name, value in batch.items()}


def contents(loader):
    return [content(batch) for batch in loader]


@pytest.fixture(params=["text", "tsv", "hub"])
def stream(request, folder):
    if request.param == "hub":
        return from_hub(folder)
    return from_files(folder, *{"text": ["all"], "tsv": ["one.tsv", "two.tsv"]}[request.param])


def test_every_pair_once_with_its_ids(stream, tokenizer):
    loader, epochs = make(stream, tokenizer), []
    for epoch in range(3):
        assert loader.epoch == epoch
        seen = {}
        for batch in loader:
            assert batch["input_ids"].numel() <= 120 or len(batch["id"]) == 1
            for row, i in enumerate(batch["id"].tolist()):
                assert i not in seen
                seen[i] = batch["input_ids"][row], batch["labels"][row]
        for i, (src, tgt) in seen.items():
            expected = [
                tokenizer.encode_source([pair(i)[0]]),
                tokenizer.encode_target([pair(i)[1]]),
            ]
            assert src[src != 0].tolist() == expected[0][0]
            assert tgt[tgt != -100].tolist() == expected[1][0]
        assert sorted(seen) == list(range(NUM_PAIRS))
        epochs.append(list(seen))
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_same_pairs_whatever_they_come_from(folder, tokenizer):
    streams = [from_files(folder, "all"), from_files(folder, "one.tsv", "two.tsv")]
    first, *others = [contents(make(s, tokenizer)) for s in [*streams, from_hub(folder)]]
    assert all(other == first for other in others)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_workers(stream, tokenizer, num_workers):
    loaders = make(stream, tokenizer), make(stream, tokenizer, num_workers=num_workers)
    for _ in range(2):
        first, second = map(contents, loaders)
        assert first == second


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_one_step_of_many_ranks_is_many_steps_of_one(stream, tokenizer, world_size):
    alone = contents(make(stream, tokenizer))
    ranks = [
        contents(make(stream, tokenizer, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    whole = len(alone) // world_size * world_size
    assert together[:whole] == alone[:whole]
    rest = [i for batch in together[whole:] for i in batch["id"] if i != -1]
    assert sorted(rest) == sorted(i for batch in alone[whole:] for i in batch["id"])


def test_fewer_pairs_than_ranks(folder, tokenizer):
    (folder / "few.tsv").write_text("a\tb\nthe dog\tder Hund\n")
    stream = from_files(folder, "few.tsv")
    found = [contents(make(stream, tokenizer, world_size=3, rank=rank)) for rank in range(3)]
    assert [len(batches) for batches in found] == [1, 1, 1]
    ids = [batch["id"] for (batch,) in found]
    assert sorted(ids) == [[-1], [0], [1]]
    (empty,) = found[ids.index([-1])]
    assert {label for row in empty["labels"] for label in row} == {-100}


@pytest.mark.parametrize("shuffle", [True, False])
def test_resumes_with_the_very_next_batch(stream, tokenizer, shuffle):
    loader = make(stream, tokenizer, shuffle=shuffle)
    steps, states = [], [loader.state_dict()]
    for _ in range(2):
        for batch in loader:
            steps.append(content(batch))
            states.append(loader.state_dict())
    for done, state in list(enumerate(states))[:: 3 if shuffle else 11]:
        again = make(stream, tokenizer, shuffle=shuffle)
        again.load_state_dict(state)
        rest = []
        while again.epoch < 2:
            rest += contents(again)
        assert rest == steps[done:]


def test_resumes_with_other_ranks(folder, tokenizer):
    stream = from_files(folder, "all")
    alone = contents(make(stream, tokenizer))
    two = [make(stream, tokenizer, world_size=2, rank=rank) for rank in range(2)]
    passes = [iter(loader) for loader in two]
    for _ in range(4):
        for batches in passes:
            next(batches)
    states = [loader.state_dict() for loader in two]
    assert states[0] == states[1]
    assert two[0].position == 4
    one = make(stream, tokenizer)
    one.load_state_dict(states[0])
    assert one.position == 8
    assert contents(one) == alone[8:]


def test_one_who_looks_ahead_saves_the_place_of_what_is_used(folder, tokenizer):
    stream = from_files(folder, "all")
    plain, ahead = make(stream, tokenizer), make(stream, tokenizer, lookahead=1)
    expected = []
    for _ in plain:
        expected.append(plain.state_dict())
    batches, states = iter(ahead), []
    next(batches)
    while next(batches, None) is not None:
        states.append(ahead.state_dict())
    states.append(ahead.state_dict())
    assert states == expected


def test_another_buffer_starts_the_epoch_anew(folder, tokenizer, caplog):
    stream = from_files(folder, "all")
    loader = make(stream, tokenizer)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    other = make(stream, tokenizer, shuffle_buffer=32)
    other.load_state_dict(loader.state_dict())
    assert "epoch 0 starts anew" in caplog.text
    assert sorted(i for b in contents(other) for i in b["id"]) == list(range(NUM_PAIRS))


def test_a_run_that_a_bad_line_stopped_goes_on_with_more_of_them_allowed(folder, tokenizer):
    stream = from_files(folder, "all")
    loader = make(stream, tokenizer)
    batches = iter(loader)
    done = [content(next(batches)) for _ in range(3)]
    other = make(stream, tokenizer, max_bad_lines=9)
    other.load_state_dict(loader.state_dict())
    assert done + contents(other) == contents(make(stream, tokenizer))


def test_other_data_are_refused(folder, tokenizer):
    state = make(from_files(folder, "all"), tokenizer).state_dict()
    other = from_files(folder, "one.tsv")
    with pytest.raises(ValueError, match="are not those of the checkpoint"):
        make(other, tokenizer).load_state_dict(state)
    make(other, tokenizer, allow_other_data=True).load_state_dict(state)


def test_what_is_filtered_is_said(folder, tokenizer, caplog):
    caplog.set_level("INFO")
    limits = PairFilter(14, 100, None, 5000)
    found = contents(make(from_files(folder, "all"), tokenizer, pair_filter=limits))
    kept = [i for batch in found for i in batch["id"]]
    lengths = [len(tokenizer.encode_source([pair(i)[0]])[0]) for i in range(NUM_PAIRS)]
    assert sorted(kept) == [i for i, n in enumerate(lengths) if n <= 14]
    assert 0 < len(kept) < NUM_PAIRS
    assert f"epoch 0: 203 pairs, kept {len(kept)}: {203 - len(kept)} longer than" in caplog.text


def test_nothing_left_is_an_error(folder, tokenizer):
    loader = make(from_files(folder, "all"), tokenizer, pair_filter=PairFilter(2, 2, None, 5000))
    with pytest.raises(ValueError, match="no training pair is left: 203 pairs, kept 0"):
        list(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_line_is_one_clear_error(folder, tokenizer, num_workers, caplog):
    lines = [f"{a}\t{b}\n".encode() for a, b in map(pair, range(40))]
    lines[17], lines[30] = b"no tab\n", b"caf\xe9\tx\n"
    (folder / "bad.tsv").write_bytes(b"".join(lines))
    stream, options = from_files(folder, "bad.tsv"), {"num_workers": num_workers}
    options["shuffle_buffer"] = 32
    with pytest.raises(ValueError, match=r"^\S*bad.tsv:18: expected source and target"):
        list(make(stream, tokenizer, **options))
    for most in (1, 2):
        loader = make(stream, tokenizer, max_bad_lines=most, **options)
        if most == 1:
            with pytest.raises(ValueError, match=r"^\S*bad.tsv:31: byte 4 of the line is 0xe9"):
                list(loader)
            continue
        caplog.clear()
        found = sorted(i for batch in contents(loader) for i in batch["id"])
        assert found == [i for i in range(40) if i not in (17, 30)]
        assert "bad.tsv:18" in caplog.text
        assert "bad.tsv:31" in caplog.text


def test_unequal_files_are_found_at_their_end(folder, tokenizer):
    (folder / "odd.en").write_text("a\nb\nc\n")
    (folder / "odd.de").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"3 lines and .* has 2"):
        list(make(from_files(folder, "odd"), tokenizer))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_subword_sampling_is_that_of_prepared_data(folder, tokenizer, num_workers):
    sampling = SubwordSampling(tokenizer, alpha=0.3, nbest_size=-1, seed=5, max_chars=5000)
    stream = from_files(folder, "all")
    loader = make(stream, tokenizer, sampling=sampling, num_workers=num_workers)
    epochs = [
        {i: row for b in loader for i, row in zip(b["id"].tolist(), b["input_ids"], strict=True)}
        for _ in range(2)
    ]
    for epoch, rows in enumerate(epochs):
        seeds = np.random.SeedSequence([5, epoch]).generate_state(2, np.uint64).tolist()
        for i in (0, 77, 202):
            (cut,) = tokenizer.sample_source(
                [pair(i)[0]], alpha=0.3, nbest_size=-1, seed=seeds[0], streams=[i]
            )
            assert rows[i][rows[i] != 0].tolist() == cut


def test_the_largest_batch_is_the_largest_there_can_be(folder, tokenizer):
    loader = make(from_files(folder, "all"), tokenizer, max_tokens=450)
    (largest,) = loader.largest_batches()
    assert largest["input_ids"].shape == largest["labels"].shape == (4, 100)
    assert largest["attention_mask"].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1, got 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"lookahead": 2}, "lookahead must be 0 or 1, got 2"),
        ({"rank": 1}, "give both or none of world_size=None and rank=1"),
    ],
)
def test_bad_options(folder, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        make(from_files(folder, "all"), tokenizer, **options)
