"""Freed memory is given back where there is a way, and nothing is said where there is none."""

import ctypes

import pytest

from litseq.heap import give_back


@pytest.mark.parametrize("error", [TypeError, OSError, AttributeError])
def test_other_systems_have_no_such_function(monkeypatch, error):
    asked = []

    def missing(name):
        asked.append(name)
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    give_back()
    assert asked == [None]
