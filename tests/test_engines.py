"""Exported models, run by CTranslate2 and onnxruntime, do what the checkpoint does."""

import json
import math
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from command_line import error_of, litseq
from litseq import RnnAttentionSeq2Seq, RnnSeq2Seq, Seq2Seq
from litseq.data.collate import collate
from litseq.decoding import SearchOptions
from litseq.engines import CTranslate2Translator, Exported, load_exported, write_exported
from litseq.export import verify
from litseq.export.ctranslate2 import write_ctranslate2
from litseq.export.onnx import write_onnx
from random_models import SOURCES, make

pytest.importorskip("ctranslate2")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = [*SOURCES[:4], "an unseen word: ß", "two  spaces", "one"]


def export(write, engine, model, folder, **options):
    folder.mkdir(exist_ok=True)
    write(model, folder, **options)
    write_exported(Exported(engine, model.tokenizer, model.search_options), folder)
    return load_exported(folder, device="cpu")[0]


def ctranslate2(model, folder, **options):
    return export(write_ctranslate2, "ctranslate2", model, folder, **options)


def onnx(model, folder):
    return export(write_onnx, "onnx", model, folder)


def searched(translator, model, **options):
    batch = collate(model.tokenizer.encode_source(TEXTS), pad_id=translator.pad_id)
    return translator.search(batch, SearchOptions(max_len_a=0, **{"max_len_b": 20, **options}))


VARIANTS = {
    "the paper's": {},
    "pre-norm": {"norm_first": True},
    "rotary": {"positions": "rotary"},
    "rotary, pre-norm": {"positions": "rotary", "norm_first": True},
    "learned": {"positions": "learned"},
    "no positions": {"positions": "none"},
    "scores as they are": {"scale_scores": False},
    "an output of its own": {"tie_output": False},
    "two vocabularies": {"shared": False},
    "all apart": {"share_embeddings": False, "tie_output": False, "activation": "gelu"},
    "swish": {"activation": "swish"},
    # two thirds as wide, as a gate is meant; products of weights as large as these round coarser
    "gated": {"gated": True, "dim_feedforward": 16},
    "gated, gelu": {"activation": "gelu", "gated": True, "dim_feedforward": 16},
    "gated, swish": {"activation": "swish", "gated": True, "dim_feedforward": 16},
    "gated, swish, pre-norm": {
        "activation": "swish", "gated": True, "dim_feedforward": 16, "norm_first": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_ctranslate2_says_what_we_say(options, tmp_path):
    model = make(**options)
    theirs = ctranslate2(model, tmp_path)
    ours = [best.tokens for [best] in searched(model.translator(), model, beam_size=1)]
    assert [best.tokens for [best] in searched(theirs, model, beam_size=1)] == ours
    assert len(set(ours)) > 1, "always the same proves nothing"
    report = verify.compare(model, theirs, texts=TEXTS)
    assert report["largest_gap"] < 1e-5
    assert report["equal_greedy"] == len(TEXTS)


@pytest.mark.parametrize(
    ("beam_size", "n_best", "patience"),
    [(1, 1, 0.4), (4, 1, 0.5), (4, 3, 0.5), (4, 2, 1), (4, 1, 1.5), (3, 1, math.inf)],
)
def test_ctranslate2_takes_any_patience(beam_size, n_best, patience, tmp_path):
    model = make()
    options = {"beam_size": beam_size, "n_best": n_best, "patience": patience}
    found = searched(ctranslate2(model, tmp_path), model, **options)
    assert {len(hypotheses) for hypotheses in found} == {n_best}


def test_scores_of_ctranslate2_are_normalised_as_ours(tmp_path):
    model = make()
    theirs = ctranslate2(model, tmp_path)
    options = {"beam_size": 4, "n_best": 3, "length_penalty": 0.6, "length_offset": 5}
    found = searched(theirs, model, **options)
    assert all(len(hypotheses) == 3 for hypotheses in found)
    for hypotheses in found:
        assert list(hypotheses) == sorted(hypotheses, key=lambda h: -h.score)
        for h in hypotheses:
            assert h.score == pytest.approx(h.log_prob / ((5 + len(h.tokens)) / 6) ** 0.6)
    # what padding and the beginning have is shared out among the others
    best = [hypotheses[0] for hypotheses in found]
    sources = model.tokenizer.encode_source(TEXTS)
    batch = collate(sources, [h.tokens for h in best], pad_id=theirs.pad_id)
    logits = model.translator().logits(batch).clone()
    logits[..., [theirs.pad_id, theirs.bos_id]] = -torch.inf
    for h, row in zip(best, logits.log_softmax(-1), strict=True):
        log_prob = sum(float(row[i, token]) for i, token in enumerate(h.tokens))
        assert h.log_prob == pytest.approx(log_prob, abs=1e-3)


def test_each_sentence_has_its_own_limit(tmp_path):
    model = make()
    theirs = ctranslate2(model, tmp_path)
    batch = collate(model.tokenizer.encode_source(TEXTS), pad_id=theirs.pad_id)
    options = SearchOptions(beam_size=1, max_len_a=1, max_len_b=0)
    ours = [best.tokens for [best] in model.translator().search(batch, options)]
    assert [best.tokens for [best] in theirs.search(batch, options)] == ours
    assert len({len(tokens) for tokens in ours}) > 1


def test_export_leaves_the_model_alone(tmp_path):
    model = make()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ctranslate2(model, tmp_path, quantization="int8")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_a_checkpoint_may_be_older_than_an_option(save, tmp_path):
    model = make()
    for name in ("activation", "gated"):
        del model.hparams[name]
    restored = Seq2Seq.load_from_checkpoint(save(model))
    assert (restored.hparams.activation, restored.hparams.gated) == ("relu", False)
    assert restored.translate(TEXTS) == model.translate(TEXTS)
    report = verify.compare(restored, ctranslate2(model, tmp_path / "made"), texts=TEXTS)
    assert report["equal_greedy"] == len(TEXTS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cross_attention": "last_layer"}, "CTranslate2 has no cross_attention='last_layer', on"),
        ({"cls": RnnSeq2Seq}, "has the Transformer alone, and this model is a RnnSeq2Seq; export"),
    ],
)
def test_what_ctranslate2_has_not_is_refused(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        write_ctranslate2(make(**options), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders ``ctranslate2`` and ``onnx`` of the paper's model."""
    root = tmp_path_factory.mktemp("exported")
    model = make()
    for name, write in (("ctranslate2", ctranslate2), ("onnx", onnx)):
        write(model, root / name)
    return root


# torch's exporter takes its time for each layer
MODELS = {
    "rotary, pre-norm, last layer": {
        "positions": "rotary", "norm_first": True, "cross_attention": "last_layer",
        "num_encoder_layers": 1, "num_decoder_layers": 2,
    },
    "gated": {
        "activation": "swish", "gated": True, "dim_feedforward": 16,
        "num_encoder_layers": 1, "num_decoder_layers": 1,
    },
    "one vector": {"cls": RnnSeq2Seq, "num_layers": 2, "rnn_type": "lstm", "reverse_source": True},
    "two directions": {"cls": RnnSeq2Seq, "rnn_type": "tanh", "bidirectional": True},
    "attention": {"cls": RnnAttentionSeq2Seq, "num_layers": 2, "dropout": 0.1, "shared": False},
}  # fmt: skip


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_onnx_says_what_we_say(options, tmp_path):
    model = make(**options)
    check_onnx(model, onnx(model, tmp_path))


def test_onnx_says_what_we_say_of_the_papers_model(folders):
    check_onnx(make(), load_exported(folders / "onnx", device="cpu")[0])


def check_onnx(model, theirs):
    report = verify.compare(model, theirs, texts=TEXTS)
    assert report["largest_gap"] < 1e-5
    assert report["equal_greedy"] == len(TEXTS)
    for search in ({"beam_size": 3, "n_best": 2}, {"sample": True, "seed": 1, "n_best": 2}):
        ours = searched(model.translator(), model, **search)
        found = searched(theirs, model, **search)
        assert [[h.tokens for h in row] for row in found] == [[h.tokens for h in r] for r in ours]


# ---- the commands ----


def test_commands(save, tmp_path):
    model = make()
    (tmp_path / "in").write_text("\n".join(TEXTS) + "\n\n")
    (tmp_path / "out").write_text("zwei häuser\n" * (len(TEXTS) + 1))
    litseq(
        "export", "--ckpt", save(model), "-o", tmp_path / "made", "--to", "ctranslate2",
        "--input", tmp_path / "in", "--references", tmp_path / "out",
    )  # fmt: skip
    report = json.loads((tmp_path / "made/report.json").read_text())
    assert report["format"] == "ctranslate2"
    assert report["sentences"] == report["equal_greedy"] == len(TEXTS)
    assert report["bleu"].keys() == {"checkpoint", "export", "signature"}

    outcome = litseq(
        "translate", "--model", tmp_path / "made", "--engine", "ctranslate2", "--beam_size", 1,
        "--input", tmp_path / "in", "--length_penalty", 0,
    )  # fmt: skip
    options = replace(model.search_options, beam_size=1, length_penalty=0)
    assert outcome.out.splitlines() == [*model.translate(TEXTS, options=options), ""]


@pytest.fixture
def rounded(tmp_path_factory):
    """What rounds weights, and compares on few sentences."""
    path = tmp_path_factory.mktemp("rounded") / "in"
    path.write_text("\n".join(TEXTS) + "\n")
    return ("--to", "ctranslate2", "--quantization", "int8", "--input", path)


def test_rounded_weights(save, tmp_path, rounded):
    model = make()
    litseq("export", "--ckpt", save(model), "-o", tmp_path / "made", *rounded)
    report = json.loads((tmp_path / "made/report.json").read_text())
    assert report["quantization"] == "int8"
    assert 1e-4 < report["mean_gap"] < verify.LOSS
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt", "made"}


def test_what_rounding_spoils_is_refused(save, tmp_path, rounded, monkeypatch):
    monkeypatch.setattr(verify, "LOSS", 1e-4)
    message = error_of("export", "--ckpt", save(make()), "-o", tmp_path / "made", *rounded)
    assert "rounding the weights moves the log-probability of a token by" in message
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt"}


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_a_wrong_export_is_not_kept(quantization, save, tmp_path, monkeypatch):
    import litseq.export.ctranslate2 as module

    monkeypatch.setattr(module, "sinusoids", lambda n, d: torch.zeros(n, d))
    words = ("--to", "ctranslate2", "--quantization", quantization)
    message = error_of("export", "--ckpt", save(make()), "-o", tmp_path / "made", *words)
    assert "logits of the two models differ by" in message
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--ckpt is missing: give a checkpoint, or by --model a folder that litseq expor"),
        (["--engine", "onnx"], "--engine onnx runs what litseq export made; give that folder"),
        (["--model", "onnx", "--ckpt", "a.ckpt"], "a.ckpt and onnx are two models; give --ckpt or"),
        (["--model", "onnx", "--engine", "ctranslate2"], "onnx was made for onnx, not for ctransl"),
        (["--model", "onnx", "--int8", "true"], "onnx holds the weights as litseq export wrote"),
        (["--model", "onnx", "--precision", "bf16-mixed"], "onnx has the precision of its weights"),
        (["--model", "none"], "none holds no litseq.json; give a folder that 'litseq export --to"),
        (["--model", "onnx", "--device", "cuda"], "an ONNX model runs on the cpu, got dev"),
        (["--model", "ctranslate2", "--device", "tpu"], "CTranslate2 cannot run ctranslate2 on"),
        (["--model", "ctranslate2", "--alignment", "true"], "CTranslate2 does not say where each"),
        (["--model", "ctranslate2", "--sample", "true", "--seed", "1"], "CTranslate2 has one seed"),
        (["--model", "onnx", "--alignment", "true"], "no attention"),
    ],
)  # fmt: skip
def test_bad_words_of_translate(words, said, folders, monkeypatch, tmp_path):
    monkeypatch.chdir(folders)
    (tmp_path / "in").write_text("one\n")
    assert said in error_of("translate", "--input", tmp_path / "in", *words)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("litseq.json", b"{", "litseq.json is damaged"),
        ("litseq.json", b'{"engine": "else", "search": {}}', "damaged (engine 'else')"),
        ("litseq.json", b'{"engine": "onnx", "search": {"a": 1}}', "damaged (unknown a)"),
        ("encoder.onnx", b"nonsense", "onnxruntime cannot read"),
        ("encoder.onnx", None, "onnxruntime cannot read"),
        ("tokenizer.json", None, "tokenizer"),
    ],
)
def test_damaged_folders(name, damage, said, folders, tmp_path):
    folder = tmp_path / "made"
    shutil.copytree(folders / "onnx", folder)
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    assert said in error_of("translate", "--model", folder)


def test_a_damaged_model_of_ctranslate2(folders, tmp_path):
    folder = tmp_path / "made"
    shutil.copytree(folders / "ctranslate2", folder)
    (folder / "model.bin").write_bytes(b"nonsense")
    assert "CTranslate2 cannot run" in error_of("translate", "--model", folder)


@pytest.mark.parametrize(
    ("package", "to", "said"),
    [
        ("ctranslate2.specs", "ctranslate2", "an export to CTranslate2 needs it installed: pip"),
        ("ctranslate2", "ctranslate2", "pip install 'litseq[ctranslate2]'"),
        ("onnxscript", "onnx", "an export to ONNX needs onnx and onnxscript, which are not inst"),
        ("onnxruntime", "onnx", "onnxruntime is not installed: pip install 'litseq[onnx]'."),
    ],
)
def test_missing_packages_are_named(package, to, said, save, tmp_path, monkeypatch):
    path = save(make(cls=RnnSeq2Seq) if to == "onnx" else make())  # a small export
    monkeypatch.setitem(sys.modules, package, None)
    assert said in error_of("export", "--ckpt", path, "-o", tmp_path / "made", "--to", to)
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quantization", "int8"], "--quantization int8 is for CTranslate2; leave it out, or"),
        (["--references", "lines"], "lines holds translations of what? Give the sentences by"),
        (["--input", "lines", "--references", "line"], "line has 1 lines for 2 sentences of --inp"),
    ],
)
def test_bad_words_of_export(words, said, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines").write_text("one\ntwo\n")
    (tmp_path / "line").write_text("one\n")
    assert said in error_of("export", "--ckpt", str(save(make())), "-o", "new", *words)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_without_a_tokenizer(save, tmp_path):
    model = make()
    model.tokenizer = None
    path = save(model)
    for to in ("marian", "ctranslate2", "onnx", "safetensors"):
        words = ("--ckpt", path, "-o", tmp_path / "made", "--to", to)
        assert "holds no tokenizer, and an export needs one." in error_of("export", *words)


@pytest.mark.parametrize("exact", [True, False])
def test_nan_is_no_agreement(exact, monkeypatch):
    model = make()
    found = iter([torch.tensor([0.0, torch.nan]), torch.tensor([0.0])])  # batches of 32
    monkeypatch.setattr(verify, "_gaps", lambda *_: next(found))
    with pytest.raises(ValueError, match="nan"):
        verify.compare(model, model.translator(), texts=SOURCES[:4] * 9, exact=exact)


def test_engines_are_optional(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    assert "CTranslate2 is not installed: pip install 'litseq[ctranslate2]'" in error_of(
        "translate", "--model", folders / "ctranslate2"
    )
    assert CTranslate2Translator.__name__  # and importing it needs no package
