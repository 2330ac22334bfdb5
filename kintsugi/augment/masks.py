"""Masks of the holes to be painted: (N,1,S,S) float, 1 = hole. The first three are those of Pathak 2016, section 3.3.

Random masks differ from image to image. Each function draws a fixed count of random numbers on the CPU, then computes
the masks from these on ``device``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from kintsugi.upload import upload

Kind = Literal["center", "blocks", "regions", "strokes", "scratches", "boxes", "mixed"]

MAX_AREA = 1 / 4
"""The largest fraction of an image that a mask covers."""
RECTANGLES = 12
"""The largest number of rectangles in a mask of ``blocks``."""


def draw(kind: Kind, n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Makes ``n`` masks of one kind, (n,1,size,size). Raises ValueError for an unknown kind."""
    if kind == "center":
        return center(n, size, device)
    kinds = {
        "blocks": blocks,
        "regions": regions,
        "strokes": strokes,
        "scratches": scratches,
        "boxes": boxes,
        "mixed": mixed,
    }
    if kind not in kinds:
        raise ValueError(f"unknown mask {kind!r}: use center, {', '.join(kinds)}")
    return kinds[kind](n, size, generator, device)


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

    area, side, center = upload(device, area, side, center)
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

    area, coarse, fine = upload(device, area, coarse, fine)
    field = _smooth(coarse, size) + 0.4 * _smooth(fine, size)  # (n,size,size)
    ranked = field.flatten(1).sort(descending=True).values  # (n,size*size)
    level = ranked.gather(1, (area * size**2).long())  # (n,1)
    return (field > level[:, :, None]).float()[:, None]


def strokes(n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """1 to 4 wide curved strokes of a brush, each 1/20 to 3/10 of the image's side wide; (n,1,size,size).

    After LaMa's (Suvorov 2021, arXiv:2109.07161), which are up to 100 px wide in images of 256 px.
    """
    return _lines(n, size, generator, device, lines=4, pieces=4, width=(1 / 20, 3 / 10), step=1 / 4)


def scratches(n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """1 to 6 long thin lines, each 1/80 to 1/20 of the image's side wide; (n,1,size,size)."""
    return _lines(n, size, generator, device, lines=6, pieces=3, width=(1 / 80, 1 / 20), step=2 / 5)


def boxes(n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """1 to 3 rectangles with sides of 1/8 to 1/2 of the image's, whole in the image; (n,1,size,size)."""
    most = 3
    count = torch.randint(1, most + 1, (n, 1), generator=generator)
    side = torch.empty(n, 2, most).uniform_(1 / 8, 1 / 2, generator=generator)
    corner = torch.rand(n, 2, most, generator=generator) * (1 - side)
    live, side, corner = upload(device, torch.arange(most) < count, side, corner)  # (n,3), (n,2,3), (n,2,3)
    line = (torch.arange(size, device=device)[:, None] + 0.5) / size  # pixel centers
    rows, columns = ((line >= corner[:, :, None]) & (line < (corner + side)[:, :, None])).unbind(1)  # (n,size,3) each
    inside = rows[:, :, None] & columns[:, None] & live[:, None, None]  # (n,size,size,3)
    return inside.any(3)[:, None].float()


def mixed(n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """For each image a random kind: 35 % strokes, 20 % scratches, 25 % boxes, 20 % regions; (n,1,size,size).

    A mask that covers more than half of the image is replaced by scratches.
    """
    chosen = upload(device, torch.rand(n, generator=generator))[0].view(n, 1, 1, 1)
    wide, thin, box, region = (
        kind(n, size, generator, device) for kind in (strokes, scratches, boxes, regions)
    )  # all four are drawn for every image, so that the number of draws is fixed
    mask = torch.where(chosen < 0.35, wide, torch.where(chosen < 0.6, box, torch.where(chosen < 0.8, region, thin)))
    return torch.where(mask.mean((1, 2, 3), keepdim=True) > 1 / 2, thin, mask)


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


def _lines(
    n: int,
    size: int,
    generator: torch.Generator,
    device: torch.device | str,
    *,
    lines: int,
    pieces: int,
    width: tuple[float, float],
    step: float,
) -> Tensor:
    """1 to ``lines`` chains of ``pieces`` thick segments with round ends, (n,1,size,size).

    width: range of a line's width; thin ones are more frequent. step: the greatest length of a segment. Both are
    fractions of the image's side. From one segment to the next, a line turns by up to 1.1 radians.
    """
    draws = torch.rand(n, lines, 4 + 2 * pieces, generator=generator)
    count = torch.randint(1, lines + 1, (n, 1), generator=generator)
    start, angle, thick = draws[..., :2], draws[..., 2:3] * 2 * math.pi, draws[..., 3]
    turn, length = draws[..., 4 : 4 + pieces], draws[..., 4 + pieces :]
    angle = angle + (2.2 * (turn - 0.5)).cumsum(2)  # (n,lines,pieces)
    length = step * (0.2 + 0.8 * length)
    ends = start[:, :, None] + torch.stack([angle.sin() * length, angle.cos() * length], 3).cumsum(2)
    points = torch.cat([start[:, :, None], ends], 2)  # (n,lines,pieces+1,2), y and x
    radius = (width[0] + (width[1] - width[0]) * thick**1.5) / 2  # (n,lines)
    radius = torch.where(torch.arange(lines) < count, radius, 0)  # a line that is not drawn covers nothing

    points, radius = upload(device, points, radius)
    line = (torch.arange(size, device=device) + 0.5) / size  # pixel centers
    mask = torch.zeros(n, size, size, dtype=torch.bool, device=device)
    steps = points.diff(dim=2)
    for i in range(lines):
        (y, x), (down, right) = (each[:, i, :, :, None, None].unbind(2) for each in (points[:, :, :-1], steps))
        dy, dx = line[:, None] - y, line - x  # (n,pieces,size,1), (n,pieces,1,size)
        along = ((dy * down + dx * right) / (down.square() + right.square())).clamp(0, 1)  # (n,pieces,size,size)
        distance = (dy - along * down).square() + (dx - along * right).square()
        mask |= (distance < radius[:, i, None, None, None].square()).any(1)
    return mask[:, None].float()
