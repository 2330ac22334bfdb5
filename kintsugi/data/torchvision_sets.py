"""The data sets that torchvision downloads: CIFAR-10, STL-10, ImageNet, Pascal VOC.

torchvision is imported inside the functions, because the import takes a second and --help does not need it.
"""

from __future__ import annotations

import functools
import http.client
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import crop_and_shrink, reason
from kintsugi.data.folders import open_folder
from kintsugi.data.image_set import Images
from kintsugi.data.opener import Opener
from kintsugi.data.store import Store

if TYPE_CHECKING:
    from torchvision.datasets import VOCDetection, VOCSegmentation

T = TypeVar("T")
V = TypeVar("V", "VOCDetection", "VOCSegmentation")


def open_array_set(opener: Opener, split: str) -> Images:
    """Opens the ``train`` or ``test`` images of ``cifar10`` or ``stl10``, sets that torchvision loads into memory.

    STL-10's ``train`` includes its unlabeled images. torchvision is used only if the cache lacks the set.
    """
    place, train, store = opener.store.downloads, split == "train", opener.store

    def make() -> Source:
        from torchvision import datasets

        if opener.spec == "cifar10":
            sets = [_download(opener.spec, store, lambda: datasets.CIFAR10(place, train=train, download=True))]
            labels = torch.tensor(sets[0].targets)
        else:
            splits = ("train", "unlabeled") if train else ("test",)
            sets = [
                _download(opener.spec, store, functools.partial(datasets.STL10, place, split=name, download=True))
                for name in splits
            ]
            labels = torch.cat([torch.from_numpy(data.labels.astype(np.int64)) for data in sets])
        images: ConcatDataset[tuple[Image.Image, int]] = ConcatDataset(sets)

        def read(rows: Sequence[int]) -> list[Pixels]:
            return [crop_and_shrink(images[row][0], opener.short_side) for row in rows]

        return Source([f"{split}-{i}" for i in range(len(images))], read, labels, sets[0].classes)

    return opener.open(f"{opener.spec}-{split}", [], make)


def open_imagenet(opener: Opener, path: Path, split: str) -> Images:
    """Opens ImageNet's ``train`` or ``val`` images in a folder with train/ and val/, or with ImageNet's archives.

    Archives are unpacked. Raises ValueError with one line if there is neither.
    """
    if path.is_dir() and not (path / split).is_dir():
        from torchvision import datasets

        try:
            datasets.ImageNet(path, split=split)  # unpacks the archives
        except (OSError, RuntimeError) as error:
            raise ValueError(f"--data {opener.spec}: neither {split}/ nor its archive ({reason(error)})") from None
    return open_folder(opener, path / split)


def voc_detection(spec: str, split: str, year: str, store: Store) -> VOCDetection:
    """Pascal VOC with boxes, downloaded if it is missing. Raises ValueError with one line if that fails."""
    from torchvision import datasets

    return _downloaded_voc(spec, split, year, store, datasets.VOCDetection)


def voc_segmentation(spec: str, split: str, year: str, store: Store) -> VOCSegmentation:
    """Pascal VOC with masks, downloaded if it is missing. Raises ValueError with one line if that fails."""
    from torchvision import datasets

    return _downloaded_voc(spec, split, year, store, datasets.VOCSegmentation)


def _downloaded_voc(spec: str, split: str, year: str, store: Store, dataset: Callable[..., V]) -> V:
    make = functools.partial(dataset, store.downloads, year=year, image_set=split)
    try:  # with download=True torchvision unpacks its archive again at each start
        found = make(download=False)
        if all(os.path.exists(file) for file in found.images):
            return found
    except (OSError, RuntimeError):
        pass
    return _download(spec, store, functools.partial(make, download=True))


def _download(spec: str, store: Store, make: Callable[[], T]) -> T:
    """Calls ``make``, which downloads a set. Raises ValueError with one line if that fails."""
    try:
        return make()
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        raise ValueError(
            f"--data {spec}: torchvision could not download it ({reason(error)}); "
            f"put its archive into {store.downloads} yourself, or name a folder of your own"
        ) from None
