"""Images with boxes around their things: VOC2007, folders laid out as VOC, the built-in scenes."""

from __future__ import annotations

import sys
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
from kintsugi.data.images import Opener
from kintsugi.data.pairs import open_scenes
from kintsugi.scenes.classes import CEILING, CLASSES, FLOOR, WALL

SMALLEST = 1 / 16  # of a scene's side: what is narrower is difficult
_STUFF = (WALL, FLOOR, CEILING)
_THINGS = [number for number in range(len(CLASSES)) if number not in _STUFF]


@dataclass(frozen=True)
class Things:
    """What is in an image of ``width`` px: ``boxes`` float (k,4), left, top, right, bottom in px, where pixel (i,j)
    covers [j,j+1) x [i,i+1); ``labels`` int64 (k,), indices into the classes; ``difficult`` bool (k,): neither learned
    nor measured."""

    width: int
    boxes: Tensor
    labels: Tensor
    difficult: Tensor


@dataclass(frozen=True)
class Boxed:
    """Images in a fixed order. ``read``: index -> uint8 (3,H,W) sRGB, of any size."""

    read: Callable[[int], Tensor]
    things: Sequence[Things]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.things)


def open_boxes(spec: str, *, scenes: int = 300, size: int = 128, cache_dir: Path | None = None) -> tuple[Boxed, Boxed]:
    """Images to learn from and to be tried on.

    spec: ``scenes`` (that many of ``size`` px, and a quarter as many to be tried on; their things are all instances but
    walls, floors and ceilings), ``voc2007`` (trainval and test, downloaded by torchvision) or a folder that holds
    JPEGImages/, Annotations/ and ImageSets/Main/{trainval,test}.txt.

    Images whose annotation or file is missing or broken are skipped, counted and named. Raises ValueError of one line
    where the folder lacks a part or nothing is left of it.
    """
    if spec == "scenes":
        return _scenes("train", scenes, size), _scenes("val", scenes, size)
    root = Path(spec).expanduser()
    if spec == "voc2007":
        opener = Opener.of(spec, 1, 1, cache_dir, 0.0, quiet=False)
        for part in ("trainval", "test"):
            root = Path(opener.voc_dataset(part, "2007").images[0]).parents[1]
    train, test = _folder(root, "trainval", spec), _folder(root, "test", spec)
    classes = sorted({name for found in train.values() for name in found.names})
    if unknown := sorted({name for found in test.values() for name in found.names} - set(classes)):
        raise ValueError(f"--data {spec}: {unknown[0]!r} is in the test part alone: there is nothing to learn it from")
    if not all(any(not all(found.difficult) for found in part.values()) for part in (train, test)):
        raise ValueError(f"--data {spec}: trainval or test has not one box that is not difficult")
    return _boxed(train, classes), _boxed(test, classes)


# --- scenes ---------------------------------------------------------------------------------------------------


def _scenes(part: str, count: int, size: int) -> Boxed:
    scenes = open_scenes(part, count, size)
    maps = zip(scenes["instance"], scenes["semantic"], strict=True)
    return Boxed(scenes["image"].__getitem__, [things_of(*each) for each in maps], [CLASSES[i] for i in _THINGS])


def things_of(instance: Tensor, semantic: Tensor) -> Things:
    """The things of a scene's maps (H,W): each instance's box and the class of most of its pixels. Those with a side
    under ``SMALLEST`` of the image's are difficult."""
    ids = instance.unique()
    masks = instance == ids[:, None, None]  # (k,H,W)
    kinds = torch.stack([semantic[mask].long().mode().values for mask in masks])
    chosen = (kinds[:, None] == torch.tensor(_THINGS)).any(1)
    boxes = masks_to_boxes(masks[chosen]) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # torchvision's end in the last pixels
    sides = boxes[:, 2:] - boxes[:, :2]
    labels = (kinds[chosen][:, None] == torch.tensor(_THINGS)).long().argmax(1)
    width = instance.shape[1]
    return Things(width, boxes, labels, (sides < SMALLEST * width).any(1))


# --- folders laid out as VOC ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Annotation:
    width: int
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]


def _folder(root: Path, part: str, spec: str) -> dict[Path, _Annotation]:
    """Image file -> what is in it, in the order of the part's list."""
    listed = root / "ImageSets" / "Main" / f"{part}.txt"
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
            with Image.open(files[name]) as image:  # its head alone
                extent = image.size
            found[files[name]] = _annotation(root / "Annotations" / f"{name}.xml", extent)
        except (OSError, ValueError, SyntaxError) as error:  # XML's errors are a SyntaxError
            skipped.append(f"{name} ({reason(error)})")
    if skipped:
        more = ", ..." if len(skipped) > 3 else ""
        print(
            f"skipped {len(skipped)} of {len(names)} images of {listed}: {', '.join(skipped[:3])}{more}",
            file=sys.stderr,
        )
    if not found:
        raise ValueError(f"--data {spec}: not one image of {listed} has a readable annotation; replace the files")
    return found


def _annotation(file: Path, extent: tuple[int, int]) -> _Annotation:
    """ValueError, OSError or ParseError of one line where the file is not one of VOC's. extent: width, height, px."""
    result = _Annotation(extent[0], [], [], [])
    for thing in ET.parse(file).iterfind("object"):
        said = [thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        name = (thing.findtext("name") or "").strip()
        if not name or None in said:
            raise ValueError("an object without name or box")
        left, top, right, bottom = (float(number or "nan") for number in said)
        # VOC counts pixels from 1 and ends in the last one.
        box = [max(left - 1, 0.0), max(top - 1, 0.0), min(right, extent[0]), min(bottom, extent[1])]
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"the box of a {name} is empty or outside the image")
        result.names.append(name)
        result.boxes.append(box)
        result.difficult.append((thing.findtext("difficult") or "").strip() == "1")
    return result


def _boxed(part: dict[Path, _Annotation], classes: Sequence[str]) -> Boxed:
    things = [
        Things(
            found.width,
            torch.tensor(found.boxes).view(-1, 4),
            torch.tensor([classes.index(name) for name in found.names], dtype=torch.int64),
            torch.tensor(found.difficult, dtype=torch.bool),
        )
        for found in part.values()
    ]
    return Boxed(partial(_read, list(part)), things, classes)


def _read(files: Sequence[Path], index: int) -> Tensor:
    """As it is stored, since that is what boxes are given in. Decoded at each use: boxes forbid the cache's crops."""
    try:
        with Image.open(files[index]) as image:
            return torch.from_numpy(np.array(rgb(image))).permute(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise ValueError(
            f"{files[index]} cannot be read ({reason(error)}): replace it, or take it from ImageSets/Main"
        ) from None
