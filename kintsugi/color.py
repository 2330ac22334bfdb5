"""Lab color (CIE 1976, white point D65), and ab as classes.

Lab has lightness L in 0..100 and chroma a and b in about -110..110. The 313 bins of ab, their soft encoding, the
rebalancing weights and the annealed mean are those of Colorful Image Colorization (Zhang, Isola and Efros 2016,
arXiv:1603.08511, section 2).
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from torch import Tensor

from kintsugi.upload import constant

GRID = 10
"""Distance between neighboring bins along a and b, in Lab units."""


def rgb_to_lab(image: Tensor) -> Tensor:
    """Converts sRGB (N,3,H,W) in [0,1] to Lab (N,3,H,W).

    >>> white = torch.ones(1, 3, 1, 1)
    >>> rgb_to_lab(white).flatten().round().abs().tolist()
    [100.0, 0.0, 0.0]
    """
    import kornia  # imported here: slow, and --help does not need it

    with _exact(image):
        xyz = _times(_TO_XYZ, kornia.color.rgb_to_linear_rgb(image.float())) / constant(_WHITE, image.device)
        root = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856).pow(1 / 3), 7.787 * xyz + 4 / 29)
        x, y, z = root.unbind(1)
        return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Converts Lab (N,3,H,W) to sRGB (N,3,H,W) in [0,1]. Colors outside sRGB are clipped."""
    import kornia

    with _exact(lab):
        lightness, a, b = lab.float().unbind(1)
        y = (lightness + 16) / 116
        root = torch.stack([a / 500 + y, y, (y - b / 200).clamp(min=0)], 1)
        xyz = torch.where(root > 0.2068966, root.pow(3), (root - 4 / 29) / 7.787) * constant(_WHITE, lab.device)
        return kornia.color.linear_rgb_to_rgb(_times(_TO_RGB, xyz)).clamp(0, 1)


# kornia's constants. Its own conversions upload them to a GPU at each call, which waits. There they multiply by them in
# a convolution, by default in TF32, which has ten bits.
_TO_XYZ = torch.tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_TO_RGB = torch.tensor(
    [
        [3.2404813432005266, -1.5371515162713185, -0.4985363261688878],
        [-0.9692549499965682, 1.8759900014898907, 0.0415559265582928],
        [0.0556466391351772, -0.2040413383665112, 1.0573110696453443],
    ]
)
_WHITE = torch.tensor([0.95047, 1.0, 1.08883])[:, None, None]


def _times(matrix: Tensor, planes: Tensor) -> Tensor:
    """A matrix (3,3) times the channels of each pixel, (N,3,H,W) -> (N,3,H,W)."""
    return torch.einsum("oi,nihw->nohw", constant(matrix, planes.device), planes).contiguous()


def _exact(planes: Tensor) -> torch.autocast:
    """A context without autocast: in bf16, L, a and b would have errors of up to 3."""
    return torch.autocast(planes.device.type, enabled=False)


@functools.cache
def ab_bins() -> Tensor:
    """The centers of the 313 ab bins, float (313,2), sorted by a, then by b.

    They are the points of a grid of spacing 10 inside the convex hull of sRGB's ab values, grown by one bin, as in the
    authors' ``pts_in_hull``.
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
    """Finds the nearest bins of each pixel and gives them weights (Zhang 2016, section 2.2).

    ab (N,2,H,W), bins (Q,2). Returns the bins' indices, int64 (N,k,H,W), nearest first, and weights (N,k,H,W)
    proportional to exp(-d^2 / (2 sigma^2)), with sum 1; d is the distance from pixel to bin. k is ``neighbors``: 5 in
    the paper, 10 in the released code.
    """
    pixels = ab.movedim(1, -1)  # (N,H,W,2)
    squared = (pixels.square().sum(-1, keepdim=True) - 2 * pixels @ bins.T + bins.square().sum(1)).clamp(min=0)
    near, index = squared.topk(neighbors, dim=-1, largest=False)  # (N,H,W,k)
    weights = torch.softmax(-near / (2 * sigma**2), dim=-1)
    return index.movedim(-1, 1), weights.movedim(-1, 1)


def soft_cross_entropy(logits: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each pixel with soft targets Z: -sum_q Z_q log softmax(logits)_q (eq. 2), (N,H,W).

    logits (N,Q,H,W); index and weights (N,k,H,W): the targets, as in ``soft_encode``.
    """
    return -(weights * logits.log_softmax(1).gather(1, index)).sum(1)


def smoothed(prior: Tensor, bins: Tensor, sigma: float = 5.0) -> Tensor:
    """Smooths the frequencies of the bins by a Gaussian in the ab plane (Zhang 2016, section 2.2).

    prior (Q,) with sum 1, bins (Q,2), sigma in Lab units -> (Q,) with sum 1. Each bin shares its frequency among all
    bins, in proportion to exp(-d^2 / (2 sigma^2)); d is the distance of the bins.
    """
    kernel = torch.softmax(-torch.cdist(bins, bins).square() / (2 * sigma**2), dim=0)  # each column has sum 1
    return kernel @ prior


def rebalancing(prior: Tensor, mix: float = 0.5) -> Tensor:
    """Weights (Q,) of the bins by which rare colors count more (eq. 4).

    prior (Q,): the frequency p of each bin, with sum 1. The weights are ((1 - mix) p + mix / Q)^-1, scaled to a mean of
    1 under the prior.
    """
    weights = 1 / ((1 - mix) * prior + mix / len(prior))
    return weights / (prior * weights).sum()


def count_bins(nearest: Tensor, bins: int) -> Tensor:
    """Counts how often each bin occurs: indices of any shape -> float (bins,)."""
    counts = torch.zeros(bins, dtype=torch.int64, device=nearest.device)
    return counts.scatter_add_(0, nearest.flatten(), torch.ones_like(nearest).flatten()).float()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float = 0.38) -> Tensor:
    """Decodes logits to ab: the mean of the bins under softmax(logits / temperature) (eq. 5).

    logits (N,Q,H,W), bins (Q,2) -> ab (N,2,H,W). A temperature of 1 gives the mean, with dull colors; near 0 it gives
    the mode, with spotty ones.
    """
    return torch.einsum("nqhw,qc->nchw", (logits.float() / temperature).softmax(1), bins)


def lightness_bins(lightness: Tensor) -> Tensor:
    """Divides L into 50 classes of width 2: L in 0..100 -> int64 in 0..49, same shape.

    As in Zhang 2017 (arXiv:1611.09842, section 4.1).
    """
    return (lightness / 2).long().clamp(0, 49)
