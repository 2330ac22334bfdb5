"""Fills without a visible seam at the border of a hole, by a membrane (Poisson image editing)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad


def mend(painted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """``painted`` inside the hole, ``image`` outside it. Images (N,3,H,W) in [0,1]; mask (N,1,H,W), 1 = hole."""
    return torch.where(mask > 0.5, painted, image)


def seamless(painted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Like ``mend``, but without a seam: ``painted`` keeps its gradients and meets the image at the hole's border.

    The difference at the border is continued into the hole as a membrane, a solution of the Laplace equation, and added
    to ``painted``: Poisson image editing (Perez, Gangnet and Blake 2003, eq. 4).
    """
    correction = membrane((image - painted) * (1 - mask), mask)
    return mend((painted + correction).clamp(0, 1), image, mask)


def membrane(values: Tensor, mask: Tensor, rounds: int = 24) -> Tensor:
    """Continues values (N,C,H,W) into the holes of mask (N,1,H,W), where each becomes the mean of its four neighbors.

    Solved by relaxation from coarse to fine: the solution at half the size is the first guess for the full size.
    rounds: iterations at each size.
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
