"""Puts pictures side by side, and marks right and wrong predictions with colored frames."""

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
