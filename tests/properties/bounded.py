"""Properties over generated inputs: the same ones in every run, few of them by default."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = pytest.mark.parametrize("examples", [40, pytest.param(1500, marks=pytest.mark.slow)])


def bounded(examples):
    """Settings of a property: nothing is drawn by chance, stored, or measured in time."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
