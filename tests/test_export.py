"""What leaves for other programs does there what it does here."""

import copy
import json
import sys

import pytest
import torch

from command_line import error_of, litseq
from litseq import RnnSeq2Seq
from litseq.decoding import SearchOptions
from litseq.export import verify, write_marian
from random_models import SOURCES, make

transformers = pytest.importorskip("transformers")

VARIANTS = {
    "one matrix": {},
    "an output of its own": {"tie_output": False},
    "embeddings apart": {"share_embeddings": False},
    "all apart": {"share_embeddings": False, "tie_output": False},
    "two vocabularies": {"shared": False},
    "two vocabularies, an output of its own": {"shared": False, "tie_output": False},
    "wide feed-forward": {"dim_feedforward": 72, "num_heads": 2, "num_decoder_layers": 1},
    "gelu": {"activation": "gelu"},
    "swish": {"activation": "swish"},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_marian_says_what_we_say(options, tmp_path):
    model = make(**options)
    write_marian(model, tmp_path)
    theirs, info = transformers.MarianMTModel.from_pretrained(tmp_path, output_loading_info=True)
    theirs.eval()
    reader = transformers.MarianTokenizer.from_pretrained(tmp_path)
    assert not any(info.values()), info

    texts = [*SOURCES[:4], "an unseen word: ß", "two  spaces"]
    inputs = reader(texts, return_tensors="pt", padding=True)
    for ids, mask, ours in zip(
        inputs.input_ids, inputs.attention_mask, model.tokenizer.encode_source(texts), strict=True
    ):
        assert ids[mask.bool()].tolist() == ours
    tgt = torch.randint(4, model.hparams.vocab_size, (6, 9), generator=torch.Generator())
    network, other = copy.deepcopy(model.network).double(), copy.deepcopy(theirs).double()
    with torch.no_grad():  # in float64, where the order of sums does not matter
        memory = network.encode(inputs.input_ids, inputs.attention_mask == 0)
        logits = other(**inputs, decoder_input_ids=tgt).logits
        torch.testing.assert_close(logits, network.decode(tgt, memory), atol=1e-6, rtol=0)

    options = SearchOptions(beam_size=1, max_len_a=0, max_len_b=20)
    generated = theirs.generate(**inputs, num_beams=1, max_length=21)
    said = [model.tokenizer.decode(ids) for ids in generated.tolist()]
    assert said == model.translate(texts, options=options)
    assert len(set(said)) > 1, "always the same proves nothing"
    for text, ids in zip(said, generated, strict=True):
        if model.tokenizer.unk_id not in ids:  # which they leave out
            assert text.strip() == reader.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("norm_first", True),
        ("positions", "rotary"),
        ("positions", "learned"),
        ("cross_attention", "last_layer"),
        ("scale_scores", False),
        ("gated", True),
    ],
)
def test_what_marian_has_not_is_refused(option, value, tmp_path):
    with pytest.raises(ValueError, match=f"Marian has no {option}={value!r}"):
        write_marian(make(**{option: value}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_recurrent_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this model is a RnnSeq2Seq; train a TransformerSeq2Seq"):
        write_marian(make(cls=RnnSeq2Seq), tmp_path)


# ---- the command ----


def test_a_beam_finds_the_same(fitted, corpus, tmp_path):
    texts = tmp_path / "texts"
    texts.write_text("\n".join((corpus / "train.en").read_text().splitlines()[:40]))
    litseq("export", "--ckpt", fitted.ckpt, "-o", tmp_path / "out", "--input", texts)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["sentences"] == report["equal_greedy"] == 40
    assert report["ended_beam"] == report["equal_beam"] >= 20  # the model is hardly trained


def test_the_command_writes_model_and_report(save, tmp_path):
    model = make()
    litseq("export", "--ckpt", save(model), "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["sentences"] == report["equal_greedy"] == 64
    assert report["largest_gap"] < 1e-5 < report["largest_logit"]
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt", "out"}
    transformers.MarianMTModel.from_pretrained(tmp_path / "out")


def test_a_wrong_export_is_not_kept(save, tmp_path, monkeypatch):
    import litseq.export.marian as marian

    monkeypatch.setattr(marian, "halves", torch.arange)  # as if the order were ours
    message = error_of("export", "--ckpt", save(make()), "-o", tmp_path / "out")
    assert "logits of the two models differ by" in message
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt"}


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("safetensors.torch", "an export to Marian needs safetensors, which is not installed: pip"),
        ("transformers", "an export to Marian is compared by transformers, which is not installe"),
    ],
)
def test_missing_packages_are_named(package, said, save, tmp_path, monkeypatch):
    path = save(make())
    monkeypatch.setitem(sys.modules, package, None)
    assert said in error_of("export", "--ckpt", path, "-o", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt"}


def test_other_ids_are_an_error(tmp_path):
    model = make()
    write_marian(model, tmp_path)
    with pytest.raises(ValueError, match="sentence 2, 'a </s> b', has other ids in MarianToken"):
        verify.compare_marian(model, tmp_path, texts=["one two", "a </s> b"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "."], ". exists; give a folder that does not, or remove it."),
        (["-o", "no/such"], "there is no folder no to make such in."),
        (["-o", "new", "--input", "none.txt"], "none.txt"),
        (["-o", "new", "--input", "blank.txt"], "blank.txt holds no sentence to compare on."),
        (["-o", "new", "--ckpt", "none.ckpt"], "no checkpoint at none.ckpt"),
    ],
)
def test_bad_arguments(words, said, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("\n \n")
    before = ["--ckpt", str(save(make()))]
    assert said in error_of("export", *before, *words)
    assert not (tmp_path / "new").exists()
