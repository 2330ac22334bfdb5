"""Holes to be painted: masks (N,1,S,S), float, 1 = hole, each image its own (Pathak 2016, section 3.3).

What is random is drawn first, on the CPU and always as many numbers; rasterizing it, on ``device``, is pure.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

Kind = Literal["center", "blocks", "regions"]

MOST = 1 / 4  # no mask covers more than this part of its image
RECTANGLES = 12


def draw(kind: Kind, n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """``n`` masks of a kind, (n,1,size,size)."""
    if kind == "center":
        return center(n, size, device)
    if kind == "blocks":
        return blocks(n, size, generator, device)
    if kind == "regions":
        return regions(n, size, generator, device)
    raise ValueError(f"unknown mask {kind!r}: use center, blocks or regions")


def center(n: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """The central square of half the side, (n,1,size,size)."""
    mask = torch.zeros(n, 1, size, size, device=device)
    quarter = size // 4
    mask[..., quarter : quarter + size // 2, quarter : quarter + size // 2] = 1
    return mask


def blocks(n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Overlapping rectangles, sides of 1/8 to 3/8, which together cover about 1/8 to 1/4; (n,1,size,size).

    Their centers are anywhere in the image, and what sticks out is cut off."""
    share = torch.empty(n, 1, 1).uniform_(0.6 * MOST, MOST, generator=generator)
    side = torch.empty(n, 2, RECTANGLES).uniform_(1 / 8, 3 / 8, generator=generator)
    center = torch.rand(n, 2, RECTANGLES, generator=generator)

    share, side, center = share.to(device), side.to(device), center.to(device)
    line = (torch.arange(size, device=device)[:, None] + 0.5) / size  # pixel centers
    inside = (line - center[:, :, None]).abs() <= side[:, :, None] / 2  # (n,2,size,rectangles)
    rows, columns = inside.unbind(1)

    mask = torch.zeros(n, size, size, dtype=torch.bool, device=device)
    for i in range(RECTANGLES):  # one with which the mask would outgrow its share is left out
        grown = mask | (rows[:, :, None, i] & columns[:, None, :, i])
        fits = grown.sum((1, 2), keepdim=True) <= share * size**2
        mask = torch.where(fits, grown, mask)
    return mask[:, None].float()


def regions(n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Random shapes, curved and possibly in several pieces, which cover 1/10 to 1/4; (n,1,size,size).

    The paper takes the shapes of unrelated images' segmentations. Here they are where a smooth random field
    is highest, so that no other data is needed.
    """
    share = torch.empty(n, 1).uniform_(0.1, MOST, generator=generator)
    coarse = torch.randn(n, 5, 5, generator=generator)
    fine = torch.randn(n, 11, 11, generator=generator)

    field = _smooth(coarse.to(device), size) + 0.4 * _smooth(fine.to(device), size)  # (n,size,size)
    ranked = field.flatten(1).sort(descending=True).values  # (n,size*size)
    level = ranked.gather(1, (share.to(device) * size**2).long())  # (n,1)
    return (field > level[:, :, None]).float()[:, None]


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """The mask grown by ``pixels`` to every side, corners too (a square neighborhood); (N,1,H,W)."""
    taller = max_pool2d(mask, (2 * pixels + 1, 1), stride=1, padding=(pixels, 0))
    return max_pool2d(taller, (1, 2 * pixels + 1), stride=1, padding=(0, pixels))


def _smooth(noise: Tensor, size: int) -> Tensor:
    """Gaussian bumps on a grid over the image, with noise (n,g,g) as their heights; (n,size,size)."""
    points = torch.arange(noise.shape[-1], device=noise.device)
    line = torch.linspace(0, noise.shape[-1] - 1, size, device=noise.device)
    bumps = (-((line[:, None] - points) ** 2)).exp()  # (size,g)
    return bumps @ noise @ bumps.T
