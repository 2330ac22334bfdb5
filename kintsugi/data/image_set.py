"""A set of images in a fixed order, read in batches, and its split into training and held-out images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kintsugi.data.cache import Source

HELDOUT = 0.05
"""Fraction of the images that is held out from training."""
MAX_HELDOUT = 1024
"""The largest number of images that is held out."""


class Images:
    """A set of images in a fixed order, read in batches.

    names: unique. labels: int64 (N,), indices into ``classes``, -1 = unknown; None if the set has no labels.
    """

    def __init__(self, source: Source, rows: np.ndarray | None = None) -> None:
        self.source = source
        # The rows of the source's images that are in this set, int64 (N,).
        self.rows = np.arange(len(source.names)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        return [self.source.names[row] for row in self.rows.tolist()]

    @property
    def labels(self) -> Tensor | None:
        return None if self.source.labels is None else self.source.labels[self.rows]

    @property
    def extents(self) -> Tensor:
        """Height and width of each image, px, int64 (N,2). Only for sets that are decoded (``Source.extents``)."""
        assert self.source.extents is not None
        return torch.from_numpy(self.source.extents[self.rows])

    @property
    def classes(self) -> list[str]:
        return list(self.source.classes)

    def subset(self, indices: Tensor) -> Images:
        return Images(self.source, self.rows[indices.numpy()])

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The images at ``indices`` (n,), on the CPU, as a dictionary:

        - image: uint8 (n,3,H,W) sRGB, channels last in memory, padded with 0 on the right and below to the largest
          image of the batch.
        - extent: int64 (n,2), height and width of each image, px.
        - index: int64 (n,), ``indices``.
        - label: int64 (n,), if the set has labels.

        An image that cannot be read is replaced by the next readable one and its label. This happens only in sets that
        are decoded at each use. Raises ValueError if no image is readable.
        """
        rows = self.rows[indices.numpy()]
        pixels = self.source.read(rows.tolist())
        images: list[np.ndarray] = []
        for i, image in enumerate(pixels):
            if isinstance(image, str):
                rows[i], image = self._next_readable(int(indices[i]), image)
            images.append(image)
        extent = torch.tensor([image.shape[1:] for image in images])  # (n,2)
        height, width = extent.amax(0).tolist()
        padded = np.zeros((len(images), height, width, len(images[0])), np.uint8)
        for place, image in zip(padded, images, strict=True):
            place[: image.shape[1], : image.shape[2]] = image.transpose(1, 2, 0)
        batch = {"image": torch.from_numpy(padded).permute(0, 3, 1, 2), "extent": extent, "index": indices}
        if self.source.labels is not None:
            batch["label"] = self.source.labels[rows]
        return batch

    def _next_readable(self, index: int, why: str) -> tuple[int, np.ndarray]:
        """Row and pixels of the first readable image after ``index``. why: the reason that this one is not readable."""
        for step in range(1, len(self)):
            row = int(self.rows[(index + step) % len(self)])
            image = self.source.read([row])[0]
            if not isinstance(image, str):
                return row, image
        raise ValueError(f"none of {len(self)} images can be used ({why})")


@dataclass(frozen=True)
class Split:
    """Training and held-out images.

    Held-out images are ordered by a hash of their names, so that the first few are of many classes.
    """

    train: Images
    heldout: Images


def held_out(images: Images) -> Split:
    """Holds out the images whose names have the lowest hashes: a fraction of about ``HELDOUT``.

    At least one image is held out, and at most ``MAX_HELDOUT``. Unless such a limit is reached, adding an image moves
    none of the others from one side to the other. Raises ValueError for a set of one image.
    """
    if len(images) < 2:
        raise ValueError(f"one image ({images.names[0]!r}) cannot be split into training and held-out ones: add more")
    hashes = _hashes(images.names)
    count = int((hashes < HELDOUT * 2.0**64).sum())
    count = min(max(count, 1), MAX_HELDOUT, len(images) - 1)
    order = torch.from_numpy(hashes.argsort(kind="stable"))
    return Split(images.subset(order[count:].sort().values), images.subset(order[:count]))


def shuffled(images: Images) -> Images:
    """The images ordered by a hash of their names."""
    return images.subset(torch.from_numpy(_hashes(images.names).argsort(kind="stable")))


def _hashes(names: Sequence[str]) -> np.ndarray:
    """A uniformly distributed hash of each name, (N,) uint64."""
    digests = (hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), "<u8")
