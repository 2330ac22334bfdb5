"""Losses for depth and surface normals, over the pixels whose truth is known, and for contours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

MaskedMean = Callable[[Tensor, Tensor], Tensor]
"""A function of values and a bool mask of the same shape: the mean over the mask, (); 0 if the mask is empty."""


def masked_mean(values: Tensor, known: Tensor) -> Tensor:
    """The mean of ``values`` over the elements where ``known`` is true, (); 0 if it is true nowhere.

    known: bool, of the same shape. With several ranks, ``World.weighted_mean`` is used instead.
    """
    return torch.where(known, values, 0).sum() / known.sum().clamp(min=1)


def depth_loss(
    log_depth: Tensor, depth: Tensor, penalty: Callable[[Tensor], Tensor] = torch.abs, mean: MaskedMean = masked_mean
) -> Tensor:
    """Mean penalty of the difference in log depth, over the pixels whose depth is known.

    log_depth: predictions (B,1,H,W), logarithms of meters. depth: truth (B,1,H,W) in meters, 0 = missing. penalty:
    ``torch.abs`` or ``torch.square``, elementwise. Returns ().
    """
    difference = log_depth - depth.clamp(min=1e-3).log()
    return mean(penalty(difference), depth > 0)


def normal_loss(normal: Tensor, truth: Tensor, mean: MaskedMean = masked_mean) -> Tensor:
    """Mean of 1 - cos of the angle between normals, over the pixels whose true normal is known.

    normal: predictions (B,3,H,W), unit. truth: (B,3,H,W), unit, 0 = missing. Returns ().
    """
    cosine = (normal * truth).sum(1)  # (B,H,W)
    return mean(1 - cosine, truth.any(1))


def contour_loss(logits: Tensor, contour: Tensor) -> Tensor:
    """Cross-entropy of contours, weighted so that an image with few contour pixels counts as much as one with many; ().

    logits, contour: (N,1,S,S); contour is 1 on contours, else 0. The loss of each image is multiplied by the number of
    its other pixels divided by the number of its contour pixels, but at most by S, as in the code of Ren and Lee 2018
    (arXiv:1711.09082).
    """
    pixels, count = contour[0].numel(), contour.sum((1, 2, 3), keepdim=True)
    weight = (pixels - count) / count.clamp(min=contour.shape[-1])
    return binary_cross_entropy_with_logits(logits, contour, weight=weight.expand_as(contour))
