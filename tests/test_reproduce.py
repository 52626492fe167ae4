"""Recipes: complete, run from data to record, go on after a stop, and fill the page."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import reproduce  # noqa: E402
import reproduce_pages as pages  # noqa: E402
from litseq.evaluation import LEGACY, legacy_bleu  # noqa: E402
from recipes import RECIPES, Published, Recipe  # noqa: E402

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


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_recipes_are_complete(recipe):
    for config in recipe.configs:
        assert (ROOT / config).is_file()
    assert recipe.legacy is None or recipe.legacy in LEGACY
    assert recipe.published is None or recipe.published.metric in (*LEGACY, "sacrebleu")
    assert not recipe.against or recipe.against in RECIPES
    if recipe.published and recipe.published.metric != "sacrebleu":
        assert recipe.published.metric == recipe.legacy  # scores are compared with their own kind


def test_paper_recipes_are_marked_as_not_run():
    for name in ("iwslt14-de-en", "wmt14-en-de-base", "wmt14-en-de-big"):
        assert RECIPES[name].needs


@pytest.fixture
def place(tmp_path, monkeypatch, corpus):
    """A folder with two recipes of seconds and an empty page."""
    monkeypatch.chdir(tmp_path)
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
    assert record["seconds"].keys() == {"fit", "average", "test"}
    assert min(record["seconds"].values()) > 0
    assert record["options"] == ["--trainer.precision=64-true"]
    assert record["hardware"]["cores"] >= 1

    shutil.copytree(run, folder / "lightning_logs/reproduce/mini/seed-3")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"began with the options .*64-true.*, and now they are"):
        reproduce.run(recipe, 3, label="", options=[])
    again = reproduce.run(recipe, 3, label="", options=["--trainer.precision=64-true"])
    after = {path: path.stat().st_mtime_ns for path in before if path.name != "lock"}
    assert after == {path: when for path, when in before.items() if path.name != "lock"}
    assert json.loads(again.read_text()) == record  # nothing is done twice

    compared = json.loads((folder / "docs/results/recipes/comparisons.json").read_text())
    assert compared["mini-drop-seed-3-legacy:multi30k"]["baseline"] == "mini"
    assert compared["mini-drop-seed-3-bleu"]["holds"] is False  # the same outputs
    pages.write_pages()
    text = (folder / "docs/reproduce.md").read_text()
    assert "| `mini-drop` | title of mini-drop |" in text
    assert "99.0 multi30k, not reached" in text
    assert f"| {record['legacy']['bleu']:.2f} (" in text
    pages.write_pages()
    assert (folder / "docs/reproduce.md").read_text() == text


def test_goes_on_after_a_stop(place):
    folder, _ = place
    command = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import recipes, reproduce; "
        "recipes.RECIPES['mini'] = recipes.Recipe('mini', '', ('mini.yaml',), average=2); "
        "sys.argv[1:] = ['mini']; reproduce.main()"
    )
    stopped = subprocess.Popen(
        [sys.executable, "-c", command, str(ROOT / "scripts")], start_new_session=True
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
    recipe = Recipe("mini", "", ("mini.yaml",))
    reproduce._remember(tmp_path, recipe, options=[], note="")
    for name in ("config.yaml", "fit-1.seconds"):  # as fit leaves them, killed in its sanity check
        (tmp_path / name).touch()
    (tmp_path / "checkpoints").mkdir()
    reproduce._remember(tmp_path, recipe, options=["--x"], note="")
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "checkpoints"}


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    recipe = Recipe("mini", "", ("mini.yaml",))
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
        assert row[6] == f"40.0 multi30k, {said}"


# ---- what is in the repository ----


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
