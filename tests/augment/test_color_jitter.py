from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from kintsugi.augment.color_jitter import ColorAugmentation, ColorChanges, draw_changes, recolor, turn_hue
from kintsugi.rng import generator

N = 24
IMAGES = torch.rand(N, 3, 40, 36, generator=generator(1))
IDLE = ColorChanges(
    torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(N, 1),
    torch.arange(4).repeat(N, 1),
    torch.zeros(N, dtype=torch.bool),
    torch.zeros(N),
    torch.zeros(N, dtype=torch.bool),
)


def one_by_one(image: Tensor, colors: ColorChanges, i: int) -> Tensor:
    """torchvision's operations, on one image."""
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for number in colors.order[i].tolist():
        image = steps[number](image, colors.factors[i, number].item())
    if colors.gray[i]:
        image = tv.rgb_to_grayscale(image, 3)
    if colors.sigma[i] > 0:
        side = max(3, 2 * (min(image.shape[-2:]) // 20) + 1)
        image = tv.gaussian_blur(image, [side, side], [colors.sigma[i].item()] * 2)
    return tv.solarize(image, 0.5) if colors.solarize[i] else image


def some(number: int) -> ColorChanges:
    factors = IDLE.factors.clone()
    factors[:, number] = draw_changes(ColorAugmentation(jitter=1), N, generator(3)).factors[:, number]
    return ColorChanges(factors, IDLE.order, IDLE.gray, IDLE.sigma, IDLE.solarize)


YES = torch.ones(N, dtype=torch.bool)
CASES = {
    "brightness": some(0),
    "contrast": some(1),
    "saturation": some(2),
    "hue": some(3),
    "gray": ColorChanges(IDLE.factors, IDLE.order, YES, IDLE.sigma, IDLE.solarize),
    "blur": ColorChanges(IDLE.factors, IDLE.order, IDLE.gray, torch.linspace(0.1, 2, N), IDLE.solarize),
    "solarize": ColorChanges(IDLE.factors, IDLE.order, IDLE.gray, IDLE.sigma, YES),
    "jitter in any order": draw_changes(ColorAugmentation(jitter=1, gray=0, blur=0), N, generator(4)),
    "everything but solarize": draw_changes(ColorAugmentation(), N, generator(5)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_torchvision(name: str):
    colors = CASES[name]
    expected = torch.stack([one_by_one(image, colors, i) for i, image in enumerate(IMAGES)])
    found = recolor(IMAGES, colors)
    assert (expected - IMAGES).abs().amax((1, 2, 3)).mean() > 0.05  # so the case does something
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert found.amin() >= 0
    assert found.amax() <= 1


def test_hue_of_grays_and_of_colors_with_two_equal_channels_equals_torchvisions():
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    image = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 8, 8)
    for turn in (-0.2, 0.0, 0.1, 0.5):
        found = image[None].clone()
        turn_hue(found, torch.tensor([turn])[:, None, None, None])
        torch.testing.assert_close(found[0], tv.adjust_hue(image, turn), atol=1e-6, rtol=0)


def test_nothing_drawn_changes_nothing():
    assert torch.equal(recolor(IMAGES, IDLE), IMAGES)
    idle = draw_changes(ColorAugmentation(jitter=0, gray=0, blur=0), N, generator(0))
    assert torch.equal(recolor(IMAGES, idle), IMAGES)


def test_an_image_is_recolored_alike_in_any_batch():
    colors = draw_changes(ColorAugmentation(solarize=0.2), N, generator(6))
    whole = recolor(IMAGES, colors)
    some_images = recolor(IMAGES[5:9], colors[slice(5, 9)])
    torch.testing.assert_close(some_images, whole[5:9], atol=1e-6, rtol=0)


def test_probabilities_ranges_and_orders():
    n = 20_000
    colors = draw_changes(ColorAugmentation(jitter=0.8, gray=0.2, blur=0.5, solarize=0.1), n, generator(7))
    jittered = (colors.factors[:, 3] != 0).float()
    for fraction, expected in (
        (jittered, 0.8),
        (colors.gray.float(), 0.2),
        ((colors.sigma > 0).float(), 0.5),
        (colors.solarize.float(), 0.1),
    ):
        assert abs(fraction.mean().item() - expected) < 0.015
    moved = colors.factors[jittered.bool()]
    torch.testing.assert_close(moved.amin(0), torch.tensor([0.2, 0.2, 0.2, -0.2]), atol=0.01, rtol=0)
    torch.testing.assert_close(moved.amax(0), torch.tensor([1.8, 1.8, 1.8, 0.2]), atol=0.01, rtol=0)
    drawn = colors.sigma[colors.sigma > 0]
    assert 0.1 <= drawn.amin() < 0.11
    assert 1.99 < drawn.amax() <= 2.0
    code = (colors.order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert counts.amin() > 0.8 * n / 24
