"""Fills the hole of a photo of any size with a network that paints squares of one size only, in overlapping windows.

The hole is covered with windows from small to large: windows of S pixels at full resolution where the hole is thin;
where these would be mostly hole, windows twice as large, shrunk to S, and so on up to the whole photo.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.fill.areas import shrink_around
from kintsugi.fill.classical import Fill

MOST_HOLE = 1 / 3  # largest fraction of a window that may be hole; beyond it a larger window is used


@torch.no_grad()
def paint_squares(image: Tensor, mask: Tensor, painter: Fill, size: int, batch: int = 16) -> Tensor:
    """Paints the hole of one image of any size: (3,H,W) in [0,1], mask (1,H,W), 1 = hole -> (3,H,W) in [0,1].

    painter paints squares of side ``size``, ``batch`` of them at a time. Outside the hole the image is unchanged;
    inside it the image's content is not used.

    Windows of one size overlap by half, with smooth weights that sum to 1 at every pixel. The weights of windows with
    too much hole are passed on to the next size. So every transition is smooth, between windows and between sizes.
    """
    hole = mask[0] > 0.5  # (H,W)
    known = (~hole)[None].to(image)  # (1,H,W)
    result = image.masked_fill(hole, 0)
    left = hole.to(image)  # each pixel's weight that is still to be painted, (H,W)
    extent = (hole.shape[0], hole.shape[1])
    for height, width in _window_sizes(extent, size):
        given = left.clone()
        windows = [
            (place, weight)
            for place, weight in _windows(extent, (height, width))
            if given[place].amax() > 1e-3 and ((height, width) == extent or hole[place].float().mean() <= MOST_HOLE)
        ]
        for first in range(0, len(windows), batch):
            chunk = windows[first : first + batch]
            shrunk = [shrink_around(result[:, y, x], known[:, y, x], (size, size)) for (y, x), _ in chunk]
            squares, holes = map(torch.cat, zip(*shrunk, strict=True))  # (n,3,S,S), (n,1,S,S)
            squares = painter(squares, holes).to(image)
            for ((y, x), weight), square in zip(chunk, squares, strict=True):
                amount = given[y, x] * weight.to(given)
                large = interpolate(square[None], (height, width), mode="bilinear", antialias=True)
                result[:, y, x] += amount * large[0]
                left[y, x] -= amount
    return result.clamp_(0, 1)


Place = tuple[slice, slice]
"""The rows and the columns of a window."""


def _window_sizes(extent: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Heights and widths of windows: squares of ``size``, 2 ``size``, ... px, the largest square, the whole image."""
    short = min(extent)
    doublings = max(0, math.ceil(math.log2(short / size)))
    squares = [(size << i, size << i) for i in range(doublings)] + [(short, short)]
    return squares if extent == squares[-1] else [*squares, extent]


def _windows(extent: tuple[int, int], window: tuple[int, int]) -> Iterator[tuple[Place, Tensor]]:
    """Overlapping windows of an image, and their weights (h,w), which sum to 1 at every pixel of the image."""
    down, across = (_line(length, side) for length, side in zip(extent, window, strict=True))
    for y, vertical in down:
        for x, horizontal in across:
            yield (y, x), vertical[:, None] * horizontal


def _line(length: int, side: int) -> list[tuple[slice, Tensor]]:
    """``_windows`` along one axis: places and weights (side,), Hann windows divided by their sum."""
    starts = torch.linspace(0, length - side, 1 + math.ceil(2 * (length - side) / side)).round().int().tolist()
    places = [slice(start, start + side) for start in starts]
    hann = torch.sin(torch.pi * (torch.arange(side) + 0.5) / side) ** 2
    total = torch.zeros(length)
    for place in places:
        total[place] += hann
    return [(place, hann / total[place]) for place in places]
