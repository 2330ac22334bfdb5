"""Classical fills that need no learning: the mean color, and biharmonic inpainting."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

Fill = Callable[[Tensor, Tensor], Tensor]
"""Images (N,3,H,W) in [0,1] and holes (N,1,H,W) -> images with the holes filled."""


def mean_color(image: Tensor, mask: Tensor) -> Tensor:
    """Fills holes with the mean color of the image outside them. Shapes as in ``Fill``."""
    seen = 1 - mask
    color = (image * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp(min=1)
    return image * seen + color * mask


def biharmonic(image: Tensor, mask: Tensor) -> Tensor:
    """Fills holes with the smoothest continuation of their surroundings (Chui and Mhaskar 2010), by scikit-image.

    This is the classical method in the project's tables: for central holes of photos its PSNR is slightly higher than
    that of Telea's method. Shapes as in ``Fill``.
    """
    from skimage.restoration import inpaint_biharmonic  # imported here: slow, and --help does not need it

    filled = [
        inpaint_biharmonic(picture.permute(1, 2, 0).numpy(), hole[0].numpy() > 0.5, channel_axis=-1)
        for picture, hole in zip(image.cpu(), mask.cpu(), strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float().clamp(0, 1).to(image.device)


CLASSICAL: Mapping[str, Fill] = {"mean color": mean_color, "biharmonic": biharmonic}
"""Name of a classical fill -> its function."""
