"""Images in which several classes are present together: the built-in scenes and VOC2007."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.images import Images, Opener, Split
from kintsugi.data.pairs import VOC_CLASSES, open_pairs

MULTILABEL = ("scenes", "voc2007")
LEAST = 0.002  # part of a scene's pixels that a class must have to be present


def open_multilabel(
    spec: str, size: int, *, scenes: int = 1000, cache_dir: Path | None = None, quiet: bool = False
) -> Split:
    """Images to learn from and to be tried on; their labels are int64 (N,K), 1 = the class is present, 0 = it is not,
    -1 = unknown (of VOC's difficult objects).

    spec: ``scenes``, that many of the built-in ones and a quarter as many to be tried on, or ``voc2007`` (trainval and
    test, downloaded by torchvision). ValueError of one line where it cannot be had.
    """
    if spec == "scenes":
        return Split(*(_scenes(part, scenes, size) for part in ("train", "val")))
    opener = Opener.of(spec, size, 0, cache_dir, 8.0, quiet)
    return Split(*(_voc(opener, part) for part in ("trainval", "test")))


def _scenes(part: str, count: int, size: int) -> Images:
    pairs = open_pairs("scenes", part, scenes=count, size=size)
    labels = presence(pairs.targets, len(pairs.classes))

    def read(rows: list[int]) -> list[Pixels]:
        return [pairs.images[row].numpy() for row in rows]

    return Images(Source([f"{part}-{i}" for i in range(len(pairs))], read, labels, pairs.classes))  # type: ignore[arg-type]


def presence(semantic: Tensor, classes: int) -> Tensor:
    """Maps uint8 (N,H,W) -> int64 (N,K): 1 where a class has at least ``LEAST`` of the pixels."""
    return torch.stack(
        [(one.flatten().long().bincount(minlength=256)[:classes] >= LEAST * one.numel()).long() for one in semantic]
    )


def _voc(opener: Opener, part: str) -> Images:
    found = opener.voc_dataset(part, "2007")
    images = opener.files(found.images)
    annotations = {Path(image).name: Path(file) for image, file in zip(found.images, found.annotations, strict=True)}
    labels = torch.stack([objects(annotations[name]) for name in images.source.names])
    return Images(replace(images.source, labels=labels, classes=VOC_CLASSES[1:]), images.rows)


def objects(annotation: Path) -> Tensor:
    """An annotation's classes, int64 (20,): present, absent, or -1 where all that is there of it is difficult (VOC's
    own protocol)."""
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
"""VOC's names where ``VOC_CLASSES`` has shorter ones."""
