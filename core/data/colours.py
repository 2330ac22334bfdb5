"""Random colours of views, as contrastive methods want them: drawn on the CPU, applied in batch on the device.

The operations are kornia's and equal torchvision's on the same parameters; what is here is that each image has its own
parameters and its own order of them, without a loop over images. Crops and flips are those of ``core.data.views``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from kornia import enhance
from kornia.color import rgb_to_grayscale
from kornia.filters import gaussian_blur2d
from torch import Tensor


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
    steps = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        _turn_hue,
    )
    idle = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for place in range(4):
        for number, step in enumerate(steps):
            chosen = (colours.order[:, place] == number) & (colours.factors[:, number] != idle[number])
            if rows := chosen.nonzero()[:, 0].tolist():
                image[rows] = step(image[rows], colours.factors[rows, number].to(image.device))
    if rows := colours.grey.nonzero()[:, 0].tolist():
        image[rows] = rgb_to_grayscale(image[rows]).expand(-1, 3, -1, -1)
    if rows := colours.sigma.nonzero()[:, 0].tolist():
        image[rows] = _blurred(image[rows], colours.sigma[rows])
    if rows := colours.solarise.nonzero()[:, 0].tolist():
        image[rows] = enhance.solarize(image[rows], thresholds=0.5)
    return image


def _turn_hue(image: Tensor, turns: Tensor) -> Tensor:
    return enhance.adjust_hue(image, 2 * math.pi * turns)


def _blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """With a kernel of a tenth of the image, as SimCLR has it, or of 3 px."""
    side = max(3, 2 * (min(image.shape[-2:]) // 20) + 1)
    return gaussian_blur2d(image, (side, side), sigma.to(image)[:, None].expand(-1, 2))
