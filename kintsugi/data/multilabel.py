"""Opens images that may show several classes at once: the built-in scenes and VOC2007."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.folders import open_files
from kintsugi.data.image_set import Images, Split
from kintsugi.data.opener import Opener
from kintsugi.data.pairs import VOC_CLASSES, open_pairs
from kintsugi.data.store import Store
from kintsugi.data.torchvision_sets import voc_detection

MULTILABEL = ("scenes", "voc2007")
MIN_FRACTION = 0.002
"""Fraction of a scene's pixels that a class must cover to count as present."""


def open_multilabel(spec: str, size: int, store: Store = Store(), *, scenes: int = 1000) -> Split:
    """Opens images for training (``train``) and testing (``heldout``), labeled with the classes that they show.

    Labels are int64 (N,K): 1 = the class is present, 0 = absent, -1 = unknown (VOC's difficult objects).

    spec: ``scenes`` (``scenes`` built-in scenes of ``size`` px for training, and a quarter as many for testing) or
    ``voc2007`` (trainval and test, downloaded by torchvision, for crops of ``size`` px). Raises ValueError with one
    line if the download fails.
    """
    if spec == "scenes":
        return Split(*(_scenes(split, scenes, size) for split in ("train", "val")))
    opener = Opener(spec, size, store)
    return Split(*(_voc(opener, split) for split in ("trainval", "test")))


def _scenes(split: str, count: int, size: int) -> Images:
    pairs = open_pairs("scenes", split, scenes=count, size=size)
    labels = presence(pairs.targets, len(pairs.classes))

    def read(rows: Sequence[int]) -> list[Pixels]:
        return [pairs.images[row].numpy() for row in rows]

    return Images(Source([f"{split}-{i}" for i in range(len(pairs))], read, labels, pairs.classes))


def presence(semantic: Tensor, classes: int) -> Tensor:
    """Which classes are present in maps, uint8 (N,H,W) -> int64 (N,K): 1 if a class covers ``MIN_FRACTION``, else 0."""
    return torch.stack(
        [
            (one.flatten().long().bincount(minlength=256)[:classes] >= MIN_FRACTION * one.numel()).long()
            for one in semantic
        ]
    )


def _voc(opener: Opener, split: str) -> Images:
    found = voc_detection(opener.spec, split, "2007", opener.store)
    images = open_files(opener, found.images)
    annotations = {Path(image).name: Path(file) for image, file in zip(found.images, found.annotations, strict=True)}
    labels = torch.stack([object_labels(annotations[name]) for name in images.source.names])
    return Images(replace(images.source, labels=labels, classes=VOC_CLASSES[1:]), images.rows)


def object_labels(annotation: Path) -> Tensor:
    """The labels of one image from its VOC annotation, int64 (20,).

    1 = present, 0 = absent, -1 = all objects of the class are difficult (VOC's own protocol).
    """
    labels = torch.zeros(len(VOC_CLASSES) - 1, dtype=torch.int64)
    for thing in ET.parse(annotation).iterfind("object"):
        name = thing.findtext("name", "")
        number = VOC_CLASSES.index(_VOC_NAMES.get(name, name)) - 1
        if thing.findtext("difficult") == "1":
            labels[number] = 1 if labels[number] == 1 else -1
        else:
            labels[number] = 1
    return labels


_VOC_NAMES = {"diningtable": "table", "pottedplant": "plant", "tvmonitor": "tv"}
"""VOC's name of a class -> the shorter one in ``VOC_CLASSES``."""
