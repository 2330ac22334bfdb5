"""Crops of batches that hold images of two domains, "synthetic" and "real".

The images of a domain are under the keys ``DOMAIN/image`` and ``DOMAIN/extent``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kintsugi.augment import cropping
from kintsugi.upload import upload


def random_domain_crops(
    batch: Mapping[str, Tensor], domain: str, size: int, count: int, part: slice, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops of a domain's images, without resampling.

    count: number of images of the domain in the global batch; random numbers are drawn for all of them. part: this
    rank's slice of the global batch. Returns the crops, uint8 (n,C,size,size); whether each is mirrored, bool (n,); and
    a random color channel for each, int64 (n,) in 0..2, for ``one_channel``.
    """
    place, flip = torch.rand(count, 2, generator=random), torch.rand(count, generator=random) < 0.5
    channel = torch.randint(3, (count,), generator=random)
    image, extent = batch[f"{domain}/image"], batch[f"{domain}/extent"]
    return cropping.crop(image, extent, size, place[part], flip[part]), flip[part], channel[part]


def center_domain_crops(batch: Mapping[str, Tensor], domain: str, size: int) -> Tensor:
    """The central squares of a domain's images, not resampled: uint8 (n,C,size,size)."""
    return cropping.crop(batch[f"{domain}/image"], batch[f"{domain}/extent"], size)


def first_center_crops(batch: Mapping[str, Tensor], domain: str, size: int) -> Tensor:
    """As ``center_domain_crops``, without images that were in an earlier batch (``DOMAIN/first`` is false)."""
    return center_domain_crops(batch, domain, size)[batch[f"{domain}/first"]]


def one_channel(image: Tensor, channel: Tensor) -> Tensor:
    """Repeats one channel of each image three times: images (n,3,S,S), channels int64 (n,) in 0..2 -> (n,3,S,S)."""
    one = image[torch.arange(len(image), device=image.device), upload(image.device, channel)[0]]
    return one[:, None].expand(-1, 3, -1, -1)
