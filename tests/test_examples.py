"""Each example in a process of its own, and what it leaves."""

import csv
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from command_line import DATA
from litseq.engines import Exported, load_exported, write_exported
from litseq.export import write_ctranslate2
from processes import ForkedPython
from random_models import make

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {
    "attention_in_your_project": [],
    "hugging_face_model": ["8"],
    "foreign_datamodule": ["1"],
    "sweep": ["4"],
}


def run(*words, folder, stdin="", start=ForkedPython):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with start([sys.executable, *map(str, words)], cwd=folder, text=True, **pipes) as process:
        out, err = process.communicate(stdin)
    assert process.returncode == 0, err
    return out


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, "custom_model", "serve"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_runs(name, tmp_path):
    if name == "hugging_face_model":
        pytest.importorskip("transformers")
    out = run(EXAMPLES / f"{name}.py", *SCRIPTS[name], folder=tmp_path)
    run_folder = tmp_path / "lightning_logs" / name / "version_0"
    if name == "attention_in_your_project":
        pictures = [path.name for path in (run_folder / "attention" / "cross.0").iterdir()]
        assert len(pictures) == 2 * 6  # sentences, epochs
        # the last of them has learned to turn digits around
        assert float(out.split()[1]) < 0.1
    elif name == "hugging_face_model":
        header, *rows = (run_folder / "samples.tsv").read_text("utf-8").splitlines()
        assert header.startswith("step\tid\tsource\treference\thypothesis")
        assert [row.split("\t")[0] for row in rows] == ["8"] * 3
        with (run_folder / "metrics.csv").open() as file:
            assert "val_loss" in next(csv.reader(file))
    elif name == "foreign_datamodule":
        assert "hello -> " in out
        assert "exact match" in out
    else:
        lines = [line for line in out.splitlines() if line.startswith("val/nll")]
        assert len(lines) == 4
        assert lines == sorted(lines)
        assert len(list((tmp_path / "lightning_logs" / "sweep").iterdir())) == 4


def test_a_model_of_ones_own_has_every_command(corpus, data_options, tmp_path):
    config = tmp_path / "data.yaml"
    config.write_text(DATA.format(corpus=corpus, cache_dir=data_options["cache_dir"]))
    (tmp_path / "custom_model.py").write_text((EXAMPLES / "custom_model.py").read_text())
    command = ("-m", "litseq")
    own = ("--allow_import", "custom_model")
    run(
        *command, "fit", "-c", config, *own, "--model", "custom_model.GruSeq2Seq",
        "--model.width", "24", "--model.lr", "0.02", "--model.warmup_steps", "10",
        "--trainer.max_epochs", "3", folder=tmp_path, start=subprocess.Popen,
    )  # fmt: skip
    found = tmp_path / "runs" / "tiny" / "version_0"
    ckpt = found / "checkpoints" / "last.ckpt"
    assert "exact match" in run(*command, "test", *own, "--ckpt_path", ckpt, folder=tmp_path)
    run(*command, "predict", *own, "--ckpt_path", ckpt, folder=tmp_path)
    sources, predictions = (
        (path).read_text("utf-8").splitlines()
        for path in (found / "test" / "sources.txt", found / "predictions.txt")
    )
    assert len(set(predictions)) > 5  # it has learned to tell sources apart
    words = (*command, "translate", *own, "--ckpt", ckpt)
    out = run(*words, folder=tmp_path, stdin="".join(f"{line}\n" for line in sources))
    assert out.splitlines() == predictions
    run(*command, "explain", *own, "--ckpt", ckpt, "red house", folder=tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert 'id="alignment"' in page
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    # torch.export remembers what it has traced before
    words = (*command, "export", *own, "--ckpt", ckpt, "--to", "onnx", "-o", "made")
    run(*words, folder=tmp_path, start=subprocess.Popen)
    words = (*command, "translate", "--model", "made")
    out = run(*words, folder=tmp_path, stdin="".join(f"{line}\n" for line in sources))
    assert out.splitlines() == predictions


def test_an_exported_model_is_served(tmp_path):
    pytest.importorskip("ctranslate2")
    model = make()
    write_ctranslate2(model, tmp_path)
    write_exported(Exported("ctranslate2", model.tokenizer, model.search_options), tmp_path)
    translator, options = load_exported(tmp_path)
    texts = ["one two", "a red house", "", "three"]
    expected = translator.translate(
        texts, options, max_tokens=4096, max_src_len=256, device=torch.device("cpu")
    )
    words = [sys.executable, EXAMPLES / "serve.py", tmp_path, "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            url = server.stdout.readline().decode().strip()

            def ask(_):
                body = "\n".join(texts).encode()
                with urllib.request.urlopen(url, body, timeout=60) as answer:
                    return answer.read().decode("utf-8")

            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(ask, range(8)))
        finally:
            server.kill()
    assert set(answers) == {"".join(f"{found.text}\n" for found in expected)}


def test_the_contract_takes_less_than_sixty_lines():
    text = (EXAMPLES / "custom_model.py").read_text()
    code = text.split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 60
