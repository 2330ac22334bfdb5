"""What an encoder sees in a photo: its features as colors, and the photos of a folder that are nearest to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from kintsugi.data import photos
from kintsugi.data.decode import decode
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import FeatureColors

SIDE = 224  # short side of the photo that the encoder sees, px
STRIDE = 16  # the features shown are those of this stride, or of the next finer one
MOST = 2000  # photos of a folder that are compared
NEAREST = 7  # with the photo itself, two rows of four pictures


@torch.no_grad()
def pca_colors(encoder: Encoder, image: Tensor) -> Tensor:
    """The three main directions of the encoder's features of one image (3,H,W) in [0,1], as red, green and blue.

    Returns (3,H,W) in [0,1]. The features are those of stride 16, or of the next finer one.
    """
    size = photos.whole_strides((image.shape[1], image.shape[2]), SIDE)
    device = next(encoder.parameters()).device
    maps = encoder(interpolate(image[None], size, mode="bilinear", antialias=True).to(device))
    stride = max((s for s in maps if s <= STRIDE), default=min(maps))
    colors = FeatureColors(maps[stride])(maps[stride])  # (1,3,h,w)
    return interpolate(colors, image.shape[1:], mode="bilinear")[0]


class Neighbor(NamedTuple):
    """A photo of the folder, and the cosine of the angle between its features and the query's, in [-1,1]."""

    path: Path
    similarity: float


def nearest(
    encoder: Encoder, image: Tensor, folder: str | Path, progress: Callable[[float, str], object], count: int = NEAREST
) -> tuple[list[Neighbor], str]:
    """The photos of a folder whose features are most similar to those of an image (3,H,W) in [0,1].

    The encoder sees central squares of 224 px. Returns the neighbors, the nearest first, and a note: which photos were
    left out, or "". At most 2,000 photos are compared, the first ones by name. Raises ValueError with one line if there
    is no such folder, or no photo in it that can be read.
    """
    if not str(folder).strip():
        raise ValueError("Name a folder of photos to search in")
    place = Path(str(folder).strip()).expanduser()
    if not place.is_dir():
        raise ValueError(f"{place} is not a folder")
    found = photos.images_in(place)
    query = _vector(encoder, image)
    similarities, unread = [], 0
    for number, path in enumerate(found[:MOST]):
        progress(number / len(found[:MOST]), "comparing")
        pixels = decode(path, SIDE)
        if isinstance(pixels, str):
            unread += 1
            continue
        vector = _vector(encoder, torch.from_numpy(pixels.copy()) / 255)
        similarities.append(Neighbor(path, float(query @ vector)))
    if not similarities:
        raise ValueError(f"{place} has no photo that can be read")
    notes = [f"{unread} files could not be read"] if unread else []
    if len(found) > MOST:
        notes.append(f"only the first {MOST:,} of {len(found):,} photos were compared")
    return sorted(similarities, key=lambda one: -one.similarity)[:count], "; ".join(notes)


@torch.no_grad()
def _vector(encoder: Encoder, image: Tensor) -> Tensor:
    """The unit vector (D,) of the central square of an image (3,H,W) in [0,1]."""
    side = min(image.shape[1:])
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    square = image[None, :, top : top + side, left : left + side]
    small = interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True)
    device = next(encoder.parameters()).device
    return normalize(encoder.vectors(small.to(device))[0].float().cpu(), dim=0)
