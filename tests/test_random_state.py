import random

import numpy as np
import torch

from litseq.random_state import random_state, set_random_state


def draw():
    torch_draws = [*torch.rand(3).tolist(), *torch.randn(3).tolist()]
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch_draws


def test_all_generators_go_on_from_a_state_that_went_through_a_file(tmp_path):
    draw()  # of gauss and randn the second value of a pair is kept
    torch.save(random_state(), tmp_path / "state.pt")
    expected = [draw(), draw()]
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [draw(), draw()] == expected
