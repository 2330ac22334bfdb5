"""Random colours of views, as contrastive methods want them: drawn on the CPU, applied in batch on the device.

The operations equal torchvision's on the same parameters; what is here is that each image has its own parameters and
its own order of them, in batch, and forms that take few operations and none that are slow on a CPU. Crops and flips are
those of ``core.data.views``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from core.data import views
from core.rng import generator

_CROPS, _COLOURS = 1, 2  # what random numbers are for, the last part of their key


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


def random_views(
    batch: Mapping[str, Tensor],
    recipe: Recipe | None,
    size: int,
    smallest: float,
    count: int,
    part: slice,
    key: tuple[int, ...],
) -> Tensor:
    """``views.random_crops`` of a batch drawn for ``key``, recoloured (None: as they are): (n,3,S,S) in [0,1]."""
    crops = generator(*key, _CROPS)
    if recipe is None:
        return views.random_crops(batch, size, count, part, crops, smallest)
    changes = draw(recipe, count, generator(*key, _COLOURS))[part]
    return views.random_crops(
        batch, size, count, part, crops, smallest, lambda image, rows: _recolour(image, changes[rows])
    )


def recolour(image: Tensor, colours: Colours) -> Tensor:
    """Images (n,3,H,W) in [0,1] with their colours changed: the jitter, grey, blur, solarisation, in [0,1]."""
    if image.device.type != "cpu":
        return _recolour(image.clone(), colours)
    changed = torch.empty_like(image)
    for rows in views.few(len(image), image.shape[2] * image.shape[3]):
        changed[rows] = _recolour(image[rows].clone(), colours[rows])
    return changed


def _recolour(image: Tensor, colours: Colours) -> Tensor:
    """``recolour``, with ``image`` for its own use."""
    from kornia.enhance import solarize  # here: --help need not wait for it

    steps: tuple[Change, ...] = (
        lambda part, factors: _blended(part.new_zeros(()), part, factors),
        lambda part, factors: _blended(_grey(part.mean((2, 3), keepdim=True)), part, factors),
        lambda part, factors: _blended(_grey(part), part, factors),
        turn_hue,
    )
    active = (colours.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).tolist()  # (n,4)
    orders = colours.order.tolist()
    for place in range(4):
        todo: dict[int, list[int]] = {}  # which step -> of which images
        for row, (order, changes) in enumerate(zip(orders, active, strict=True)):
            if changes[order[place]]:
                todo.setdefault(order[place], []).append(row)
        for number, rows in todo.items():
            image = _change(image, rows, steps[number], colours.factors[:, number])
    grey, solarise = colours.grey, colours.solarise
    image = _change(image, _true(grey), lambda part, _: _grey(part).repeat(1, 3, 1, 1), grey)
    # Beyond 3.5 sigma lie 5e-4 of the whole. Reckoned here, where sigma need not be read from the device.
    reach = math.ceil(3.5 * colours.sigma.amax().item())
    image = _change(image, _true(colours.sigma > 0), partial(blurred, reach=reach), colours.sigma)
    return _change(image, _true(solarise), lambda part, _: solarize(part, thresholds=0.5), solarise)


Change = Callable[[Tensor, Tensor], Tensor]
"""Images (n,3,H,W) and a number for each, (n,) -> images."""


def _true(chosen: Tensor) -> list[int]:
    return chosen.nonzero()[:, 0].tolist()


def _change(image: Tensor, rows: list[int], how: Change, by: Tensor) -> Tensor:
    """The images with those of ``rows`` changed; ``image`` may be used for it. by: (n,), for all of them."""
    if len(rows) == len(image):
        return how(image, by.to(image.device))
    if rows:
        chosen = torch.tensor(rows)
        where = chosen.to(image.device)
        image[where] = how(image[where], by[chosen].to(image.device))
    return image


def _blended(other: Tensor, image: Tensor, factors: Tensor) -> Tensor:
    """From another picture, at 0, to the image, at 1, or beyond: brightness, contrast and saturation vary like this."""
    return torch.lerp(other, image, factors[:, None, None, None]).clamp_(0, 1)


def _grey(image: Tensor) -> Tensor:
    """Luma, (n,3,H,W) -> (n,1,H,W): kornia's rgb_to_grayscale, in a third of the time on few images."""
    red, green, blue = image.split(1, 1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def turn_hue(image: Tensor, turns: Tensor) -> Tensor:
    """The hue of images (n,3,H,W) in [0,1] turned by parts (n,) of the circle, value and saturation kept.

    kornia's and torchvision's adjust_hue, without going to HSV and back and without choosing by torch.where, which on a
    CPU takes as long as 30 additions. With the hue h in sixths of the circle, red is M + C clamp(|h - 3| - 1, 0, 1) of
    the minimum M and the chroma C, green M + C clamp(2 - |h - 2|, 0, 1) and blue M + C clamp(2 - |h - 4|, 0, 1).
    """
    red, green, blue = image.unbind(1)  # (n,H,W)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    # Times the chroma, the hue is g - b where red is the largest, else 2 C + b - r where green is, else 4 C + r - g.
    not_red, not_green = (value - red).sign_(), (value - green).sign_()  # 0 or 1
    hue = (blue - red).add_(chroma, alpha=2).lerp_((red - green).add_(chroma, alpha=4), not_green)
    hue = (green - blue).lerp_(hue, not_red).div_(chroma.clamp(min=1e-12))
    hue.div_(6).add_(turns[:, None, None])
    hue.sub_(hue.floor()).mul_(6)
    turned = torch.empty_like(image)
    for channel, peak in enumerate((3, 2, 4)):
        part = (hue - peak).abs_()
        part = part.sub_(1) if channel == 0 else part.neg_().add_(2)
        torch.addcmul(least, chroma, part.clamp_(0, 1), out=turned[:, channel])
    return turned


def blurred(image: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Images (n,3,H,W) under a Gaussian of ``sigma`` (n,) px, mirrored at the border.

    The kernel is a tenth of the image wide, as SimCLR has it, at least 3 px, and goes no further than ``reach`` px from
    its middle. With so few taps sums of shifted images are faster than a convolution.
    """
    reach = min(reach, max(1, min(image.shape[-2:]) // 20))
    squares = torch.arange(reach + 1, device=image.device).square()  # of distances from the middle
    weights = torch.exp(-squares / (2 * sigma[:, None].square()))  # (n,reach+1)
    weights /= 2 * weights.sum(1, keepdim=True) - weights[:, :1]
    middle, *others = weights[..., None, None, None].unbind(1)  # (n,1,1,1) each
    padded = pad(image, (reach,) * 4, mode="reflect")
    for dim in (2, 3):
        length = image.shape[dim]
        total = middle * padded.narrow(dim, reach, length)
        for tap, weight in enumerate(others, 1):
            sides = padded.narrow(dim, reach - tap, length) + padded.narrow(dim, reach + tap, length)
            total.addcmul_(sides, weight)
        padded = total
    return padded
