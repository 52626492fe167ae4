import pytest
import sentencepiece
import torch

from litseq.attention.words import join_words, merge_weights, word_numbers


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["▁A", "▁man", "▁rid", "es", "▁a", "▁b", "ike", ".", "</s>"],
         ["A", "man", "rides", "a", "bike.", "</s>"]),
        (["<s>", "▁", "h", "i"], ["<s>", "hi"]),
        # no spaces: each piece is a word, but the bare space is none
        (["▁", "我", "看见", "她", "。", "</s>"], ["我", "看见", "她", "。", "</s>"]),
        (["▁我们", "打扫", "房间"], ["我们", "打扫", "房间"]),
        (["▁1", "0", "月", "1", "2", "日"], ["10", "月", "12", "日"]),
        (["▁カ", "メラ", "を", "▁buy", "s"], ["カ", "メラ", "を", "buys"]),
        # Korean has spaces
        (["▁안", "녕", "▁세계"], ["안녕", "세계"]),
        # the bytes of one character: 猫 is E7 8C AB, ü is C3 BC
        (["▁", "<0xE7>", "<0x8C>", "<0xAB>", "<0xE7>", "<0x8C>", "<0xAB>"], ["猫", "猫"]),
        (["▁M", "<0xC3>", "<0xBC>", "ll", "▁x"], ["Müll", "x"]),
        (["<0xC3>", "</s>"], ["\ufffd", "</s>"]),
        # an unknown character belongs to its word
        (["▁foot", "<unk>", "ball", "▁", "<unk>", "▁of"], ["foot<unk>ball", "<unk>", "of"]),
        ([], []),
    ],
)  # fmt: skip
def test_words(pieces, words):
    assert join_words(pieces) == words
    numbers = word_numbers(pieces)
    assert len(numbers) == len(pieces)
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(len(words)))


def test_words_of_a_real_tokenizer_are_those_of_the_text(tmp_path):
    lines = ["the cat sat on the mat", "a bird flew over three houses", "冬天的猫 sleeps"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "m"), vocab_size=300,
        byte_fallback=True, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    for text in ("the house of cats", "zwölf Vögel ß", "three ÿ mats"):
        assert join_words(tokenizer.encode(text, out_type=str)) == text.split()


def test_merged_rows_still_sum_to_one():
    weights = torch.rand(2, 3, 5, 7, dtype=torch.float64).softmax(-1)
    queries, keys = [0, 0, 1, 2, 2], [0, 1, 1, 1, 2, 3, 3]
    merged = merge_weights(weights, queries, keys)
    assert merged.shape == (2, 3, 3, 4)
    torch.testing.assert_close(merged.sum(-1), torch.ones(2, 3, 3, dtype=torch.float64))
    by_hand = weights[:, :, :2, 1:4].sum(-1).mean(-1)
    torch.testing.assert_close(merged[:, :, 0, 1], by_hand)


def test_every_piece_needs_a_word():
    with pytest.raises(ValueError, match=r"weights of \(5, 7\) need a word .*, got \(5, 6\)"):
        merge_weights(torch.rand(5, 7), [0] * 5, [0] * 6)
