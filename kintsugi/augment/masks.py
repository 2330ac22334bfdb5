"""Masks of the holes to be painted (Pathak 2016, section 3.3): (N,1,S,S) float, 1 = hole.

Random masks differ from image to image. Each function draws a fixed count of random numbers on the CPU, then computes
the masks from these on ``device``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

Kind = Literal["center", "blocks", "regions"]

MAX_AREA = 1 / 4
"""The largest fraction of an image that a mask covers."""
RECTANGLES = 12
"""The largest number of rectangles in a mask of ``blocks``."""


def draw(kind: Kind, n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Makes ``n`` masks of one kind, (n,1,size,size). Raises ValueError for an unknown kind."""
    if kind == "center":
        return center(n, size, device)
    if kind == "blocks":
        return blocks(n, size, generator, device)
    if kind == "regions":
        return regions(n, size, generator, device)
    raise ValueError(f"unknown mask {kind!r}: use center, blocks or regions")


def center(n: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """A hole in the central square of half the image's side, the same for all images; (n,1,size,size)."""
    mask = torch.zeros(n, 1, size, size, device=device)
    quarter = size // 4
    mask[..., quarter : quarter + size // 2, quarter : quarter + size // 2] = 1
    return mask


def blocks(n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Overlapping rectangles that together cover about 1/8 to 1/4 of the image; (n,1,size,size).

    Their sides are 1/8 to 3/8 of the image's. Their centers are anywhere in the image; what sticks out is cut off.
    """
    area = torch.empty(n, 1, 1).uniform_(0.6 * MAX_AREA, MAX_AREA, generator=generator)
    side = torch.empty(n, 2, RECTANGLES).uniform_(1 / 8, 3 / 8, generator=generator)
    center = torch.rand(n, 2, RECTANGLES, generator=generator)

    area, side, center = area.to(device), side.to(device), center.to(device)
    line = (torch.arange(size, device=device)[:, None] + 0.5) / size  # pixel centers
    inside = (line - center[:, :, None]).abs() <= side[:, :, None] / 2  # (n,2,size,rectangles)
    rows, columns = inside.unbind(1)

    mask = torch.zeros(n, size, size, dtype=torch.bool, device=device)
    for i in range(RECTANGLES):  # skips a rectangle if the mask would exceed its area with it
        grown = mask | (rows[:, :, None, i] & columns[:, None, :, i])
        fits = grown.sum((1, 2), keepdim=True) <= area * size**2
        mask = torch.where(fits, grown, mask)
    return mask[:, None].float()


def regions(n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Random curved shapes, possibly in several pieces, that cover 1/10 to 1/4 of the image; (n,1,size,size).

    The paper takes the shapes from segmentations of unrelated images. Here they are the highest places of a smooth
    random field, so that no other data is needed.
    """
    area = torch.empty(n, 1).uniform_(0.1, MAX_AREA, generator=generator)
    coarse = torch.randn(n, 5, 5, generator=generator)
    fine = torch.randn(n, 11, 11, generator=generator)

    field = _smooth(coarse.to(device), size) + 0.4 * _smooth(fine.to(device), size)  # (n,size,size)
    ranked = field.flatten(1).sort(descending=True).values  # (n,size*size)
    level = ranked.gather(1, (area.to(device) * size**2).long())  # (n,1)
    return (field > level[:, :, None]).float()[:, None]


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """Grows the holes of masks (N,1,H,W) by ``pixels`` in every direction, with a square neighborhood."""
    taller = max_pool2d(mask, (2 * pixels + 1, 1), stride=1, padding=(pixels, 0))
    return max_pool2d(taller, (1, 2 * pixels + 1), stride=1, padding=(0, pixels))


def _smooth(noise: Tensor, size: int) -> Tensor:
    """Smooth random fields (n,size,size): sums of Gaussian bumps on a grid, with the heights ``noise`` (n,g,g)."""
    points = torch.arange(noise.shape[-1], device=noise.device)
    line = torch.linspace(0, noise.shape[-1] - 1, size, device=noise.device)
    bumps = (-((line[:, None] - points) ** 2)).exp()  # (size,g)
    return bumps @ noise @ bumps.T
