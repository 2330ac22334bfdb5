"""Pictures side by side, and what was right of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

GREEN, RED = (0.1, 0.7, 0.2), (0.85, 0.1, 0.1)  # right and wrong


def judged(right: Tensor) -> Tensor:
    """Colors (n,3): green where ``right``, bool (n,), else red."""
    return torch.where(right[:, None], torch.tensor(GREEN, device=right.device), torch.tensor(RED, device=right.device))


def framed(image: Tensor, color: Tensor, line: int) -> Tensor:
    """Images (n,3,H,W) with a frame of ``line`` px inside their border, of each its ``color`` (n,3)."""
    frame = color[:, :, None, None].to(image).expand_as(image).clone()
    frame[:, :, line:-line, line:-line] = image[:, :, line:-line, line:-line]
    return frame


def sheet(columns: Sequence[Tensor], zoom: int = 1) -> Tensor:
    """One row for each image: columns (N,3,H,W) in [0,1], each ``zoom`` times as large -> (3,h,w)."""
    from torchvision.utils import make_grid  # here: it takes a second, which --help need not wait for

    rows = torch.stack([column.float() for column in columns], 1).flatten(0, 1)  # (N*columns,3,H,W)
    if zoom > 1:  # small crops, large screens
        rows = interpolate(rows, scale_factor=zoom, mode="nearest")
    return make_grid(rows, nrow=len(columns), padding=2, pad_value=1.0)
