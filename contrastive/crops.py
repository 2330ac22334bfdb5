"""What the methods with global and local crops of each image share: settings, crops and their encoding, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.augment import cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.augment.multi_crop import Crops, multi_crop
from kintsugi.contrastive.views import ViewsConfig, ViewsMethod
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import sheet
from kintsugi.train.config import within
from kintsugi.train.method import Batch

SMALLEST_LOCAL = 32  # px, the least that encoders take
# Smaller crops would reach a ResNet's last stage as one pixel, for which the bf16 gradients of torch's convolutions of
# stride 2 are not finite on some CPUs.
SHOWN_LOCAL = 4  # local crops of each image in the pictures


@dataclass(frozen=True, kw_only=True)
class CropsConfig(ViewsConfig):
    """Settings of the methods with global and local crops. ``smallest_crop`` is that of the global ones."""

    local_crops: int = 0
    """Number of small local crops of each image, in addition to the global ones."""
    local_size: int = 0
    """Side of the local crops, px; 0 = half of --size, but at least 32."""
    smallest_local: float = 0.05
    """Smallest fraction of an image's area that a local crop shows."""
    largest_local: float = 0.3
    """Largest fraction of an image's area that a local crop shows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, local_crops=0, smallest_local=cropping.SMALLEST_CROP, largest_local=cropping.SMALLEST_CROP)
        if self.smallest_local > self.largest_local:
            raise ValueError(
                f"--smallest-local {self.smallest_local:g} is larger than --largest-local {self.largest_local:g}"
            )
        if self.local_side < SMALLEST_LOCAL:
            raise ValueError(f"--local-size must be 0 or at least {SMALLEST_LOCAL}, not {self.local_size}")

    @property
    def local_side(self) -> int:
        """Side of the local crops, px."""
        return self.local_size or max(32, self.size // 2)


K = TypeVar("K", bound=CropsConfig)


class CropsMethod(ViewsMethod[K]):
    """Base class of the methods that see several crops of each image."""

    def global_recipes(self) -> tuple[ColorAugmentation, ...]:
        """The color changes of each global crop."""
        return self.recipes()

    def local_recipe(self) -> ColorAugmentation:
        """The color changes of the local crops."""
        return ColorAugmentation(blur=self.config.blur).with_strength(self.config.strength)

    def crops(self, batch: Batch, *key: int) -> list[Tensor]:
        """This rank's random crops: the global ones, (V,n,3,S,S) in [0,1], then the local ones, (L,n,3,s,s), if any.

        Drawn for the global batch; a function of the seed and ``key``.
        """
        config, count = self.config, len(batch["image"]) * self.world.size
        kinds = [Crops(self.global_recipes(), config.size, config.smallest_crop)]
        if config.local_crops:
            recipes = (self.local_recipe(),) * config.local_crops
            kinds.append(Crops(recipes, config.local_side, config.smallest_local, config.largest_local))
        return multi_crop(batch, kinds, count, self.world.part(count), (config.seed, *key))

    def inputs(self, batch: Batch, step: int) -> Batch:
        """The crops of a step: ``global`` and, if there are any, ``local``, as of ``crops``."""
        return dict(zip(("global", "local"), self.crops(batch, step), strict=False))

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: image, its global crops, its first local crops, enlarged. The same crops at every call."""
        size = self.config.size
        whole, *local = self.crops(batch, 0)
        columns = [cropping.center_crops(batch, size), *whole]
        titles = ["image", f"{len(whole)} global crops"]
        for crop in (crop for kind in local for crop in kind[:SHOWN_LOCAL]):
            columns.append(interpolate(crop, (size, size), mode="nearest"))
        if local:
            titles.append("local crops")
        return {" | ".join(titles): sheet(columns, zoom=2)}


def encode_crops(encoder: Encoder, kinds: Sequence[Tensor]) -> Tensor:
    """One vector for each crop, (crops*n,D), crop by crop; kinds: from ``CropsMethod.crops``.

    Crops of one size pass through the encoder as one batch.
    """
    return torch.cat([encoder.vectors(crops.flatten(0, 1)) for crops in kinds])
