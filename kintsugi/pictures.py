"""Puts pictures side by side, marks right and wrong predictions with colored frames, shows features as colors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

GREEN, RED = (0.1, 0.7, 0.2), (0.85, 0.1, 0.1)


def right_wrong_colors(right: Tensor) -> Tensor:
    """RGB colors (n,3) in [0,1]: green where ``right``, bool (n,), is true, else red."""
    return torch.where(right[:, None], torch.tensor(GREEN, device=right.device), torch.tensor(RED, device=right.device))


def framed(image: Tensor, color: Tensor, line: int) -> Tensor:
    """Draws a frame inside the border of images (n,3,H,W), ``line`` px wide, each in its ``color`` (n,3)."""
    frame = color[:, :, None, None].to(image).expand_as(image).clone()
    frame[:, :, line:-line, line:-line] = image[:, :, line:-line, line:-line]
    return frame


def sheet(columns: Sequence[Tensor], zoom: int = 1) -> Tensor:
    """Puts images side by side in one picture (3,h,w), with a row for each of N images.

    columns: (N,3,H,W) in [0,1] each, enlarged ``zoom`` times.
    """
    from torchvision.utils import make_grid  # imported here: slow, and --help does not need it

    rows = torch.stack([column.float() for column in columns], 1).flatten(0, 1)  # (N*columns,3,H,W)
    if zoom > 1:
        rows = interpolate(rows, scale_factor=zoom, mode="nearest")
    return make_grid(rows, nrow=len(columns), padding=2, pad_value=1.0)


class FeatureColors:
    """The three main directions of features (PCA) as red, green and blue.

    The directions are those of features (N,C,h,w). Each direction's values are scaled from their 2nd to their 98th
    percentile; its sign is such that its largest weight is positive.
    """

    def __init__(self, features: Tensor) -> None:
        values = features.float().cpu().transpose(0, 1).flatten(1).T  # (N*h*w,C)
        self.mean = values.mean(0)
        _, _, directions = torch.linalg.svd(values - self.mean, full_matrices=False)
        directions = directions[:3]
        strongest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        self.directions = directions * strongest.sign()  # (k,C), k = 3, or less with fewer channels
        scores = (values - self.mean) @ self.directions.T
        self.low, self.high = (torch.quantile(scores, q, dim=0) for q in (0.02, 0.98))

    def __call__(self, features: Tensor) -> Tensor:
        """The colors (N,3,h,w) in [0,1] of features (N,C,h,w), on the CPU."""
        values = features.float().cpu().movedim(1, -1)  # (N,h,w,C)
        scores = (values - self.mean) @ self.directions.T
        scores = ((scores - self.low) / (self.high - self.low).clamp(min=1e-6)).clamp(0, 1)
        missing = torch.zeros(*scores.shape[:-1], 3 - scores.shape[-1])
        return torch.cat([scores, missing], -1).movedim(-1, 1)
