import logging
import multiprocessing
import shutil

import datasets
import lightning.pytorch as L
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from litseq.data import TranslationDataModule, TranslationTokenizer

NOUNS = "dog cat bird horse table chair house tree river stone".split()
HANZI = "狗 猫 鸟 马 桌子 椅子 房子 树 河 石头".split()


def make_pairs(start, stop):
    return [
        (
            f"{i} " + f"{NOUNS[i % 10]} " * (i % 4 + 1) + "here",
            f"{i}：" + f"{HANZI[i % 10]}，" * (i % 4 + 1),
        )
        for i in range(start, stop)
    ]


PAIRS = {"train": make_pairs(0, 60), "val": make_pairs(60, 71), "test": make_pairs(71, 80)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, pairs in PAIRS.items():
        for side, lang in enumerate(("en", "zh")):
            (folder / f"{split}.{lang}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    return folder


def make(folder, **options):
    defaults = {split: str(folder / split) for split in PAIRS}
    defaults |= {"vocab_size": 60, "max_tokens": 60, "cache_dir": str(folder / "cache")}
    return TranslationDataModule("en", "zh", **(defaults | options))


def prepare(folder, stage=None, **options):
    data = make(folder, **options)
    data.prepare_data()
    data.setup(stage)
    return data


@pytest.fixture(scope="module")
def data(folder):
    return prepare(folder)


def ids_of(loader):
    return [i for batch in loader for i in batch["id"].tolist()]


@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
def test_every_pair_once_with_its_text(data, split):
    pairs = PAIRS["test" if split == "predict" else split]
    seen = []
    for batch in getattr(data, f"{split}_dataloader")():
        ids = batch["id"].tolist()
        seen += ids
        assert ("labels" in batch) == (split != "predict")
        sources, references = data.texts(split, ids)
        assert list(zip(sources, references, strict=True)) == [pairs[i] for i in ids]
        for row, source in enumerate(sources):
            assert data.tokenizer.decode_source(batch["input_ids"][row]) == source
    assert sorted(seen) == list(range(len(pairs)))


def test_training_is_reshuffled_and_evaluation_is_not(data):
    train, val = data.train_dataloader(), data.val_dataloader()
    assert ids_of(train) != ids_of(train)
    assert ids_of(val) == ids_of(val)


def test_the_seed_decides_the_order_of_batches_and_the_cuts(folder):
    def seen(**options):
        data = prepare(folder, **options)
        batches = list(data.train_dataloader())
        order = [batch["id"].tolist() for batch in batches]
        return order, [batch["input_ids"].tolist() for batch in batches]

    assert seen(seed=1) == seen(seed=1)
    assert seen(seed=1)[0] != seen(seed=2)[0]
    # the same order with other cuts: of one seed, by other pieces
    nbest = {"subword_sampling": 0.5, "model_type": "unigram"}
    one, best_two = (seen(seed=1, sampling_nbest=n, **nbest) for n in (-1, 2))
    assert one[0] == best_two[0]
    assert one[1] != best_two[1]


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)])
def test_the_seed_decides_which_pairs_are_cut_off(folder, seeds):
    first, second = (prepare(folder, seed=seed, val=None, val_size=9) for seed in seeds)
    same = first.texts("val", range(9)) == second.texts("val", range(9))
    assert same == (seeds[0] == seeds[1])


def test_a_cut_off_split_is_no_part_of_what_the_tokenizer_learns_from(tmp_path):
    """Each pair has a character of its own, so those of validation are unknown."""
    for lang in ("en", "zh"):
        rows = "".join(f"here {chr(0x4E00 + i)}\n" for i in range(40))
        (tmp_path / f"train.{lang}").write_text(rows)
    options = {"val": None, "test": None, "val_size": 8, "vocab_size": 45}
    data = prepare(tmp_path, "fit", train=str(tmp_path / "train"), **options)
    for batch in data.val_dataloader():
        assert (batch["labels"] == data.tokenizer.unk_id).any(dim=1).all()


def test_the_tokenizer_knows_the_training_split_alone(folder, tmp_path):
    for lang in ("en", "zh"):
        (tmp_path / f"odd.{lang}").write_text("龘\n")
    data = prepare(folder, val=str(tmp_path / "odd"), test=None)
    batch = next(iter(data.val_dataloader()))
    assert data.tokenizer.unk_id in batch["labels"]


def test_a_second_run_makes_nothing_anew(folder, data):
    def state():
        paths = (folder / "cache").glob("*/*/*")
        return {path: path.stat().st_mtime_ns for path in paths}

    before = state()
    other = prepare(folder)
    assert state() == before
    assert other.tokenizer.fingerprint == data.tokenizer.fingerprint
    assert ids_of(other.train_dataloader()) == ids_of(data.train_dataloader())


def test_setup_twice_changes_nothing(folder):
    data = prepare(folder)
    tokenizer = data.tokenizer
    data.setup()
    data.setup("fit")
    assert data.tokenizer is tokenizer


def test_another_process_finds_what_was_prepared(folder, data):
    other = make(folder)
    other.setup("fit")
    assert ids_of(other.train_dataloader()) == ids_of(data.train_dataloader())


def test_changed_data_are_read_anew(folder, tmp_path):
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    first = prepare(tmp_path)
    (tmp_path / "val.en").write_text("".join(f"new {s}\n" for s, _ in PAIRS["val"]))
    second = prepare(tmp_path)
    assert first.texts("val", [0])[0] == [PAIRS["val"][0][0]]
    assert second.texts("val", [0])[0] == ["new " + PAIRS["val"][0][0]]


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_training_data_that_change_under_a_model_are_refused(folder, tmp_path, stage):
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = prepare(tmp_path)
    (tmp_path / "train.en").write_text("".join(f"new {s}\n" for s, _ in PAIRS["train"]))
    data.prepare_data()
    with pytest.raises(ValueError, match=r"training data have changed .* make a new Translation"):
        data.setup(stage)


def test_other_data_that_change_are_opened_anew(folder, tmp_path):
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = prepare(tmp_path)
    (tmp_path / "test.en").write_text("".join(f"new {s}\n" for s, _ in PAIRS["test"]))
    data.prepare_data()
    data.setup("test")
    assert data.texts("test", [0])[0] == ["new " + PAIRS["test"][0][0]]


def test_the_demo_needs_no_argument(tmp_path, caplog):
    data = TranslationDataModule(cache_dir=str(tmp_path))
    with caplog.at_level(logging.INFO):
        data.prepare_data()
        data.setup("fit")
    assert "en-zh: " in caplog.text
    assert "max_tokens=4,096" in caplog.text
    assert "sources also occur" not in caplog.text
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].numel() <= 4096


def test_files_to_predict(folder, tmp_path):
    (tmp_path / "new.txt").write_text("dog\n\ncat dog\n")
    data = prepare(folder, predict=str(tmp_path / "new.txt"))
    assert sorted(ids_of(data.predict_dataloader())) == [0, 1, 2]
    assert data.texts("predict", [2, 1]) == (["cat dog", ""], None)


def test_prediction_needs_only_a_tokenizer(folder, data, tmp_path):
    data.tokenizer.save(tmp_path / "tokenizer")
    options = {"train": None, "val": None, "test": None, "predict": str(folder / "test")}
    alone = prepare(folder, "predict", tokenizer=str(tmp_path / "tokenizer"), **options)
    assert alone.tokenizer.fingerprint == data.tokenizer.fingerprint
    assert len(ids_of(alone.predict_dataloader())) == 9


@pytest.mark.parametrize("name", ["pair", "pair/shared.model"])
def test_the_languages_are_those_of_the_data(folder, data, tmp_path, name):
    data.tokenizer.save(tmp_path / "pair")
    options = {"train": None, "val": None, "test": None, "tokenizer": str(tmp_path / name)}
    options |= {"predict": str(folder / "test.en"), "cache_dir": str(tmp_path / "cache")}
    for langs in (("de", "fr"), ("en", "zh")):  # one cache, and one model for two pairs
        other = TranslationDataModule(*langs, **options)
        other.prepare_data()
        other.setup("predict")
        assert (other.tokenizer.src_lang, other.tokenizer.tgt_lang) == langs
        assert other.tokenizer.fingerprint == data.tokenizer.fingerprint


def test_sizes_cut_the_training_data(folder):
    options = {"val": None, "test": None, "val_size": 7, "test_size": 0.1}
    data = prepare(folder, **options)
    sizes = [len(ids_of(getattr(data, f"{s}_dataloader")())) for s in ("train", "val", "test")]
    assert sizes == [47, 7, 6]


def test_hub(folder, tmp_path, monkeypatch):
    """A folder of Parquet files stands in for a dataset on the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "set").mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        rows = [{"translation": {"en": source, "zh": target}} for source, target in PAIRS[split]]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / f"{name}-0.parquet")
    options = {"dataset": str(tmp_path / "set"), "train": None, "val": None, "test": None}
    data = prepare(folder, **options)
    assert data.texts("train", [5]) == ([PAIRS["train"][5][0]], [PAIRS["train"][5][1]])
    assert len(ids_of(data.val_dataloader())) == 11
    with pytest.raises(ValueError, match="no test data: give test"):
        data.test_dataloader()
    joined = prepare(folder, **(options | {"test": ["validation", "train[:3]"]}))
    assert len(ids_of(joined.test_dataloader())) == 14
    cut = prepare(folder, **(options | {"test_size": 6}))
    assert len(ids_of(cut.test_dataloader())) == 6


def test_bad_rows_of_a_hub_dataset_are_left_out(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "set").mkdir()
    pairs = [*PAIRS["train"], ("no translation", None)]
    rows = [{"translation": {"en": source, "zh": target}} for source, target in pairs]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "train-0.parquet")
    options = {"dataset": str(tmp_path / "set"), "train": None, "val": None, "test": None}
    with pytest.raises(ValueError, match=r"row 60: 'translation.zh' must be text, found NoneType"):
        prepare(folder, **options)
    data = prepare(folder, **options, max_bad_lines=1)
    assert len(ids_of(data.train_dataloader())) == 60
    assert "1 bad lines were skipped, see" in caplog.text


def test_a_hub_dataset_without_training_split(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"en": ["a"], "zh": ["b"]}), tmp_path / "set" / "test-0.parquet")
    options = {"dataset": str(tmp_path / "set"), "train": None, "val": None, "test": None}
    with pytest.raises(ValueError, match="no training split to cut; name it: train"):
        prepare(folder, **options, val_size=1)


def test_a_tokenizer_is_trained_on_a_sample_of_a_huge_corpus(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("litseq.data.prepare._MAX_TOKENIZER_PAIRS", 40)
    with caplog.at_level(logging.INFO):
        data = prepare(folder, cache_dir=str(tmp_path))
    assert "training the tokenizer on 40 of 60 pairs" in caplog.text
    assert data.tokenizer.src_vocab_size == 60


def test_filters_drop_training_pairs_and_say_so(folder, tmp_path, caplog):
    odd = [("", "空"), ("dog " * 48, "狗"), ("cat", "猫"), ("cat", "猫"), ("dog " * 99, "狗")]
    for split in ("train", "val"):
        pairs = [*PAIRS["train"], *odd]
        (tmp_path / f"{split}.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in pairs))
    with caplog.at_level(logging.INFO):
        data = prepare(
            folder,
            train=str(tmp_path / "train.tsv"),
            val=str(tmp_path / "val.tsv"),
            test=None,
            max_src_len=40,
            max_chars=200,
            drop_duplicates=True,
        )
    assert (
        "train: 65 pairs, kept 61: 1 longer than 200 characters, 1 empty, 1 longer than 40 or 256 "
        "tokens, 1 repeated" in caplog.text
    )
    assert (
        "val: 1 empty sources, 1 sources cut to 200 characters, 2 sources cut to 40 tokens."
        in caplog.text
    )
    assert "val: 65 of 65 sources also occur in train." in caplog.text
    assert sorted(ids_of(data.train_dataloader())) == [*range(60), 62]
    assert sorted(ids_of(data.val_dataloader())) == list(range(65))


def test_describe(data):
    assert "60 training pairs" in data.describe()
    assert "vocabulary 60 shared" in data.describe()
    assert "max_tokens=60" in data.describe()


def test_separate_vocabularies(folder):
    data = prepare(folder, shared_vocab=False, vocab_size=40)
    assert "vocabulary 40 source, 40 target" in data.describe()


def test_subword_sampling_changes_training_alone(folder):
    def cuts(loader):
        return {
            number: row[row != 0].tolist()
            for batch in loader
            for number, row in zip(batch["id"].tolist(), batch["input_ids"], strict=True)
        }

    data = prepare(folder, subword_sampling=0.5)
    train, val = data.train_dataloader(), data.val_dataloader()
    assert cuts(train) != cuts(train)
    assert cuts(val) == cuts(val)


def test_evaluation_may_have_a_larger_budget(folder):
    assert len(prepare(folder, eval_max_tokens=9999).val_dataloader()) == 1


def test_workers(data, folder):
    other = prepare(folder, num_workers=2)
    assert ids_of(other.train_dataloader()) == ids_of(data.train_dataloader())


def test_before_setup(folder):
    data = make(folder)
    with pytest.raises(RuntimeError, match="no tokenizer yet; call prepare_data"):
        _ = data.tokenizer
    with pytest.raises(ValueError, match="no train data: give train, and call prepare_data"):
        data.train_dataloader()
    assert data.state_dict() == {}


def test_setup_before_prepare_data(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"call prepare_data\(\) first"):
        make(folder, cache_dir=str(tmp_path)).setup()


def test_unknown_split(data):
    with pytest.raises(ValueError, match="split must be one of train, val, test, predict, got 'x'"):
        data.texts("x", [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 5}, r"give val='\S+' or val_size=5, not both"),
        ({"test_size": 0.5}, r"give test='\S+' or test_size=0.5, not both"),
        ({"dataset": "demo"}, "the demo brings its own"),
        (
            {
                "train": None,
                "val": None,
                "test_size": 2,
                "test": None,
                "predict": "x",
                "tokenizer": "y",
            },
            "cut the training data; give train too",
        ),
    ],
)
def test_refuses_contradictions(folder, options, message):
    with pytest.raises(ValueError, match=message):
        make(folder, **options)


@pytest.mark.parametrize("lang", ["", "../en", "e n", "x" * 101])
def test_refuses_odd_languages(lang):
    with pytest.raises(ValueError, match="src_lang must be letters, digits"):
        TranslationDataModule(lang)


def test_refuses_to_run_without_a_tokenizer(folder):
    data = make(folder, train=None)
    with pytest.raises(ValueError, match="no tokenizer: give train, to train one, or tokenizer"):
        data.prepare_data()


def test_refuses_filters_that_leave_nothing(folder):
    with pytest.raises(ValueError, match="no training pair is left: 60 pairs, kept 0: 60 longer"):
        prepare(folder, max_src_len=2)


def test_refuses_the_tokenizer_of_another_checkpoint(folder, data):
    other = prepare(folder, vocab_size=50)
    message = r"tokenizer \w+ \(vocabularies 50 and 50\) is not the checkpoint's \w+ \(60 and 60\)"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(data.state_dict())
    late = make(folder, vocab_size=50)
    late.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match=message):
        late.setup()
    data.load_state_dict(prepare(folder).state_dict())


def test_the_command_line_reaches_every_argument(folder):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TranslationDataModule, "data")
    arguments = ["--data.train=[a, b]", "--data.val_size=0.1", "--data.test_size=9"]
    config = parser.parse_args([*arguments, "--data.user_symbols=['<2zh>']"])
    assert config.data.train == ["a", "b"]
    assert (config.data.val_size, config.data.test_size) == (0.1, 9)
    assert "padded tokens" in " ".join(parser.format_help().lower().split())


class Recorder(L.LightningModule):
    """Writes down which examples it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = []
        self.evaluated = []

    def training_step(self, batch, batch_idx):
        self.seen.append(tuple(batch["id"].tolist()))
        return self.layer(batch["id"].float()[:, None]).mean()

    def validation_step(self, batch, batch_idx):
        self.evaluated += batch["id"].tolist()

    def predict_step(self, batch, batch_idx):
        return batch["id"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder, tmp_path, ckpt_path=None, **options):
    """Trains for two epochs unless told otherwise; returns the module and the trainer."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 2, "num_sanity_val_steps": 0}
    defaults["enable_checkpointing"] = "callbacks" in options
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, **quiet, **(defaults | options)
    )
    module = Recorder()
    trainer.fit(module, datamodule=make(folder), ckpt_path=ckpt_path, weights_only=True)
    return module, trainer


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    module, trainer = fit(folder, tmp_path_factory.mktemp("run"))
    return module, trainer


def test_a_trainer_sees_each_pair_once_per_epoch(uninterrupted):
    module, trainer = uninterrupted
    steps = trainer.num_training_batches
    epochs = module.seen[:steps], module.seen[steps:]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(60))
    assert sorted(module.evaluated) == sorted([*range(11), *range(11)])


@pytest.mark.parametrize("where", ["first step", "mid-epoch", "epoch edge", "second epoch"])
def test_a_trainer_resumes_with_the_very_next_batch(folder, tmp_path, uninterrupted, where):
    module, trainer = uninterrupted
    steps = trainer.num_training_batches
    stop = {"first step": 1, "mid-epoch": 3, "epoch edge": steps, "second epoch": steps + 2}[where]
    saver = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=stop)
    before, _ = fit(folder, tmp_path, max_steps=stop, max_epochs=-1, callbacks=[saver])
    after, _ = fit(folder, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert before.seen + after.seen == module.seen


def test_a_trainer_without_validation_data(folder, tmp_path):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    module = Recorder()
    trainer.fit(module, datamodule=make(folder, val=None))
    assert len(module.seen) == trainer.num_training_batches
    assert module.evaluated == []


def test_a_trainer_predicts_and_reads_nothing_else(folder, data, tmp_path):
    data.tokenizer.save(tmp_path / "tokenizer")
    options = {"tokenizer": str(tmp_path / "tokenizer"), "train": "missing", "val": "missing"}
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    batches = trainer.predict(Recorder(), datamodule=make(folder, **options))
    assert sorted(i for batch in batches for i in batch) == list(range(9))


def test_workers_end_with_the_run(folder, tmp_path):
    """Left to the garbage collector they would keep it waiting, five seconds for each."""
    before = set(multiprocessing.active_children())
    during = []

    class Count(L.Callback):
        def on_train_batch_end(self, *args):
            during.append(len(set(multiprocessing.active_children()) - before))

    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, max_steps=3, callbacks=[Count()]
    )
    trainer.fit(Recorder(), datamodule=make(folder, num_workers=2))
    assert during == [4, 4, 4]  # of training and of validation, whose batches may be next
    assert set(multiprocessing.active_children()) <= before


def test_one_stage_leaves_what_another_prepared(folder, data, tmp_path):
    make(folder, cache_dir=str(tmp_path / "cache")).prepare_data()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.predict(Recorder(), datamodule=make(folder, cache_dir=str(tmp_path / "cache")))
    later = make(folder, cache_dir=str(tmp_path / "cache"))
    later.setup("fit")
    assert ids_of(later.train_dataloader()) == ids_of(data.train_dataloader())


def test_what_is_prepared_is_not_written_again(folder, tmp_path):
    """A cache that others share may be closed to writing; root's tests would not notice."""

    def prepare():
        make(folder, cache_dir=str(tmp_path / "cache")).prepare_data()
        found = {path: path.stat() for path in (tmp_path / "cache").rglob("*")}
        return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}

    first = prepare()
    assert prepare() == first


def test_absolute_names_mean_the_same_everywhere(folder, tmp_path, monkeypatch):
    data = make(folder, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    monkeypatch.chdir(tmp_path)
    make(folder, cache_dir=str(tmp_path / "cache")).setup()
    with pytest.raises(FileNotFoundError, match="not prepared"):
        make(folder, cache_dir=str(tmp_path / "cache"), train="train").setup()


@pytest.mark.parametrize(("lost", "message"), [(1, "29 rows for 60 texts"), (2, "has lost its")])
def test_a_cache_that_has_lost_files(lost, message, folder, tmp_path):
    data = make(folder, cache_dir=str(tmp_path / "cache"), val=None, test=None)
    data.prepare_data()
    (tokens,) = (tmp_path / "cache" / "tokens").iterdir()
    (file,) = tokens.glob("*.arrow")
    table = datasets.Dataset.from_file(str(file))
    file.unlink()
    if lost == 1:
        with pa.ipc.new_stream(file, table.data.table.schema) as writer:
            writer.write_table(table.data.table.slice(0, 29))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.setup()


def test_ids_of_a_former_tokenizer_are_left_out(folder, tmp_path):
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    make(tmp_path).prepare_data()
    (tmp_path / "train.en").write_text("".join(f"new {s}\n" for s, _ in PAIRS["train"]))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.predict(Recorder(), datamodule=make(tmp_path))
    later = make(tmp_path)
    later.setup()
    assert sorted(ids_of(later.predict_dataloader())) == list(range(9))
    with pytest.raises(ValueError, match=r"no train data: .* call prepare_data\(\) and setup\(\)"):
        later.train_dataloader()


def test_overfitting_repeats_its_batches(folder, tmp_path):
    module, _ = fit(folder, tmp_path, overfit_batches=2)
    assert module.seen[:2] == module.seen[2:]


def test_checkpoints_hold_primitives(folder, tmp_path, uninterrupted):
    _, trainer = uninterrupted
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    state = checkpoint["TranslationDataModule"]
    assert state["tokenizer"] == trainer.datamodule.tokenizer.fingerprint
    assert checkpoint["datamodule_hyper_parameters"]["max_tokens"] == 60


def test_a_marian_model_learns_from_the_batches(data):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=data.tokenizer.src_vocab_size,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=64,
        pad_token_id=data.tokenizer.pad_id,
        eos_token_id=data.tokenizer.eos_id,
        bos_token_id=data.tokenizer.bos_id,
        decoder_start_token_id=data.tokenizer.bos_id,
        forced_eos_token_id=None,
        dropout=0.0,
    )
    model = transformers.MarianMTModel(config)
    batch = next(iter(data.train_dataloader()))
    arguments = {k: v for k, v in batch.items() if k != "id"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(6):
        loss = model(**arguments).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(torch.tensor(losses)).all()
    assert losses[-1] < losses[0]


def test_the_tokenizer_of_a_checkpoint_can_be_taken(folder, data, tmp_path):
    torch.save({"litseq": {"tokenizer": data.tokenizer.state_dict()}}, tmp_path / "a.ckpt")
    (tmp_path / "shards.ckpt").mkdir()
    shutil.copy(tmp_path / "a.ckpt", tmp_path / "shards.ckpt" / "meta.pt")
    for name in ("a.ckpt", "shards.ckpt"):
        other = prepare(folder, tokenizer=str(tmp_path / name), vocab_size=77)
        assert isinstance(other.tokenizer, TranslationTokenizer)
        assert other.tokenizer.fingerprint == data.tokenizer.fingerprint


# ---- max_tokens: auto ----


class Chooser(L.Callback):
    """Chooses a number, and counts how often it is asked."""

    def __init__(self, number=40):
        self.number, self.asked = number, 0

    def choose_max_tokens(self, trainer, make_loader):
        self.asked += 1
        assert trainer.lightning_module.device.type == "cpu"
        assert make_loader(50).max_tokens == 50
        return self.number


def fit_auto(folder, tmp_path, *callbacks, ckpt_path=None, data=None, **options):
    defaults = {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False}
    defaults |= {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path}
    defaults["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    trainer = L.Trainer(**(defaults | options), callbacks=list(callbacks))
    module = Recorder()
    trainer.fit(module, datamodule=data or make(folder, max_tokens="auto"), ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize("num_sanity_val_steps", [0, 2])
def test_auto_is_asked_for_once_and_makes_those_batches(
    folder, tmp_path, caplog, num_sanity_val_steps
):
    options = {"num_sanity_val_steps": num_sanity_val_steps}
    expected, _ = fit_auto(folder, tmp_path, data=make(folder, max_tokens=40), **options)
    chooser = Chooser(40)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="litseq"):
        module, trainer = fit_auto(folder, tmp_path, chooser, **options)
    assert module.seen == expected.seen
    assert module.evaluated == expected.evaluated
    assert chooser.asked == 1
    assert trainer.datamodule.val_dataloader().max_tokens == 40
    assert caplog.text.count("60 training pairs") == 1
    assert "max_tokens=40 padded" in caplog.text


@pytest.mark.parametrize("stop", [1, 3, 30])
def test_a_resumed_run_keeps_to_the_number_that_was_chosen(folder, tmp_path, stop):
    whole, trainer = fit_auto(folder, tmp_path, Chooser(40))
    assert trainer.num_training_batches < 30 < 2 * trainer.num_training_batches
    saver = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=stop)
    before, _ = fit_auto(folder, tmp_path, Chooser(40), saver, max_steps=stop, max_epochs=-1)
    other = Chooser(100)
    after, trainer = fit_auto(folder, tmp_path, other, ckpt_path=tmp_path / "last.ckpt")
    assert other.asked == 0
    assert before.seen + after.seen == whole.seen
    assert trainer.datamodule.hparams["max_tokens"] == "auto"


def test_evaluation_takes_the_number_of_the_checkpoint(folder, tmp_path):
    _, trainer = fit_auto(folder, tmp_path, Chooser(40), max_steps=1, max_epochs=-1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    sizes = []
    for ckpt_path in (tmp_path / "a.ckpt", None):
        later = make(folder, max_tokens="auto")
        quiet = {"enable_progress_bar": False, "logger": False, "default_root_dir": tmp_path}
        L.Trainer(accelerator="cpu", **quiet).validate(Recorder(), later, ckpt_path=ckpt_path)
        sizes.append(later.val_dataloader().max_tokens)
    assert sizes == [40, 4096]


def test_auto_needs_somebody_who_chooses(folder, tmp_path):
    message = "nothing chooses the number: add litseq.MemoryCheck to trainer.callbacks, or give a"
    with pytest.raises(ValueError, match=message):
        fit_auto(folder, tmp_path)
    alone = prepare(folder, max_tokens="auto")
    with pytest.raises(ValueError, match=message):
        alone.train_dataloader()
    assert alone.val_dataloader().max_tokens == 4096
    assert prepare(folder, max_tokens="auto", eval_max_tokens=7).val_dataloader().max_tokens == 7


def test_a_number_that_comes_too_late_is_refused(folder, tmp_path):
    class Late(L.Callback):
        def on_train_start(self, trainer, pl_module):
            state = trainer.datamodule.state_dict()
            trainer.datamodule.load_state_dict(state)
            trainer.datamodule.load_state_dict({**state, "max_tokens": 80})

    message = "max_tokens is 80 in the checkpoint, and auto has chosen 40 .* data.max_tokens to 80"
    with pytest.raises(ValueError, match=message):
        fit_auto(folder, tmp_path, Chooser(40), Late())


def test_max_tokens_is_a_number_or_auto(folder):
    with pytest.raises(ValueError, match="max_tokens must be a number or auto, got 'big'"):
        make(folder, max_tokens="big")
    for number in (0, -1):
        with pytest.raises(ValueError, match=f"max_tokens must be at least 1, got {number}"):
            make(folder, max_tokens=number)
