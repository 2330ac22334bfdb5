"""Opens images with a class for every pixel, held in memory: folders, clips, the built-in scenes, VOC2012."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kintsugi.data.decode import SUFFIXES, reason, rgb
from kintsugi.data.rendered import labeled_scenes
from kintsugi.data.store import Store
from kintsugi.data.torchvision_sets import voc_segmentation
from kintsugi.scenes.classes import CLASSES

VOID = 255
"""The class id of pixels that are ignored."""
VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person plant sheep "
    "sofa train tv"
).split()


@dataclass(frozen=True)
class MaskedImages:
    """Images with masks.

    images: uint8 (N,3,H,W) sRGB. targets: uint8 (N,H,W), indices into ``classes``, 255 = void. Images smaller than the
    largest one are padded below and on the right with 0, their targets with void.
    """

    images: Tensor
    targets: Tensor
    classes: list[str]

    def __len__(self) -> int:
        return len(self.images)


def open_pairs(
    spec: str, split: str, store: Store = Store(), *, void: int = VOID, scenes: int = 400, size: int = 96
) -> MaskedImages:
    """Opens the ``train`` or ``val`` images that ``spec`` names, with their masks.

    spec is one of:

    - ``scenes``: ``scenes`` built-in scenes of ``size`` px for training, and a quarter as many for validation.
    - ``voc2012``: downloaded by torchvision into ``store``'s cache.
    - a folder with {train,val}/{images,masks}. A mask is a PNG of class ids with the name of its image.

    Pixels with the id ``void`` or 255 are ignored. Pairs that cannot be read are skipped and reported. Raises
    ValueError with one line if folders are missing or empty, or masks do not match their images.
    """
    assert split in ("train", "val")
    if spec == "scenes":
        rendered = labeled_scenes(split, scenes, size)
        return MaskedImages(rendered["image"], rendered["semantic"], list(CLASSES))
    if spec == "voc2012":
        voc = voc_segmentation(spec, split, "2012", store)
        return _stacked(((np.asarray(image), np.array(mask)) for image, mask in voc), spec, list(VOC_CLASSES))
    root = Path(spec).expanduser()
    if not (root / split).is_dir():
        raise ValueError(
            f"--data {spec}: no folder {root / split}; make {{train,val}}/{{images,masks}}, or use scenes or voc2012"
        )
    return _stacked(read_pairs(root / split, "images", "masks", partial(_class_ids, void=void), store), spec)


@dataclass(frozen=True)
class MaskedClips(MaskedImages):
    """Frames of clips, with masks.

    clips: the name of each frame's clip. The frames of a clip are consecutive and in order.
    """

    clips: list[str]


def open_clips(spec: str, split: str, store: Store = Store()) -> MaskedClips:
    """Opens the ``train`` or ``val`` frames of a folder of clips, with a mask for each frame.

    The folder holds frames/CLIP/ and masks/CLIP/, with files of the same names. Masks are PNGs, 0 = background, all
    else = foreground. The classes are background and foreground.

    Whole clips are held out for ``val``: a third of them, at least one, those whose names have the lowest SHA-256.
    Frames that cannot be read are skipped and reported. Raises ValueError with one line if folders are missing or
    empty, or masks do not match their frames.
    """
    assert split in ("train", "val")
    root = Path(spec).expanduser()
    frames, masks = (_subfolders(root / name) for name in ("frames", "masks"))
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
    for clip in sorted(ordered[:count] if split == "val" else ordered[count:]):
        pairs += read_pairs(root, f"frames/{clip}", f"masks/{clip}", _foreground, store)
        clips += [clip] * (len(pairs) - len(clips))
    found = _stacked(iter(pairs), spec, ["background", "foreground"])
    return MaskedClips(found.images, found.targets, found.classes, clips)


# --- reading pairs of files -----------------------------------------------------------------------------------

Pair = tuple[np.ndarray, np.ndarray]
"""An image, uint8 (h,w,3), and one number for each of its pixels, (h,w)."""


class WrongKindError(ValueError):
    """A file that is not damaged but of the wrong kind. It is a mistake of the user, so it is not skipped."""


def read_pairs(
    root: Path, images: str, labels: str, read: Callable[[Path], np.ndarray], store: Store
) -> Iterator[Pair]:
    """Reads the pairs in two subfolders of ``root``, matched by file name without suffix.

    images, labels: the subfolders. read: reads a PNG in ``labels`` as numbers, (h,w). Pairs that cannot be read are
    skipped and reported. Raises ValueError with one line if a file has no partner, or the two differ in size.
    """
    pictures, partners = _files(root / images, SUFFIXES), _files(root / labels, {".png"})
    if lonely := sorted(set(pictures) ^ set(partners)):
        raise ValueError(
            f"{root}: {len(lonely)} files in {images} and {labels} have no partner of the same name (the "
            f"first: {lonely[0]}); every image needs its PNG in {labels}"
        )
    skipped = []
    for stem, path in pictures.items():
        try:
            with Image.open(path) as image:
                picture = np.asarray(rgb(ImageOps.exif_transpose(image)))
            values = read(partners[stem])
        except WrongKindError:
            raise
        except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
            skipped.append(f"{stem} ({reason(error)})")
            continue
        if values.shape != picture.shape[:2]:
            raise ValueError(
                f"{partners[stem]} is {values.shape[1]}x{values.shape[0]} px but its image is "
                f"{picture.shape[1]}x{picture.shape[0]}: make them the same size"
            )
        yield picture, values
    if skipped:
        store.report_skipped(str(root), skipped, len(pictures), "pairs")


def stack_padded(pairs: list[Pair], fill: int) -> tuple[Tensor, Tensor]:
    """Stacks pairs: images uint8 (N,3,H,W) and values (N,H,W), where H and W are those of the largest.

    Smaller ones are padded below and on the right, images with 0 and values with ``fill``.
    """
    height, width = (max(values.shape[i] for _, values in pairs) for i in (0, 1))
    images = np.zeros((len(pairs), 3, height, width), np.uint8)
    values = np.full((len(pairs), height, width), fill, pairs[0][1].dtype)
    for i, (picture, value) in enumerate(pairs):
        images[i, :, : value.shape[0], : value.shape[1]] = picture.transpose(2, 0, 1)
        values[i, : value.shape[0], : value.shape[1]] = value
    return torch.from_numpy(images), torch.from_numpy(values)


def _stacked(pairs: Iterator[Pair], spec: str, classes: list[str] | None = None) -> MaskedImages:
    """Stacks pairs as ``MaskedImages``. classes: their names; None = the ids from 0 to the highest that occurs."""
    found = list(pairs)
    if not found:
        raise ValueError(f"--data {spec}: no pair of image and mask can be read; replace the files")
    images, targets = stack_padded(found, VOID)
    if classes is None:
        ids = targets[targets != VOID]
        if len(ids) == 0:
            raise ValueError(f"--data {spec}: the masks hold only void pixels: check --void")
        classes = [str(i) for i in range(int(ids.max()) + 1)]
    return MaskedImages(images, targets, classes)


def _subfolders(folder: Path) -> list[str]:
    """The names of the subfolders, sorted. Hidden ones are left out."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: make frames/CLIP/ and masks/CLIP/")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """The files with one of the suffixes: name without suffix -> path, sorted. Hidden files are left out."""
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


def _class_ids(path: Path, void: int) -> np.ndarray:
    """Reads a mask of class ids, uint8 (h,w). The id ``void`` becomes 255."""
    with Image.open(path) as mask:
        ids, mode = np.array(mask), mask.mode
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise WrongKindError(f"{path} is not a mask of class ids: it must have one 8-bit channel, not mode {mode}")
    ids[ids == void] = VOID
    return ids


def _foreground(path: Path) -> np.ndarray:
    """Reads a mask of foreground and background, uint8 (h,w): 1 = foreground, 0 = background."""
    with Image.open(path) as mask:
        values, mode = np.array(mask), mask.mode
    if values.ndim != 2:
        raise WrongKindError(f"{path} is not a mask: it must have one channel, 0 = background, not mode {mode}")
    return (values != 0).astype(np.uint8)
