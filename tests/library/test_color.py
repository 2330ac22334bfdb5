"""Color against scikit-image, nested loops, and the authors' bins if their file lies next to KINTSUGI_DATA."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from kintsugi import color
from kintsugi.metrics import chroma
from kintsugi.rng import generator

IMAGES = torch.rand(2, 3, 8, 9, generator=generator(0))
AB = 90 * (2 * torch.rand(2, 2, 4, 5, generator=generator(1)) - 1)
BINS = color.ab_bins()


def test_lab_equals_scikit_image():
    expected = torch.from_numpy(rgb2lab(IMAGES.permute(0, 2, 3, 1).double().numpy())).permute(0, 3, 1, 2)
    torch.testing.assert_close(color.rgb_to_lab(IMAGES).double(), expected, atol=0.05, rtol=0)
    torch.testing.assert_close(color.lab_to_rgb(color.rgb_to_lab(IMAGES)), IMAGES, atol=1e-4, rtol=0)


def test_lab_keeps_its_precision_within_autocast():
    lab = color.rgb_to_lab(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(color.rgb_to_lab(IMAGES), lab)
        assert torch.equal(color.lab_to_rgb(lab), color.lab_to_rgb(lab.clone()))
        torch.testing.assert_close(color.lab_to_rgb(lab), IMAGES, atol=1e-4, rtol=0)


def test_bins_are_313_in_order_on_a_grid_of_ten_and_hold_every_color():
    assert BINS.shape == (313, 2)
    assert torch.equal(BINS % 10, torch.zeros_like(BINS))
    assert [tuple(b) for b in BINS.tolist()] == sorted(tuple(b) for b in BINS.tolist())
    assert BINS.sum(0).tolist() == [4910.0, 2090.0]  # as those of the authors' file do
    colors = torch.rand(1, 3, 1, 20_000, generator=generator(2)).round(decimals=1)
    ab = color.rgb_to_lab(colors)[0, 1:, 0].T
    assert torch.cdist(ab, BINS).amin(1).amax() < 5 * math.sqrt(2)


@pytest.mark.realdata
@pytest.mark.skipif("KINTSUGI_DATA" not in os.environ, reason="needs the authors' file next to the data")
def test_bins_equal_the_authors():
    file = Path(os.environ["KINTSUGI_DATA"]).parent / "weights/pts_in_hull.npy"
    assert torch.equal(BINS, torch.from_numpy(np.load(file)).float())


@pytest.mark.parametrize("neighbors", [5, 10])
def test_soft_encoding_equals_a_nested_loop(neighbors: int):
    index, weights = color.soft_encode(AB, BINS, neighbors)
    dense = torch.zeros(2, 313, 4, 5).scatter_(1, index, weights)
    for n in range(2):
        for y in range(4):
            for x in range(5):
                a, b = AB[n, :, y, x].tolist()
                near = sorted((math.hypot(a - p, b - q), i) for i, (p, q) in enumerate(BINS.tolist()))[:neighbors]
                raw = {i: math.exp(-(d**2) / 50) for d, i in near}
                expected = torch.zeros(313)
                for i, value in raw.items():
                    expected[i] = value / sum(raw.values())
                torch.testing.assert_close(dense[n, :, y, x], expected, atol=1e-4, rtol=0)
                assert index[n, 0, y, x] == near[0][1]


def test_soft_cross_entropy_equals_the_dense_one():
    logits = torch.randn(2, 313, 4, 5, generator=generator(3))
    index, weights = color.soft_encode(AB, BINS)
    dense = torch.zeros(2, 313, 4, 5).scatter_(1, index, weights)
    expected = torch.nn.functional.cross_entropy(logits, dense, reduction="none")
    torch.testing.assert_close(color.soft_cross_entropy(logits, index, weights), expected)


def test_rebalancing_equals_the_formula_and_has_mean_one():
    prior = torch.rand(313, generator=generator(4)) ** 6
    prior /= prior.sum()
    weights = color.rebalancing(prior, 0.5)
    raw = [1 / (0.5 * p + 0.5 / 313) for p in prior.tolist()]
    mean = sum(p * w for p, w in zip(prior.tolist(), raw, strict=True))
    torch.testing.assert_close(weights, torch.tensor([w / mean for w in raw]))
    assert (prior * weights).sum().item() == pytest.approx(1)
    torch.testing.assert_close(color.rebalancing(prior, 1.0), torch.ones(313))


def test_smoothing_equals_a_nested_loop_and_keeps_the_sum():
    prior = torch.rand(313, generator=generator(7)) ** 6
    prior /= prior.sum()
    expected = torch.zeros(313, dtype=torch.float64)
    for (a, b), p in zip(BINS.tolist(), prior.tolist(), strict=True):
        shares = [math.exp(-((a - c) ** 2 + (b - d) ** 2) / (2 * 5**2)) for c, d in BINS.tolist()]
        expected += torch.tensor([p * share / sum(shares) for share in shares], dtype=torch.float64)
    found = color.smoothed(prior, BINS)
    torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=1e-4)
    assert found.sum().item() == pytest.approx(1)


def test_the_annealed_mean_goes_from_the_mean_to_the_mode():
    logits = torch.randn(1, 313, 2, 2, generator=generator(5))
    plain = color.annealed_mean(logits, BINS, 1.0)
    for y in range(2):
        for x in range(2):
            odds = [math.exp(v) for v in logits[0, :, y, x].tolist()]
            expected = sum(o * b for o, b in zip(odds, BINS[:, 0].tolist(), strict=True)) / sum(odds)
            assert plain[0, 0, y, x].item() == pytest.approx(expected, abs=1e-3)
    mode = BINS[logits.argmax(1)].permute(0, 3, 1, 2)
    torch.testing.assert_close(color.annealed_mean(logits, BINS, 1e-3), mode, atol=0.5, rtol=0)


def test_auc_equals_the_authors_sum_over_thresholds():
    predicted = AB + 40 * torch.randn(AB.shape, generator=generator(6))
    sums, numbers = chroma.ab_auc(predicted, AB, BINS)
    error = (predicted - AB).norm(dim=1)
    steps = torch.linspace(0, 150, 15_001)
    curve = torch.stack([(error <= t).float().mean() for t in steps])
    assert sums.sum().item() / numbers.sum().item() == pytest.approx(100 * curve.mean().item(), abs=0.02)

    by_bin: dict[int, list[float]] = {}
    for pixel, e in zip(AB.permute(0, 2, 3, 1).reshape(-1, 2), error.flatten().tolist(), strict=True):
        by_bin.setdefault(int((BINS - pixel).norm(dim=1).argmin()), []).append(max(0.0, 100 * (1 - e / 150)))
    present = numbers > 0
    expected = sum(sum(v) / len(v) for v in by_bin.values()) / len(by_bin)
    assert (sums[present] / numbers[present]).mean().item() == pytest.approx(expected, rel=1e-5)


def test_chroma_and_lightness_bins():
    ab = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(2, 2, 3, 3)
    assert chroma.mean_chroma(ab).tolist() == [5.0, 5.0]
    lightness = torch.tensor([0.0, 1.99, 2.0, 99.9, 100.0])
    assert color.lightness_bins(lightness).tolist() == [0, 0, 1, 49, 49]
