"""Random color hints for training and measuring a colorizer: small patches whose color is given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kintsugi.rng import generator
from kintsugi.upload import upload


def draw_hints(ab: Tensor, count: int, random: torch.Generator, part: slice) -> Tensor:
    """Draws where the colors of images are given as hints: (n,1,S,S), 1 = given, on the device of ab (n,2,S,S).

    count: number of images in the global batch; random numbers are drawn for all of them. part: this rank's slice of
    it.

    As in Zhang 2017 (arXiv:1705.02999, section 3.2), the number of hints is geometric (p = 1/8), each is a square of 1
    to 9 px, their positions are normal around the center, and 1 image in 100 has all its colors given.
    """
    side = ab.shape[-1]
    numbers = torch.log1p(-torch.rand(count, generator=random)).div(math.log(1 - 1 / 8)).floor().clamp(max=64).int()
    where = torch.zeros(count, 1, side, side)
    for i, number in enumerate(numbers.tolist()):
        place = (side / 2 + side / 4 * torch.randn(64, 2, generator=random)).clamp(0, side - 1).int().tolist()
        width = torch.randint(1, 10, (64,), generator=random).tolist()
        for (y, x), w in zip(place[:number], width[:number], strict=True):
            where[i, 0, max(0, y - w // 2) : y + (w + 1) // 2, max(0, x - w // 2) : x + (w + 1) // 2] = 1
    where[torch.rand(count, generator=random) < 0.01] = 1
    return upload(ab.device, where[part])[0]


def spread_hints(extent: tuple[int, int], count: int, *key: int) -> Tensor:
    """Draws ``count`` hints uniformly over a photo for evaluation: (1,H,W), 1 = given; the same for the same ``key``.

    extent: height and width, px. Each hint is a square of a twentieth of the short side: 5 px of 96.
    """
    width = max(1, round(min(extent) / 20))
    where = torch.zeros(1, *extent)
    for y, x in torch.rand(count, 2, generator=generator(*key)).tolist():
        top, left = int(y * (extent[0] - width + 1)), int(x * (extent[1] - width + 1))
        where[0, top : top + width, left : left + width] = 1
    return where
