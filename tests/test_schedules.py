from itertools import pairwise

import pytest
import torch

from litseq.schedules import paper_peak_lr, scheduler


def rates(schedule, *, lr, warmup_steps, total_steps=0, num_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    course = scheduler(optimizer, schedule, warmup_steps=warmup_steps, total_steps=total_steps)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        course.step()
    return seen


@pytest.mark.parametrize(("d_model", "warmup"), [(512, 40), (12, 7)])
def test_inverse_sqrt_is_the_papers_formula(d_model, warmup):
    seen = rates(
        "inverse_sqrt", lr=paper_peak_lr(d_model, warmup), warmup_steps=warmup, num_steps=200
    )
    for step, rate in enumerate(seen, 1):
        assert rate == pytest.approx(d_model**-0.5 * min(step**-0.5, step * warmup**-1.5))


def test_base_model_peaks_at_seven_ten_thousandths():
    assert paper_peak_lr(512, 4000) == pytest.approx(7.0e-4, rel=2e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decays_to_zero_at_the_end(schedule):
    seen = rates(schedule, lr=2.0, warmup_steps=10, total_steps=50, num_steps=60)
    assert seen[9] == pytest.approx(2.0)
    assert all(before > after for before, after in pairwise(seen[9:50]))
    assert seen[49] == pytest.approx(0.0, abs=1e-12)
    assert seen[29] == pytest.approx(1.0)  # both are at one half in the middle
    assert max(seen[50:]) == pytest.approx(0.0, abs=1e-12)


def test_constant_without_warm_up_stays():
    assert rates("constant", lr=0.3, warmup_steps=0, num_steps=5) == [0.3] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "step", "warmup_steps": 1}, "unknown schedule 'step'; choose among inverse"),
        ({"schedule": "constant", "warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"schedule": "cosine", "warmup_steps": 1}, "cosine schedule needs the number of steps"),
    ],
)
def test_refuses(arguments, message):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        scheduler(optimizer, **arguments)
