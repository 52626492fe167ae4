"""A model leaves for the Hugging Face Hub and comes back the same; nothing needs a network."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from command_line import error_of, litseq
from litseq import RnnSeq2Seq, Seq2Seq, TransformerSeq2Seq
from random_models import SOURCES, make

pytest.importorskip("safetensors")

TEXTS = SOURCES[:4]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_embeddings": False, "tie_output": False},
        {"shared": False},
        {"positions": "learned", "norm_first": True},
        {"activation": "swish", "gated": True},
        {"cls": RnnSeq2Seq, "num_layers": 2, "rnn_type": "lstm"},
    ],
    ids=["tied", "apart", "two vocabularies", "learned", "gated", "recurrent"],
)
def test_a_folder_is_the_model(options, tmp_path):
    model = make(**options)
    model.save_pretrained(tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files
    for loader in (Seq2Seq.from_pretrained, type(model).from_pretrained):
        other = loader(tmp_path / "model")
        assert type(other) is type(model)
        assert not other.training
        assert other.tokenizer.fingerprint == model.tokenizer.fingerprint
        assert other.state_dict().keys() == model.state_dict().keys()
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name]), name
        assert other.translate(TEXTS) == model.translate(TEXTS)


def test_tied_weights_are_written_once_and_stay_tied(tmp_path):
    from safetensors import safe_open

    model = make()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    tied = json.loads((tmp_path / "config.json").read_text())["tied"]
    assert len(tied) == 2
    assert names.isdisjoint(tied)
    assert names | tied.keys() == model.state_dict().keys()
    network = Seq2Seq.from_pretrained(tmp_path).network
    assert network.output.weight is network.tgt_embedding.weight is network.src_embedding.weight


def test_options_can_be_others(tmp_path):
    make().save_pretrained(tmp_path)
    assert Seq2Seq.from_pretrained(tmp_path, hparams={"beam_size": 7}).hparams.beam_size == 7
    with pytest.raises(TypeError, match="from_pretrained has no beam_size; options of the model"):
        Seq2Seq.from_pretrained(tmp_path, beam_size=7)


def test_another_class_is_refused(tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="TransformerSeq2Seq, which is no imported RnnSeq2Seq"):
        RnnSeq2Seq.from_pretrained(tmp_path)


def test_the_mixin_changes_no_signature():
    import inspect

    for cls in (TransformerSeq2Seq, RnnSeq2Seq):
        assert "beam_size" not in inspect.signature(cls.__init__).parameters
        assert "rnn_type" in inspect.signature(RnnSeq2Seq).parameters
    assert "lr" in inspect.signature(Seq2Seq).parameters


# ---- the Hub ----


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub as a folder: what is uploaded lies there, and is what is downloaded."""
    root = tmp_path / "hub"
    root.mkdir()
    from types import SimpleNamespace

    import litseq.hub

    def upload(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, root / repo_id)
        return f"hub/{repo_id}"

    def download(repo_id, *, filename=None, allow_patterns=None, **_):
        folder = root / repo_id
        if filename is not None:
            return str(folder / filename)
        for path in folder.iterdir():
            if not any(path.match(pattern) for pattern in allow_patterns):
                path.unlink()
        return str(folder)

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(litseq.hub, "snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    return root


def test_there_and_back(hub):
    model = make()
    assert model.push_to_hub("me/model") == "hub/me/model"
    other = Seq2Seq.from_pretrained("me/model")
    assert other.translate(TEXTS) == model.translate(TEXTS)
    assert not (hub / "me/model/README.md").exists(), "only what the model needs is fetched"


# ---- the card ----


SCORES = {
    "split": "test", "bleu": 40.506, "chrf": 65.1, "ter": None, "num_sentences": 1000,
    "signatures": {"bleu": "nrefs:1|tok:13a", "chrf": "nrefs:1|nc:6"},
}  # fmt: skip


def test_the_card_says_scores_with_signatures(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    card = make().generate_model_card(scores=tmp_path / "scores.json", license="cc-by-4.0")
    assert card.data.license == "cc-by-4.0"
    assert card.data.language == ["en", "de"]
    assert card.data.library_name == "litseq"
    [bleu, chrf] = card.data.eval_results
    assert (bleu.metric_type, bleu.metric_value) == ("bleu", 40.51)
    assert bleu.metric_name == "BLEU (nrefs:1|tok:13a)"
    assert chrf.metric_type == "chrf"
    assert "| BLEU | 40.51 | `nrefs:1\\|tok:13a` |" in card.text
    assert "1,000 sentences" in card.text
    assert "| num_heads | 4 |" in card.text


def test_a_card_without_scores_has_no_table_of_them():
    card = make().generate_model_card()
    assert card.data.eval_results is None
    assert "## Scores" not in card.text
    assert ModelCard(str(card)).data.pipeline_tag == "translation"


def test_the_card_of_a_run(fitted, tmp_path):
    """Scores and data of the run that a checkpoint is of; no folder of this machine."""
    run = tmp_path / "run"
    shutil.copytree(Path(fitted.ckpt).parent.parent, run)
    ckpt = run / "checkpoints" / Path(fitted.ckpt).name
    litseq("test", "--ckpt_path", ckpt)
    litseq("export", "--ckpt", ckpt, "--to", "safetensors", "-o", tmp_path / "made")
    text = (tmp_path / "made/README.md").read_text(encoding="utf-8")
    scores = json.loads((run / "test/scores.json").read_text())
    assert f"| BLEU | {scores['bleu']:.2f} |" in text
    assert "| train | train |" in text
    assert "| src_lang | en |" in text
    for file in ("README.md", "config.json"):
        assert str(tmp_path.parent) not in (tmp_path / "made" / file).read_text(encoding="utf-8")
    report = json.loads((tmp_path / "made/report.json").read_text())
    assert report["largest_gap"] == 0
    # and so it goes on from one folder to the next
    Seq2Seq.from_pretrained(tmp_path / "made").save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert again == json.loads((tmp_path / "made/config.json").read_text())


# ---- commands ----


def test_commands_take_the_folder(save, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "made")
    outcome = litseq("translate", "--ckpt", tmp_path / "made", stdin="\n".join(TEXTS).encode())
    assert outcome.out.splitlines() == model.translate(TEXTS)
    words = ("--to", "safetensors", "-o", tmp_path / "other")
    assert litseq("export", "--ckpt", tmp_path / "made", *words).status == 0


def test_lightnings_commands_take_it_as_a_file(fitted, elsewhere, tmp_path):
    model = Seq2Seq.load_from_checkpoint(fitted.ckpt)
    model.save_pretrained(tmp_path / "made")
    for command in ("test", "fit"):
        said = error_of(command, "--ckpt_path", tmp_path / "made")
        assert f"'litseq average {tmp_path}/made -o plain.ckpt' makes one of it" in said
    plain = tmp_path / "plain.ckpt"
    assert litseq("average", tmp_path / "made", "-o", plain).status == 0
    outcome = litseq("test", "--ckpt_path", plain, "-c", fitted.data)
    assert "exact match" in outcome.out, outcome.err


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "config.json has no litseq, hyper_parameters, tied, so litseq did"),
        ("config.json", b'{"litseq": {}, "hyper_parameters": {}, "tied": {"a": "b"}}', "ties a"),
        ("model.safetensors", b"nonsense", "model.safetensors is damaged"),
        ("shared.model", b"nonsense", " is not a SentencePiece model"),
        ("tokenizer.json", b"{", "tokenizer.json"),
        ("config.json", None, "is a folder"),
    ],
)  # fmt: skip
def test_damaged_folders(name, damage, said, tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / name).unlink() if damage is None else (tmp_path / name).write_bytes(damage)
    assert said in error_of("translate", "--ckpt", tmp_path)


def test_a_weight_that_is_missing(tmp_path):
    from safetensors.torch import load_file, save_file

    make().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("network.output.bias")
    save_file(weights, tmp_path / "model.safetensors")
    assert "network.output.bias is absent in the checkpoint" in error_of(
        "translate", "--ckpt", tmp_path
    )


def test_safetensors_is_optional(save, tmp_path, monkeypatch):
    path = save(make())
    make().save_pretrained(tmp_path / "made")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    said = "weights in safetensors need that package, which is not installed: pip install 'litseq["
    assert said in error_of("translate", "--ckpt", tmp_path / "made")
    words = ("--to", "safetensors", "-o", tmp_path / "other")
    assert said in error_of("export", "--ckpt", path, *words)
    assert not (tmp_path / "other").exists()
