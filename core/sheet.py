"""Pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def sheet(columns: Sequence[Tensor], zoom: int = 1) -> Tensor:
    """One row for each image: columns (N,3,H,W) in [0,1], each ``zoom`` times as large -> (3,h,w)."""
    from torchvision.utils import make_grid  # here: it takes a second, which --help need not wait for

    rows = torch.stack([column.float() for column in columns], 1).flatten(0, 1)  # (N*columns,3,H,W)
    if zoom > 1:  # small crops, large screens
        rows = interpolate(rows, scale_factor=zoom, mode="nearest")
    return make_grid(rows, nrow=len(columns), padding=2, pad_value=1.0)
