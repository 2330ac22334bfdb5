"""Fills that meet what is seen around a hole without a seam: membranes, Poisson image editing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad


def mend(painted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """The painting where the hole is, the image where it is not; (N,3,S,S)."""
    return torch.where(mask > 0.5, painted, image)


def seamless(painted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """As ``mend``, without a seam: the painting keeps its gradients but meets what is seen around the hole.

    What the painting misses by at the hole's edge is continued into it as a membrane (the Laplace equation) and
    added: Poisson image editing (Perez, Gangnet and Blake 2003, eq. 4), a step after the paper's method.
    """
    missed = membrane((image - painted) * (1 - mask), mask)
    return mend((painted + missed).clamp(0, 1), image, mask)


def membrane(values: Tensor, mask: Tensor, rounds: int = 24) -> Tensor:
    """Values (N,C,H,W) continued into the holes of mask (N,1,H,W) so that each is the mean of its four neighbors.

    By relaxation from coarse to fine: the solution at half the size is where the next one begins.
    """
    height, width = mask.shape[-2:]
    seen = 1 - mask
    if min(height, width) > 2:
        weight = avg_pool2d(seen, 2, ceil_mode=True)
        half = avg_pool2d(values * seen, 2, ceil_mode=True) / weight.clamp(min=1e-6)
        half = membrane(half, (weight == 0).to(mask), rounds)
        guess = interpolate(half, (height, width), mode="bilinear")
    else:
        guess = (values * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp(min=1)
    hole = mask > 0.5
    values = torch.where(hole, guess, values)
    for _ in range(rounds):
        framed = pad(values, (1, 1, 1, 1), mode="replicate")
        mean = (framed[..., :-2, 1:-1] + framed[..., 2:, 1:-1] + framed[..., 1:-1, :-2] + framed[..., 1:-1, 2:]) / 4
        values = torch.where(hole, mean, values)
    return values
