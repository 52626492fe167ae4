"""The recipes of ``reproduce.py``: what is trained, how it is scored, and what was published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["LANES", "MODELS", "RECIPES", "Published", "Recipe", "Translated"]


@dataclass(frozen=True)
class Published:
    """A figure that somebody printed.

    Attributes:
        score: BLEU, 0 to 100.
        metric: A name of ``litseq.evaluation.LEGACY``.
        tolerance: How far below counts as reached.
        source: Where it was printed.
    """

    score: float
    metric: str
    tolerance: float
    source: str


@dataclass(frozen=True)
class Translated:
    """Training text that another recipe's model translates first.

    Attributes:
        recipe: Whose model translates: that of the first run that needs the text.
        source: What it reads, a file with ``.gz``.
        output: What it writes.
        beside: Where a copy of the source goes, as the other side of the pairs.
    """

    recipe: str
    source: str
    output: str
    beside: str


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: What the command calls it.
        title: What it is, in a table.
        configs: Configuration files, in order.
        options: More of the command line.
        translated: Training text that has to be made first.
        seeds: Seeds that are run by default.
        average: Checkpoints that are averaged; 0: the best one alone.
        legacy: The legacy BLEU that is given beside sacreBLEU's.
        published: The figure to reach.
        needs: What keeps it from being run here; empty where it is.
        against: The recipe that it is compared with, seed by seed.
    """

    name: str
    title: str
    configs: tuple[str, ...]
    options: tuple[str, ...] = ()
    translated: tuple[Translated, ...] = ()
    seeds: tuple[int, ...] = (1,)
    average: int = 0
    legacy: str | None = None
    published: Published | None = None
    needs: str = ""
    against: str = ""


_WU = Published(41.02, "multi30k", 0.02, "Wu et al. (2021)")
MODELS = (
    ("rnn", "recurrent, one context vector"),
    ("rnn-attention", "recurrent, with attention"),
    ("transformer", "Transformer"),
)
_MULTI30K = "English to German, Multi30k"


def _three_models(
    prefix: str,
    title: str,
    folder: str,
    *overlays: str,
    seeds: tuple[int, ...] = (1,),
    legacy: str | None = None,
) -> Iterator[Recipe]:
    """The three models on one corpus; each is compared with the one before."""
    before = ""
    for name, kind in MODELS:
        recipe = Recipe(
            f"{prefix}-{name}",
            f"{title}: {kind}",
            (f"configs/{folder}/{name.replace('-', '_')}.yaml", *overlays),
            seeds=seeds,
            legacy=legacy,
            against=before,
        )
        before = recipe.name
        yield recipe


_SHORT = ("configs/multi30k/best.yaml", "configs/multi30k/short.yaml")
_DIVERSE = "lightning_logs/reproduce/diverse"
# Both directions' models translate the training text (Nguyen et al. 2020, data diversification;
# Sennrich et al. 2016, back-translation).
_FORWARD = Translated(
    "ablation-base", "data/multi30k/train.en.gz", f"{_DIVERSE}/forward.de", f"{_DIVERSE}/forward.en"
)
_BACKWARD = Translated(
    "multi30k-reverse", "data/multi30k/train.de.gz", f"{_DIVERSE}/back.en", f"{_DIVERSE}/back.de"
)
_TRAIN = "data/multi30k/train"

_SHALLOW = ("--model.num_encoder_layers=5", "--model.num_decoder_layers=1")

# name: (what is different from the base, options); all see about as many pairs
_ABLATION: dict[str, tuple[str, tuple[str, ...]]] = {
    "base": ("nothing", ()),
    "prenorm": ("layer norm before each sub-layer", ("--model.norm_first=true",)),
    "rotary": ("rotary positions", ("--model.positions=rotary",)),
    "dropout-0.2": ("dropout 0.2 in place of 0.3", ("--model.dropout=0.2",)),
    "dropout-0.4": ("dropout 0.4 in place of 0.3", ("--model.dropout=0.4",)),
    "shallow": ("5 encoder layers and 1 decoder layer", _SHALLOW),
    "shallow-prenorm": (
        "5 encoder layers and 1 decoder layer, layer norm before each sub-layer",
        (*_SHALLOW, "--model.norm_first=true"),
    ),
    "untied": ("an output projection of its own", ("--model.tie_output=false",)),
    "vocab-10000": ("10,000 subwords in place of 4,000", ("--data.vocab_size=10000",)),
    "combined": (
        "rotary positions, dropout 0.2 and 10,000 subwords",
        ("--model.positions=rotary", "--model.dropout=0.2", "--data.vocab_size=10000"),
    ),
    "large-steps": ("steps of 8,192 tokens in place of 2,048", ("--data.max_tokens=8192",)),
    "subword-dropout-0.05": ("BPE dropout 0.05", ("--data.subword_sampling=0.05",)),
    "subword-dropout": ("BPE dropout 0.1", ("--data.subword_sampling=0.1",)),
    "ema": ("moving average of the weights", ("-c", "configs/trainer/ema.yaml")),
    "r-drop": ("R-Drop, weight 5: two passes over each batch", ("--model.r_drop=5",)),
    "back-translation": (
        "back-translation of the German side, half as many epochs",
        (f"--data.train=[{_TRAIN},{_DIVERSE}/back]", "--trainer.max_epochs=6"),
    ),
    "diversification": (
        "and translation of the English side, a third as many epochs",
        (
            f"--data.train=[{_TRAIN},{_DIVERSE}/back,{_DIVERSE}/forward]",
            "--trainer.max_epochs=4",
            "--trainer.check_val_every_n_epoch=1",
        ),
    ),
}

# Put over the demo; its own model is the Transformer.
_TEACHER: dict[str, tuple[str, ...]] = {
    "rnn": ("configs/teacher/rnn.yaml",),
    "rnn-attention": ("configs/teacher/rnn_attention.yaml",),
    "transformer": (),
}

# The teacher's three models, two at a time: the slowest alone, the others one after the other.
LANES = (("teacher-rnn-attention",), ("teacher-rnn", "teacher-transformer"))

_ALL = (
    Recipe(
        "multi30k-tiny",
        f"{_MULTI30K}: Transformer-Tiny, 4 + 4 layers of 128",
        ("configs/multi30k/tiny.yaml",),
        average=10,
        legacy="multi30k",
        published=_WU,
    ),
    Recipe(
        "multi30k-best",
        f"{_MULTI30K}: our best recipe",
        ("configs/multi30k/best.yaml",),
        legacy="multi30k",
        published=_WU,
        against="multi30k-tiny",
    ),
    Recipe(
        "multi30k-r-drop",
        f"{_MULTI30K}: R-Drop alone, 45 epochs",
        ("configs/multi30k/best.yaml",),
        options=(
            "--model.positions=sinusoidal",
            "--model.dropout=0.3",
            "--model.length_penalty=1.4",
            "--model.length_offset=5",
            "--data.vocab_size=4000",
            "--trainer.max_epochs=45",
        ),
        legacy="multi30k",
        published=_WU,
        against="multi30k-tiny",
    ),
    *_three_models("multi30k", _MULTI30K, "multi30k", seeds=(1, 2, 3), legacy="multi30k"),
    *(
        Recipe(
            f"ablation-{name}",
            f"Multi30k, an ablation: {title}",
            _SHORT,
            options=options,
            translated={
                "back-translation": (_BACKWARD,),
                "diversification": (_BACKWARD, _FORWARD),
            }.get(name, ()),
            legacy="multi30k",
            against="" if name == "base" else "ablation-base",
        )
        for name, (title, options) in _ABLATION.items()
    ),
    Recipe(
        "multi30k-reverse",
        "German to English, Multi30k: the model that translates back, twelve epochs",
        _SHORT,
        options=("--data.src_lang=de", "--data.tgt_lang=en"),
        legacy="multi30k",
    ),
    *_three_models("tatoeba-en-zh", "English to Chinese, Tatoeba", "tatoeba"),
    *_three_models(
        "tatoeba-en-fr", "English to French, Tatoeba", "tatoeba", "configs/tatoeba/french.yaml"
    ),
    *(
        Recipe(
            f"teacher-{name}",
            f"English to Chinese, the demo: {title}, ten epochs",
            ("configs/demo.yaml", *_TEACHER[name]),
        )
        for name, title in MODELS
    ),
    Recipe(
        "iwslt14-de-en",
        "German to English, IWSLT 2014: Transformer, 6 + 6 layers of 512",
        ("configs/paper/iwslt14_de_en.yaml",),
        average=10,
        legacy="pretokenised",  # the corpus comes tokenised and lower-cased
        published=Published(35.6, "pretokenised", 0.5, "quoted for fairseq's recipe"),
        needs="the corpus and a GPU",
    ),
    Recipe(
        "wmt14-en-de-base",
        "English to German, WMT 2014: Transformer base",
        ("configs/paper/transformer_base.yaml",),
        average=5,
        legacy="wmt14-compound-split",
        published=Published(27.3, "wmt14-compound-split", 0.5, "Vaswani et al. (2017)"),
        needs="the Hub and some GPUs",
    ),
    Recipe(
        "wmt14-en-de-big",
        "English to German, WMT 2014: Transformer big",
        ("configs/paper/transformer_big.yaml",),
        average=20,
        legacy="wmt14-compound-split",
        published=Published(28.4, "wmt14-compound-split", 0.5, "Vaswani et al. (2017)"),
        needs="the Hub and many GPUs",
    ),
)

RECIPES = {recipe.name: recipe for recipe in _ALL}
