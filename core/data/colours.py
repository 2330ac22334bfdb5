"""Random colours of views, as contrastive methods want them: drawn on the CPU, applied in batch on the device.

The operations equal torchvision's on the same parameters; what is here is that each image has its own parameters and
its own order of them, in batch, and the two operations that cost most, hue and blur, in a form that costs less. Crops
and flips are those of ``core.data.views``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Recipe:
    """How much the colours of a view vary, with which probability; by default as in SimCLR (Chen 2020, appendix A)."""

    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    """The first three: factors uniform in [1 - x, 1 + x]; hue: turned by up to x of the circle either way."""
    jitter: float = 0.8
    """Probability of the four above, which come in random order."""
    grey: float = 0.2
    blur: float = 0.5
    """Probability of a Gaussian blur, its sigma uniform in [.1, 2] px."""
    solarise: float = 0.0
    """Probability that what is brighter than half is inverted (BYOL)."""

    def jittered(self, strength: float) -> Recipe:
        """With a jitter ``strength`` times as strong."""
        parts = {
            name: strength * getattr(self, name) for name in ("brightness", "contrast", "saturation", "hue")
        }
        return replace(self, **parts)


@dataclass(frozen=True)
class Colours:
    """What ``recolour`` does to each of n images; on the CPU. Factors of 1, turns and sigmas of 0 change nothing."""

    factors: Tensor  # (n,4): brightness, contrast, saturation; and the hue's turn, as a part of the circle
    order: Tensor  # (n,4): in which order the four are applied, int64
    grey: Tensor  # (n,) bool
    sigma: Tensor  # (n,), px
    solarise: Tensor  # (n,) bool

    def __getitem__(self, rows: slice) -> Colours:
        return Colours(
            self.factors[rows], self.order[rows], self.grey[rows], self.sigma[rows], self.solarise[rows]
        )


def draw(recipe: Recipe, n: int, generator: torch.Generator) -> Colours:
    """Colour changes for ``n`` images."""

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    def chance(probability: float) -> Tensor:
        return uniform(n) < probability

    reach = torch.tensor([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue])
    middle = torch.tensor([1.0, 1.0, 1.0, 0.0])
    jitter = chance(recipe.jitter)[:, None]
    factors = torch.where(jitter, (middle + reach * (2 * uniform(n, 4) - 1)), middle)
    factors[:, :3].clamp_(min=0)
    sigma = torch.where(chance(recipe.blur), 0.1 + 1.9 * uniform(n), 0.0)
    return Colours(factors, uniform(n, 4).argsort(1), chance(recipe.grey), sigma, chance(recipe.solarise))


def recolour(image: Tensor, colours: Colours) -> Tensor:
    """Images (n,3,H,W) in [0,1] with their colours changed: the jitter, grey, blur, solarisation, in [0,1]."""
    image = image.clone()
    few, pixels = len(image), image.shape[2] * image.shape[3]
    if image.device.type == "cpu":  # what the many small operations pass on is to stay in its cache
        few = 1 if pixels >= 2**15 else 2**18 // pixels
    for first in range(0, len(image), few):
        rows = slice(first, first + few)
        _recolour(image[rows], colours[rows])
    return image


def _recolour(image: Tensor, colours: Colours) -> None:
    """``recolour``, in place."""
    from kornia import enhance  # here: --help need not wait for it
    from kornia.color import rgb_to_grayscale

    steps = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        turn_hue,
    )
    active = colours.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])  # (n,4)
    todo = [
        [number for number in order if changes[number]]
        for order, changes in zip(colours.order.tolist(), active.tolist(), strict=True)
    ]
    for place in range(4):
        for number, step in enumerate(steps):
            rows = [row for row, numbers in enumerate(todo) if numbers[place : place + 1] == [number]]
            _change(image, rows, step, colours.factors[:, number])
    _change(
        image, _true(colours.grey), lambda part, _: rgb_to_grayscale(part).expand(-1, 3, -1, -1), colours.grey
    )
    # Beyond 4 sigma lies under 1e-4 of the whole. Reckoned here, where sigma need not be read from the device.
    reach = math.ceil(4 * colours.sigma.amax().item())
    _change(image, _true(colours.sigma > 0), partial(blurred, reach=reach), colours.sigma)
    _change(
        image,
        _true(colours.solarise),
        lambda part, _: enhance.solarize(part, thresholds=0.5),
        colours.solarise,
    )


def _true(chosen: Tensor) -> list[int]:
    return chosen.nonzero()[:, 0].tolist()


def _change(image: Tensor, rows: list[int], how: Callable[[Tensor, Tensor], Tensor], by: Tensor) -> None:
    """Replaces the images of ``rows`` by ``how(images, by)``, ``by`` (n,) being a number for each image."""
    if len(rows) == len(image):
        image.copy_(how(image, by.to(image.device)))
    elif rows:
        chosen = torch.tensor(rows)
        where = chosen.to(image.device)
        image[where] = how(image[where], by[chosen].to(image.device))


def turn_hue(image: Tensor, turns: Tensor) -> Tensor:
    """The hue of images (n,3,H,W) in [0,1] turned by parts (n,) of the circle, value and saturation kept.

    kornia's and torchvision's adjust_hue, without going to HSV and back: a channel is V - C clamp(min(k, 4 - k), 0, 1),
    with k = (n + 6 H) mod 6 and n = 5, 3, 1 for red, green, blue. A quarter of their time on a CPU.
    """
    red, green, blue = image.unbind(1)  # (n,H,W)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    from_red, from_green = value == red, value == green
    hue = torch.where(from_red, green - blue, torch.where(from_green, blue - red, red - green))
    hue /= chroma.clamp(min=1e-12)
    hue += torch.where(from_red, 0.0, torch.where(from_green, 2.0, 4.0))  # in sixths of the circle
    hue += 6 * turns[:, None, None]
    channels = []
    for shift in (5, 3, 1):
        k = torch.remainder(hue + shift, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def blurred(image: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Images (n,3,H,W) under a Gaussian of ``sigma`` (n,) px, mirrored at the border.

    The kernel is a tenth of the image wide, as SimCLR has it, at least 3 px, and goes no further than ``reach`` px from
    its middle. With so few taps sums of shifted images are faster than a convolution.
    """
    reach = min(reach, max(1, min(image.shape[-2:]) // 20))
    squares = torch.arange(reach + 1, device=image.device).square()  # of distances from the middle
    weights = torch.exp(-squares / (2 * sigma[:, None].square()))  # (n,reach+1)
    weights = (weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1]))[..., None, None, None]
    padded = pad(image, (reach,) * 4, mode="reflect")
    for dim in (2, 3):
        length = image.shape[dim]
        total = weights[:, 0] * padded.narrow(dim, reach, length)
        for tap in range(1, reach + 1):
            sides = padded.narrow(dim, reach - tap, length) + padded.narrow(dim, reach + tap, length)
            total += weights[:, tap] * sides
        padded = total
    return padded
