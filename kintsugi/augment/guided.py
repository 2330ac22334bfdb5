"""The guided filter: enlarges a coarse map so that its edges lie on those of an image."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


def guided_lines(values: Tensor, guide: Tensor, radius: int = 2, epsilon: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Fits a line ``values = slope * guide + offset`` around each position: slope and offset, (N,C,h,w) each.

    values (N,C,h,w), guide (N,1,h,w) of about 0 to 1. Enlarged bilinearly and applied to a guide of full resolution,
    the lines give values of full resolution: the fast guided filter (He and Sun 2015, arXiv:1505.00996, algorithm 2).

    radius: of the square windows, in positions. epsilon: the larger it is, the closer the slopes are to 0. Windows at
    the border repeat the nearest position.
    """
    mean_guide, mean_values = _mean(guide, radius), _mean(values, radius)
    covariance = _mean(guide * values, radius) - mean_guide * mean_values
    variance = _mean(guide * guide, radius) - mean_guide.square()
    slope = covariance / (variance + epsilon)
    offset = mean_values - slope * mean_guide
    return _mean(slope, radius), _mean(offset, radius)


def _mean(map: Tensor, radius: int) -> Tensor:
    """The mean over the window around each position of a map (N,C,h,w)."""
    return avg_pool2d(pad(map, [radius] * 4, mode="replicate"), 2 * radius + 1, stride=1)
