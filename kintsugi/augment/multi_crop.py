"""Several random crops of each image: large global ones and small local ones (multi-crop).

From Caron 2020 (SwAV, arXiv:2006.09882, section 3.3): crops of a small part of the image, at low resolution, add views
at little cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kintsugi.augment.color_jitter import ColorAugmentation, random_views


@dataclass(frozen=True)
class Crops:
    """Random crops of each image that have one size."""

    recipes: tuple[ColorAugmentation, ...]
    """The color changes of each crop. There are as many crops as recipes."""
    size: int
    """Side of the crops, px."""
    smallest: float
    """The smallest fraction of the image's area that a crop may show."""
    largest: float = 1.0
    """The largest fraction of it."""


def multi_crop(
    batch: Mapping[str, Tensor], kinds: Sequence[Crops], count: int, mine: slice, key: tuple[int, ...]
) -> list[Tensor]:
    """Random crops of a batch: for each of ``kinds`` a tensor (crops,n,3,size,size) in [0,1].

    batch, count and mine are as in ``cropping.random_crops``. A crop depends only on ``key`` and on its number over all
    kinds: it is ``random_views`` with that number added to the key.
    """
    found, number = [], 0
    for kind in kinds:
        crops = [
            random_views(batch, recipe, kind.size, kind.smallest, count, mine, (*key, number + i), kind.largest)
            for i, recipe in enumerate(kind.recipes)
        ]
        found.append(torch.stack(crops))
        number += len(crops)
    return found
