"""Images with boxes around their objects: VOC2007, folders laid out as VOC, the built-in scenes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from kintsugi.data.decode import SUFFIXES, reason, rgb
from kintsugi.data.rendered import labeled_scenes
from kintsugi.data.store import Store
from kintsugi.data.torchvision_sets import voc_detection
from kintsugi.scenes.classes import CEILING, CLASSES, FLOOR, WALL

MIN_SIDE = 1 / 16
"""Fraction of a scene's side. An object is marked difficult if a side of its box is shorter."""
_STUFF = (WALL, FLOOR, CEILING)  # classes that have no boxes
_THINGS = [number for number in range(len(CLASSES)) if number not in _STUFF]


@dataclass(frozen=True)
class Things:
    """The objects in one image, which is ``width`` px wide.

    boxes: float (k,4), left, top, right, bottom in px, where pixel (i,j) covers [j,j+1) x [i,i+1). labels: int64 (k,),
    indices into the classes. difficult: bool (k,), objects to leave out of training and of the figures.
    """

    width: int
    boxes: Tensor
    labels: Tensor
    difficult: Tensor


@dataclass(frozen=True)
class Boxed:
    """Images with boxes, in a fixed order.

    read: index -> the image, uint8 (3,H,W) sRGB, of any size. things: the objects in each image. classes: the names of
    the classes.
    """

    read: Callable[[int], Tensor]
    things: Sequence[Things]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.things)


def open_boxes(spec: str, store: Store = Store(), *, scenes: int = 300, size: int = 128) -> tuple[Boxed, Boxed]:
    """Opens images with boxes: a set for training and a set for testing.

    spec is one of:

    - ``scenes``: ``scenes`` built-in scenes of ``size`` px for training, and a quarter as many for testing. Every
      instance is an object, except walls, floors and ceilings.
    - ``voc2007``: trainval and test, downloaded by torchvision into ``store``'s cache.
    - a folder that holds JPEGImages/, Annotations/ and ImageSets/Main/{trainval,test}.txt.

    Images whose annotation or file is missing or damaged are skipped and reported. Raises ValueError with one line if
    the folder is incomplete, if no image is left, or if the test images have a class that the training images lack.
    """
    if spec == "scenes":
        return _scenes("train", scenes, size), _scenes("val", scenes, size)
    root = Path(spec).expanduser()
    if spec == "voc2007":
        for split in ("trainval", "test"):
            root = Path(voc_detection(spec, split, "2007", store).images[0]).parents[1]
    train, test = _folder(root, "trainval", spec, store), _folder(root, "test", spec, store)
    classes = sorted({name for found in train.values() for name in found.names})
    if unknown := sorted({name for found in test.values() for name in found.names} - set(classes)):
        raise ValueError(f"--data {spec}: {unknown[0]!r} is only in the test images: add it to the training images")
    if not all(any(not all(found.difficult) for found in split.values()) for split in (train, test)):
        raise ValueError(f"--data {spec}: all boxes of trainval or of test are difficult: add others")
    return _boxed(train, classes), _boxed(test, classes)


# --- scenes ---------------------------------------------------------------------------------------------------


def _scenes(split: str, count: int, size: int) -> Boxed:
    scenes = labeled_scenes(split, count, size)
    maps = zip(scenes["instance"], scenes["semantic"], strict=True)
    return Boxed(scenes["image"].__getitem__, [things_of(*each) for each in maps], [CLASSES[i] for i in _THINGS])


def things_of(instance: Tensor, semantic: Tensor) -> Things:
    """The objects in a scene's maps ``instance`` and ``semantic``, (H,W) each.

    Each instance gives one object: its box, and the class of most of its pixels. An object is difficult if a side of
    its box is shorter than ``MIN_SIDE`` of the image's width.
    """
    ids = instance.unique()
    masks = instance == ids[:, None, None]  # (k,H,W)
    kinds = torch.stack([semantic[mask].long().mode().values for mask in masks])
    chosen = (kinds[:, None] == torch.tensor(_THINGS)).any(1)
    # torchvision's boxes end at the last pixel's index, these one further.
    boxes = masks_to_boxes(masks[chosen]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    sides = boxes[:, 2:] - boxes[:, :2]
    labels = (kinds[chosen][:, None] == torch.tensor(_THINGS)).long().argmax(1)
    width = instance.shape[1]
    return Things(width, boxes, labels, (sides < MIN_SIDE * width).any(1))


# --- folders laid out as VOC ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Annotation:
    width: int
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]


def _folder(root: Path, split: str, spec: str, store: Store) -> dict[Path, _Annotation]:
    """Reads the annotations of a split: image file -> annotation, in the order of the split's list.

    Images that are missing or have no readable annotation are left out and reported.
    """
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    for needed in (root, root / "JPEGImages", root / "Annotations", listed):
        if not needed.exists():
            raise ValueError(
                f"--data {spec}: no {needed}; name a folder with JPEGImages/, Annotations/ and "
                "ImageSets/Main/{trainval,test}.txt, or scenes or voc2007"
            )
    files = {path.stem: path for path in (root / "JPEGImages").iterdir() if path.suffix.lower() in SUFFIXES}
    names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
    found, skipped = {}, []
    for name in names:
        try:
            if name not in files:
                raise ValueError("no such image in JPEGImages")
            with Image.open(files[name]) as image:  # reads the header only
                extent = image.size
            found[files[name]] = _annotation(root / "Annotations" / f"{name}.xml", extent)
        except (OSError, ValueError, SyntaxError) as error:  # an XML ParseError is a SyntaxError
            skipped.append(f"{name} ({reason(error)})")
    if skipped:
        store.report_skipped(str(listed), skipped, len(names), "images")
    if not found:
        raise ValueError(f"--data {spec}: no image of {listed} has a readable annotation; replace the files")
    return found


def _annotation(file: Path, extent: tuple[int, int]) -> _Annotation:
    """Reads one of VOC's XML files. extent: width and height of the image, px.

    Raises ValueError, OSError or ParseError, with one line, if the file cannot be read or an object lacks a name or a
    valid box.
    """
    result = _Annotation(extent[0], [], [], [])
    for thing in ET.parse(file).iterfind("object"):
        corners = [thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        name = (thing.findtext("name") or "").strip()
        if not name or None in corners:
            raise ValueError("an object without name or box")
        left, top, right, bottom = (float(number or "nan") for number in corners)
        # VOC counts pixels from 1, and its boxes end in the last pixel.
        box = [max(left - 1, 0.0), max(top - 1, 0.0), min(right, extent[0]), min(bottom, extent[1])]
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"the box of a {name} is empty or outside the image")
        result.names.append(name)
        result.boxes.append(box)
        result.difficult.append((thing.findtext("difficult") or "").strip() == "1")
    return result


def _boxed(split: dict[Path, _Annotation], classes: Sequence[str]) -> Boxed:
    things = [
        Things(
            found.width,
            torch.tensor(found.boxes).view(-1, 4),
            torch.tensor([classes.index(name) for name in found.names], dtype=torch.int64),
            torch.tensor(found.difficult, dtype=torch.bool),
        )
        for found in split.values()
    ]
    return Boxed(partial(_read, list(split)), things, classes)


def _read(files: Sequence[Path], index: int) -> Tensor:
    """Reads an image at its own size, to which its boxes refer. It is decoded at each use; the cache holds cropped
    images."""
    try:
        with Image.open(files[index]) as image:
            return torch.from_numpy(np.array(rgb(image))).permute(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise ValueError(
            f"{files[index]} cannot be read ({reason(error)}): replace it, or take it from ImageSets/Main"
        ) from None
