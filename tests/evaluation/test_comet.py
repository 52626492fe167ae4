import sys
from types import SimpleNamespace

import pytest

from litseq.evaluation import comet_score


def test_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "comet", None)
    with pytest.raises(ModuleNotFoundError, match="run there: comet-score -s RUN/test/sources"):
        comet_score(["a"], ["b"], sources=["c"])


def test_the_documented_interface_is_used(monkeypatch):
    """Against a stand-in: the package cannot be installed beside litseq's tests."""

    class Model:
        def predict(self, data, batch_size, gpus):
            assert (batch_size, gpus) == (2, 1)
            assert data == [
                {"src": "c", "mt": "a", "ref": "b"},
                {"src": "f", "mt": "d", "ref": "e"},
            ]
            return SimpleNamespace(system_score=0.75, scores=[0.5, 1.0])

    stand_in = SimpleNamespace(
        __version__="2.2.4",
        download_model=lambda name: f"/models/{name}",
        load_from_checkpoint={"/models/some/model": Model()}.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "comet", stand_in)
    found = comet_score(
        ["a", "d"], ["b", "e"], sources=["c", "f"], model="some/model", batch_size=2, num_gpus=1
    )
    assert (found.score, found.sentences) == (0.75, (0.5, 1.0))
    assert found.signature == "comet:some/model|unbabel-comet:2.2.4"


@pytest.mark.parametrize(("sources", "got"), [(["a", "b"], "2"), ("a", "one string")])
def test_sources_are_counted(sources, got):
    with pytest.raises(ValueError, match=f"the source of each of 1 hypotheses, got {got}"):
        comet_score(["a"], ["b"], sources=sources)
