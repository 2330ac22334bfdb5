"""Fills the holes of a photo of any size with a network, around each hole, at the scale that suits the hole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.fill.areas import CELL, Report, pieces, shrink_around
from kintsugi.fill.classical import Fill
from kintsugi.fill.membrane import seamless

_THICKNESS = 96  # px; a hole that is wider is painted at a smaller scale, where it is as wide as this
_MARGIN = 64, 256  # least and most px around a hole that the network sees, at the scale of the hole


@torch.no_grad()
def paint(image: Tensor, mask: Tensor, painter: Fill, report: Report = lambda fraction: None) -> Tensor:
    """Fills the holes of one photo: (3,H,W) in [0,1] and mask (1,H,W), 1 = hole -> (3,H,W) in [0,1].

    Outside the holes the photo is unchanged; what is inside them is not used. Each connected hole is painted
    separately, with its surroundings, at a scale at which it is at most 96 px wide, as in training; the larger ones are
    then enlarged, so they lack detail. The painting meets the photo without a seam. report: called with the fraction of
    the holes that is done. Memory: about 1 GB, whatever the size of the photo.
    """
    result, hole = image.masked_fill(mask > 0.5, 0), mask[0] > 0.5
    done, count = 0, int(hole.sum())
    for piece in pieces(hole, _MARGIN, lambda thickness: round(CELL * max(1, thickness / _THICKNESS))):
        area, around = result[:, piece.y, piece.x], piece.hole[None].to(image)  # (3,h,w), (1,h,w)
        height, width = (max(16, round(side * min(1, _THICKNESS / piece.thickness))) for side in piece.hole.shape)
        painted = painter(*shrink_around(area, 1 - around, (height, width))).to(image)
        painted = interpolate(painted, piece.hole.shape, mode="bicubic").clamp(0, 1)
        filled = seamless(painted, area[None], around[None])[0]
        result[:, piece.y, piece.x] = torch.where(piece.now, filled, area)
        done += int(piece.now.sum())
        report(done / count)
    return result
