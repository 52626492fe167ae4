"""Recipes that nothing here can run, held against what their papers say, without data or network.

The numbers below are typed from the papers and from fairseq's commands, not from the configs; the
parameters are counted by hand (``parameters_of``) and, as a number, once more.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from litseq.decoding import SearchOptions
from litseq.layers.positions import SinusoidalPositions
from litseq.models.transformer import Transformer
from test_configs import CONTENTS, FILES, instantiate, no_traces  # noqa: F401 - a fixture for all tests


class Recipe(NamedTuple):
    name: str
    vocab_size: int
    d_model: int
    num_heads: int
    num_layers: int
    dim_feedforward: int
    num_tables: int  # matrices of vocab_size x d_model: embeddings and output
    num_parameters: int
    dropout: float
    rate: Callable[[int], float]  # learning rate of a step, the first being 1
    peak: float
    warmup: int
    last: int
    optimizer: type
    eps: float
    weight_decay: float
    clip: float | None
    step: tuple[int, int, int]  # devices, accumulation, max_tokens
    share: float | None  # of tokens among positions, where the source counts tokens
    tokens: int  # in the source's unit
    beam: int
    alpha: float
    offset: int
    longest: tuple[int, int]  # outputs of inputs of 1 and of 100 tokens
    averaged: int
    apart: int | None  # steps between checkpoints to average; None: an epoch

    @property
    def path(self):
        return f"configs/{self.name}.yaml"


def vaswani(d_model):
    """Equation 3 of Vaswani et al. (2017)."""
    return lambda step: d_model**-0.5 * min(step**-0.5, step * 4000**-1.5)


def fairseq(peak, warmup):
    """A straight line from zero to the peak, then the inverse square root."""
    return lambda step: peak * (step / warmup if step < warmup else math.sqrt(warmup / step))


RECIPES = [
    # Vaswani et al. (2017): table 3, sections 5.1 to 5.4 and 6.1; table 3 prints 65 and 213 million
    Recipe(
        name="paper/transformer_base",
        vocab_size=37000,
        d_model=512,
        num_heads=8,
        num_layers=6,
        dim_feedforward=2048,
        num_tables=1,
        num_parameters=63_119_496,
        dropout=0.1,
        rate=vaswani(512),
        peak=6.9877e-4,
        warmup=4000,
        last=100_000,
        optimizer=torch.optim.Adam,
        eps=1e-9,
        weight_decay=0.0,
        clip=None,
        step=(1, 4, 7168),
        share=0.87,
        tokens=25_000,
        beam=4,
        alpha=0.6,
        offset=5,
        longest=(51, 150),
        averaged=5,
        apart=1500,  # ten minutes at 0.4 seconds
    ),
    Recipe(
        name="paper/transformer_big",
        vocab_size=37000,
        d_model=1024,
        num_heads=16,
        num_layers=6,
        dim_feedforward=4096,
        num_tables=1,
        num_parameters=214_282_376,
        dropout=0.3,
        rate=vaswani(1024),
        peak=4.9411e-4,
        warmup=4000,
        last=300_000,
        optimizer=torch.optim.Adam,
        eps=1e-9,
        weight_decay=0.0,
        clip=None,
        step=(1, 4, 7168),
        share=0.87,
        tokens=25_000,
        beam=4,
        alpha=0.6,
        offset=5,
        longest=(51, 150),
        averaged=20,
        apart=600,  # ten minutes at 1 second
    ),
    # fairseq, examples/translation/README.md; steps and average: pay_less_attention_paper/README.md
    Recipe(
        name="paper/iwslt14_de_en",
        vocab_size=10000,
        d_model=512,
        num_heads=4,
        num_layers=6,
        dim_feedforward=1024,
        num_tables=2,
        num_parameters=41_793_296,
        dropout=0.3,
        rate=fairseq(5e-4, 4000),
        peak=5e-4,
        warmup=4000,
        last=50_000,
        optimizer=torch.optim.AdamW,
        eps=1e-8,
        weight_decay=1e-4,
        clip=None,
        step=(1, 1, 4096),
        share=None,
        tokens=4096,
        beam=5,
        alpha=1.0,
        offset=0,
        longest=(200, 200),
        averaged=10,
        apart=None,
    ),
    # Wu et al. (2021), https://arxiv.org/abs/2105.14462
    Recipe(
        name="multi30k/tiny",
        vocab_size=10000,
        d_model=128,
        num_heads=4,
        num_layers=4,
        dim_feedforward=256,
        num_tables=1,
        num_parameters=2_615_056,
        dropout=0.3,
        rate=fairseq(5e-3, 2000),
        peak=5e-3,
        warmup=2000,
        last=8000,
        optimizer=torch.optim.Adam,
        eps=1e-8,
        weight_decay=0.0,
        clip=25.0,
        step=(1, 2, 4096),
        share=None,
        tokens=8192,
        beam=5,
        alpha=1.0,
        offset=0,
        longest=(200, 200),
        averaged=10,
        apart=None,
    ),
]


def parameters_of(recipe):
    """Matrices, biases and norms of post-norm stacks, embeddings, and the bias of the output."""
    d, inner, vocab = recipe.d_model, recipe.dim_feedforward, recipe.vocab_size
    attention = 4 * (d * d + d)  # queries, keys, values, output
    feed_forward = d * inner + inner + inner * d + d
    norm = 2 * d
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    return recipe.num_layers * (encoder + decoder) + recipe.num_tables * vocab * d + vocab


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request):
    return request.param


@pytest.fixture
def made(recipe):
    """Model, trainer and options of the data, as the command line makes them."""
    return instantiate(recipe.path)


@pytest.fixture
def network(recipe, made):
    model, _, data = made
    assert data["vocab_size"] == recipe.vocab_size
    assert data["shared_vocab"]
    assert data["model_type"] == "bpe"
    with torch.device("meta"):
        return model.build_network(recipe.vocab_size, None)


@pytest.fixture
def configured(made):
    model, trainer, _ = made
    model.trainer = trainer
    model.network = torch.nn.Linear(1, 1)  # an optimizer cannot do without parameters
    return model.configure_optimizers()


def test_the_network_has_the_paper_s_shapes(recipe, network):
    assert isinstance(network, Transformer)
    assert isinstance(network.positions, SinusoidalPositions)
    d, inner, vocab = recipe.d_model, recipe.dim_feedforward, recipe.vocab_size
    assert network.tgt_embedding.weight.shape == (vocab, d)
    assert network.output.weight is network.tgt_embedding.weight
    assert network.src_embedding.weight.shape == (vocab, d)
    one_table = network.src_embedding.weight is network.tgt_embedding.weight
    assert one_table == (recipe.num_tables == 1)
    for layers in (network.encoder_layers, network.decoder_layers):
        assert len(layers) == recipe.num_layers
        for layer in layers:
            assert layer.feed_forward.linear1.weight.shape == (inner, d)
            assert layer.feed_forward.linear2.weight.shape == (d, inner)
            assert layer.self_attn.num_heads == recipe.num_heads
            assert not layer.self_attn_residual.norm_first
    assert all(layer.cross_attn.num_heads == recipe.num_heads for layer in network.decoder_layers)

    src = torch.zeros(2, 7, dtype=torch.int64, device="meta")
    tgt = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    logits = network(src, torch.zeros(2, 7, dtype=torch.bool, device="meta"), tgt)
    assert logits.shape == (2, 5, vocab)


def test_the_network_has_every_parameter_and_no_other(recipe, network):
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert counted == parameters_of(recipe) == recipe.num_parameters


def test_fairseq_s_two_dictionaries_would_give_fairseq_s_size():
    """The count agrees with fairseq's, but for the words of the header: 8,848 and 6,632 types."""
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == "paper/iwslt14_de_en")
    layers = parameters_of(recipe._replace(num_tables=0)) - recipe.vocab_size
    theirs = layers + (8848 + 6632) * recipe.d_model
    assert theirs == 39_469_056
    header = header_of(recipe)
    assert f"{recipe.num_parameters / 1e6:.1f} million parameters for {theirs / 1e6:.1f}" in header


def test_dropout_and_smoothing(recipe, made, network):
    model, _, data = made
    residuals = [
        module for name, module in network.named_modules() if name.endswith("residual.dropout")
    ]
    assert len(residuals) == 5 * recipe.num_layers
    assert {module.p for module in residuals} == {network.dropout.p} == {recipe.dropout}
    layers = [*network.encoder_layers, *network.decoder_layers]
    assert {layer.feed_forward.dropout.p for layer in layers} == {0.0}
    assert model.hparams["attention_dropout"] == 0.0
    assert model.hparams["label_smoothing"] == 0.1
    assert model.hparams.get("r_drop", 0.0) == 0.0
    assert data["subword_sampling"] == 0.0


def test_the_learning_rate_is_the_paper_s_at_every_time(recipe, made, configured):
    _, trainer, _ = made
    assert trainer.max_steps == recipe.last
    assert trainer.max_epochs == -1
    (group,) = configured["optimizer"].param_groups
    (factor,) = configured["lr_scheduler"]["scheduler"].lr_lambdas
    assert configured["lr_scheduler"]["interval"] == "step"

    def rate(step):
        return group["initial_lr"] * factor(step - 1)  # LambdaLR counts from 0

    warmup = recipe.warmup
    for step in (1, warmup // 2, warmup, warmup + 1, 4 * warmup, recipe.last):
        assert rate(step) == pytest.approx(recipe.rate(step), rel=1e-6), step
    assert rate(warmup) == pytest.approx(recipe.peak, rel=1e-4)
    assert rate(warmup // 2) == pytest.approx(rate(warmup) / 2)
    assert rate(4 * warmup) == pytest.approx(rate(warmup) / 2)
    assert group["lr"] == rate(1), "the first step has the first rate"


def test_the_optimizer(recipe, made, configured):
    _, trainer, _ = made
    assert type(configured["optimizer"]) is recipe.optimizer
    (group,) = configured["optimizer"].param_groups
    assert tuple(group["betas"]) == (0.9, 0.98)
    assert group["eps"] == recipe.eps
    assert group["weight_decay"] == recipe.weight_decay
    assert not group["amsgrad"]
    assert trainer.gradient_clip_val == recipe.clip


def test_fairseq_s_weight_decay_is_that_of_adamw():
    """One step of fairseq's Adam: p - lr * decay * p, then Adam's own step."""
    lr, decay, eps, start, grad = 0.5, 0.1, 1e-8, 2.0, 3.0
    weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    adam = torch.optim.AdamW([weight], lr=lr, betas=(0.9, 0.98), eps=eps, weight_decay=decay)
    weight.grad = torch.full_like(weight, grad)
    adam.step()
    expected = start - lr * decay * start - lr * grad / (abs(grad) + eps)
    assert weight.item() == pytest.approx(expected, rel=1e-7)


def header_of(recipe):
    lines = FILES[recipe.path].read_text(encoding="utf-8").split("\n")
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return re.sub(r"\s+", " ", " ".join(line.lstrip("# ") for line in head))


def test_tokens_of_a_step(recipe, made):
    _, trainer, data = made
    devices, accumulation, max_tokens = recipe.step
    assert trainer.num_devices == devices
    if recipe.name.startswith("paper/"):  # for GPUs, of which Lightning would take all there are
        assert CONTENTS[recipe.path]["trainer"]["devices"] == devices
    assert trainer.accumulate_grad_batches == accumulation
    assert data["max_tokens"] == max_tokens
    assert data["max_sentences"] is None
    positions = math.prod(recipe.step)
    if recipe.share is None:  # the source counts positions, padding and all, as we do
        assert positions == recipe.tokens
        assert f"x {max_tokens:,}" in header_of(recipe)
    else:
        assert positions * recipe.share == pytest.approx(recipe.tokens, rel=0.01)
        header = header_of(recipe)
        said = f"{devices} x {accumulation} x {max_tokens:,} = {positions:,} positions"
        assert said in header
        assert f"{recipe.share:.0%}".replace("%", " %") in header
        assert f"if {recipe.share * 100:.0f} % of them are tokens, {recipe.tokens:,}" in header


def test_search(recipe, made):
    model, _, data = made
    options = model.search_options
    assert isinstance(options, SearchOptions)
    assert options.beam_size == recipe.beam
    assert (options.length_penalty, options.length_offset) == (recipe.alpha, recipe.offset)
    assert options.n_best == 1
    limits = options.max_len(torch.tensor([1, 100]))
    assert tuple(limits.tolist()) == recipe.longest
    assert min(data["max_src_len"], data["max_tgt_len"]) >= 256


def test_checkpoints_to_average(recipe, made):
    _, trainer, _ = made
    (kept,) = (
        callback
        for callback in trainer.callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor == "step"
    )
    assert kept.save_top_k == recipe.averaged
    assert kept.mode == "max"
    assert kept.save_weights_only
    if recipe.apart is None:
        assert kept._every_n_train_steps == 0
        assert kept._every_n_epochs == 1
        assert trainer.check_val_every_n_epoch == 1
    else:
        assert kept._every_n_train_steps == recipe.apart
        assert recipe.averaged * recipe.apart < recipe.last
    if recipe.name.startswith("paper/"):
        assert "litseq average RUN/checkpoints/step=*.ckpt " in header_of(recipe)
        assert kept.filename == "{step}"


def test_iwslt_s_files_and_languages():
    _, _, data = instantiate("configs/paper/iwslt14_de_en.yaml")
    assert (data["src_lang"], data["tgt_lang"]) == ("de", "en")
    assert data["dataset"] is None
    for name in ("train", "val", "test"):
        split = {"val": "valid"}.get(name, name)
        assert data[name] == f"data/iwslt14/{split}"


@pytest.mark.parametrize("name", ["transformer_base", "transformer_big"])
def test_wmt_s_dataset_and_languages(name):
    _, _, data = instantiate(f"configs/paper/{name}.yaml")
    assert (data["dataset"], data["dataset_config"]) == ("wmt/wmt14", "de-en")
    assert (data["src_lang"], data["tgt_lang"]) == ("en", "de")
    assert data["train"] is data["val"] is data["test"] is None  # the Hub's own splits
