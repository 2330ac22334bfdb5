"""Images to learn from: any folder, torchvision's sets, the built-in scenes; decoded once, split, read in batches."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets

from core.data import cache
from core.data.cache import Pixels, Source

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"))
HELDOUT = 0.05  # part of the images that training never sees
MOST_HELDOUT = 1024
MOST_PIXELS = 178_956_970  # beyond it Pillow takes a file for a decompression bomb

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is Pillow's own error


class Images:
    """A set of images, read in batches. ``labels`` (N,) int64 are indices into ``classes``, -1 where unknown."""

    def __init__(
        self, names: list[str], labels: Tensor | None, classes: list[str], read: cache.Reader, rows: Tensor
    ) -> None:
        self.rows = rows  # which of the reader's images are in this set
        self.names = [names[row] for row in rows.tolist()]
        self.labels = None if labels is None else labels[rows]
        self.classes = classes
        self._all = (names, labels, read)

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Tensor) -> Images:
        names, labels, read = self._all
        return Images(names, labels, self.classes, read, self.rows[indices])

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Images uint8 (n,3,H,W), padded with 0 right and below to the batch's largest; ``extent`` int64 (n,2), the
        height and width of each; ``index`` (n,); ``label`` (n,) where there are any."""
        pictures = self._readable(indices.tolist())
        extent = torch.tensor([picture.shape[:2] for picture in pictures])  # (n,2)
        height, width = extent.amax(0).tolist()
        canvas = torch.zeros(len(pictures), height, width, 3, dtype=torch.uint8)
        for place, picture in zip(canvas.numpy(), pictures, strict=True):
            place[: picture.shape[0], : picture.shape[1]] = picture
        batch = {"image": canvas.permute(0, 3, 1, 2), "extent": extent, "index": indices}
        if self.labels is not None:
            batch["label"] = self.labels[indices]
        return batch

    def _readable(self, indices: list[int]) -> list[np.ndarray]:
        """The images; one that cannot be read (only met where they are decoded at each use) gives way to the next."""
        read = self._all[2]
        pictures: list[Pixels] = read(self.rows[indices].tolist())
        for place, index in enumerate(indices):
            for step in range(1, len(self) + 1):
                if not isinstance(pictures[place], str):
                    break
                pictures[place] = read([int(self.rows[(index + step) % len(self)])])[0]
        if broken := [p for p in pictures if isinstance(p, str)]:
            raise ValueError(f"no image can be read any more ({broken[0]}): are the files still there?")
        return [p for p in pictures if not isinstance(p, str)]


@dataclass(frozen=True)
class Split:
    train: Images
    heldout: Images


def open_images(
    spec: str, size: int, *, short_side: int = 0, scenes: int = 4096, cache_dir: Path | None = None,
    cache_gb: float = 8.0, device: str = "cpu", quiet: bool = False,
) -> Split:  # fmt: skip
    """The images that ``spec`` names, for crops of ``size`` px.

    spec: ``scenes`` (that many, rendered on ``device``), a folder of images (searched recursively; subfolders are
    classes), ``cifar10``, ``stl10``, ``voc2012`` (downloaded by torchvision) or ``imagenet:PATH``. Images are stored
    with a short side of ``short_side``, default 1.5 times ``size``, never enlarged; the long side is cut to at most
    twice that. Those under ``size`` px and those that cannot be read are skipped, counted and named once. About 5 %
    (by a hash of the name, so that adding images moves none) are held out; torchvision's sets have their own split.

    Raises ValueError of one line where nothing is left, OSError where the cache cannot be written.
    """
    short_side = max(short_side or round(1.5 * size), size)
    root = (
        cache_dir or Path(os.environ.get("KINTSUGI_CACHE") or Path.home() / ".cache" / "kintsugi")
    ).expanduser()
    opened = partial(_open, root=root, limit=cache_gb * 1e9, quiet=quiet)
    if spec == "scenes":
        return _split(opened(*_scenes(scenes, short_side, device), title=f"rendering {scenes} scenes"))
    shrink = partial(_stored, size=size, short_side=short_side)
    title = f"decoding {spec}"
    if spec.startswith("imagenet:"):
        path = Path(spec.removeprefix("imagenet:")).expanduser()
        train, val = (opened(*_folder(path / part, shrink), title=title) for part in ("train", "val"))
        return Split(train, val.subset(torch.arange(min(len(val), MOST_HELDOUT))))
    if spec in ("cifar10", "stl10", "voc2012"):
        train, val = (
            opened(*_torchvision(spec, part, root, shrink), title=title) for part in ("train", "test")
        )
        return Split(train, val.subset(torch.arange(min(len(val), MOST_HELDOUT))))
    return _split(opened(*_folder(Path(spec).expanduser(), shrink), title=title))


def _open(source: Source, key: object, *, root: Path, limit: float, quiet: bool, title: str) -> Images:
    """The source's images from the cache, where they are put first if need be."""
    digest = hashlib.sha256(json.dumps([cache.FORMAT, key]).encode()).hexdigest()[:24]
    folder = root / "images" / digest
    decoded: cache.Decoded | str | None = cache.load(folder)
    try:
        if decoded is None and not cache.exceeds(source, limit):
            decoded = cache.build(folder, source, limit, title, quiet)
    except OSError as error:
        raise OSError(f"cannot keep decoded images in {root} ({error.strerror or error}): free some space, or choose "
                      "another place with --cache") from None  # fmt: skip
    if decoded is None:
        print(f"{title.removeprefix('decoding ')}: over {limit / 1e9:g} GB decoded, so images are decoded at each use; "
              "a larger --cache-gb keeps them", file=sys.stderr)  # fmt: skip
        labels = None if source.labels is None else torch.tensor(source.labels)
        names = list(source.names)
        return Images(names, labels, list(source.classes), source.read, torch.arange(len(names)))
    if isinstance(decoded, str):
        raise ValueError(f"{title.removeprefix('decoding ')}: none of its {len(source.names)} images can be used; "
                         f"the first, {decoded}")  # fmt: skip
    if decoded.skipped and not quiet:
        _report(decoded.skipped, len(source.names), folder / "skipped.txt")
    rows = torch.arange(len(decoded.names))
    return Images(decoded.names, decoded.labels, decoded.classes, decoded.read, rows)


def _report(skipped: list[tuple[str, str]], count: int, file: Path) -> None:
    listed = "".join(f"{name!r}: {reason}\n" for name, reason in skipped)
    if not file.exists():
        file.write_text(listed)
    shown = ", ".join(f"{name!r} ({reason})" for name, reason in skipped[:3])
    more = f" and {len(skipped) - 3} more, all listed in {file}" if len(skipped) > 3 else ""
    print(f"skipped {len(skipped)} of {count} images: {shown}{more}", file=sys.stderr)


def _split(images: Images) -> Split:
    """Held out are the images whose names hash lowest, about ``HELDOUT`` of them, at least one."""
    if len(images) < 2:
        raise ValueError(
            f"one image alone ({images.names[0]!r}) cannot be split into training and held-out ones: add more"
        )
    hashes = torch.tensor([zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in images.names])
    chosen = (hashes < HELDOUT * 2**32).nonzero()[:, 0][:MOST_HELDOUT]
    if not 0 < len(chosen) < len(images):
        chosen = hashes.argmin()[None]
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[chosen] = False
    return Split(images.subset(kept.nonzero()[:, 0]), images.subset(chosen))


# --- sources --------------------------------------------------------------------------------------------------


def _scenes(count: int, side: int, device: str) -> tuple[Source, object]:
    import core.data.scenes as scenes  # here, because only those who use them pay for the import

    def read(rows: Sequence[int]) -> list[Pixels]:
        image = scenes.render(0, torch.tensor(rows), side, device)["image"]
        return list((255 * image).round().byte().permute(0, 2, 3, 1).cpu().numpy())

    # Another renderer makes other scenes.
    code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in scenes.SOURCE_FILES]
    return Source([f"scene-{i}" for i in range(count)], read, chunk=64), ["scenes", count, side, code]


def _folder(root: Path, shrink: Callable[[Image.Image], Pixels]) -> tuple[Source, object]:
    if not root.is_dir():
        raise ValueError(f"--data {root}: no such folder; name a folder of images, or scenes, cifar10, stl10, voc2012, "
                         "imagenet:PATH")  # fmt: skip
    found = sorted(_walk(root))
    if not found:
        raise ValueError(f"--data {root}: the folder holds no images ({', '.join(sorted(SUFFIXES))})")
    names = [name for name, _, _ in found]
    tops = [name.split(os.sep)[0] for name in names]
    classes = sorted(set(tops)) if all(os.sep in name for name in names) else []
    numbers = {name: i for i, name in enumerate(classes)}
    labels = [numbers[top] for top in tops] if len(classes) > 1 else None
    pool = ThreadPoolExecutor(
        os.cpu_count(), thread_name_prefix="decode"
    )  # Pillow decodes without Python's lock

    def read_one(row: int) -> Pixels:
        return decode(root / names[row], shrink)

    def read(rows: Sequence[int]) -> list[Pixels]:
        return list(pool.map(read_one, rows))

    source = Source(names, read, labels, classes if labels else [])
    return source, ["folder", str(root.resolve()), [list(entry) for entry in found], repr(shrink.keywords)]  # type: ignore[attr-defined]


def _walk(root: Path) -> Iterator[tuple[str, int, int]]:
    """Image files below ``root``: relative name, size, time of change. Links are followed, loops only once."""
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        here = os.stat(root / folder)
        if (here.st_dev, here.st_ino) in seen:
            continue
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                    stat = entry.stat()
                    yield name, stat.st_size, stat.st_mtime_ns


def _torchvision(
    name: str, part: str, root: Path, shrink: Callable[[Image.Image], Pixels]
) -> tuple[Source, object]:
    place, train = root / "torchvision", part == "train"
    try:
        if name == "cifar10":
            dataset = datasets.CIFAR10(place, train=train, download=True)
        elif name == "stl10":
            dataset = datasets.STL10(place, split="unlabeled" if train else "test", download=True)
        else:
            dataset = datasets.VOCDetection(place, image_set="train" if train else "val", download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"--data {name}: could not be downloaded to {place} ({error}); fetch it there by other means, "
                         "or use a folder of images") from None  # fmt: skip

    def read(rows: Sequence[int]) -> list[Pixels]:
        return [shrink(dataset[row][0]) for row in rows]

    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    names = [f"{name}-{part}-{i}" for i in range(len(dataset))]
    numbers = None if labels is None else [int(label) for label in labels]
    source = Source(names, read, numbers, getattr(dataset, "classes", []))
    return source, [name, part, len(dataset), repr(shrink.keywords)]  # type: ignore[attr-defined]


# --- decoding -------------------------------------------------------------------------------------------------


def decode(path: Path, shrink: Callable[[Image.Image], Pixels]) -> Pixels:
    """A file as 8-bit RGB, upright, as ``shrink`` leaves it; or the reason why it cannot be read."""
    try:
        with Image.open(path) as image:
            return shrink(image)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        reason = (
            getattr(error, "strerror", None)
            or str(error).replace(str(path), "the file")
            or type(error).__name__
        )
        return " ".join(reason.split())[:120]


def _stored(image: Image.Image, *, size: int, short_side: int) -> Pixels:
    """As images are stored: (H,W,3) uint8, short side at most ``short_side``, long side at most twice the short one."""
    if min(image.size) < size:
        return f"{image.width}x{image.height} px, smaller than the crop of {size}: use --size {min(image.size)} or less"
    factor = short_side / min(image.size)
    if factor < 1:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the work.
        image.draft(None, (round(image.width * factor), round(image.height * factor)))
    image = ImageOps.exif_transpose(rgb(image))
    short = min(image.size)
    factor = min(1.0, short_side / short)
    width, height = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    if factor < 1:
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    across, down = max(0, width - 2 * height), max(0, height - 2 * width)  # what sticks out of 2:1
    image = image.crop((across // 2, down // 2, width - (across + 1) // 2, height - (down + 1) // 2))
    return np.asarray(image)


def rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB.

    Transparency is laid over white; 16-bit grey is divided by 257; float grey is taken as [0,1], or as 0..255 where it
    exceeds 1. Pillow itself converts palettes, CMYK, YCbCr and 16-bit colour.
    """
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        grey = np.asarray(image, np.float64)
        scale = 1 / 257 if image.mode != "F" else (255 if grey.max(initial=0) <= 1 else 1)
        grey = np.nan_to_num(grey * scale).clip(0, 255)
        converted = Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
        converted.info, converted.getexif()[0x0112] = image.info, image.getexif().get(0x0112, 1)
        return converted
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        flat = Image.alpha_composite(white, layer).convert("RGB")
        flat.getexif()[0x0112] = image.getexif().get(0x0112, 1)
        return flat
    return image.convert("RGB")
