import os
import random
import signal
from unittest import mock

import pytest
import torch

# fixtures for all tests
from command_line import copied, elsewhere, fitted  # noqa: F401
from random_models import save  # noqa: F401
from wandb_reader import offline_wandb  # noqa: F401

# several workers with several threads each stand in each other's way
torch.set_num_threads(1)
# a process in the background ignores Ctrl-C, which some tests send
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = {
    "one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf",
    "red": "rot", "green": "grün", "blue": "blau", "house": "haus", "tree": "baum",
    "dog": "hund", "cat": "katze",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_environment():
    """Leaves no variable and no process group behind, where other tests' ranks would meet."""
    with mock.patch.dict(os.environ):
        os.environ.pop("PL_GLOBAL_SEED", None)  # by which several ranks would draw anew, one not
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch.set_num_threads(1)  # Lightning's DDP raises it, and a fork of several threads hangs


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with train, val and test of an invented, easy translation task."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for split, size in (("train", 300), ("val", 20), ("test", 30)):
        pairs = []
        for _ in range(size):
            words = rng.choices(list(WORDS), k=rng.randint(1, 7))
            pairs.append((" ".join(words), " ".join(WORDS[w] for w in reversed(words))))
        for side, lang in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"{split}.{lang}").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data_options(corpus, tmp_path_factory):
    """Arguments of a TranslationDataModule over ``corpus``."""
    return {
        "src_lang": "en",
        "tgt_lang": "de",
        "train": str(corpus / "train"),
        "val": str(corpus / "val"),
        "test": str(corpus / "test"),
        "vocab_size": 64,
        "max_tokens": 256,
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture
def datamodule(data_options):
    from litseq.data import TranslationDataModule

    return TranslationDataModule(**data_options)
