"""Tiny Marian models with random weights, made by transformers itself in the layout of OPUS-MT."""

import json
import random

import sentencepiece
import torch
import transformers

SOURCES = [
    "one two three", "a red house", "two houses, please", "three red ones and a house", "a cat",
]  # fmt: skip
TARGETS = [
    "drei zwei eins", "ein rotes haus", "zwei häuser, bitte", "drei rote und ein haus",
    "eine katze",
]  # fmt: skip
AWKWARD = [
    *SOURCES, "an unseen word: ß 漢字", "two  spaces ", " leading", ">>deu<< a house",
    ">>deu<<a house", " >>deu<< a house", ">>xxx<< a house", "a >>deu<< house", ">> a << b",
    "häuser", "ﬁne ｆｕｌｌ width", "no\xa0break\u3000space", "a\ttab", "\u2581x", "ä",
]  # fmt: skip
SIZES = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_position_embeddings": 128,
}  # fmt: skip
OPUS = {  # what files of OPUS-MT hold beside
    "add_bias_logits": False, "add_final_layer_norm": False, "classif_dropout": 0.0,
    "normalize_before": False, "normalize_embedding": False, "static_position_embeddings": True,
    "gradient_checkpointing": False, "force_bos_token_to_be_generated": False,
}  # fmt: skip


def train_sentencepiece(path, texts, model_type):
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 4), model_writer=file, vocab_size=40, minloglevel=3,
            model_type=model_type, hard_vocab_limit=model_type == "bpe",
        )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return {processor.id_to_piece(i) for i in range(3, processor.vocab_size())}


def write_vocabulary(path, pieces, *, pad_id=None):
    """In another order than SentencePiece's, and without one of its pieces, as a corpus has it."""
    pieces = sorted(pieces)
    random.Random(1).shuffle(pieces)
    pieces = ["</s>", "<unk>", *pieces[:-1]]
    pieces.insert(len(pieces) if pad_id is None else pad_id, "<pad>")
    text = json.dumps({piece: i for i, piece in enumerate(pieces)}, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return len(pieces)


def make_folder(folder, *, separate=False, model_type="unigram", generation=None, **options):
    """Writes a folder and returns the model of transformers.

    Args:
        folder: Made.
        separate: Two vocabularies in place of one.
        model_type: Of SentencePiece.
        generation: Entries of generation_config.json.
        options: Of MarianConfig.
    """
    folder.mkdir()
    source = train_sentencepiece(folder / "source.spm", SOURCES, model_type)
    target = train_sentencepiece(folder / "target.spm", TARGETS, model_type)
    if separate:
        size = write_vocabulary(folder / "vocab.json", source)
        decoder_size = write_vocabulary(folder / "target_vocab.json", target, pad_id=size - 1)
    else:
        size = write_vocabulary(folder / "vocab.json", source | target | {">>deu<<"})
        decoder_size = size
    about = {"source_lang": "en", "target_lang": "de", "separate_vocabs": separate}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    ids = {"pad_token_id": size - 1, "eos_token_id": 0, "decoder_start_token_id": size - 1}
    config = transformers.MarianConfig(
        vocab_size=size, decoder_vocab_size=decoder_size, scale_embedding=True,
        forced_eos_token_id=0, bos_token_id=0, **{**SIZES, **ids, **options},
        **({"share_encoder_decoder_embeddings": False} if separate else {}),
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.MarianMTModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" in name:
                continue
            mean = float(name.endswith("norm.weight"))
            weight.normal_(mean, 0.3 if weight.dim() > 1 else 0.05, generator=generator)
        model.final_logits_bias.normal_(generator=generator)
        model.final_logits_bias[0, 0] = 2.5  # ends come by themselves
        model.lm_head.weight[0] = 0
        if config.share_encoder_decoder_embeddings:
            for side in (model.model.encoder, model.model.decoder):
                side.embed_tokens.weight.copy_(model.model.shared.weight)
    model.generation_config = transformers.GenerationConfig(
        num_beams=4, max_length=40, bad_words_ids=[[size - 1]], forced_eos_token_id=0,
        bos_token_id=0, **ids, **(generation or {}),
    )  # fmt: skip
    model.save_pretrained(folder)
    edit(folder / "config.json", **OPUS)
    return model


def edit(path, **values):
    """Changes keys of a JSON file; None takes one out."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
