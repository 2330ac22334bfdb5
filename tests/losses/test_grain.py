from __future__ import annotations

import numpy as np
import pytest
import torch

from kintsugi.losses.grain import grain_loss
from kintsugi.rng import generator


@pytest.mark.parametrize("window", [0, 8])
def test_the_loss_is_the_variance_of_a_plain_loops_pattern(window: int):
    image, truth = torch.rand(2, 2, 3, 12, 20, generator=generator(0)).unbind(0)
    error, expected = (image - truth).double().numpy(), []
    places = [(0, 8, 0, 8), (0, 8, 8, 16)] if window else [(0, 12, 0, 20)]  # the windows that fit
    for n in range(2):
        for c in range(3):
            for top, bottom, left, right in places:
                inside = error[n, c, top:bottom, left:right]
                expected.append(np.var([inside[y::4, x::4].mean() for y in range(4) for x in range(4)]))
    assert grain_loss(image, truth, 4, window).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_windows_find_dots_that_cancel_in_the_whole():
    truth, dots = torch.rand(1, 1, 32, 64, generator=generator(2)), torch.zeros(32, 64)
    dots[::4, 0:32:4], dots[::4, 32::4] = 0.1, -0.1
    assert grain_loss(truth + dots, truth, 4).item() < 1e-9
    assert grain_loss(truth + dots, truth, 4, 32).item() == pytest.approx(0.01 * (1 / 16 - 1 / 256), rel=1e-3)


def test_dots_cost_their_variance_whatever_the_photo_and_a_constant_costs_nothing():
    truth = torch.rand(2, 3, 16, 16, generator=generator(1))
    dots = torch.zeros(16, 16)
    dots[1::4, 2::4] = 0.16
    assert grain_loss(truth + dots, truth, 4).item() == pytest.approx(0.16**2 * (1 / 16 - 1 / 256), rel=1e-4)
    assert grain_loss(truth + 0.1, truth, 4).item() == pytest.approx(0, abs=1e-12)
