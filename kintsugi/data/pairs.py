"""Images with a class or a depth for every pixel: folders, clips, the built-in scenes, VOC2012; held in memory."""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.datasets import VOCSegmentation

from kintsugi.data.decode import SUFFIXES, reason, rgb
from kintsugi.scenes.classes import CLASSES

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
        rendered = open_scenes(part, scenes, size)
        return Pairs(rendered["image"], rendered["semantic"], list(CLASSES))
    if spec == "voc2012":
        return _stacked(_voc(part), spec, list(VOC_CLASSES))
    root = Path(spec).expanduser()
    if not (root / part).is_dir():
        raise ValueError(
            f"--data {spec}: no folder {root / part}; make {{train,val}}/{{images,masks}}, or use scenes or voc2012"
        )
    return _stacked(_folder(root / part, "images", "masks", partial(_ids, void=void)), spec)


@functools.lru_cache(4)  # several tasks ask for the same
def open_scenes(part: str, count: int, size: int) -> dict[str, Tensor]:
    """The ``count`` built-in scenes for training, or a quarter as many others for ``val``: what
    ``kintsugi.scenes.rendering.render`` gives, but image uint8; of another seed than pre-training's."""
    from kintsugi.scenes.rendering import render  # here, because only those who use them pay for the import

    indices = torch.arange(count) if part == "train" else torch.arange(count, count + max(1, count // 4))
    rendered = render(1, indices, size)
    return rendered | {"image": (255 * rendered["image"]).round().byte()}


@dataclass(frozen=True)
class Clips(Pairs):
    """``clips``: the name of the clip of each frame; a clip's frames are in order, one after the other."""

    clips: list[str]


def open_clips(spec: str, part: str) -> Clips:
    """Frames of the ``train`` or ``val`` part of a folder of clips: frames/CLIP/ and masks/CLIP/, of PNGs with the same
    names, where 0 is background and all else foreground. Classes: background, foreground.

    Whole clips are held out for ``val``: a third, at least one, those whose names have the lowest SHA-256. Frames that
    cannot be read are skipped, counted and named.

    Raises ValueError of one line for folders that are missing or empty, and for masks that do not match.
    """
    assert part in ("train", "val")
    root = Path(spec).expanduser()
    frames, masks = (_folders(root / name) for name in ("frames", "masks"))
    if lonely := sorted(set(frames) ^ set(masks)):
        raise ValueError(
            f"--data {spec}: {len(lonely)} clips are in only one of frames and masks (the first: "
            f"{lonely[0]}); every clip needs a folder in both"
        )
    if len(frames) < 2:
        raise ValueError(
            f"--data {spec}: {len(frames)} clips are not enough, because whole clips are held out; use at least 2"
        )
    ordered = sorted(frames, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    count = max(1, len(ordered) // 3)
    pairs: list[Pair] = []
    clips: list[str] = []
    for clip in sorted(ordered[:count] if part == "val" else ordered[count:]):
        pairs += _folder(root, f"frames/{clip}", f"masks/{clip}", _foreground)
        clips += [clip] * (len(pairs) - len(clips))
    found = _stacked(iter(pairs), spec, ["background", "foreground"])
    return Clips(found.images, found.targets, found.classes, clips)


@dataclass(frozen=True)
class Rgbd:
    """``images`` uint8 (N,3,H,W) sRGB; ``depth`` float (N,1,H,W), meters along the camera's axis, 0 = missing.

    ``intrinsics`` (3,3), px; ``gravity`` (3,) unit, camera axes (x right, y down, z forward), pointing down, or None.
    """

    images: Tensor
    depth: Tensor
    intrinsics: Tensor
    gravity: Tensor | None

    def __len__(self) -> int:
        return len(self.images)


def open_rgbd(folder: Path) -> Rgbd:
    """Frames of one camera: rgb/, depth/ (16-bit PNGs in millimeters, named as the images), intrinsics.txt (3x3) and,
    where it is known, gravity.txt (3 numbers).

    Pairs that cannot be read are skipped, counted and named. ValueError of one line for what is missing or does not
    match.
    """
    intrinsics = read_intrinsics(folder)
    gravity = None
    if (folder / "gravity.txt").exists():
        gravity = normalize(read_numbers(folder / "gravity.txt", 3), dim=0)
    pairs = list(_folder(folder, "rgb", "depth", _millimeters))
    if not pairs:
        raise ValueError(f"{folder}: not one pair of image and depth can be read; replace the files")
    images, depth = _padded(pairs, fill=0)
    return Rgbd(images, depth[:, None].float() / 1000, intrinsics, gravity)


def read_intrinsics(folder: Path) -> Tensor:
    """The camera's matrix in ``folder``/intrinsics.txt, (3,3). ValueError of one line where it is none."""
    matrix = read_numbers(folder / "intrinsics.txt", 9).view(3, 3)
    fx, fy = matrix[0, 0].item(), matrix[1, 1].item()
    if min(fx, fy) <= 0:
        raise ValueError(
            f"{folder / 'intrinsics.txt'}: the focal lengths are {fx:g} and {fy:g} px, not above 0: "
            "write fx 0 cx, 0 fy cy, 0 0 1"
        )
    return matrix


def read_numbers(path: Path, count: int) -> Tensor:
    """A text file of ``count`` numbers, float (count,). ValueError of one line where it is none."""
    try:
        values = np.array(path.read_text().split(), np.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({reason(error)}): write {count} numbers into it") from None
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{path} holds {len(values)} values, not {count} numbers: write those into it")
    return torch.from_numpy(values)


Pair = tuple[np.ndarray, np.ndarray]
"""An image (h,w,3) uint8 and what is said of its pixels, (h,w)."""


def _folder(root: Path, images: str, masks: str, read: Callable[[Path], np.ndarray]) -> Iterator[Pair]:
    """The pairs of two subfolders, by name without suffix; ``read`` makes (h,w) of a mask's file."""
    pictures, partners = _files(root / images, SUFFIXES), _files(root / masks, {".png"})
    if lonely := sorted(set(pictures) ^ set(partners)):
        raise ValueError(
            f"{root}: {len(lonely)} files in {images} and {masks} have no partner of the same name (the "
            f"first: {lonely[0]}); every image needs its PNG in {masks}"
        )
    skipped = []
    for stem, path in pictures.items():
        try:
            with Image.open(path) as image:
                picture = np.asarray(rgb(ImageOps.exif_transpose(image)))
            values = read(partners[stem])
        except _Unfit:
            raise
        except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
            skipped.append(f"{stem} ({reason(error)})")
            continue
        if values.shape != picture.shape[:2]:
            raise ValueError(
                f"{partners[stem]} is {values.shape[1]}x{values.shape[0]} px but its image is "
                f"{picture.shape[1]}x{picture.shape[0]}: make them the same size"
            )
        yield picture, values
    if skipped:
        more = ", ..." if len(skipped) > 3 else ""
        print(
            f"skipped {len(skipped)} of {len(pictures)} pairs in {root}: {', '.join(skipped[:3])}{more}",
            file=sys.stderr,
        )


def _folders(folder: Path) -> list[str]:
    """Names of its subfolders. Hidden ones are left out."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: make frames/CLIP/ and masks/CLIP/")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Name without suffix -> file, sorted. Hidden files are left out."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: make it, or name a folder that has {folder.name}/")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(f"{folder} has both {found[path.stem].name} and {path.name}: remove one")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(suffixes))}): put them there")
    return found


class _Unfit(ValueError):
    """A file that is whole, but of the wrong kind: the user's mistake, unlike damage."""


def _ids(path: Path, void: int) -> np.ndarray:
    with Image.open(path) as mask:
        ids, mode = np.array(mask), mask.mode
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise _Unfit(f"{path} is no mask of class ids: it must have one 8-bit channel, not mode {mode}")
    ids[ids == void] = VOID
    return ids


def _foreground(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        values, mode = np.array(mask), mask.mode
    if values.ndim != 2:
        raise _Unfit(f"{path} is no mask: it must have one channel, 0 = background, not mode {mode}")
    return (values != 0).astype(np.uint8)


def _millimeters(path: Path) -> np.ndarray:
    with Image.open(path) as depth:
        values, mode = np.array(depth), depth.mode
    if values.ndim != 2 or not mode.startswith("I"):
        raise _Unfit(f"{path} is no depth: it must be a 16-bit PNG in millimeters, not mode {mode}")
    return values.astype(np.int32)


def _voc(part: str) -> Iterator[Pair]:
    root = Path(os.environ.get("KINTSUGI_CACHE") or "~/.cache/kintsugi").expanduser() / "torchvision"
    try:
        try:  # torchvision unpacks its archive whenever it is told to download, so it is told only if need be
            dataset = VOCSegmentation(root, image_set=part, download=False)
        except RuntimeError:
            dataset = VOCSegmentation(root, image_set=part, download=True)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        raise ValueError(
            f"--data voc2012: torchvision could not download it ({reason(error)}); put its archive into {root} "
            "yourself, or name a folder with {train,val}/{images,masks}"
        ) from None
    for image, mask in dataset:
        yield np.asarray(image), np.array(mask)


def _stacked(pairs: Iterator[Pair], spec: str, classes: list[str] | None = None) -> Pairs:
    """``classes``: None = the ids that occur, up to the highest."""
    found = list(pairs)
    if not found:
        raise ValueError(f"--data {spec}: not one pair of image and mask can be read; replace the files")
    images, targets = _padded(found, VOID)
    if classes is None:
        ids = targets[targets != VOID]
        if len(ids) == 0:
            raise ValueError(f"--data {spec}: the masks hold nothing but void; is --void right?")
        classes = [str(i) for i in range(int(ids.max()) + 1)]
    return Pairs(images, targets, classes)


def _padded(pairs: list[Pair], fill: int) -> tuple[Tensor, Tensor]:
    """Images (N,3,H,W), padded with 0, and values (N,H,W), padded with ``fill``, below and to the right."""
    height, width = (max(values.shape[i] for _, values in pairs) for i in (0, 1))
    images = np.zeros((len(pairs), 3, height, width), np.uint8)
    values = np.full((len(pairs), height, width), fill, pairs[0][1].dtype)
    for i, (picture, value) in enumerate(pairs):
        images[i, :, : value.shape[0], : value.shape[1]] = picture.transpose(2, 0, 1)
        values[i, : value.shape[0], : value.shape[1]] = value
    return torch.from_numpy(images), torch.from_numpy(values)
