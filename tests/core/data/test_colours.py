from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from core.data.colours import Colours, Recipe, draw, recolour, turn_hue
from core.rng import generator

N = 24
IMAGES = torch.rand(N, 3, 40, 36, generator=generator(1))
IDLE = Colours(
    torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(N, 1), torch.arange(4).repeat(N, 1), torch.zeros(N, dtype=torch.bool),
    torch.zeros(N), torch.zeros(N, dtype=torch.bool),
)  # fmt: skip


def one_by_one(image: Tensor, colours: Colours, i: int) -> Tensor:
    """torchvision's operations, on one image."""
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for number in colours.order[i].tolist():
        image = steps[number](image, colours.factors[i, number].item())
    if colours.grey[i]:
        image = tv.rgb_to_grayscale(image, 3)
    if colours.sigma[i] > 0:
        side = max(3, 2 * (min(image.shape[-2:]) // 20) + 1)
        image = tv.gaussian_blur(image, [side, side], [colours.sigma[i].item()] * 2)
    return tv.solarize(image, 0.5) if colours.solarise[i] else image


def some(number: int) -> Colours:
    factors = IDLE.factors.clone()
    factors[:, number] = draw(Recipe(jitter=1), N, generator(3)).factors[:, number]
    return Colours(factors, IDLE.order, IDLE.grey, IDLE.sigma, IDLE.solarise)


YES = torch.ones(N, dtype=torch.bool)
CASES = {
    "brightness": some(0), "contrast": some(1), "saturation": some(2), "hue": some(3),
    "grey": Colours(IDLE.factors, IDLE.order, YES, IDLE.sigma, IDLE.solarise),
    "blur": Colours(IDLE.factors, IDLE.order, IDLE.grey, torch.linspace(0.1, 2, N), IDLE.solarise),
    "solarise": Colours(IDLE.factors, IDLE.order, IDLE.grey, IDLE.sigma, YES),
    "jitter in any order": draw(Recipe(jitter=1, grey=0, blur=0), N, generator(4)),
    "everything but solarise": draw(Recipe(), N, generator(5)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_torchvision(name: str):
    colours = CASES[name]
    expected = torch.stack([one_by_one(image, colours, i) for i, image in enumerate(IMAGES)])
    found = recolour(IMAGES, colours)
    assert (expected - IMAGES).abs().amax((1, 2, 3)).mean() > 0.05  # so the case does something
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert found.amin() >= 0
    assert found.amax() <= 1


def test_hue_of_greys_and_of_colours_with_two_equal_channels_equals_torchvisions():
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    image = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 8, 8)
    for turn in (-0.2, 0.0, 0.1, 0.5):
        found = image[None].clone()
        turn_hue(found, torch.tensor([turn])[:, None, None, None])
        torch.testing.assert_close(found[0], tv.adjust_hue(image, turn), atol=1e-6, rtol=0)


def test_nothing_drawn_changes_nothing():
    assert torch.equal(recolour(IMAGES, IDLE), IMAGES)
    idle = draw(Recipe(jitter=0, grey=0, blur=0), N, generator(0))
    assert torch.equal(recolour(IMAGES, idle), IMAGES)


def test_an_image_is_recoloured_alike_in_any_batch():
    colours = draw(Recipe(solarise=0.2), N, generator(6))
    whole = recolour(IMAGES, colours)
    part = recolour(IMAGES[5:9], colours[slice(5, 9)])
    torch.testing.assert_close(part, whole[5:9], atol=1e-6, rtol=0)


def test_probabilities_ranges_and_orders():
    n = 20_000
    colours = draw(Recipe(jitter=0.8, grey=0.2, blur=0.5, solarise=0.1), n, generator(7))
    jittered = (colours.factors[:, 3] != 0).float()
    for share, expected in ((jittered, 0.8), (colours.grey.float(), 0.2), ((colours.sigma > 0).float(), 0.5),
                            (colours.solarise.float(), 0.1)):  # fmt: skip
        assert abs(share.mean().item() - expected) < 0.015
    moved = colours.factors[jittered.bool()]
    torch.testing.assert_close(moved.amin(0), torch.tensor([0.2, 0.2, 0.2, -0.2]), atol=0.01, rtol=0)
    torch.testing.assert_close(moved.amax(0), torch.tensor([1.8, 1.8, 1.8, 0.2]), atol=0.01, rtol=0)
    drawn = colours.sigma[colours.sigma > 0]
    assert 0.1 <= drawn.amin() < 0.11
    assert 1.99 < drawn.amax() <= 2.0
    code = (colours.order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert counts.amin() > 0.8 * n / 24
