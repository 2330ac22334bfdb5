"""Cuts the hole of a photo into pieces, each with its surroundings, so that photos of any size need little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

CELL = 384
"""Usual limit of a piece's sides, px."""
_SMALLEST_CELL, _PER_THICKNESS = 128, 8  # thin holes have smaller pieces: little of their area is hole


Report = Callable[[float], object]
"""Called with the fraction of the work that is done."""


def connected(hole: Tensor) -> tuple[np.ndarray, list[tuple[slice, slice]]]:
    """The connected holes of a mask, bool (H,W): an image of their numbers, from 1 on, and each one's rows and columns.

    Pixels that touch at a corner are connected.
    """
    from scipy import ndimage  # imported here: slow, and --help does not need it

    labels, _ = ndimage.label(hole.cpu().numpy(), ndimage.generate_binary_structure(2, 2))
    return labels, ndimage.find_objects(labels)


@dataclass(frozen=True)
class HolePiece:
    """A piece of a hole, and the area of the photo around it."""

    y: slice
    x: slice
    """Rows and columns of the area."""
    now: Tensor
    """The pixels of the area to fill now, bool (h,w)."""
    hole: Tensor
    """All pixels of the area that are not filled yet, these and others, bool (h,w)."""
    thickness: float
    """Width of the connected hole where it is widest, px: twice the greatest distance to its outside."""


def pieces(
    hole: Tensor, margin: tuple[int, int], largest: Callable[[float], int] = lambda thickness: CELL
) -> Iterator[HolePiece]:
    """Yields the pieces of a hole, bool (H,W), in the order in which to fill them.

    Each connected hole is one piece, or several if it is larger than a cell: those that come later have the earlier
    ones as their surroundings. margin: least and most px around a piece that belong to its area; in between, as much as
    the hole is thick. largest: the thickness of a connected hole -> the largest side of its cells, px.
    """
    from scipy import ndimage  # imported here: slow, and --help does not need it

    left = hole.clone()
    labels, boxes = connected(hole)
    for number, (rows, columns) in enumerate(boxes, 1):
        label = labels[rows, columns] == number
        thickness = 2 * float(ndimage.distance_transform_edt(np.pad(label, 1)).max())
        side = min(max(_SMALLEST_CELL, round(_PER_THICKNESS * thickness)), largest(thickness))
        reach = min(max(margin[0], round(thickness)), margin[1])
        for top, bottom in _cells(rows, side):
            for start, stop in _cells(columns, side):
                own = label[top - rows.start : bottom - rows.start, start - columns.start : stop - columns.start]
                if not own.any():
                    continue
                y, x = slice(max(0, top - reach), bottom + reach), slice(max(0, start - reach), stop + reach)
                now = torch.zeros_like(left[y, x])
                now[top - y.start : bottom - y.start, start - x.start : stop - x.start] = torch.from_numpy(own)
                yield HolePiece(y, x, now, left[y, x].clone(), thickness)
                left[y, x] &= ~now


def _cells(line: slice, side: int) -> list[tuple[int, int]]:
    """Splits a range into as few ranges of up to ``side`` as possible, all of about the same length."""
    length = line.stop - line.start
    count = -(-length // side)
    edges = [line.start + round(i * length / count) for i in range(count + 1)]
    return list(pairwise(edges))


def shrink_around(image: Tensor, known: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resizes an image with a hole: (C,h,w) and known (1,h,w), 1 = visible -> (1,C,*size), and its hole (1,1,*size).

    A shrunk pixel is the mean of its visible pixels; if less than half of it is visible, it is hole. Holes are 0.
    """
    visible = interpolate(known[None], size, mode="bilinear", antialias=True)
    seen = interpolate((image * known)[None], size, mode="bilinear", antialias=True)
    hole = (visible < 0.5).to(image)
    return seen / visible.clamp(min=0.5) * (1 - hole), hole
