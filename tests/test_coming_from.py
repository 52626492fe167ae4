"""What docs/coming-from.md names exists."""

import inspect
import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

import litseq
from litseq import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq, TranslationDataModule
from litseq.task import Seq2Seq
from litseq.translate import main as translate

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
# our column of every table
OURS = [row.split(" | ")[-1] for row in PAGE.splitlines() if row.startswith("| ")]
KNOWN = {
    "model": {
        name
        for cls in (Seq2Seq, RnnSeq2Seq, RnnAttentionSeq2Seq, TransformerSeq2Seq)
        for name in inspect.signature(cls.__init__).parameters
    },
    "data": set(inspect.signature(TranslationDataModule.__init__).parameters),
    "trainer": set(inspect.signature(Trainer.__init__).parameters),
}


@pytest.mark.parametrize("part", KNOWN)
def test_keys(part):
    named = {name for cell in OURS for name in re.findall(rf"\b{part}\.(\w+)", cell)}
    assert len(named) > 5
    assert named <= KNOWN[part]


def test_flags_of_translate():
    named = {
        flag
        for cell in OURS
        if "litseq translate" in cell or "--sample" in cell or "--length_offset" in cell
        for flag in re.findall(r"(?<!\S)`?--([a-z_]+)", cell.replace("litseq test", ""))
        if not flag.startswith("model")
    }
    assert named <= set(inspect.signature(translate).parameters)


def test_files_and_classes():
    files = {name for cell in OURS for name in re.findall(r"configs/[\w/]+\.yaml", cell)}
    assert len(files) > 2
    for name in files:
        assert (ROOT / name).is_file(), name
    for name in {name for cell in OURS for name in re.findall(r"`litseq\.(\w+)`", cell)}:
        assert hasattr(litseq, name), name
