"""Random color hints for training a colorizer: small patches whose color is given."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw_hints(ab: Tensor, count: int, random: torch.Generator, part: slice) -> Tensor:
    """Where hints are given, (n,1,S,S), 1 = known: the rows ``part`` of those for ``count`` images, like ab (n,2,S,S).

    As in Zhang 2017 (arXiv:1705.02999, section 3.2): the number of hints is geometric (p = 1/8), patches are 1 to 9 px
    wide, their positions are normal around the center, and 1 image in 100 is known everywhere.
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
    return where[part].to(ab.device)
