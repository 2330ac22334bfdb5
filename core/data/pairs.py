"""Images with a class for every pixel: folders, the built-in scenes, VOC2012; held in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import VOCSegmentation

from core.data.decode import rgb
from core.data.images import SUFFIXES
from core.data.rooms import CLASSES

VOID = 255
VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person plant sheep "
    "sofa train tv"
).split()


@dataclass(frozen=True)
class Pairs:
    """``images`` uint8 (N,3,H,W), ``targets`` uint8 (N,H,W): indices into ``classes``, 255 = void.

    Smaller images are padded below and to the right, with 0 and with void.
    """

    images: Tensor
    targets: Tensor
    classes: list[str]

    def __len__(self) -> int:
        return len(self.images)


def open_pairs(spec: str, part: str, *, void: int = VOID, scenes: int = 400, size: int = 96) -> Pairs:
    """The ``train`` or ``val`` part of what ``spec`` names.

    spec: ``scenes`` (that many for training and a quarter for validation, ``size`` px), ``voc2012`` (downloaded by
    torchvision) or a folder with {train,val}/{images,masks}, where a mask is a PNG of class ids named as its image.
    The id ``void`` counts for nothing, nor does 255. Pairs that cannot be read are skipped, counted and named.

    Raises ValueError of one line for folders that are missing, empty, or whose masks do not match.
    """
    assert part in ("train", "val")
    if spec == "scenes":
        return _scenes(
            range(scenes) if part == "train" else range(scenes, scenes + max(1, scenes // 4)), size
        )
    if spec == "voc2012":
        return _stacked(_voc(part), list(VOC_CLASSES), "voc2012")
    root = Path(spec).expanduser() / part
    for folder in (root / "images", root / "masks"):
        if not folder.is_dir():
            raise ValueError(
                f"--data {spec}: no folder {folder}; make {{train,val}}/{{images,masks}}, or use scenes or voc2012"
            )
    pairs = _stacked(_folder(root, void), [], spec)
    ids = pairs.targets[pairs.targets != VOID]
    if len(ids) == 0:
        raise ValueError(f"--data {spec}: the masks in {root / 'masks'} hold nothing but void")
    return Pairs(pairs.images, pairs.targets, [str(i) for i in range(int(ids.max()) + 1)])


Pair = tuple[np.ndarray, np.ndarray]


def _scenes(indices: range, size: int) -> Pairs:
    from core.data.scenes import render

    rendered = render(1, torch.tensor(indices), size)  # another seed than pre-training's
    return Pairs((255 * rendered["image"]).round().byte(), rendered["semantic"], list(CLASSES))


def _folder(root: Path, void: int) -> Iterator[Pair]:
    images = {p.stem: p for p in sorted((root / "images").iterdir()) if p.suffix.lower() in SUFFIXES}
    masks = {p.stem: p for p in sorted((root / "masks").iterdir()) if p.suffix.lower() == ".png"}
    if not images:
        raise ValueError(f"{root / 'images'} holds no images ({', '.join(sorted(SUFFIXES))})")
    if lonely := sorted(set(images) ^ set(masks)):
        raise ValueError(f"{root}: {len(lonely)} images and masks have no partner of the same name (the first: "
                         f"{lonely[0]}); every image needs a PNG mask")  # fmt: skip
    skipped = []
    for stem, path in images.items():
        try:
            with Image.open(path) as image, Image.open(masks[stem]) as mask:
                picture, ids = np.asarray(rgb(image)), np.array(mask)
        except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
            skipped.append(f"{stem} ({' '.join(str(error).split())[:80]})")
            continue
        if ids.ndim != 2 or ids.dtype != np.uint8:
            raise ValueError(
                f"{masks[stem]} is no mask of class ids: it must have one 8-bit channel, not mode {mask.mode}"
            )
        if ids.shape != picture.shape[:2]:
            raise ValueError(f"{masks[stem]} is {ids.shape[1]}x{ids.shape[0]} px but its image is "
                             f"{picture.shape[1]}x{picture.shape[0]}: make them the same size")  # fmt: skip
        ids[ids == void] = VOID
        yield picture, ids
    if skipped:
        print(
            f"skipped {len(skipped)} of {len(images)} pairs in {root}: {', '.join(skipped[:3])}",
            file=sys.stderr,
        )


def _voc(part: str) -> Iterator[Pair]:
    root = Path(os.environ.get("KINTSUGI_CACHE") or Path.home() / ".cache" / "kintsugi") / "torchvision"
    try:
        dataset = VOCSegmentation(root, image_set=part, download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"--data voc2012: could not be downloaded to {root} ({error}); fetch it there by other means, "
                         "or use a folder") from None  # fmt: skip
    for image, mask in dataset:
        yield np.asarray(image), np.array(mask)


def _stacked(pairs: Iterator[Pair], classes: list[str], spec: str) -> Pairs:
    found = list(pairs)
    if not found:
        raise ValueError(f"--data {spec}: not one pair of image and mask can be read")
    height, width = (max(mask.shape[i] for _, mask in found) for i in (0, 1))
    images = torch.zeros(len(found), 3, height, width, dtype=torch.uint8)
    targets = torch.full((len(found), height, width), VOID, dtype=torch.uint8)
    for i, (picture, mask) in enumerate(found):
        images[i, :, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(picture.copy()).permute(2, 0, 1)
        targets[i, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
    return Pairs(images, targets, classes)
