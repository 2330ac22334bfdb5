"""Synthetic images with the depth, the surface normal and the object instance of every pixel.

A sample has ten uint8 planes: image (3, sRGB), depth (2, millimeters, high byte first), normal (3, -1..1 as 0..255) and
instance (2, high byte first). They are stored, read and cropped as images are (``kintsugi.data.images``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import crop_and_shrink, reason, rgb
from kintsugi.data.image_set import Images, Split, held_out
from kintsugi.data.matched import nearest, open_matched, read_values
from kintsugi.data.opener import Opener
from kintsugi.data.rendered import renderer_digests, scene_names
from kintsugi.data.store import Store
from kintsugi.upload import upload

PLANES = 10
FOLDERS = ("rgb", "depth", "normal", "instance")


@dataclass(frozen=True)
class Labels:
    """The labels of every pixel of n images.

    depth: (n,1,H,W) in meters, 0 = missing. normal: unit (n,3,H,W) in camera axes (x right, y down, z forward), 0 =
    missing. instance: int64 (n,H,W), a number for each instance, in no order.
    """

    depth: Tensor
    normal: Tensor
    instance: Tensor


def pack(image: Tensor, labels: Labels) -> Tensor:
    """Packs images (n,3,H,W) in [0,1] and their labels into planes, uint8 (n,10,H,W).

    Depth is rounded to millimeters; beyond 65 m it becomes missing. Normals are rounded to 8 bits per component. Of an
    instance's number the lowest 16 bits are kept.
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
    """The inverse of ``pack``: uint8 (n,10,H,W) -> images (n,3,H,W) in [0,1] and their labels."""
    image, depth, normal, instance = planes.split((3, 2, 3, 2), 1)
    direction = normal.float() / 127.5 - 1
    length = direction.norm(dim=1, keepdim=True)
    return image.float() / 255, Labels(
        depth=(256 * depth[:, :1].float() + depth[:, 1:].float()) / 1000,
        normal=torch.where(length > 0.5, direction / length.clamp(min=0.5), 0),  # gray: the normal is missing
        instance=256 * instance[:, 0].long() + instance[:, 1].long(),
    )


def mirrored(labels: Labels, flip: Tensor) -> Labels:
    """Corrects the labels of images that were mirrored left to right: changes the sign of the normals' x.

    flip: bool (n,), which images were mirrored. The pixels of their labels must be mirrored already.
    """
    sign = torch.ones(len(flip), 3, 1, 1)
    sign[flip.cpu(), 0] = -1
    (sign,) = upload(labels.normal.device, sign)
    return Labels(labels.depth, labels.normal * sign, labels.instance)


def contours(instance: Tensor) -> Tensor:
    """Marks the borders of instances: (n,H,W) -> float (n,1,H,W).

    1 where the right, left, upper or lower neighbor belongs to another instance, else 0.
    """
    edge = torch.zeros_like(instance, dtype=torch.bool)
    for one, other in (
        ((..., slice(1, None)), (..., slice(None, -1))),
        ((..., slice(1, None), slice(None)), (..., slice(None, -1), slice(None))),
    ):
        differ = instance[one] != instance[other]
        edge[one] |= differ
        edge[other] |= differ
    return edge[:, None].float()


# --- opening --------------------------------------------------------------------------------------------------


def open_synthetic(spec: str, size: int, store: Store = Store(), *, scenes: int = 4096) -> Split:
    """Opens images of ten planes (``unpack``), split into training and held-out ones, for crops of ``size`` px.

    spec: ``scenes`` (the first ``scenes`` built-in scenes), or a folder that holds four folders with files of the same
    names:

    - rgb/: images of any format.
    - depth/: 16-bit PNGs in millimeters, 0 = missing.
    - normal/: 8-bit RGB PNGs, 255 * (n + 1) / 2 in camera axes (x right, y down, z forward); gray = missing.
    - instance/: PNGs of one channel of 8 or 16 bits.

    Stored size, cache and split are as in ``open_images``. If images are shrunk, each pixel gets the labels of the
    nearest original pixel. Samples that cannot be read or do not match are skipped and reported. Raises ValueError with
    one line if nothing is left.
    """
    opener = Opener(spec, size, store)
    if spec == "scenes":
        return held_out(_open_scenes(opener, scenes))
    return held_out(open_matched(opener, FOLDERS, partial(_sample, short_side=opener.short_side), PLANES, "labeled"))


def _open_scenes(opener: Opener, count: int) -> Images:
    from kintsugi.scenes import rendering  # imported here: only runs on scenes need it

    def read(rows: Sequence[int]) -> list[Pixels]:
        found = rendering.render(0, torch.tensor(rows), opener.short_side, opener.store.device)
        labels = Labels(found["depth"], found["normal"], found["instance"])
        return list(pack(found["image"], labels).cpu().numpy())

    source = Source(scene_names(count), read, chunk=64, planes=PLANES)
    return opener.open("labeled-scenes", [PLANES, count, renderer_digests()], lambda: source, "rendering")


def _sample(paths: Sequence[Path], short_side: int) -> Pixels:
    """The ten planes of an image, depth, normal and instance file, or the reason why there are none."""
    try:
        with Image.open(paths[0]) as file:
            picture = rgb(ImageOps.exif_transpose(file))
        depth, normal, instance = (read_values(path) for path in paths[1:])
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        return reason(error)
    shape = (picture.height, picture.width)
    for name, values, channels in (("depth", depth, 2), ("normal", normal, 3), ("instance", instance, 2)):
        if values.ndim != channels or values.shape[:2] != shape:
            return f"its {name} is {'x'.join(map(str, values.shape))}, its image {shape[0]}x{shape[1]}"
    if depth.dtype == np.uint8 or normal.dtype != np.uint8:
        return "depth must have 16 bits, normals 8"
    image = crop_and_shrink(picture, short_side)
    maps = [nearest(values, image.shape[1:]) for values in (depth, normal, instance)]
    high_low = [np.stack([values >> 8, values & 255]) for values in (maps[0], maps[2])]
    return np.concatenate([image, high_low[0], maps[1].transpose(2, 0, 1), high_low[1]]).astype(np.uint8)
