"""Errors of predicted depth, surface normals and contours, over the pixels whose truth is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision


def depth_errors(depth: Tensor, truth: Tensor) -> dict[str, float]:
    """Errors of predicted depth p and true depth t, (N,H,W) in meters each, over the pixels with t > 0.

    The fraction with max(p/t, t/p) < 1.25; the mean of |p - t| / t; and the root of the mean of (p - t)^2, in meters
    (Eigen and Fergus 2015, arXiv:1411.4734).
    """
    known = truth > 0
    p, t = depth[known], truth[known]
    ratio = torch.maximum(p / t, t / p)
    return {
        "within 25 %": (ratio < 1.25).float().mean().item(),
        "absolute relative": ((p - t).abs() / t).mean().item(),
        "rms, m": (p - t).square().mean().sqrt().item(),
    }


def normal_errors(normal: Tensor, truth: Tensor) -> dict[str, float]:
    """Fractions of the angles between normals below 11.25, 22.5 and 30 degrees; their mean and median in degrees.

    normal, truth: unit (N,3,H,W); the truth is 0 where it is missing. The figures of Fouhey et al. 2013 (ICCV).
    """
    angle = normal_angles(normal, truth)
    return {
        **{f"within {limit:g}°": (angle < limit).float().mean().item() for limit in (11.25, 22.5, 30)},
        "mean, degrees": angle.mean().item(),
        "median, degrees": angle.median().item(),
    }


def normal_angles(normal: Tensor, truth: Tensor) -> Tensor:
    """Angles between predicted and true normals, in degrees, (K,): one for each of the K pixels whose truth is known.

    normal, truth: unit (N,3,H,W); the truth is 0 where it is missing.
    """
    cosine = (normal * truth).sum(1)[truth.any(1)]
    return torch.rad2deg(cosine.clamp(-1, 1).acos())


class SurfaceErrors:
    """Collects the errors of depth, normals and contours over many batches, on the CPU."""

    def __init__(self) -> None:
        self.depth: list[Tensor] = []
        self.angles: list[Tensor] = []
        self.contours: list[tuple[Tensor, Tensor]] = []

    def add_depth(self, log_depth: Tensor, truth: Tensor) -> None:
        """Adds a batch of depth, (N,1,H,W) each.

        log_depth: predictions, logarithms of meters. truth: meters, 0 = missing.
        """
        known = truth > 0
        self.depth.append((log_depth[known] - truth[known].log()).cpu())

    def add_normals(self, normal: Tensor, truth: Tensor) -> None:
        """Adds a batch. normal, truth: unit (N,3,H,W); the truth is 0 where it is missing."""
        self.angles.append(normal_angles(normal, truth).cpu())

    def add_contours(self, logits: Tensor, truth: Tensor) -> None:
        """Adds a batch. logits, truth: (N,1,H,W); the truth is 1 on contours, else 0."""
        self.contours.append((logits.sigmoid().flatten().cpu(), truth.flatten().long().cpu()))

    def means(self) -> dict[str, float]:
        """The errors over all pixels added so far.

        depth_rms: root mean square of the difference in log depth. depth_within_25: fraction of pixels within a factor
        of 1.25 (Eigen 2014). normal_degrees: mean angle. normal_within_30: fraction of pixels within 30 degrees (Fouhey
        2013). contour_ap: average precision.
        """
        depth, angles = torch.cat(self.depth), torch.cat(self.angles)
        predicted, truth = (torch.cat(values) for values in zip(*self.contours, strict=True))
        return {
            "depth_rms": depth.square().mean().sqrt().item(),
            "depth_within_25": (depth.abs() < math.log(1.25)).float().mean().item(),
            "normal_degrees": angles.mean().item(),
            "normal_within_30": (angles < 30).float().mean().item(),
            "contour_ap": binary_average_precision(predicted, truth, thresholds=200).item(),
        }
