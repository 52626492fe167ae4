"""The lesson's pictures: what ``lesson_measures`` found, drawn with matplotlib.

Every function takes ``say``, which chooses between English and Chinese, and returns a figure on a
light ground, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from torch import Tensor

from litseq.heatmaps import render

Say = Callable[[str, str], str]

INK, SOFT, LINE = "#1f2430", "#5b6270", "#c9cdd6"
BLUE, ORANGE, GREEN, RED = "#2a6fbb", "#d9730d", "#2b8a5b", "#b3364f"

STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "figure.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
}


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG of 128 colours: a third of the size, and no difference to the eye."""
    figure.set_dpi(144)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(figure)).quantize(128).save(path, optimize=True)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _heatmap(
    ax: Axes, weights: Tensor, *, rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    """Draws float (T, S) with a token at every row and column; dark is 1."""
    ax.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8.5, color=INK)
    ax.set_yticks(range(len(rows)), rows, fontsize=8.5, color=INK)
    ax.tick_params(length=0)
    ax.set_title(title)
    for side in ax.spines.values():
        side.set_visible(True)


# ---- the recurrent models ----


def hidden_states(say: Say, states: Tensor, influence: Tensor, pieces: Sequence[str]) -> Figure:
    """The encoder's state at every time step, and what the last one still knows of each token."""
    figure = _figure(7.2, 5.2)
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1.3], sharex=True)
    chosen = states.std(0).topk(32).indices.sort().values
    top.imshow(states[:, chosen].T.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    top.set_ylabel(say("32 of the state's numbers", "隐藏状态中的 32 个数"))
    top.set_yticks([])
    top.set_title(
        say(
            "The hidden state after each token (red +1, blue -1)",
            "读完每个 token 之后的隐藏状态（红 +1，蓝 -1）",
        )
    )
    bottom.bar(range(len(influence)), influence.numpy(), color=BLUE, width=0.7)
    bottom.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=8.5, color=INK)
    bottom.set_title(
        say(
            "How far the context vector moves if this token is another one",
            "把这个 token 换成别的，上下文向量会移动多远",
        )
    )
    for ax in (top, bottom):
        ax.tick_params(axis="x", length=0)
    bottom.set_ylim(0)
    return figure


def attention_steps(
    say: Say, scores: Tensor, weights: Tensor, *, pieces: Sequence[str], output: str
) -> Figure:
    """One decoder step: the score of every source token, and the weight that softmax makes."""
    figure = _figure(7.2, 4.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    places = range(len(pieces))
    top.bar(places, scores.numpy(), color=ORANGE, width=0.7)
    top.axhline(0, color=LINE, linewidth=0.8)
    top.set_title(say(f"1  Scores, before “{output}” is written", f"1  打分：写出“{output}”之前"))
    bottom.bar(places, weights.numpy(), color=BLUE, width=0.7)
    bottom.set_ylim(0, 1)
    bottom.set_title(
        say(
            "2  Softmax: weights that sum to 1   3  the states, summed with these weights",
            "2  softmax：权重之和为 1   3  用这些权重对各隐藏状态求和",
        )
    )
    bottom.set_xticks(places, pieces, rotation=90, fontsize=8.5, color=INK)
    for ax in (top, bottom):
        ax.tick_params(axis="x", length=0)
    for place in weights.topk(3).indices.tolist():
        if weights[place] > 0.03:
            bottom.annotate(
                f"{float(weights[place]):.2f}",
                (place, float(weights[place])),
                (0, 2),
                textcoords="offset points",
                ha="center",
            )
    return figure


def alignment(say: Say, weights: Tensor, *, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Every decoder step's weights, one below the other."""
    figure = _figure(6.2, 5.6)
    ax = figure.subplots()
    title = say(
        "One row per output token: where the decoder looked", "每行一个输出 token：解码器看向了哪里"
    )
    _heatmap(ax, weights, rows=rows, columns=columns, title=title)
    return figure


def _models(say: Say) -> dict[str, tuple[str, str, str]]:
    """How the three models are drawn everywhere: name, colour, marker."""
    return {
        "rnn": (say("recurrent, one context vector", "循环网络，单一上下文向量"), RED, "o"),
        "rnn_attention": (say("recurrent, with attention", "循环网络加注意力"), ORANGE, "s"),
        "transformer": ("Transformer", BLUE, "^"),
    }


def by_length(say: Say, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Score against source length: a thin line per seed, a thick one for their mean.

    Args:
        say: Chooses the language.
        tables: By model, what ``by_length.score`` found for each seed.
    """
    figure = _figure(6.6, 3.6)
    ax = figure.subplots()
    for name, (label, color, marker) in _models(say).items():
        seeds = tables.get(name, ())
        if not seeds:
            continue
        bins = seeds[0]["bins"]
        for table in seeds:
            ax.plot(bins, table["bleu"], color=color, linewidth=0.8, alpha=0.5)
        columns = zip(*(table["bleu"] for table in seeds), strict=True)
        mean = [sum(column) / len(seeds) for column in columns]
        ax.plot(bins, mean, color=color, marker=marker, linewidth=2, label=label)
    ax.set_xlabel(say("words in the source sentence", "源句的词数"))
    ax.set_ylabel("BLEU")
    ax.set_ylim(0)
    ax.legend(loc="lower left")
    return figure


def story(
    say: Say,
    records: Mapping[str, Mapping[str, Any]],
    *,
    weights: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    """The whole story on one sheet.

    Args:
        say: Chooses the language.
        records: By model, the record of its run.
        weights: Where the recurrent decoder looked, float (T, S).
        rows: The T outputs.
        columns: The S tokens of the source.
    """
    figure = _figure(10.4, 8.4)
    (loss, bleu), (length, align) = figure.subplots(2, 2)
    for name, (label, color, marker) in _models(say).items():
        training = records[name]["training"]
        course = training["val"]
        tokens = [epoch * training["tgt_tokens_per_epoch"] / 1000 for epoch in course["epoch"]]
        loss.plot(tokens, course["nll"], color=color, marker=marker, label=label)
        bleu.plot(tokens, course["bleu"], color=color, marker=marker)
        table = records[name]["by_length"]
        length.plot(table["bins"], table["bleu"], color=color, marker=marker)
    loss.set_title(
        say("1  Loss on new sentences, nats per token", "1  新句子上的损失（nat/token）")
    )
    bleu.set_title(say("2  BLEU on new sentences", "2  新句子上的 BLEU"))
    length.set_title(
        say("3  BLEU by length: one vector must hold it all", "3  按句长的 BLEU：一个向量装下全句")
    )
    for ax in (loss, bleu):
        ax.set_xlabel(say("thousand target tokens seen", "见过的目标 token（千）"))
    length.set_xlabel(say("words in the source sentence", "源句的词数"))
    for ax in (loss, bleu, length):
        ax.set_ylim(0)
    loss.legend(loc="upper right")
    title = say("4  Attention: where the decoder looked", "4  注意力：解码器看向了哪里")
    _heatmap(align, weights, rows=rows, columns=columns, title=title)
    return figure


# ---- the Transformer ----


def transformer(say: Say, *, num_layers: int = 3) -> Figure:
    """The whole model: two stacks, and the encoder's output on its way to every decoder layer."""
    figure = Figure(figsize=(7.2, 6.4))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, 10)
    ax.set_ylim(0, 9.1)
    ax.set_axis_off()

    def box(x: float, y: float, text: str, *, color: str, width: float = 2.9) -> None:
        shape = FancyBboxPatch(
            (x, y), width, 0.42, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=color + "22", edgecolor=color, linewidth=1,
        )  # fmt: skip
        ax.add_patch(shape)
        ax.text(x + width / 2, y + 0.2, text, ha="center", va="center", fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float], color: str = SOFT) -> None:
        ax.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=9, color=color, linewidth=1.1,
                shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip

    left, right, step = 0.75, 6.05, 0.58
    embed = say("embedding + position code", "词嵌入 + 位置编码")
    ax.text(left + 1.45, 0.28, say("source tokens", "源 token"), ha="center", color=SOFT)
    ax.text(
        right + 1.45, 0.28, say("target tokens so far", "已写出的目标 token"), ha="center",
        color=SOFT,
    )  # fmt: skip
    for x in (left, right):
        arrow((x + 1.45, 0.5), (x + 1.45, 0.72))
        box(x, 0.72, embed, color=SOFT)
    height = 3 * step + 0.28
    base, bus = 1.42, 4.85
    memory_y = base + num_layers * height + 0.05
    for layer in range(num_layers):
        y = base + layer * height
        for x in (left, right):
            ax.add_patch(
                FancyBboxPatch(
                    (x - 0.12, y - 0.08), 3.14, height - 0.17,
                    boxstyle="round,pad=0.02,rounding_size=0.1", facecolor="#f6f7f9",
                    edgecolor=LINE,
                )
            )  # fmt: skip
            arrow((x + 1.45, y - 0.28), (x + 1.45, y - 0.08))
        feed_forward = say("feed-forward", "前馈网络")
        box(left, y + 0.08 + 0.4 * step, say("self-attention", "自注意力"), color=GREEN)
        box(left, y + 0.08 + 1.6 * step, feed_forward, color=ORANGE)
        box(right, y + 0.08, say("masked self-attention", "带掩码的自注意力"), color=GREEN)
        box(right, y + 0.08 + step, say("attention to the source", "对源句的注意力"), color=BLUE)
        box(right, y + 0.08 + 2 * step, feed_forward, color=ORANGE)
        name = (
            say(f"layer {layer + 1}", f"第 {layer + 1} 层")
            if layer < num_layers - 1
            else say("layer N", "第 N 层")
        )
        for x, align in ((left - 0.22, "right"), (right + 3.12, "left")):
            ax.text(x, y + height / 2 - 0.1, name, ha=align, va="center", rotation=90, color=SOFT)
        arrow((bus, y + step + 0.28), (right - 0.02, y + step + 0.28), BLUE)
    note = say(
        "around every coloured box:\nx + box(x), and a layer norm",
        "每个彩色方框外面：\nx + box(x)，再加层归一化",
    )
    ax.text(bus, 1.2, note, ha="center", va="top", color=SOFT, fontsize=8.5)
    ax.plot([left + 1.45] * 2, [memory_y - 0.24, memory_y + 0.1], color=BLUE, linewidth=1.4)
    ax.plot([left + 1.45, bus], [memory_y + 0.1] * 2, color=BLUE, linewidth=1.4)
    ax.plot([bus] * 2, [base + step + 0.28, memory_y + 0.1], color=BLUE, linewidth=1.4)
    ax.text(
        left - 0.1, memory_y + 0.32, say("the encoder's output, to every decoder layer",
        "编码器的输出，送往解码器的每一层"), color=BLUE, fontsize=9,
    )  # fmt: skip
    arrow((right + 1.45, memory_y - 0.24), (right + 1.45, memory_y + 0.02))
    box(right, memory_y + 0.02, say("linear + softmax", "线性层 + softmax"), color=RED)
    arrow((right + 1.45, memory_y + 0.46), (right + 1.45, memory_y + 0.7))
    ax.text(
        right + 1.45, memory_y + 0.86, say("probability of every next token",
        "下一个 token 的概率"), ha="center", color=SOFT,
    )  # fmt: skip
    ax.set_ylim(0, memory_y + 1.1)
    return figure


def kinds(say: Say, maps: Sequence[tuple[str, Tensor, Sequence[str], Sequence[str]]]) -> Figure:
    """Some attentions side by side, each as (title, weights, rows, columns)."""
    figure = _figure(10.6, 4.3)
    for ax, (title, weights, rows, columns) in zip(
        figure.subplots(1, len(maps)), maps, strict=True
    ):
        _heatmap(ax, weights, rows=rows, columns=columns, title=title)
    return figure


# ---- the four questions ----


def positions(say: Say, codes: Tensor, products: Tensor) -> Figure:
    """The codes, and the product of two of them against their distance."""
    figure = _figure(9.2, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
    left.imshow(codes.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    left.set_xlabel(say("dimension", "维度"))
    left.set_ylabel(say("position", "位置"))
    left.set_title(say("The codes (red +1, blue -1)", "位置编码（红 +1，蓝 -1）"))
    half = products.size(0) // 2
    for start, color, marker in ((4, ORANGE, "o"), (16, BLUE, "s"), (28, GREEN, "^")):
        right.plot(
            range(half), products[start, start : start + half].numpy(), color=color, marker=marker,
            markersize=3 + (32 - start) / 6, markerfacecolor="none", linewidth=0.8,
            label=say(f"from position {start}", f"从位置 {start} 起"),
        )  # fmt: skip
    right.set_xlabel(say("distance in tokens", "相距的 token 数"))
    right.set_title(say("Product of two codes", "两个位置编码的点积"))
    right.legend()
    return figure


def scores(say: Say, widths: Sequence[int], found: Mapping[str, Sequence[float]]) -> Figure:
    """Variance of q·k, the largest weight and the gradient of softmax against the width d_k."""
    figure = _figure(10.2, 3.3)
    variance, largest, gradient = figure.subplots(1, 3)
    variance.plot(widths, found["variance"], "o", color=RED, label=say("measured", "测得"))
    variance.plot(widths, widths, color=LINE, zorder=0, label="dₖ")
    variance.set_yscale("log", base=2)
    variance.set_title(say("Variance of q·k", "q·k 的方差"))
    variance.legend()
    names = {
        "_undivided": (say("undivided", "不除"), RED, "o"),
        "": (say("divided by √dₖ", "除以 √dₖ"), BLUE, "s"),
    }
    for ax, key, title in (
        (largest, "largest", say("Largest of 18 weights", "18 个权重中最大的一个")),
        (gradient, "gradient", say("Size of softmax's gradient", "softmax 梯度的大小")),
    ):
        for suffix, (label, color, marker) in names.items():
            ax.plot(widths, found[key + suffix], color=color, marker=marker, label=label)
        ax.set_ylim(0)
        ax.set_title(title)
    largest.legend(loc="lower right")
    for ax in (variance, largest, gradient):
        ax.set_xscale("log", base=2)
        ax.set_xticks(widths, [str(width) for width in widths])
        ax.minorticks_off()
        ax.set_xlabel(say("width of a head, dₖ", "每个头的维度 dₖ"))
    return figure


def curves(say: Say, lines: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Learning curves, (label, its runs): a thin line per seed, the first of a label named."""
    figure = _figure(6.6, 3.5)
    ax = figure.subplots()
    styles = zip((BLUE, RED, GREEN, ORANGE), "s^ov", strict=True)
    for (label, runs), (color, marker) in zip(lines, styles, strict=False):
        for number, run in enumerate(runs):
            steps, values = zip(*run["curve"]["val/nll"], strict=True)
            ax.plot(
                steps, values, color=color, marker=marker, markersize=4,
                linewidth=1.6 if number == 0 else 0.8, label=label if number == 0 else None,
            )  # fmt: skip
    ax.set_yscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel(say("optimizer steps", "优化步数"))
    ax.set_ylabel(say("validation, nats per token", "验证集损失（nat/token）"))
    ax.legend()
    return figure


def wavelength(pair: int, d_model: int) -> float:
    """Tokens until dimension pair ``pair`` of the position codes repeats."""
    return float(2 * math.pi * 10000 ** (2 * pair / d_model))
