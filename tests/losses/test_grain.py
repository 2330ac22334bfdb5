from __future__ import annotations

import numpy as np
import pytest
import torch

from kintsugi.losses.grain import grain_loss
from kintsugi.rng import generator


def test_the_loss_is_the_variance_of_a_plain_loops_pattern():
    image, truth = torch.rand(2, 2, 3, 12, 20, generator=generator(0)).unbind(0)
    error, expected = (image - truth).double().numpy(), []
    for n in range(2):
        for c in range(3):
            pattern = [error[n, c, y::4, x::4].mean() for y in range(4) for x in range(4)]
            expected.append(np.var(pattern))
    assert grain_loss(image, truth, 4).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_dots_cost_their_variance_whatever_the_photo_and_a_constant_costs_nothing():
    truth = torch.rand(2, 3, 16, 16, generator=generator(1))
    dots = torch.zeros(16, 16)
    dots[1::4, 2::4] = 0.16
    assert grain_loss(truth + dots, truth, 4).item() == pytest.approx(0.16**2 * (1 / 16 - 1 / 256), rel=1e-4)
    assert grain_loss(truth + 0.1, truth, 4).item() == pytest.approx(0, abs=1e-12)
