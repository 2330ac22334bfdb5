from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.random_surfaces import random_surfaces

from kintsugi.metrics.surface_errors import depth_errors, normal_errors


def test_errors_against_nested_loops():
    torch.manual_seed(0)
    prediction, targets = random_surfaces()
    within, relative, square, angles = [], [], [], []
    for n in range(2):
        for y in range(5):
            for x in range(6):
                (p, *normal), (t, *truth) = prediction[n, :, y, x].tolist(), targets[n, :, y, x].tolist()
                if t > 0:
                    within.append(max(p / t, t / p) < 1.25)
                    relative.append(abs(p - t) / t)
                    square.append((p - t) ** 2)
                if any(truth):
                    angles.append(math.degrees(math.acos(sum(a * b for a, b in zip(normal, truth, strict=True)))))
    depth = depth_errors(prediction[:, 0], targets[:, 0])
    assert depth == pytest.approx(
        {"within 25 %": np.mean(within), "absolute relative": np.mean(relative), "rms, m": np.mean(square) ** 0.5}
    )
    fractions = {f"within {limit:g}°": np.mean(np.array(angles) < limit) for limit in (11.25, 22.5, 30)}
    middle = sorted(angles)[(len(angles) - 1) // 2]  # for an even count torch takes the lower one
    expected = {**fractions, "mean, degrees": np.mean(angles), "median, degrees": middle}
    assert normal_errors(prediction[:, 1:], targets[:, 1:]) == pytest.approx(expected, rel=1e-4)
    assert 0 < fractions["within 11.25°"] < fractions["within 30°"] < 1
    assert 0 < depth["within 25 %"] < 1
