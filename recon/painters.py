"""Opens a checkpoint of either method that paints holes, the mender or the context encoder, for photos of any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kintsugi.fill.areas import Report
from kintsugi.fill.painting import paint
from kintsugi.fill.windows import paint_squares
from kintsugi.recon.inpainting import Inpainting, load_mender
from kintsugi.recon.mender import load_unet
from kintsugi.train import checkpoint

METHODS = ("mender", "inpainting")
"""The methods that paint holes, the better one first."""

PhotoPainter = Callable[[Tensor, Tensor, Report], Tensor]
"""Photo (3,H,W) in [0,1] and mask (1,H,W), 1 = hole, on the network's device -> the photo with its holes painted."""


def open_painter(ckpt: Path, device: torch.device) -> tuple[str, PhotoPainter]:
    """The method of a checkpoint (a file or a run's folder), and what paints with its network.

    Raises ValueError with one line if it is of another method.
    """
    content = checkpoint.read(ckpt)[1]
    if content["method"] == Inpainting.name:
        squares = load_mender(ckpt, device)
        return "context encoder", lambda image, mask, report: paint_squares(image, mask, squares, squares.size)
    net = load_unet(ckpt, device)
    return "mender", lambda image, mask, report: paint(image, mask, net, report)
