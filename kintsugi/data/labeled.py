"""Synthetic images with the depth, the normal and the instance of every pixel, and real ones beside them.

A sample is kept as ten planes of bytes, so that it is stored, read and cropped as images are
(``kintsugi.data.images``): image 3 (sRGB), depth 2 (millimeters, high byte first), normal 3 (-1..1 as 0..255), instance
2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from skimage import data as samples
from torch import Tensor

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import reason, rgb, stored
from kintsugi.data.images import Images, Opener, Split, held_out, open_images
from kintsugi.data.matched import nearest, open_matched, read_values
from kintsugi.scenes import rendering

PLANES = 10
FOLDERS = ("rgb", "depth", "normal", "instance")


@dataclass(frozen=True)
class Labels:
    """What is known of each pixel. depth (n,1,H,W) meters, 0 = missing; normal (n,3,H,W) unit, camera axes, 0 =
    missing; instance int64 (n,H,W), numbers without order."""

    depth: Tensor
    normal: Tensor
    instance: Tensor


def pack(image: Tensor, labels: Labels) -> Tensor:
    """Images (n,3,H,W) in [0,1] and their labels as planes, uint8 (n,10,H,W).

    Depth is kept to the millimeter up to 65 m (beyond: missing), normals to 1/255, 16 bits of the instance.
    """
    millimeters = (1000 * labels.depth).round().long()
    millimeters = torch.where(millimeters < 2**16, millimeters, 0)
    instance = labels.instance.long()[:, None]
    planes = [
        (255 * image).round(),
        millimeters >> 8,
        millimeters & 255,
        (127.5 * (labels.normal + 1)).round(),
        (instance >> 8) & 255,
        instance & 255,
    ]
    return torch.cat([plane.to(torch.uint8) for plane in planes], 1)


def unpack(planes: Tensor) -> tuple[Tensor, Labels]:
    """The inverse of ``pack``: images (n,3,H,W) in [0,1] and their labels."""
    image, depth, normal, instance = planes.split((3, 2, 3, 2), 1)
    direction = normal.float() / 127.5 - 1
    length = direction.norm(dim=1, keepdim=True)
    return image.float() / 255, Labels(
        depth=(256 * depth[:, :1].float() + depth[:, 1:].float()) / 1000,
        normal=torch.where(length > 0.5, direction / length.clamp(min=0.5), 0),  # gray: no direction is known
        instance=256 * instance[:, 0].long() + instance[:, 1].long(),
    )


def mirrored(labels: Labels, flip: Tensor) -> Labels:
    """Labels of images that were flipped where ``flip`` (n,): x, to the right, has changed its sign there."""
    sign = torch.ones(len(flip), 3, 1, 1, device=labels.normal.device)
    sign[flip.to(sign.device), 0] = -1
    return Labels(labels.depth, labels.normal * sign, labels.instance)


def contours(instance: Tensor) -> Tensor:
    """Where a pixel's right, left, upper or lower neighbor is of another instance; (n,H,W) -> float (n,1,H,W)."""
    edge = torch.zeros_like(instance, dtype=torch.bool)
    for one, other in (
        ((..., slice(1, None)), (..., slice(None, -1))),
        ((..., slice(1, None), slice(None)), (..., slice(None, -1), slice(None))),
    ):
        differ = instance[one] != instance[other]
        edge[one] |= differ
        edge[other] |= differ
    return edge[:, None].float()


# --- two sets side by side ------------------------------------------------------------------------------------


class Beside:
    """A synthetic and a real set of images, read together: item i is item i of each, and the smaller one wraps around.

    So an epoch is one of the larger set, and in it the images of the smaller come equally often, give or take one.
    """

    def __init__(self, synthetic: Images, real: Images) -> None:
        self.sets = {"synthetic": synthetic, "real": real}

    def __len__(self) -> int:
        return max(map(len, self.sets.values()))

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Of both sets what ``Images.batch`` gives, as ``synthetic/image`` (uint8, (n,10,H,W)), ``real/image`` (uint8,
        (n,3,H,W)), ``real/extent`` and so on; and ``real/first``, bool (n,), false where it has wrapped around."""
        batch: dict[str, Tensor] = {}
        for name, images in self.sets.items():
            found = images.batch(indices % len(images))
            batch |= {f"{name}/{key}": value for key, value in found.items()}
            batch[f"{name}/first"] = indices < len(images)
        return batch


@dataclass(frozen=True)
class Domains:
    """``Split`` of two sets side by side."""

    train: Beside
    heldout: Beside

    @classmethod
    def of(cls, synthetic: Split, real: Split) -> Domains:
        return cls(Beside(synthetic.train, real.train), Beside(synthetic.heldout, real.heldout))


def open_real(spec: str, size: int, **stored: Any) -> Split:
    """Real images: a folder, or a set, as ``open_images`` opens it. ValueError in the words of ``--real``."""
    if spec == "scenes":
        raise ValueError("--real scenes: scenes are the synthetic side; name a folder of photos")
    try:
        return open_images(spec, size, **stored)
    except ValueError as error:
        raise ValueError(str(error).replace("--data", "--real")) from None


def sample_photos(size: int) -> Split:
    """Squares of ``size`` px out of scikit-image's sample photos, at three scales; two photos are held out.

    Enough to see a demo at work, not to learn from.
    """
    train = (samples.astronaut, samples.rocket, lambda: samples.stereo_motorcycle()[0])
    return Split(*(_tiles([take() for take in photos], size) for photos in (train, (samples.chelsea, samples.coffee))))


def _tiles(photos: Sequence[np.ndarray], size: int) -> Images:
    tiles = []
    for photo in photos:
        for scale in (1, 1.5, 2):
            small = stored(Image.fromarray(photo), round(scale * size))  # (3,h,w)
            height, width = small.shape[1:]
            for top in range(0, height - size + 1, size // 2):
                for left in range(0, width - size + 1, size // 2):
                    tiles.append(small[:, top : top + size, left : left + size])
    names = [f"sample-{i}" for i in range(len(tiles))]
    return Images(Source(names, lambda rows: [tiles[row] for row in rows]))


# --- synthetic images with labels -----------------------------------------------------------------------------


def open_synthetic(
    spec: str,
    size: int,
    *,
    short_side: int = 0,
    scenes: int = 4096,
    cache_dir: Path | None = None,
    cache_gb: float = 8.0,
    device: str = "cpu",
    quiet: bool = False,
) -> Split:
    """Images of ten planes (``unpack``): ``scenes``, that many of the built-in ones, or a folder.

    A folder holds, by the same names, rgb/ (any format), depth/ (16-bit PNGs in millimeters, 0 = missing), normal/
    (8-bit RGB PNGs, 255 * (n + 1) / 2 in camera axes: x right, y down, z forward; gray = missing) and instance/ (PNGs
    of one channel of 8 or 16 bits). Stored size, cache and split as in ``open_images``; where images are made smaller,
    each pixel takes one label, unmixed. Samples that cannot be read or do not match are skipped, counted and named.

    ValueError of one line where nothing is left.
    """
    opener = Opener.of(spec, size, short_side, cache_dir, cache_gb, quiet)
    return held_out(
        _scenes(opener, scenes, device)
        if spec == "scenes"
        else open_matched(opener, FOLDERS, partial(_sample, short_side=opener.short_side), PLANES, "labeled")
    )


def _scenes(opener: Opener, count: int, device: str) -> Images:
    def read(rows: Sequence[int]) -> list[Pixels]:
        found = rendering.render(0, torch.tensor(rows), opener.short_side, device)
        labels = Labels(found["depth"], found["normal"], found["instance"])
        return list(pack(found["image"], labels).cpu().numpy())

    source = Source([f"scene-{i}" for i in range(count)], read, chunk=64, planes=PLANES)
    code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in rendering.SOURCE_FILES]
    return opener.open("labeled-scenes", [PLANES, count, code], lambda: source, "rendering")


def _sample(paths: Sequence[Path], short_side: int) -> Pixels:
    """The planes of four files, or the reason why there are none."""
    try:
        with Image.open(paths[0]) as file:
            picture = rgb(ImageOps.exif_transpose(file))
        depth, normal, instance = (read_values(path) for path in paths[1:])
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        return reason(error)
    shape = (picture.height, picture.width)
    for name, values, channels in (("depth", depth, 2), ("normal", normal, 3), ("instance", instance, 2)):
        if values.ndim != channels or values.shape[:2] != shape:
            return f"its {name} is {'x'.join(map(str, values.shape))}, its image {shape[0]}x{shape[1]}"
    if depth.dtype == np.uint8 or normal.dtype != np.uint8:
        return "depth must have 16 bits, normals 8"
    image = stored(picture, short_side)
    maps = [nearest(values, image.shape[1:]) for values in (depth, normal, instance)]
    high_low = [np.stack([values >> 8, values & 255]) for values in (maps[0], maps[2])]
    return np.concatenate([image, high_low[0], maps[1].transpose(2, 0, 1), high_low[1]]).astype(np.uint8)
