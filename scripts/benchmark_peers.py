"""Models of other toolkits as modules that one training loop can time.

    python scripts/benchmark_peers.py     # checks the peers that this environment has

A peer's model is built, masked and scored by the toolkit's own code, with what its trainer computes
on the way, for the loop of ``benchmark_worker.py``. Nothing of litseq is imported, and a toolkit
only by its own builder: each may live in a Python environment of its own.

The check tells parameters, and how many more than litseq's; the loss before and after 20 steps of
Adam on one batch; and what columns of padding change in it. Recurrent architectures differ, so
their numbers do: JoeyNMT and OpenNMT feed the attentional vector, of size d, where Bahdanau feeds
the context, of 2d, and OpenNMT halves the encoder and has no bridge.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PAD, UNK, BOS, EOS = range(4)


@dataclass(frozen=True)
class Sizes:
    """The work's model. A recurrent one has an embedding on each side and an untied output."""

    kind: Literal["transformer", "rnn"]
    vocab_size: int  # for both sides; a Transformer ties both embeddings and the output
    d_model: int  # embeddings and states of the rnn: a bidirectional GRU, and one that attends
    num_heads: int
    num_layers: int  # in encoder and in decoder, each
    dim_feedforward: int
    dropout: float  # wherever a peer has one, attention and feed-forward too: torch has one for all
    label_smoothing: float
    longest: int  # tokens, for position tables


def _behind_bos(tgt: Tensor) -> Tensor:
    return pad(tgt, (1, 0), value=BOS)  # (B, 1 + T)


class _Peer(nn.Module):
    """Modules of a toolkit, and what its trainer does with a batch before the backward pass."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.step, self.parts = step, nn.ModuleList(modules)
        self.train()

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.step(src, tgt)


class _TorchTransformer(nn.Module):
    """Source: https://docs.pytorch.org/tutorials/beginner/translation_transformer.html."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d = sizes.d_model
        self.embedding = nn.Embedding(sizes.vocab_size, d)
        angles = torch.arange(sizes.longest)[:, None] * 10000 ** (-torch.arange(0, d, 2) / d)
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (longest, D)
        self.register_buffer("positions", table)
        self.dropout = nn.Dropout(sizes.dropout)
        self.transformer = nn.Transformer(
            d, sizes.num_heads, sizes.num_layers, sizes.num_layers, sizes.dim_feedforward,
            sizes.dropout, batch_first=True,
        )  # fmt: skip
        self.generator = nn.Linear(d, sizes.vocab_size)
        self.generator.weight = self.embedding.weight
        self.loss = nn.CrossEntropyLoss(label_smoothing=sizes.label_smoothing, ignore_index=PAD)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        tgt_in, src_padding = _behind_bos(tgt)[:, :-1], src == PAD
        later = torch.ones(tgt.size(1), tgt.size(1), dtype=torch.bool, device=tgt.device).triu(1)
        scale, positions = self.embedding.embedding_dim**0.5, self.positions
        output = self.transformer(
            self.dropout(self.embedding(src) * scale + positions[: src.size(1)]),
            self.dropout(self.embedding(tgt_in) * scale + positions[: tgt.size(1)]),
            tgt_mask=later, src_key_padding_mask=src_padding,
            tgt_key_padding_mask=tgt_in == PAD, memory_key_padding_mask=src_padding,
        )  # fmt: skip
        return self.loss(self.generator(output).flatten(0, 1), tgt.flatten())


class _TorchRnn(nn.Module):
    """The tutorial's loop, where each step projects all keys anew and its output to the vocabulary.

    Added are masks, the encoder's second direction, a bridge of its final states, and Bahdanau's
    layer between context, state and token and the output.
    Source: https://docs.pytorch.org/tutorials/intermediate/seq2seq_translation_tutorial.html.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d, layers = sizes.d_model, sizes.num_layers
        self.src_embedding = nn.Embedding(sizes.vocab_size, d)
        self.tgt_embedding = nn.Embedding(sizes.vocab_size, d)
        between = sizes.dropout * (layers > 1)
        self.encoder = nn.GRU(d, d, layers, batch_first=True, dropout=between, bidirectional=True)
        self.bridge = nn.ModuleList(nn.Linear(2 * d, d) for _ in range(layers))
        self.query, self.key, self.energy = nn.Linear(d, d), nn.Linear(2 * d, d), nn.Linear(d, 1)
        self.cells = nn.ModuleList(nn.GRUCell(d if i else 3 * d, d) for i in range(layers))
        self.readout, self.out = nn.Linear(4 * d, d), nn.Linear(d, sizes.vocab_size)
        self.dropout = nn.Dropout(sizes.dropout)
        self.loss = nn.CrossEntropyLoss(label_smoothing=sizes.label_smoothing, ignore_index=PAD)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        padding = src == PAD
        embedded, lengths = self.dropout(self.src_embedding(src)), (~padding).sum(1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        packed, final = self.encoder(packed)
        memory, _ = pad_packed_sequence(packed, batch_first=True, total_length=src.size(1))
        final = torch.cat([final[0::2], final[1::2]], dim=-1)  # (L, B, 2D)
        hidden = [torch.tanh(map_(state)) for map_, state in zip(self.bridge, final, strict=True)]
        logits = []
        for token in self.dropout(self.tgt_embedding(_behind_bos(tgt)[:, :-1])).unbind(1):
            scores = self.energy(torch.tanh(self.query(hidden[-1])[:, None] + self.key(memory)))
            weights = scores.squeeze(2).masked_fill(padding, -torch.inf).softmax(dim=-1)  # (B, S)
            context = torch.bmm(weights[:, None], memory).squeeze(1)  # (B, 2D)
            state = torch.cat([token, context], dim=-1)
            for i, cell in enumerate(self.cells):
                hidden[i] = state = cell(self.dropout(state) if i else state, hidden[i])
            readout = torch.tanh(self.readout(torch.cat([context, state, token], dim=-1)))
            logits.append(self.out(self.dropout(readout)))
        return self.loss(torch.stack(logits, dim=1).flatten(0, 1), tgt.flatten())


def marian(sizes: Sizes) -> nn.Module:
    """``MarianMTModel`` of transformers, as ``Seq2SeqTrainer`` trains it: a post-norm Transformer.

    Raises:
        ValueError: If ``kind`` is ``rnn``.
    """
    if sizes.kind == "rnn":
        raise ValueError("transformers has no recurrent Marian; use kind 'transformer'.")
    from transformers import MarianConfig, MarianMTModel
    from transformers.trainer_pt_utils import LabelSmoother

    heads, layers, inner = sizes.num_heads, sizes.num_layers, sizes.dim_feedforward
    config = MarianConfig(
        vocab_size=sizes.vocab_size, d_model=sizes.d_model, max_position_embeddings=sizes.longest,
        encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=inner,
        decoder_layers=layers, decoder_attention_heads=heads, decoder_ffn_dim=inner,
        dropout=sizes.dropout, attention_dropout=sizes.dropout, activation_dropout=sizes.dropout,
        activation_function="relu", scale_embedding=True, pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS, forced_eos_token_id=EOS, decoder_start_token_id=BOS,
        use_cache=False,  # the Trainer's default
    )  # fmt: skip
    model, smoother = MarianMTModel(config), LabelSmoother(sizes.label_smoothing)

    def step(src: Tensor, tgt: Tensor) -> Tensor:
        labels = tgt.masked_fill(tgt == PAD, -100)
        tgt_in = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return smoother(model(src, src.ne(PAD).long(), tgt_in), labels)

    return _Peer(step, model)


def joeynmt(sizes: Sizes) -> nn.Module:
    """JoeyNMT: post-norm Transformer, or GRU with Bahdanau's attention and input feeding.

    The loss is a KL divergence from targets written out in full, (B * T, V), without padding: lower
    than a cross-entropy by a constant. On an accelerator ``Batch`` waits twice, for ids that its
    loader has in main memory; the two waits at the end of its step are not here.
    """
    from joeynmt.batch import Batch
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary

    special = SimpleNamespace(
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None,
        unk_id=0, pad_id=1, bos_id=BOS, eos_id=EOS, sep_id=None, lang_tags=[],
    )  # fmt: skip
    vocabulary = Vocabulary([], special)  # which takes no other order of ids
    # Our ids instead; and all tokens at once, since it would search the whole list for each.
    vocabulary.pad_index, vocabulary.unk_index = PAD, UNK
    vocabulary._itos += [str(i) for i in range(4, sizes.vocab_size)]

    transformer = sizes.kind == "transformer"
    side = {
        "type": "transformer" if transformer else "recurrent", "hidden_size": sizes.d_model,
        "num_layers": sizes.num_layers, "dropout": sizes.dropout, "hidden_dropout": sizes.dropout,
        "num_heads": sizes.num_heads, "ff_size": sizes.dim_feedforward, "layer_norm": "post",
        "rnn_type": "gru", "bidirectional": True,
        "embeddings": {"embedding_dim": sizes.d_model, "scale": transformer},
    }  # fmt: skip
    tied = {"tied_embeddings": transformer, "tied_softmax": transformer}
    model = build_model({"encoder": side, "decoder": side, **tied}, vocabulary, vocabulary)
    model.loss_function = ("crossentropy", sizes.label_smoothing)

    def step(src: Tensor, tgt: Tensor) -> Tensor:
        batch = Batch(
            src=src, src_length=src.ne(PAD).sum(1), src_prompt_mask=None,
            trg=_behind_bos(tgt), trg_prompt_mask=None, device=src.device,
            indices=torch.arange(len(src), device=src.device), pad_index=PAD, eos_index=EOS,
        )  # fmt: skip
        batch.sort_by_src_length()
        loss, *_ = model(return_type="loss", **vars(batch))  # counts correct tokens as well
        return batch.normalize(loss, normalization="tokens")

    return _Peer(step, model)


def opennmt(sizes: Sizes) -> nn.Module:
    """OpenNMT-py: pre-norm Transformer, for it has no other, or GRU, ``mlp`` and input feeding.

    Both sides must have one size, so a direction of the rnn has half of ``d_model``. Attention is
    written out, but for decoders on a GPU. Its trainer divides by tokens without EOS, this with it.
    """
    import pyonmttok
    from onmt import opts
    from onmt.model_builder import build_model
    from onmt.utils import Statistics
    from onmt.utils.loss import LossCompute
    from onmt.utils.parse import ArgumentParser

    special, rest = ["<blank>", "<unk>", "<s>", "</s>"], map(str, range(4, sizes.vocab_size))
    vocabulary = pyonmttok.build_vocab_from_tokens(list(rest), special_tokens=special)
    line = (
        "-data none -src_vocab none -save_model none "  # must be there; nobody looks
        f"-layers {sizes.num_layers} -hidden_size {sizes.d_model} -word_vec_size {sizes.d_model} "
        f"-heads {sizes.num_heads} -transformer_ff {sizes.dim_feedforward} -rnn_type GRU "
        f"-dropout {sizes.dropout} -attention_dropout {sizes.dropout} "
        f"-label_smoothing {sizes.label_smoothing} -global_attention mlp "
    ) + {
        "transformer": "-encoder_type transformer -decoder_type transformer -position_encoding "
        "-share_embeddings -share_decoder_embeddings -add_qkvbias -param_init 0 -param_init_glorot",
        "rnn": "-encoder_type brnn -decoder_type rnn",
    }[sizes.kind]
    parser = ArgumentParser()
    opts.train_opts(parser)
    options = parser.parse_args(line.split())
    ArgumentParser.update_model_opts(options)
    model = build_model(options, options, dict(src=vocabulary, tgt=vocabulary), None, -1)
    compute_loss = LossCompute.from_opts(options, model, vocabulary)
    total, report = Statistics(), Statistics()

    def step(src: Tensor, tgt: Tensor) -> Tensor:
        src_len = src.ne(PAD).sum(1)
        # The encoder's mask is as wide as the longest source, and fails for a batch that is wider.
        src, tgt = src[:, : int(src_len.max()), None], _behind_bos(tgt)[:, :, None]
        num_tokens = tgt[:, 1:, 0].ne(PAD).sum().item()
        total.n_src_words += src_len.sum().item()
        report.n_src_words += src_len.sum().item()
        output, attentions = model(src, tgt, src_len, bptt=False, with_align=False)
        batch = {"src": src, "srclen": src_len, "tgt": tgt}
        loss, found = compute_loss(batch, output, attentions, trunc_start=0, trunc_size=tgt.size(1))
        total.update(found)
        report.update(found)
        model.decoder.detach_state()
        return loss / num_tokens

    return _Peer(step, model, compute_loss)


PEERS: dict[str, Callable[[Sizes], nn.Module]] = {
    "torch": lambda sizes: (_TorchRnn if sizes.kind == "rnn" else _TorchTransformer)(sizes),
    "marian": marian, "joeynmt": joeynmt, "opennmt": opennmt,
}  # fmt: skip


def num_parameters(sizes: Sizes) -> int:
    """What litseq's model of these sizes has."""
    d, f, v, layers = sizes.d_model, sizes.dim_feedforward, sizes.vocab_size, sizes.num_layers
    if sizes.kind == "transformer":
        return v * d + v + layers * (3 * 4 * (d * d + d) + 2 * (2 * d * f + f + d) + 5 * 2 * d)
    first, middle, decoder = (3 * (inputs * d + d * d + 2 * d) for inputs in (d, 2 * d, 3 * d))
    stacks = 2 * first + decoder + (layers - 1) * (2 * middle + first)
    bridge, attention, readout = layers * (2 * d * d + d), 3 * d * d + d, 4 * d * d + d
    return 3 * v * d + v + stacks + bridge + attention + readout


def check(build: Callable[[Sizes], nn.Module], sizes: Sizes) -> str:
    """Counts parameters, trains a tiny model and pads its batch; tells it, and what failed."""
    count = sum(p.numel() for p in build(sizes).parameters() if p.requires_grad)
    share = count / num_parameters(sizes) - 1
    torch.manual_seed(0)
    model = build(replace(sizes, vocab_size=50, d_model=16, dim_feedforward=32))
    src, tgt = torch.randint(4, 50, (2, 4, 7)).unbind()
    for ids, end in zip((*src, *tgt), (7, 4, 6, 3, 5, 7, 3, 6), strict=True):
        ids[end - 1], ids[end:] = EOS, PAD
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(model(src, tgt))
        losses[-1].backward()
        optimizer.step()
    first, last = losses[0].item(), losses[-1].item()
    model.eval()
    # Padding that is read would change some 1e-2 here.
    change = model(pad(src, (0, 3)), pad(tgt, (0, 2))).item() / model(src, tgt).item() - 1
    well = last < first and abs(change) < 1e-5 and (sizes.kind == "rnn" or abs(share) < 0.01)
    line = f"{count:10,} parameters ({share:+7.2%})   loss {first:.3f} -> {last:.3f}"
    return f"{line}   padding {change:+.0e}{'' if well else '   FAILED'}"


def main() -> int:
    """Checks the peers that are installed."""
    warnings.simplefilter("ignore")  # of a newer torch about names that OpenNMT-py uses
    failed = False
    for kind, name in product(("transformer", "rnn"), PEERS):
        if (kind, name) == ("rnn", "marian"):
            continue  # there is none
        sizes = Sizes(kind, 8000, 256, 4, 2, 1024, dropout=0.1, label_smoothing=0.1, longest=32)
        try:
            line = check(PEERS[name], sizes)
        except ImportError as error:
            line = f"left out: {error}"
        failed |= line.endswith("FAILED")
        print(f"{kind:11} {name:8} {line}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
