"""Color as Lab: lightness L in 0..100 and chroma ab in about -110..110 (CIE 1976, D65), and ab as classes.

The 313 bins, their soft encoding, rebalancing and the annealed mean are those of Colorful Image Colorization (Zhang,
Isola and Efros 2016, arXiv:1603.08511, section 2).
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from torch import Tensor

GRID = 10
"""Distance of neighboring ab bins."""


def rgb_to_lab(image: Tensor) -> Tensor:
    """sRGB (N,3,H,W) in [0,1] -> L in 0..100 and ab, (N,3,H,W).

    >>> white = torch.ones(1, 3, 1, 1)
    >>> rgb_to_lab(white).flatten().round().abs().tolist()
    [100.0, 0.0, 0.0]
    """
    import kornia  # here, and scipy below: they take time, which --help need not wait for

    with _exact(image):
        return kornia.color.rgb_to_lab(image.float())


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of ``rgb_to_lab``; what sRGB cannot show is clipped to [0,1]."""
    import kornia

    with _exact(lab):
        return kornia.color.lab_to_rgb(lab.float(), clip=True)


def _exact(planes: Tensor) -> torch.autocast:
    """float32 also within autocast, in whose bf16 the matrices of color are off by up to 3 in L, a and b."""
    return torch.autocast(planes.device.type, enabled=False)


@functools.cache
def ab_bins() -> Tensor:
    """Centers (313,2) of the ab bins, float, ordered by a, then by b.

    The points of a grid of 10 in the hull of sRGB's ab grown by one bin: the authors' ``pts_in_hull``.
    """
    from scipy.spatial import ConvexHull, Delaunay

    levels = torch.linspace(0, 1, 18)
    cube = torch.cartesian_prod(levels, levels, levels).T[None, :, :, None]  # (1,3,18^3,1)
    ab = rgb_to_lab(cube)[0, 1:, :, 0].T.double().numpy()  # (18^3,2)
    outline = ab[ConvexHull(ab).vertices]
    grown = np.concatenate([outline + corner for corner in itertools.product((-GRID, GRID), repeat=2)])
    line = np.arange(-120, 121, GRID)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    inside = Delaunay(grown).find_simplex(grid) >= 0
    return torch.from_numpy(grid[inside]).float()


def soft_encode(ab: Tensor, bins: Tensor, neighbors: int = 5, sigma: float = 5.0) -> tuple[Tensor, Tensor]:
    """Each pixel's nearest bins and their weights (Zhang 2016, section 2.2): ab (N,2,H,W) -> two (N,k,H,W).

    bins (Q,2). Returns the bins' numbers, nearest first, and weights proportional to exp(-d^2 / (2 sigma^2)), summing
    to 1. Five neighbors are the paper's, ten the released code's.
    """
    pixels = ab.movedim(1, -1)  # (N,H,W,2)
    squared = (pixels.square().sum(-1, keepdim=True) - 2 * pixels @ bins.T + bins.square().sum(1)).clamp(min=0)
    near, index = squared.topk(neighbors, dim=-1, largest=False)  # (N,H,W,k)
    weights = torch.softmax(-near / (2 * sigma**2), dim=-1)
    return index.movedim(-1, 1), weights.movedim(-1, 1)


def soft_cross_entropy(logits: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """-sum_q Z_q log softmax(logits)_q of each pixel (eq. 2), logits (N,Q,H,W), Z of ``soft_encode`` -> (N,H,W)."""
    return -(weights * logits.log_softmax(1).gather(1, index)).sum(1)


def rebalancing(prior: Tensor, mix: float = 0.5) -> Tensor:
    """Weights (Q,) of the bins from how often each occurs, prior (Q,) summing to 1 (eq. 4).

    ((1 - mix) p + mix / Q)^-1, scaled so that the mean weight under the prior is 1.
    """
    weights = 1 / ((1 - mix) * prior + mix / len(prior))
    return weights / (prior * weights).sum()


def count_bins(nearest: Tensor, bins: int) -> Tensor:
    """How often each bin is the nearest, (bins,) float, of numbers of any shape."""
    return torch.bincount(nearest.flatten(), minlength=bins).float()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float = 0.38) -> Tensor:
    """ab (N,2,H,W) from logits (N,Q,H,W): the mean of the softmax sharpened by ``temperature`` (eq. 5).

    1 is the plain mean (dull), towards 0 the mode (spotty).
    """
    return torch.einsum("nqhw,qc->nchw", (logits.float() / temperature).softmax(1), bins)


def lightness_bins(lightness: Tensor) -> Tensor:
    """L in 0..100 as one of 50 classes of size 2, int64, same shape (Zhang 2017, arXiv:1611.09842, section 4.1)."""
    return (lightness / 2).long().clamp(0, 49)
