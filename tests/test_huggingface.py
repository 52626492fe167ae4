"""Batches as Hugging Face makes them: its tokenizer, its collator, its model beside ours."""

import io
import json

import lightning.pytorch as pl
import pytest
import sentencepiece
import torch

from litseq.architectures import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq

transformers = pytest.importorskip("transformers")

SOURCES = ["one two three", "red house", "two", "three red"]
TARGETS = ["drei zwei eins", "haus rot", "zwei", "rot drei"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marian")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((SOURCES + TARGETS) * 9),
        model_writer=model, vocab_size=40, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    learned = [processor.id_to_piece(i) for i in range(3, processor.vocab_size())]
    pieces = ["</s>", "<unk>", *learned, "<pad>"]  # the order of OPUS-MT: pad comes last
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(model.getvalue())
    vocabulary = json.dumps({piece: i for i, piece in enumerate(pieces)})
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    return transformers.MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="de",
    )


@pytest.fixture
def datamodule(tokenizer):
    class Pairs(pl.LightningDataModule):
        def train_dataloader(self):
            encoded = tokenizer(SOURCES, text_target=TARGETS)
            rows = [{name: encoded[name][i] for name in encoded} for i in range(len(SOURCES))]
            collator = transformers.DataCollatorForSeq2Seq(tokenizer)
            return torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collator)

        val_dataloader = train_dataloader

    data = Pairs()
    data.tokenizer = tokenizer
    return data


def test_marian_takes_these_batches(tokenizer, datamodule):
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=len(tokenizer), d_model=12, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=20,
            decoder_ffn_dim=20, max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=0, decoder_start_token_id=tokenizer.pad_token_id, forced_eos_token_id=0,
        )
    )  # fmt: skip
    for batch in datamodule.train_dataloader():
        assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("family", [RnnSeq2Seq, RnnAttentionSeq2Seq, TransformerSeq2Seq])
def test_so_does_litseq(family, tokenizer, datamodule, tmp_path):
    torch.manual_seed(0)
    sizes = (
        {"d_model": 24, "num_heads": 3, "num_encoder_layers": 1, "num_decoder_layers": 1}
        if family is TransformerSeq2Seq
        else {"embedding_dim": 16, "hidden_size": 24}
    )
    pad = tokenizer.pad_token_id
    module = family(
        vocab_size=len(tokenizer), pad_id=pad, bos_id=pad, eos_id=tokenizer.eos_token_id,
        lr=1e-2, warmup_steps=0, schedule="constant", dropout=0.0, max_len_b=5, **sizes,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=60, accelerator="cpu", default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule)
    found = module.evaluation.translations
    assert [t.source for t in found] == SOURCES
    assert [t.reference for t in found] == TARGETS
    assert [t.text for t in found] == TARGETS  # four sentences, learned by heart
