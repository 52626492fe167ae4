import dataclasses
import os
import pickle
import re
import shutil
from fractions import Fraction

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from command_line import error_of, litseq
from litseq import RnnSeq2Seq, Seq2Seq, TransformerSeq2Seq, checkpoints, shards
from litseq.average import average
from litseq.checkpoint_io import SafeCheckpointIO, find_damage, is_sharded, load_file, seal, unseal
from litseq.data import TranslationTokenizer
from rank_processes import run_ranks
from tiny_tasks import loader, tiny_batches, tiny_task, tiny_trainer


def random_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(5, 7, generator=generator),
        "b": torch.randn(3, generator=generator),
        "count": torch.tensor(seed),
        "seen": torch.tensor([True, seed > 2]),
        "none": torch.zeros(0),
    }


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint of some weights, as far as litseq reads it, and gives its path."""

    def write(name, weights, *, step=0, hyper_parameters=None, cls=TransformerSeq2Seq, **more):
        path = tmp_path / name
        checkpoint = {
            "global_step": step,
            "epoch": 1,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": weights,
            "hyper_parameters": hyper_parameters or {"lr": 0.1},
            "optimizer_states": [{"state": {}}],
            "lr_schedulers": [],
            "loops": {},
            "callbacks": {},
            "litseq": checkpoints.describe(cls, more.pop("tokenizer", None)),
            **more,
        }
        SafeCheckpointIO().save_checkpoint(checkpoint, path)
        return path

    return write


# ---- the mean ----


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_the_mean_is_exact_to_rounding(count, save):
    weights = [random_weights(seed) for seed in range(1, count + 1)]
    paths = [save(f"{i}.ckpt", each, step=i) for i, each in enumerate(weights)]
    found = average(paths)["state_dict"]
    assert found.keys() == weights[0].keys()
    for name in ("a", "b"):
        exact = [
            float(sum(map(Fraction, values)) / count)  # of exact fractions, rounded once
            for values in zip(*(each[name].flatten().tolist() for each in weights), strict=True)
        ]
        expected = torch.tensor(exact, dtype=torch.float64).view_as(found[name])
        # half a unit in the last place of float32; that of float64 is lost in it
        torch.testing.assert_close(found[name].double(), expected, rtol=2**-24 * (1 + 1e-6), atol=0)
        assert found[name].dtype == torch.float32


def test_float64_stays_float64(save):
    weights = [{"a": random_weights(seed)["a"].double() / 3} for seed in range(6)]
    found = average([save(f"{i}.ckpt", each) for i, each in enumerate(weights)])["state_dict"]["a"]
    expected = torch.stack([each["a"] for each in weights]).mean(0)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)


def test_order_does_not_matter(save):
    paths = [save(f"{i}.ckpt", random_weights(i), step=i) for i in range(1, 6)]
    one, other = average(paths), average(paths[::-1])
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=2**-23, atol=0)
    assert one["litseq"] == other["litseq"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_the_mean_of_equal_files_is_the_file(dtype, count, save):
    weights = random_weights(1)
    weights |= {"a": weights["a"].to(dtype) / 3, "mask": torch.tensor([0.0, -torch.inf])}
    found = average([save(f"{i}.ckpt", weights, step=i) for i in range(count)])["state_dict"]
    torch.testing.assert_close(found, weights, rtol=0, atol=0)
    assert {n: w.dtype for n, w in found.items()} == {n: w.dtype for n, w in weights.items()}


def test_types_that_differ(save):
    one = save("1.ckpt", {"a": torch.tensor([1.0]).bfloat16(), "b": torch.ones(1).half()})
    two = save("2.ckpt", {"a": torch.tensor([1.0 + 2**-20]), "b": torch.ones(1).bfloat16()})
    for paths in ([one, two], [two, one]):
        found = average(paths)["state_dict"]
        assert found["a"].dtype == found["b"].dtype == torch.float32
        assert found["a"].item() == 1 + 2**-21


def test_what_has_no_mean_is_the_newest_s(save):
    paths = [
        save(f"{i}.ckpt", random_weights(i), step=step) for i, step in ((1, 5), (3, 9), (2, 7))
    ]
    found = average(paths)["state_dict"]
    assert found["count"].item() == 3
    assert found["seen"].tolist() == [True, True]


def test_tied_weights_stay_one(save, tmp_path):
    paths = []
    for seed in (1, 2):
        weight = random_weights(seed)["a"]
        paths.append(save(f"{seed}.ckpt", {"one": weight, "tied": weight, "own": weight.clone()}))
    found = average(paths)["state_dict"]
    assert found["one"].data_ptr() == found["tied"].data_ptr() != found["own"].data_ptr()


def test_of_weight_averaging_the_average_counts(save):
    one, two = random_weights(1), random_weights(2)
    raw = {"current_model_state": random_weights(7), "averaging_state": {"n": torch.tensor(3)}}
    found = average([save("1.ckpt", one, **raw), save("2.ckpt", two, **raw)])
    torch.testing.assert_close(found["state_dict"]["a"], (one["a"] + two["a"]) / 2)
    assert not raw.keys() & found.keys()


def test_only_what_belongs_to_no_training_is_kept(save):
    state = {"TranslationDataModule": {"tokenizer": "x"}, "datamodule_hyper_parameters": {"a": 1}}
    found = average([save(f"{i}.ckpt", random_weights(i), step=i, **state) for i in (4, 2)])
    assert found.keys() == {
        "pytorch-lightning_version", "hyper_parameters", "litseq", "state_dict", *state,
    }  # fmt: skip
    origins = [{"step": 2, "file": "2.ckpt"}, {"step": 4, "file": "4.ckpt"}]
    assert found["litseq"]["average"] == origins


def test_an_option_that_came_with_a_later_version_is_no_difference(save):
    before = save("before.ckpt", random_weights(1), hyper_parameters={"lr": 0.1})
    options = {"lr": 0.1, "length_offset": 5.0}
    after = save("after.ckpt", random_weights(2), step=2, hyper_parameters=options)
    for paths in ([before, after], [after, before]):
        assert average(paths)["hyper_parameters"] == options  # those of the highest step


# ---- what is refused ----


def refusal(paths):
    with pytest.raises(ValueError, match=" ") as refused:
        average(paths)
    return str(refused.value)


def test_files_that_do_not_belong_together(save, corpus):
    one = save("one.ckpt", random_weights(1))
    cases = {
        "the class is litseq.architectures.TransformerSeq2Seq in the one and "
        "litseq.architectures.RnnSeq2Seq in the other": save(
            "class.ckpt", random_weights(1), cls=RnnSeq2Seq
        ),
        "lr is 0.1 in the one and 0.2 in the other": save(
            "lr.ckpt", random_weights(1), hyper_parameters={"lr": 0.2}
        ),
        # what a file does not name had the value that is now the default
        "dropout is 0.1 in the one and 0.3 in the other": save(
            "more.ckpt", random_weights(1), hyper_parameters={"lr": 0.1, "dropout": 0.3}
        ),
        "length_offset is 5.0 in the one and 0.0 in the other": save(
            "offset.ckpt", random_weights(1), hyper_parameters={"lr": 0.1, "length_offset": 0.0}
        ),
        "own is absent in the one and 1 in the other": save(
            "own.ckpt", random_weights(1), hyper_parameters={"lr": 0.1, "own": 1}
        ),
        "a is (5, 7) in the one and (7, 5) in the other": save(
            "shape.ckpt", random_weights(1) | {"a": torch.zeros(7, 5)}
        ),
        "a is (5, 7) in the one and (5, 7) of torch.int64 in the other": save(
            "kind.ckpt", random_weights(1) | {"a": torch.zeros(5, 7, dtype=torch.int64)}
        ),
        "b is (3,) in the one and absent in the other": save(
            "less.ckpt", {n: w for n, w in random_weights(1).items() if n != "b"}
        ),
        "extra is absent in the one and (2,) in the other": save(
            "extra.ckpt", random_weights(1) | {"extra": torch.zeros(2)}
        ),
    }
    for difference, other in cases.items():
        assert refusal([one, one, other]) == (
            f"{one} and {other} do not belong together: {difference}; average checkpoints of one "
            f"run."
        )


def test_tokenizers_that_differ(save):
    texts = ["one two three"] * 9, ["eins zwei drei"] * 9
    one, two = (
        TranslationTokenizer.train(*texts, vocab_size=size, src_lang="en", tgt_lang="de")
        for size in (24, 25)
    )
    paths = [
        save(f"{i}.ckpt", random_weights(1), tokenizer=each) for i, each in enumerate((one, two))
    ]
    paths.append(save("none.ckpt", random_weights(1)))
    assert (
        f"the tokenizer is sha256 {one.fingerprint[:12]} in the one and sha256 "
        f"{two.fingerprint[:12]} in the other" in refusal(paths)
    )
    assert "the tokenizer is None in the one and sha256" in refusal([paths[2], paths[0]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(value, save):
    bad = random_weights(2)
    bad["b"][1] = value
    paths = [save("1.ckpt", random_weights(1)), save("2.ckpt", bad)]
    assert re.search(r"2\.ckpt: b is not finite, there or in a checkpoint before", refusal(paths))
    assert "b is not finite" in refusal(paths[::-1])


def test_the_weights_of_one_checkpoint_that_are_no_numbers(save):
    bad = random_weights(2)
    bad["b"][1] = torch.nan
    assert re.search(r"2\.ckpt: b is not finite \(NaN\); leave out", refusal([save("2.ckpt", bad)]))


def test_a_damaged_file(save):
    paths = [save(f"{i}.ckpt", random_weights(i)) for i in (1, 2)]
    content = bytearray(paths[1].read_bytes())
    content[content.index(random_weights(2)["a"].numpy().tobytes()) + 5] ^= 1
    paths[1].write_bytes(content)
    assert "2.ckpt is damaged; use another" in refusal(paths)


# ---- the command ----


@pytest.fixture(scope="module")
def run(corpus, data_options, tmp_path_factory):
    """The folder of a run that saved after every epoch, and its last and best besides."""
    from command_line import DATA, MODEL

    home = tmp_path_factory.mktemp("run")
    (home / "data.yaml").write_text(DATA.format(corpus=corpus, cache_dir=data_options["cache_dir"]))
    (home / "model.yaml").write_text(MODEL)
    saving = "--trainer.callbacks", "lightning.pytorch.callbacks.ModelCheckpoint"
    every = "--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.save_last", "true"
    before = os.getcwd()
    os.chdir(home)
    try:
        outcome = litseq(
            "fit", "-c", "data.yaml", "-c", "model.yaml", *saving, *every,
            "--trainer.max_epochs", "4",
        )  # fmt: skip
    finally:
        os.chdir(before)
    assert outcome.status == 0, outcome.err
    return home / "runs" / "tiny" / "version_0"


def test_the_last_of_a_run(run, elsewhere):
    found = sorted(checkpoints.generations(run / "checkpoints")[0])
    assert len(found) == 5
    steps = sorted({generation.step for generation in found})
    for folder in (run, run / "checkpoints"):
        outcome = litseq("average", folder, "--last", "3", "-o", "avg.ckpt")
        assert outcome.status == 0, outcome.err
        assert outcome.out == ""
        listed = ", ".join(map(str, steps[-3:]))
        assert f"avg.ckpt holds the average of 3 checkpoints: steps {listed}." in outcome.err
    # named one by one, the same comes out, apart from a file that is the last under two names
    named = [g.path for g in found if g.step in steps[-3:] and g.path.name != "last.ckpt"]
    litseq("average", *named, "--output", "named.ckpt")
    one, two = (checkpoints.read(elsewhere / name) for name in ("avg.ckpt", "named.ckpt"))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=2**-22, atol=0)
    assert [origin["step"] for origin in one["litseq"]["average"]] == steps[-3:]
    assert find_damage(elsewhere / "avg.ckpt") is None
    assert sorted(p.name for p in elsewhere.iterdir()) == ["avg.ckpt", "named.ckpt"]


def test_an_average_is_a_checkpoint(run, elsewhere):
    assert litseq("average", run, "--last", "2", "-o", "avg.ckpt").status == 0
    assert litseq("translate", "--ckpt", "avg.ckpt", stdin=b"one dog\ntwo\n").out.count("\n") == 2
    outcome = litseq("test", "--ckpt_path", "avg.ckpt")
    assert outcome.status == 0, outcome.err
    assert "test/loss" in outcome.out
    assert litseq("predict", "--ckpt_path", "avg.ckpt").status == 0
    outcome = litseq("explain", "--ckpt", "avg.ckpt", "one dog")
    assert outcome.status == 0, outcome.err
    assert (elsewhere / "report.html").is_file()
    # nothing of a run would go on from it
    assert checkpoints.newest(elsewhere) is None


def test_an_average_cannot_be_resumed(run, elsewhere):
    assert litseq("average", run, "--last", "2", "-o", "avg.ckpt").status == 0
    message = error_of("fit", "-c", run / "config.yaml", "--ckpt_path", "avg.ckpt")
    assert message == (
        "the checkpoint holds the average of 2 checkpoints and no state of a training to resume; "
        "resume from a checkpoint of the run, or begin anew from Seq2Seq.load_from_checkpoint."
    )


def test_one_step_under_two_names_is_said(run, elsewhere):
    last = run / "checkpoints" / "last.ckpt"
    shutil.copy(last, "copy.ckpt")
    outcome = litseq("average", last, "copy.ckpt", "-o", "avg.ckpt")
    step = load_file(last)["global_step"]
    assert (
        f"copy.ckpt and last.ckpt are of the same step {step}, which counts twice." in outcome.err
    )


def test_an_average_of_averages(run, elsewhere):
    litseq("average", run, "--last", "2", "-o", "a.ckpt")
    litseq("average", run, "--last", "3", "-o", "b.ckpt")
    assert litseq("average", "a.ckpt", "b.ckpt", "-o", "c.ckpt").status == 0
    assert len(load_file(elsewhere / "c.ckpt")["litseq"]["average"]) == 2


def test_unreadable_files_of_a_run_are_named(run, elsewhere):
    shutil.copytree(run / "checkpoints", "checkpoints")
    (elsewhere / "checkpoints" / "cut.ckpt").write_bytes(b"PK\3\4 and no end")
    outcome = litseq("average", elsewhere, "--last", "2", "-o", "avg.ckpt")
    assert outcome.status == 0
    assert re.search(
        r"cut\.ckpt \(15 bytes\) is not a checkpoint, or .* and is left out", outcome.err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--last", "9", "-o", "a.ckpt"], r"checkpoints holds checkpoints of 4 steps, which "
         r"is less than --last 9; lower it\."),
        (["RUN", "--last", "0", "-o", "a.ckpt"], r"last must be at least 1, got 0\."),
        (["x.ckpt", "--last", "2", "-o", "a.ckpt"], r"--last 2 looks into one folder, got x\.ckpt"),
        (["RUN", "RUN", "--last", "2", "-o", "a.ckpt"], r"--last 2 looks into one folder, got .*"),
        (["RUN", "-o", "a.ckpt"], r"version_0 is a folder \(with .*\); give a checkpoint file"),
        (["x.ckpt", "-o", "a.ckpt"], r"no checkpoint at x\.ckpt; beside it: no \.ckpt file"),
        (["LAST", "-o", "."], r"\. is a folder; give a file to write"),
        (["LAST", "-o", "no/where.ckpt"], r"there is no folder no to write where\.ckpt in"),
        (["LAST", "-o", "LAST"], r"last\.ckpt is averaged itself; write to another file"),
        (["LAST"], r"output"),
        (["-o", "a.ckpt"], r"paths"),
    ],
)  # fmt: skip
def test_words(words, message, run, elsewhere):
    places = {"RUN": run, "LAST": run / "checkpoints" / "last.ckpt"}
    assert re.search(message, error_of("average", *(places.get(word, word) for word in words)))
    assert not list(elsewhere.iterdir())


# ---- shards ----


def train_sharded(rank, folder):
    task = tiny_task(lr=1e-2)
    task.network = None  # to be built anew, in shards
    trainer = tiny_trainer(
        folder,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        devices=2,
        use_distributed_sampler=False,
    )
    trainer.fit(task, loader(tiny_batches(4)[rank::2]))
    trainer.save_checkpoint(folder / "sharded.ckpt")
    return {
        name: weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        for name, weight in task.state_dict().items()
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A checkpoint in shards of two ranks, and the weights that it holds."""
    folder = tmp_path_factory.mktemp("sharded")
    weights, _ = run_ranks(2, train_sharded, folder)
    seal(folder / "sharded.ckpt")
    return folder / "sharded.ckpt", weights


@pytest.fixture
def copied_shards(sharded, tmp_path):
    return shutil.copytree(sharded[0], tmp_path / "copy.ckpt")


def test_shards_become_a_file(sharded, elsewhere):
    path, weights = sharded
    assert is_sharded(path)
    outcome = litseq("average", path, "-o", "plain.ckpt")
    assert outcome.status == 0, outcome.err
    assert "plain.ckpt holds the weights of 1 checkpoints: steps 2." in outcome.err
    found = checkpoints.read("plain.ckpt")["state_dict"]
    torch.testing.assert_close(dict(found), weights, rtol=0, atol=0)
    loaded = Seq2Seq.load_from_checkpoint("plain.ckpt")
    torch.testing.assert_close(dict(loaded.state_dict()), weights, rtol=0, atol=0)


def test_shards_and_files_are_averaged_together(sharded, elsewhere):
    path, weights = sharded
    litseq("average", path, "-o", "plain.ckpt")
    found = average([path, elsewhere / "plain.ckpt"])["state_dict"]
    torch.testing.assert_close(dict(found), weights, rtol=0, atol=0)


def test_shards_where_a_file_is_wanted(sharded, elsewhere):
    assert error_of("translate", "--ckpt", sharded[0]) == (
        f"{sharded[0]} is a checkpoint in shards; 'litseq average {sharded[0]} -o plain.ckpt' "
        f"makes one file of it."
    )


def test_a_missing_shard(copied_shards, elsewhere):
    (copied_shards / "__1_0.distcp").unlink()
    message = error_of("average", copied_shards, "-o", "a.ckpt")
    assert message == f"{copied_shards} lacks __1_0.distcp; use another checkpoint of the run."


def read_damaged(path, flip, count, weights):
    """Flips bits in a file of a checkpoint in shards, and says what reading it comes to."""
    whole = path.read_bytes()
    outcomes = []
    for position in range(0, len(whole), len(whole) // count):
        damaged = bytearray(whole)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        try:
            found = shards.read(path.parent)["state_dict"]
        except ValueError as error:
            outcomes.append(str(error))
            continue
        outcomes.append("read")
        # a name that has changed fits no model; a number never changes unseen
        for name in found.keys() & weights.keys():
            torch.testing.assert_close(found[name], weights[name], rtol=0, atol=0)
    return outcomes


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", "meta.pt", ".metadata"])
def test_damaged_shards(name, copied_shards, sharded):
    """A flipped bit of a weight is found; elsewhere it may concern the optimizer's state alone."""
    outcomes = read_damaged(copied_shards / name, 0x04, 24, sharded[1])
    refused = [message for message in outcomes if message != "read"]
    assert 0 < len(refused) <= len(outcomes)
    assert (len(refused) == len(outcomes)) == (name == ".metadata")
    for message in refused:
        assert re.search(r"copy\.ckpt(/\S+)? .*; use another checkpoint of the run\.$", message)


@pytest.mark.slow
@pytest.mark.parametrize("flip", [1 << bit for bit in range(8)])
@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", "meta.pt", ".metadata"])
def test_damaged_shards_often(name, flip, copied_shards, sharded):
    (copied_shards / ".metadata.sha256").unlink()  # as plain Lightning leaves it
    read_damaged(copied_shards / name, flip, 250, sharded[1])


def test_shards_that_are_written_over_are_not_whole(copied_shards):
    unseal(copied_shards)
    assert checkpoints.newest(copied_shards.parent) is None
    lacks = "was not written to its end (it lacks .metadata)"
    assert checkpoints.damage_of(copied_shards) == lacks


def test_resuming_from_shards_runs_no_code(copied_shards, elsewhere):
    assert "litseq" in checkpoints.read_for_resuming(copied_shards)
    (copied_shards / ".metadata").write_bytes(pickle.dumps(Code()))
    seal(copied_shards)
    with pytest.raises(ValueError, match=r"copy\.ckpt is damaged \(\.metadata .*names \w+\.mkdir"):
        checkpoints.read_for_resuming(copied_shards)
    assert not list(elsewhere.glob("the-code-ran"))


@pytest.mark.parametrize("odd", [-1, "1", 2**62, None])
def test_an_index_without_a_checksum_is_read_with_care(odd, copied_shards):
    path = copied_shards / ".metadata"
    index = pickle.loads(path.read_bytes())
    if odd is None:
        index.storage_data = {}
    else:
        for part in index.storage_data:
            old = index.storage_data[part]
            index.storage_data[part] = dataclasses.replace(old, offset=odd)
    path.write_bytes(pickle.dumps(index))
    (copied_shards / ".metadata.sha256").unlink()
    assert re.search("is damaged", checkpoints.damage_of(copied_shards))
    with pytest.raises(ValueError, match="is damaged"):
        shards.read(copied_shards)


def test_a_run_goes_on_from_shards_that_are_whole(copied_shards, caplog):
    """Of a damaged file there is a word, be it the optimizer's part of a shard."""
    older = shutil.copytree(copied_shards, copied_shards.with_name("older.ckpt"))
    assert checkpoints.newest(older.parent) == older
    assert shards.find_damage(older) is None
    for name, position in (("__1_0.distcp", 0.5), (".metadata", 0.5), ("meta.pt", 0.1)):
        whole = (older / name).read_bytes()
        damaged = bytearray(whole)
        damaged[int(position * len(whole))] ^= 1
        (older / name).write_bytes(damaged)
        assert checkpoints.newest(older.parent) == copied_shards
        assert re.search(r"older\.ckpt .*is damaged.* is passed over: copy\.ckpt", caplog.text)
        caplog.clear()
        (older / name).write_bytes(whole)


class Code:
    def __reduce__(self):
        return os.mkdir, ("the-code-ran",)


def test_an_index_of_shards_runs_no_code(copied_shards, elsewhere):
    (copied_shards / ".metadata").write_bytes(pickle.dumps(Code()))
    seal(copied_shards)
    message = error_of("average", copied_shards, "-o", "a.ckpt")
    assert re.search(r"\.metadata is damaged, or no index \(it names \w+\.mkdir\); use", message)
    (copied_shards / ".metadata").write_bytes(pickle.dumps({"no": "index"}))
    seal(copied_shards)
    assert ".metadata is damaged; use" in error_of("average", copied_shards, "-o", "a.ckpt")
    assert not list(elsewhere.glob("the-code-ran"))
