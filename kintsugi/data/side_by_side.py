"""Synthetic and real images side by side, for methods that learn from both; and sample photos for their demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage import data as samples
from torch import Tensor

from kintsugi.data.cache import Source
from kintsugi.data.decode import crop_and_shrink
from kintsugi.data.image_set import Images, Split
from kintsugi.data.images import open_images
from kintsugi.data.store import Store


class SideBySide:
    """A synthetic and a real set of images, read together: item i is item i of each. The smaller set wraps around.

    So one epoch goes once through the larger set, and all images of the smaller one occur equally often, give or take
    one.
    """

    def __init__(self, synthetic: Images, real: Images) -> None:
        self.sets = {"synthetic": synthetic, "real": real}

    def __len__(self) -> int:
        return max(map(len, self.sets.values()))

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The batches of both sets (``Images.batch``) at ``indices`` (n,), with the set's name before each key:

        - ``synthetic/image`` uint8 (n,10,H,W), ``real/image`` uint8 (n,3,H,W), ``real/extent`` and so on.
        - ``synthetic/first`` and ``real/first``: bool (n,), false once the set has wrapped around.
        """
        batch: dict[str, Tensor] = {}
        for name, images in self.sets.items():
            found = images.batch(indices % len(images))
            batch |= {f"{name}/{key}": value for key, value in found.items()}
            batch[f"{name}/first"] = indices < len(images)
        return batch


@dataclass(frozen=True)
class Domains:
    """Training and held-out images of both domains, side by side."""

    train: SideBySide
    heldout: SideBySide

    @classmethod
    def of(cls, synthetic: Split, real: Split) -> Domains:
        return cls(SideBySide(synthetic.train, real.train), SideBySide(synthetic.heldout, real.heldout))


def open_real(spec: str, size: int, store: Store = Store()) -> Split:
    """Opens real images, as ``open_images`` does. ``scenes`` is refused, because these are synthetic.

    Messages of its ValueErrors name the option --real instead of --data.
    """
    if spec == "scenes":
        raise ValueError("--real scenes: scenes are the synthetic side; name a folder of photos")
    try:
        return open_images(spec, size, store)
    except ValueError as error:
        raise ValueError(str(error).replace("--data", "--real")) from None


def sample_photos(size: int) -> Split:
    """Square tiles of ``size`` px from scikit-image's sample photos, at three scales. Two photos are held out.

    They are enough to see a demo work, but not to learn from.
    """
    train = (samples.astronaut, samples.rocket, lambda: samples.stereo_motorcycle()[0])
    heldout = (samples.chelsea, samples.coffee)
    return Split(*(_tiles([load() for load in photos], size) for photos in (train, heldout)))


def _tiles(photos: Sequence[np.ndarray], size: int) -> Images:
    tiles = []
    for photo in photos:
        for scale in (1, 1.5, 2):
            small = crop_and_shrink(Image.fromarray(photo), round(scale * size))  # (3,h,w)
            height, width = small.shape[1:]
            for top in range(0, height - size + 1, size // 2):
                for left in range(0, width - size + 1, size // 2):
                    tiles.append(small[:, top : top + size, left : left + size])
    names = [f"sample-{i}" for i in range(len(tiles))]
    return Images(Source(names, lambda rows: [tiles[row] for row in rows]))
