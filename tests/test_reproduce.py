"""Recipes: complete, run from data to record, go on after a stop, and fill the page."""

import dataclasses
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import lesson_pictures as pictures  # noqa: E402
import recipes  # noqa: E402
import reproduce  # noqa: E402
import reproduce_pages as pages  # noqa: E402
import teacher  # noqa: E402
from command_line import litseq  # noqa: E402
from litseq import Seq2Seq  # noqa: E402
from litseq.evaluation import LEGACY, legacy_bleu  # noqa: E402
from processes import ForkedPython  # noqa: E402
from recipes import RECIPES, Published, Recipe, Translated  # noqa: E402

CONFIG = """
model:
  class_path: TransformerSeq2Seq
  init_args:
    d_model: 12
    num_heads: 3
    num_encoder_layers: 1
    num_decoder_layers: 1
    dim_feedforward: 20
    warmup_steps: 4
    lr: 1.0e-2
    max_len_b: 5
    r_drop: {r_drop}
data:
  class_path: TranslationDataModule
  init_args:
    src_lang: en
    tgt_lang: de
    train: {corpus}/train
    val: {corpus}/val
    test: {corpus}/test
    vocab_size: 64
    max_tokens: 100
    cache_dir: {cache_dir}
trainer:
  accelerator: cpu
  max_epochs: 2
  log_every_n_steps: 1
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {{save_dir: lightning_logs, name: any}}
  callbacks:
    - class_path: litseq.BestCheckpoint
      init_args: {{monitor: val/loss, mode: min}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{monitor: step, mode: max, save_top_k: 2, filename: "{{step}}"}}
    - class_path: litseq.RunCheckpoint
      init_args: {{every_n_steps: 2}}
"""
STAGES = ("fit", "average", "test")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_recipes_are_complete(recipe):
    for config in recipe.configs:
        assert (ROOT / config).is_file()
    assert recipe.legacy is None or recipe.legacy in LEGACY
    assert not recipe.against or recipe.against in RECIPES
    if recipe.published:
        assert recipe.published.metric == recipe.legacy  # scores are compared with their own kind


def test_options_of_recipes_are_options(monkeypatch):
    """All together: the command line checks each value as it comes to it."""
    monkeypatch.chdir(ROOT)
    options = [option for recipe in RECIPES.values() for option in recipe.options]
    assert len(options) > 20
    configs = [part for config in recipes._SHORT for part in ("-c", config)]
    outcome = litseq("fit", *configs, *options, "--print_config")
    assert outcome.status == 0, outcome.err
    outcome = litseq("fit", *configs, *options, "--model.lenght_penalty=1", "--print_config")
    assert outcome.status == 2
    assert "lenght_penalty" in outcome.err


def test_paper_recipes_are_marked_as_not_run():
    for name in ("iwslt14-de-en", "wmt14-en-de-base", "wmt14-en-de-big"):
        assert RECIPES[name].needs


@pytest.fixture
def place(tmp_path, monkeypatch, corpus):
    """A folder with two recipes of seconds and an empty page; commands are forked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", ForkedPython)
    for folder in ("docs/assets", "lightning_logs"):
        (tmp_path / folder).mkdir(parents=True)
    text = (ROOT / "docs/reproduce.md").read_text()
    (tmp_path / "docs/reproduce.md").write_text(text)
    recipes = {}
    for name, r_drop, against in (("mini", 0, ""), ("mini-drop", 5, "mini")):
        config = CONFIG.format(corpus=corpus, cache_dir=tmp_path / "cache", r_drop=r_drop)
        (tmp_path / f"{name}.yaml").write_text(config)
        recipes[name] = Recipe(
            name, f"title of {name}", (f"{name}.yaml",), average=2, legacy="multi30k",
            published=Published(99.0, "multi30k", 0.5, "nobody"), against=against,
        )  # fmt: skip
    monkeypatch.setattr(pages, "RECIPES", recipes)
    return tmp_path, recipes


def test_from_data_to_the_page(place):
    folder, recipes = place
    recipe = recipes["mini-drop"]
    file = reproduce.run(recipe, 3, label="", options=["--trainer.precision=64-true"])
    assert file == Path("docs/results/recipes/mini-drop-3.json")
    record = json.loads(file.read_text())
    run = folder / "lightning_logs/reproduce/mini-drop/seed-3"
    texts = [
        (run / f"test/{name}.txt").read_text().split("\n")[:-1]
        for name in ("hypotheses", "references")
    ]
    expected = legacy_bleu(*texts, name="multi30k", tgt_lang="de")
    assert record["legacy"]["bleu"] == round(expected.bleu, 2)
    scores = json.loads((run / "test/scores.json").read_text())
    assert record["scores"]["bleu"] == round(scores["bleu"], 2)
    training = record["training"]
    assert training["epochs"] == 2
    assert training["tgt_tokens"] == 2 * training["tgt_tokens_per_epoch"]
    assert training["averaged"] == 2
    assert len(training["val"]["nll"]) == len(training["val"]["bleu"]) == 2
    assert record["seed"] == 3
    assert record["config"]["trainer"]["precision"] == "64-true"
    assert record["config"]["model"]["r_drop"] == 5
    seconds = {stage: float((run / f"{stage}-1.seconds").read_text()) for stage in STAGES}
    assert record["seconds"] == {stage: round(found) for stage, found in seconds.items()}
    assert min(seconds.values()) > 0
    assert record["options"] == ["--trainer.precision=64-true"]
    assert record["hardware"]["cores"] >= 1

    baseline = folder / "lightning_logs/reproduce/mini/seed-3"
    shutil.copytree(run, baseline)
    shutil.copy(baseline / "test/references.txt", baseline / "test/hypotheses.txt")  # the better
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"began with the options .*64-true.*, and now they are"):
        reproduce.run(recipe, 3, label="", options=[])
    again = reproduce.run(recipe, 3, label="", options=["--trainer.precision=64-true"])
    after = {path: path.stat().st_mtime_ns for path in before if path.name != "lock"}
    assert after == {path: when for path, when in before.items() if path.name != "lock"}
    assert json.loads(again.read_text()) == record  # nothing is done twice

    compared = json.loads((folder / "docs/results/recipes/comparisons.json").read_text())
    assert compared["mini-drop-seed-3-legacy:multi30k"]["baseline"] == "mini"
    assert compared["mini-drop-seed-3-bleu"]["scores"] == [100.0, record["scores"]["bleu"]]
    assert compared["mini-drop-seed-3-bleu"]["holds"] is True
    assert record["scores"]["bleu"] < 100
    pages.write_pages()
    text = (folder / "docs/reproduce.md").read_text()
    assert "| `mini-drop` | title of mini-drop |" in text
    assert "99.0 multi30k, nobody: at least 98.5 is not reached" in text
    assert f"| {record['legacy']['bleu']:.2f} (" in text
    pages.write_pages()
    assert (folder / "docs/reproduce.md").read_text() == text

    # what is left of a run decides what its record says, and whether there can be one
    for file in (run / "checkpoints").glob("step=*.ckpt"):
        file.unlink()
    for stage, number in zip(STAGES, ("5.2", "6.6", "7.3"), strict=True):
        (run / f"{stage}-1.seconds").write_text(f"{number}\n")
    again = reproduce.run(recipe, 3, label="", options=["--trainer.precision=64-true"])
    assert json.loads(again.read_text())["training"]["averaged"] == 2
    assert json.loads(again.read_text())["seconds"] == {"fit": 5, "average": 7, "test": 7}
    kept = {path: path.read_bytes() for path in run.glob("*.*")}
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(SystemExit, match="seed-3 is done, and its checkpoints are gone; remove it"):
        reproduce.run(recipe, 3, label="", options=["--trainer.precision=64-true"])
    assert kept == {path: path.read_bytes() for path in run.glob("*.*")}


def test_goes_on_after_a_stop(place):
    folder, _ = place
    (folder / "reproduce_mini.py").write_text(
        "import recipes, reproduce\n"
        "recipes.RECIPES['mini'] = recipes.Recipe('mini', '', ('mini.yaml',), average=2)\n"
        "reproduce.main()\n"
    )
    stopped = subprocess.Popen(
        [sys.executable, "reproduce_mini.py", "mini"], start_new_session=True
    )
    run = folder / "lightning_logs/reproduce/mini/seed-1"
    deadline = time.monotonic() + 120
    while not (run / "checkpoints/last.ckpt").exists():
        assert stopped.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(SystemExit, match="is being run by another process"):
        reproduce.run(Recipe("mini", "", ("mini.yaml",), average=2), 1, label="", options=[])
    stopped.terminate()  # the command that it runs saves, and ends before it
    assert stopped.wait() == 143
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        os.killpg(stopped.pid, 0)
    assert not (run / "fit.done").exists()
    reproduce.run(Recipe("mini", "", ("mini.yaml",), average=2), 1, label="", options=[])
    assert len(list(run.glob("fit-*.seconds"))) == 2
    record = json.loads((folder / "docs/results/recipes/mini-1.json").read_text())
    assert record["training"]["epochs"] == 2
    seconds = [float(file.read_text()) for file in run.glob("fit-*.seconds")]
    assert record["seconds"]["fit"] == round(sum(seconds))


def test_a_command_that_fails_ends_it(place, capfd):
    with pytest.raises(SystemExit, match=r"litseq fit .* failed[\s\S]*d_mdel"):
        reproduce.run(Recipe("mini", "", ("mini.yaml",)), 1, label="", options=["--model.d_mdel=3"])
    run = Path("lightning_logs/reproduce/mini/seed-1")
    assert not list(run.glob("*.done"))
    # what failed at once may begin with other options
    reproduce._remember(run, Recipe("mini", "", ("mini.yaml",)), options=["--x"], note="")
    assert json.loads((run / "run.json").read_text())["options"] == ["--x"]
    assert not list(run.glob("*.seconds"))


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(tmp_path):
    recipe = Recipe("mini", "", ())
    reproduce._remember(tmp_path, recipe, options=[], note="")
    for name in ("config.yaml", "fit-1.seconds"):  # as fit leaves them, killed in its sanity check
        (tmp_path / name).touch()
    (tmp_path / "checkpoints").mkdir()
    reproduce._remember(tmp_path, recipe, options=["--x"], note="")
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "checkpoints"}


@pytest.mark.parametrize("name", ["last", "previous"])  # between two saves
def test_a_run_goes_on_with_the_configuration_that_it_began_with(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe("mini", "", ("mini.yaml",))
    Path("mini.yaml").write_text("model: {dropout: 0.1}")
    reproduce._remember(tmp_path, recipe, options=[], note="")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / f"checkpoints/{name}.ckpt").touch()
    Path("mini.yaml").write_text("# a comment\nmodel: {dropout: 0.1}")
    reproduce._remember(tmp_path, recipe, options=[], note="")
    Path("mini.yaml").write_text("model: {dropout: 0.2}")
    with pytest.raises(SystemExit, match=r"began with the contents .*; give those, or another"):
        reproduce._remember(tmp_path, recipe, options=[], note="")


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    recipe = Recipe("mini", "", ())
    reproduce._remember(tmp_path, recipe, options=[], note="first")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()

    def note(**given):
        reproduce._remember(tmp_path, recipe, options=[], **{"note": "", **given})
        return json.loads((tmp_path / "run.json").read_text())["note"]

    assert note() == note(note="first") == "first"
    assert note(note="second") == "first; second"
    versions = {**reproduce.circumstances()["versions"], "torch": "0.1"}
    circumstances = {**reproduce.circumstances(), "versions": versions}
    monkeypatch.setattr(reproduce, "circumstances", lambda: circumstances)
    (tmp_path / "fit.done").touch()  # it does not go on
    assert note() == "first; second"
    (tmp_path / "fit.done").unlink()
    assert note() == note() == "first; second; went on with other versions"


def test_no_comparison_outlives_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "COMPARISONS", tmp_path / "comparisons.json")
    known = {
        f"{system}-seed-{run}-{metric}": {
            "run": run, "metric": metric, "baseline": baseline, "system": system, "scores": scores,
        }
        for baseline, system, run, metric, scores in (
            ("base", "one", "1", "bleu", [40.0, 41.0]),
            ("base", "one", "1", "legacy:multi30k", [40.5, 41.5]),
            ("base", "one", "2", "bleu", [39.0, 41.0]),
            ("other", "base", "1", "bleu", [30.0, 40.0]),
        )
    }  # fmt: skip

    def kept(bleu, legacy):
        (tmp_path / "comparisons.json").write_text(json.dumps(known))
        record = {"recipe": "base", "scores": {"bleu": bleu}}
        record |= {"legacy": {"name": "multi30k", "bleu": legacy}}
        pages.forget_comparisons("seed-1", record)
        return set(json.loads((tmp_path / "comparisons.json").read_text()))

    assert kept(40.0, 40.5) == set(known)
    assert known.keys() - kept(40.0, 40.6) == {"one-seed-1-legacy:multi30k"}
    assert known.keys() - kept(40.1, 40.5) == {"one-seed-1-bleu", "base-seed-1-bleu"}


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus", "said"),
    [
        ("cpu", "2", ["H"], "EPYC, 2 cores: 2 processes of 1 thread"),
        ("auto", "auto", [], "EPYC, 2 cores: 1 thread"),
        ("auto", "auto", ["H", "H"], "2 x H"),
        ("gpu", 1, ["H", "H"], "H"),
        ("gpu", [0, 2], ["H"] * 4, "2 x H"),
        ("gpu", "0,2", ["H"] * 4, "2 x H"),
        ("gpu", "3,", ["H"] * 4, "H"),
    ],
)
def test_the_machine_is_what_was_used_of_it(accelerator, devices, gpus, said):
    hardware = {"cpu": "EPYC", "cores": 2, "threads": 1, "gpus": gpus}
    trainer = {"accelerator": accelerator, "devices": devices}
    assert pages._machine({"hardware": hardware, "config": {"trainer": trainer}}) == said


def test_reached_is_said_of_the_mean_of_all_runs():
    def record(seed, bleu):
        return {
            "recipe": "mini", "seed": seed, "label": "", "scores": {"bleu": 1.0},
            "legacy": {"bleu": bleu}, "training": {"parameters": 1e6},
            "hardware": {"cpu": "EPYC", "cores": 2, "threads": 1, "gpus": []},
            "config": {"trainer": {"accelerator": "cpu", "devices": 1}},
        }  # fmt: skip

    recipe = Recipe(
        "mini", "", (), legacy="multi30k", published=Published(40.0, "multi30k", 0.0, "nobody")
    )
    for scores, said in (((41.0, 39.5), "reached"), ((41.0, 38.0), "not reached")):
        row = pages._recipe_row(recipe, [record(i, bleu) for i, bleu in enumerate(scores)])
        assert row[6] == f"40.0 multi30k, nobody: at least 40.0 is {said}"


def test_text_is_translated_by_the_model_of_another_recipe(place, corpus):
    folder, recipes = place
    source = folder / "more.en.gz"
    source.write_bytes(gzip.compress((corpus / "test.en").read_bytes()))
    text = Translated("mini", str(source), "made/more.de", "made/more.en")
    using = dataclasses.replace(recipes["mini-drop"], translated=(text,))
    with pytest.raises(SystemExit, match=r"mini has to be run first, .* translates .*more\.en\.gz"):
        reproduce.run(using, 3, label="", options=[])
    reproduce.run(recipes["mini"], 3, label="", options=["--trainer.max_epochs=1"])
    run = folder / "lightning_logs/reproduce/mini/seed-3"
    reproduce._translate(text, run)
    made = (folder / "made/more.de").read_text()
    assert made.count("\n") == 30
    assert (folder / "made/more.en").read_text() == (corpus / "test.en").read_text()
    model = Seq2Seq.load_from_checkpoint(run / "checkpoints/best.ckpt")
    first = (corpus / "test.en").read_text().split("\n")[0]
    assert made.split("\n")[0] == model.translate([first])[0]
    (folder / "made/more.de").write_text("kept")
    reproduce._translate(text, run)  # it is there
    assert (folder / "made/more.de").read_text() == "kept"


def record_of(name, *, seed=1, label="", minutes=10):
    file = ROOT / f"docs/results/recipes/{name}-1.json"
    record = json.loads(file.read_text())
    return {**record, "seed": seed, "label": label, "seconds": {"fit": 60 * minutes}}


def test_tables_for_everyone_hold_one_kind_of_machine():
    name = "multi30k-transformer"
    records = [record_of(name), record_of(name, seed=2), record_of(name, label="gpu", minutes=1)]
    found = pages._three_models(records, "multi30k")["transformer"]
    assert [(record["seed"], record["label"]) for record in found] == [(1, ""), (2, "")]


# ---- the teacher's sheet ----


@pytest.mark.parametrize("fails", [["exit 3"], ["exit 0", "exit 3"], ["kill -9 $$", "exit 0"]])
def test_a_lane_that_fails_is_no_success(monkeypatch, fails):
    real = subprocess.Popen
    lanes = iter(fails)
    monkeypatch.setattr(teacher, "LANES", [("x",)] * len(fails))
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, env: real(["sh", "-c", next(lanes)], env=env)
    )
    with pytest.raises(SystemExit) as ended:
        teacher.train([])
    assert ended.value.code not in (0, None)


@pytest.mark.parametrize("language", [0, 1])
def test_the_sheet_tells_what_the_records_say(language):
    records = {
        name: record_of(f"teacher-{name.replace('_', '-')}")
        for name in ("rnn", "rnn_attention", "transformer")
    }
    weights = torch.eye(2, 3)
    sheet = pictures.story(
        lambda *texts: texts[language], records, weights=weights, rows=["a", "b"], columns="cde"
    )
    loss, bleu, length, align = sheet.axes
    for number, record in enumerate(records.values()):
        course = record["training"]["val"]
        assert list(loss.get_lines()[number].get_ydata()) == course["nll"]
        assert list(bleu.get_lines()[number].get_ydata()) == course["bleu"]
        assert list(length.get_lines()[number].get_ydata()) == record["by_length"]["bleu"]
    assert (align.images[0].get_array() == weights.numpy()).all()
    assert [label.get_text() for label in align.get_yticklabels()] == ["a", "b"]


# ---- what is in the repository ----


@pytest.mark.parametrize("recipe", ["tiny", "best"])
def test_the_readme_has_the_numbers_of_the_records(recipe):
    file = ROOT / f"docs/results/recipes/multi30k-{recipe}-1-cpu.json"
    record = json.loads(file.read_text())
    minutes = round(pages._minutes(record))
    numbers = [record["legacy"]["bleu"], record["scores"]["bleu"], minutes]
    for name in ("README.md", "README.zh-CN.md"):
        paragraphs = (ROOT / name).read_text().split("\n\n")
        [said] = [text for text in paragraphs if "41.02" in text]
        for number in numbers:
            assert re.search(rf"(?<![\d.]){number}(?!\.?\d)", said), number


def test_the_page_shows_the_records(tmp_path, monkeypatch):
    """Nobody writes a number by hand, and no table is older than its records."""
    page = tmp_path / "reproduce.md"
    shutil.copy(ROOT / "docs/reproduce.md", page)
    monkeypatch.setattr(pages, "PAGE", page)
    readmes = {shutil.copy(ROOT / name, tmp_path): words for name, words in pages.README.items()}
    monkeypatch.setattr(pages, "README", {Path(name): words for name, words in readmes.items()})
    monkeypatch.setattr(pages, "PICTURES", tmp_path)
    monkeypatch.setattr(pages, "RECORDS", ROOT / "docs/results/recipes")
    monkeypatch.setattr(pages, "COMPARISONS", ROOT / "docs/results/recipes/comparisons.json")
    pages.write_pages()
    assert page.read_text() == (ROOT / "docs/reproduce.md").read_text()
    for name in ("README.md", "README.zh-CN.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


def test_records_hold_no_path_of_a_machine():
    for file in (ROOT / "docs/results/recipes").glob("*.json"):
        assert not re.search(r'"(/|[A-Z]:\\\\)', file.read_text()), file
