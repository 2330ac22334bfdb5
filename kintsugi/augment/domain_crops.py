"""Crops of batches that hold images of two domains: ``DOMAIN/image`` and ``DOMAIN/extent``, synthetic and real."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kintsugi.augment import cropping


def random_domain_crops(
    batch: Mapping[str, Tensor], domain: str, size: int, count: int, part: slice, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Crops of a domain's images, uint8 (n,C,size,size); whether each is mirrored; and a color channel for each.

    Drawn for ``count`` images, of which the batch holds the rows ``part``.
    """
    place, flip = torch.rand(count, 2, generator=random), torch.rand(count, generator=random) < 0.5
    channel = torch.randint(3, (count,), generator=random)
    image, extent = batch[f"{domain}/image"], batch[f"{domain}/extent"]
    return cropping.crop(image, extent, size, place[part], flip[part]), flip[part], channel[part]


def center_domain_crops(batch: Mapping[str, Tensor], domain: str, size: int) -> Tensor:
    """The central squares of a domain's images, uint8 (n,C,size,size), at the scale of the random crops."""
    return cropping.crop(batch[f"{domain}/image"], batch[f"{domain}/extent"], size)


def one_channel(image: Tensor, channel: Tensor) -> Tensor:
    """Images (n,3,S,S) with one ``channel`` (n,) of each, three times."""
    one = image[torch.arange(len(image), device=image.device), channel.to(image.device)]
    return one[:, None].expand(-1, 3, -1, -1)
