from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from kintsugi.metrics.domain_gap import frechet_distance, probe_accuracy


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_frechet_is_the_formula_of_the_paper():
    mix = normal(0, 5, 5)
    one, other = normal(1, 300, 5) @ mix + 1, normal(2, 200, 5) @ mix.T - normal(3, 5)
    both = [x.double().numpy() for x in (one, other)]
    mean = (both[0].mean(0) + both[1].mean(0)) / 2
    scale = np.sqrt((((both[0] - mean) ** 2).mean(0) + ((both[1] - mean) ** 2).mean(0)) / 2)
    a, b = ((x - mean) / scale for x in both)
    s1, s2 = np.cov(a.T, bias=True), np.cov(b.T, bias=True)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(one, other) == pytest.approx(expected / 5, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_frechet_does_not_depend_on_the_features_scale():
    one, other = normal(1, 100, 4), normal(2, 100, 4) + 0.5
    scale = torch.tensor([1e-3, 1.0, 50.0, 7.0])
    assert frechet_distance(one * scale, other * scale) == pytest.approx(frechet_distance(one, other), rel=1e-5)


def test_a_probe_separates_what_differs_and_nothing_else():
    alike = [list(normal(seed, 40, 20, 6)) for seed in (1, 2)]
    assert 0.45 < probe_accuracy(*alike) < 0.55
    apart = [alike[0], [x + 4 for x in alike[1]]]
    assert probe_accuracy(*apart) > 0.99
    # Of two Gaussians at distance d the best classifier is right Phi(d / 2) of the time: Phi(1/2) = .691.
    near = [alike[0], [x + torch.tensor([1.0, 0, 0, 0, 0, 0]) for x in alike[1]]]
    assert probe_accuracy(*near) == pytest.approx(0.691, abs=0.03)


def test_a_probe_is_tested_on_other_images_than_it_was_fitted_to():
    """With more channels than images, a classifier tested on its own training images would always be right."""
    images = [list(normal(seed, 10, 1, 500)) for seed in (1, 2)]
    assert probe_accuracy(*images) < 0.8


def test_a_channel_that_never_changes_does_no_harm():
    one, other = normal(1, 50, 3), normal(2, 50, 3)
    one[:, 1] = other[:, 1] = 2
    assert np.isfinite(frechet_distance(one, other))
    assert np.isfinite(probe_accuracy(list(one[:, None]), list(other[:, None])))
