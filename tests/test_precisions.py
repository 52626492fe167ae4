import lightning.pytorch as pl
import pytest
import torch

from command_line import litseq
from litseq.architectures import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq
from litseq.layers.dot_product import DotProductAttention
from litseq.layers.positions import SinusoidalPositions, sinusoids
from litseq.layers.score import ScoreAttention
from litseq.precision import check_precision, possible_precisions
from tiny_tasks import FAMILIES, loader, tiny_batches, tiny_task, tiny_trainer

CPU = torch.device("cpu")
VARIANTS = [
    *((family, {}) for family in FAMILIES),
    (RnnSeq2Seq, {"rnn_type": "lstm", "bidirectional": True}),
    (RnnAttentionSeq2Seq, {"score": "dot", "bidirectional": False}),
    (RnnAttentionSeq2Seq, {"rnn_type": "lstm", "score": "general", "input_feeding": True}),
    (TransformerSeq2Seq, {"positions": "learned", "norm_first": True}),
    (TransformerSeq2Seq, {"positions": "rotary"}),
]


class Decoder:
    """As much of a tokenizer as decoding needs."""

    def decode(self, ids):
        return " ".join(map(str, ids))


class Data(pl.LightningDataModule):
    tokenizer = Decoder()

    def train_dataloader(self):
        return loader(tiny_batches(4))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


@pytest.mark.parametrize(
    ("family", "options", "precision"),
    [
        (*variant, precision)
        for precision in possible_precisions(CPU, training=True)
        for variant in (VARIANTS if precision == "bf16-true" else VARIANTS[:3])
    ],
)
def test_every_model_trains_tests_and_predicts(tmp_path, family, options, precision):
    task = tiny_task(family, **options)
    trainer = tiny_trainer(tmp_path, precision=precision, gradient_clip_val=1.0)
    trainer.fit(task, datamodule=Data())
    assert {p.dtype for p in task.parameters()} == {
        {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    }
    trainer.test(task, datamodule=Data(), verbose=False)
    assert torch.isfinite(trainer.callback_metrics["test/nll"])
    assert [len(batch) for batch in trainer.predict(task, datamodule=Data())] == [3] * 4


@pytest.mark.parametrize("family", FAMILIES, ids=lambda cls: cls.__name__)
def test_sums_over_tokens_are_float32_at_least(tmp_path, family):
    """In bfloat16 the sum of many losses stands still: 300 + 1 is 300."""
    batches = tiny_batches(40)
    task = tiny_task(family)
    trainer = tiny_trainer(tmp_path, precision="bf16-true")
    (found,) = trainer.validate(task, loader(batches), verbose=False)
    task.eval()
    with torch.no_grad():
        losses = [task._loss(batch) for batch in batches]
    nll = sum(loss.nll.double() for loss in losses) / sum(loss.num_tokens for loss in losses)
    assert found["val/nll"] == pytest.approx(nll.item(), rel=1e-6)


@pytest.mark.parametrize("score", ["additive", "dot", "general", "concat"])
def test_attention_of_recurrent_models_has_its_softmax_in_float32(score):
    torch.manual_seed(0)
    attend = ScoreAttention(score, query_size=16, memory_size=16).to(torch.bfloat16)
    query, values = (torch.randn(2, n, 16, dtype=torch.bfloat16) for n in (5, 300))
    padding = torch.zeros(2, 300, dtype=torch.bool)
    keys = attend.project_keys(values)
    context, weights = attend(query, keys, values, padding)
    assert (context.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
    expected = attend.scores(query, keys).float().softmax(-1)
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5), rtol=0, atol=1e-5)


def test_layer_norm_has_its_statistics_in_float32():
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(512)
    x = (100 + torch.randn(4, 512)).bfloat16()  # bfloat16 has no digits left beside the mean
    found = norm.to(torch.bfloat16)(x)
    torch.testing.assert_close(found.float(), norm.float()(x.float()), rtol=2**-8, atol=1e-6)


# in training the scores themselves are in bfloat16, which is coarse beyond a hundred
@pytest.mark.parametrize(("training", "size"), [(False, 8), (True, 1)])
def test_attention_has_its_softmax_in_float32(training, size):
    torch.manual_seed(0)
    q, k = (size * torch.randn(2, 3, n, 8).bfloat16() for n in (5, 300))
    v = torch.eye(300, dtype=torch.bfloat16).expand(2, 3, -1, -1)  # the result is the weights
    found = DotProductAttention("encoder").train(training)(q, k, v)
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2**-9)


def test_positions_are_computed_in_float64_and_only_then_rounded():
    codes = SinusoidalPositions(16, max_positions=8).to(torch.bfloat16)
    x = torch.zeros(1, 2000, 16, dtype=torch.bfloat16)  # far beyond the table
    torch.testing.assert_close(codes(x)[0], sinusoids(2000, 16).bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(codes(x[:, :8])[0], sinusoids(8, 16).bfloat16(), rtol=0, atol=0)


# ---- what a device cannot do ----


@pytest.mark.parametrize("asked", ["16-mixed", 16, "16", "16-true"])
def test_float16_is_refused_on_a_cpu(asked):
    with pytest.raises(
        ValueError,
        match=rf"\(CPU\) cannot train in precision {asked}; .* 32-true, bf16-mixed, bf16-true, 64",
    ):
        check_precision(asked, CPU, training=True)
    with pytest.raises(ValueError, match="cannot run"):
        check_precision(asked, CPU, training=False)


@pytest.mark.parametrize(
    "asked", ["32-true", 32, "bf16", "bf16-true", 64, None, "transformer-engine"]
)
def test_what_a_cpu_can_do_passes(asked):
    check_precision(asked, CPU, training=True)


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match=r"\(Tesla T4\) .* one of 32-true, 16-mixed, 64-true\."):
        check_precision("bf16-mixed", torch.device("cuda", 0), training=True)
    check_precision("16-true", torch.device("cuda", 0), training=False)


def test_an_unknown_kind_of_device_is_left_to_lightning():
    check_precision("bf16-mixed", torch.device("meta"), training=True)


def test_the_command_line_refuses_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = litseq(
        *"fit --model TransformerSeq2Seq --model.d_model 8 --model.num_heads 2".split(),
        *"--model.num_encoder_layers 1 --model.num_decoder_layers 1".split(),
        *"--model.dim_feedforward 8 --trainer.accelerator cpu --trainer.precision 16-mixed".split(),
    )
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("litseq: error: this device (CPU) cannot train in precision 16-mixed;")
    assert not list(tmp_path.iterdir())
