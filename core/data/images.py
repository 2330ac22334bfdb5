"""Images to learn from: any folder, torchvision's sets, the built-in scenes; decoded once, split, read in batches."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset
from torchvision import datasets

from core.data import cache
from core.data.cache import Pixels, Source
from core.data.decode import SUFFIXES, decode, reason, stored

T = TypeVar("T")

HELDOUT = 0.05  # part of the images that training never sees
MOST_HELDOUT = 1024
_THREADS = min(os.cpu_count() or 1, 32)  # Pillow decodes without Python's lock
_NAMED = "scenes, cifar10, stl10, voc2012 or imagenet:PATH"


class Images:
    """A set of images in a fixed order, read in batches.

    ``names`` are unique. ``labels`` (N,) int64 are indices into ``classes``, -1 where unknown, or None.
    """

    def __init__(self, source: Source, rows: np.ndarray | None = None) -> None:
        self.source = source
        # Which of the source's images are in this set, (N,) int64.
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
    def classes(self) -> list[str]:
        return list(self.source.classes)

    def subset(self, indices: Tensor) -> Images:
        return Images(self.source, self.rows[indices.numpy()])

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The images at ``indices`` (n,), on the CPU:

        image uint8 (n,3,H,W) sRGB, padded with 0 right and below to the batch's largest; extent int64 (n,2), height
        and width of each; index int64 (n,), as given; label int64 (n,) where the set has labels.

        An image that cannot be read (met only where they are decoded at each use) gives way to the next readable one,
        with its label. ValueError where there is none left.
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
        padded = np.zeros((len(images), len(images[0]), height, width), np.uint8)
        for place, image in zip(padded, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        batch = {"image": torch.from_numpy(padded), "extent": extent, "index": indices}
        if self.source.labels is not None:
            batch["label"] = self.source.labels[rows]
        return batch

    def _next_readable(self, index: int, why: str) -> tuple[int, np.ndarray]:
        for step in range(1, len(self)):
            row = int(self.rows[(index + step) % len(self)])
            image = self.source.read([row])[0]
            if not isinstance(image, str):
                return row, image
        raise ValueError(f"none of {len(self)} images can be used ({why})")


@dataclass(frozen=True)
class Split:
    """Held-out images come in an order mixed by a hash of their names, so that the first few are of many classes."""

    train: Images
    heldout: Images


def open_images(
    spec: str,
    size: int,
    *,
    short_side: int = 0,
    scenes: int = 4096,
    cache_dir: Path | None = None,
    cache_gb: float = 8.0,
    device: str = "cpu",
    quiet: bool = False,
) -> Split:
    """The images that ``spec`` names, for crops of ``size`` px.

    spec: ``scenes`` (that many, rendered on ``device``), a folder of images (searched recursively; where all are in
    one of several subfolders, those are classes), ``cifar10``, ``stl10`` (with its unlabelled images), ``voc2012``
    (downloaded by torchvision), or ``imagenet:PATH`` with the archives or train/ and val/.

    Images are stored with a short side of ``short_side`` px, 0 = 1.5 times ``size``, never enlarged; of a long side
    the middle is kept, at most twice the short one. They are kept in ``cache_dir``, by default $KINTSUGI_CACHE or
    ~/.cache/kintsugi, unless a set takes more than ``cache_gb``: then they are decoded at each use. Images under
    ``size`` px and those that cannot be read are skipped, counted and named once, in one line (none where ``quiet``).

    About 5 % of the images are held out, by a hash of their names: adding images moves none between the parts, until
    ``MOST_HELDOUT`` is reached. torchvision's sets are split as their authors did.

    Raises ValueError of one line where nothing is left to learn from, OSError where the cache cannot be written.
    """
    opener = Opener.of(spec, size, short_side, cache_dir, cache_gb, quiet)
    if spec == "scenes":
        return held_out(opener.scenes(scenes, device))
    if spec in ("cifar10", "stl10"):
        return Split(opener.arrays("train"), _mixed(opener.arrays("test")))
    if spec == "voc2012":
        return Split(opener.voc("train"), _mixed(opener.voc("val")))
    if spec.startswith("imagenet:"):
        path = Path(spec.removeprefix("imagenet:")).expanduser()
        train, val = opener.imagenet(path, "train"), opener.imagenet(path, "val")
        if val.labels is not None and train.classes != val.classes:
            raise ValueError(f"--data {spec}: train/ and val/ do not have the same classes")
        return Split(train, _mixed(val))
    return held_out(opener.folder(Path(spec).expanduser()))


def open_labelled(
    spec: str,
    size: int,
    *,
    short_side: int = 0,
    cache_dir: Path | None = None,
    cache_gb: float = 8.0,
    quiet: bool = False,
) -> Split:
    """Images with a class each, to learn from (``train``) and to be tried on (``heldout``).

    spec: a folder with train/ and test/ (or val/) of class folders, ``cifar10``, ``stl10`` or ``imagenet:PATH``. The
    rest as in ``open_images``; ValueError of one line where there are no classes, or not the same ones.
    """
    opener = Opener.of(spec, size, short_side, cache_dir, cache_gb, quiet)
    if spec in ("cifar10", "stl10"):
        parts = [opener.arrays("train"), opener.arrays("test")]
    elif spec.startswith("imagenet:"):
        path = Path(spec.removeprefix("imagenet:")).expanduser()
        parts = [opener.imagenet(path, "train"), opener.imagenet(path, "val")]
    else:
        root = Path(spec).expanduser()
        tried = "test" if (root / "test").is_dir() else "val"
        if not all((root / name).is_dir() for name in ("train", tried)):
            raise ValueError(
                f"--data {spec}: no train/ and test/ in it; make both, with a folder for each class, or use cifar10, "
                "stl10 or imagenet:PATH"
            )
        parts = [opener.folder(root / name) for name in ("train", tried)]
    for part in parts:
        if part.labels is None:
            raise ValueError(f"--data {spec}: its images are not in class folders")
    if parts[0].classes != parts[1].classes:
        raise ValueError(f"--data {spec}: the two parts do not have the same classes")
    known = [
        (part.labels >= 0).nonzero()[:, 0] for part in parts if part.labels is not None
    ]  # not stl10's unlabelled
    return Split(*(part.subset(rows) for part, rows in zip(parts, known, strict=True)))


def held_out(images: Images) -> Split:
    """Held out are the images whose names hash lowest, about ``HELDOUT`` of them."""
    if len(images) < 2:
        raise ValueError(
            f"one image ({images.names[0]!r}) cannot be split into training and held-out ones: add more"
        )
    hashes = _hashes(images.names)
    count = int((hashes < HELDOUT * 2.0**64).sum())
    count = min(max(count, 1), MOST_HELDOUT, len(images) - 1)
    order = torch.from_numpy(hashes.argsort(kind="stable"))
    return Split(images.subset(order[count:].sort().values), images.subset(order[:count]))


def _mixed(images: Images) -> Images:
    return images.subset(torch.from_numpy(_hashes(images.names).argsort(kind="stable")))


def _hashes(names: Sequence[str]) -> np.ndarray:
    """(N,) uint64, even."""
    digests = (hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), "<u8")


@dataclass(frozen=True)
class Opener:
    """Opens sets from the cache, where it puts them first if need be."""

    spec: str
    size: int
    short_side: int
    root: Path
    limit: float  # bytes
    quiet: bool

    @classmethod
    def of(
        cls, spec: str, size: int, short_side: int, cache_dir: Path | None, cache_gb: float, quiet: bool
    ) -> Opener:
        """With the defaults of ``open_images``."""
        short_side = short_side or round(1.5 * size)
        if short_side < size:
            raise ValueError(
                f"--short-side {short_side} is less than --size {size}: images must hold the crop"
            )
        root = cache_dir or Path(os.environ.get("KINTSUGI_CACHE") or "~/.cache/kintsugi")
        return cls(spec, size, short_side, root.expanduser(), cache_gb * 1e9, quiet)

    # --- what there is to read --------------------------------------------------------------------------------

    def scenes(self, count: int, device: str) -> Images:
        from core.data import scenes  # here, because only those who use them pay for the import

        def read(rows: Sequence[int]) -> list[Pixels]:
            rendered = scenes.render(0, torch.tensor(rows), self.short_side, device)
            return list((255 * rendered["image"]).round().byte().cpu().numpy())  # (n,3,S,S)

        names = [f"scene-{i}" for i in range(count)]
        code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in scenes.SOURCE_FILES]
        source = Source(names, read, chunk=64)
        return self.open("scenes", [count, code], lambda: source, "rendering")

    def folder(self, path: Path) -> Images:
        if not path.is_dir():
            raise ValueError(f"--data {path}: no such folder; name a folder of images, or {_NAMED}")
        found = sorted(walk(path))
        if not found:
            raise ValueError(f"--data {path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
        return self._files(path, found)

    def imagenet(self, path: Path, part: str) -> Images:
        if path.is_dir() and not (path / part).is_dir():
            try:
                datasets.ImageNet(path, split=part)  # unpacks the archives
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"--data {self.spec}: neither {part}/ nor its archive ({reason(error)})"
                ) from None
        return self.folder(path / part)

    def voc(self, part: str) -> Images:
        return self.files(self.voc_dataset(part).images)

    def files(self, paths: Sequence[str]) -> Images:
        """Image files of one folder."""
        return self._files(Path(paths[0]).parent, [(os.path.basename(file), *_stamp(file)) for file in paths])

    def voc_dataset(self, part: str, year: str = "2012") -> datasets.VOCDetection:
        """torchvision's, downloaded where it is not there yet."""
        place = self.root / "torchvision"
        try:  # torchvision unpacks its archive whenever it is told to download, so it is told only if need be
            found = datasets.VOCDetection(place, year=year, image_set=part, download=False)
            if all(os.path.exists(file) for file in found.images):
                return found
        except (OSError, RuntimeError):
            pass
        return self._download(lambda: datasets.VOCDetection(place, year=year, image_set=part, download=True))

    def arrays(self, part: str) -> Images:
        """cifar10 and stl10, which torchvision holds in memory: it is asked only where the cache lacks them."""
        place, train = self.root / "torchvision", part == "train"

        def make() -> Source:
            if self.spec == "cifar10":
                sets = [self._download(lambda: datasets.CIFAR10(place, train=train, download=True))]
                labels = torch.tensor(sets[0].targets)
            else:
                splits = ("train", "unlabeled") if train else ("test",)
                sets = [
                    self._download(partial(datasets.STL10, place, split=split, download=True))
                    for split in splits
                ]
                labels = torch.cat([torch.from_numpy(data.labels.astype(np.int64)) for data in sets])
            images: ConcatDataset[tuple[Image.Image, int]] = ConcatDataset(sets)

            def read(rows: Sequence[int]) -> list[Pixels]:
                return [stored(images[row][0], self.short_side) for row in rows]

            return Source([f"{part}-{i}" for i in range(len(images))], read, labels, sets[0].classes)

        return self.open(f"{self.spec}-{part}", [], make)

    def _files(self, folder: Path, found: list[tuple[str, int, int]]) -> Images:
        """found: names relative to ``folder``, sizes and times of change."""
        names = [name for name, _, _ in found]
        tops = [name.partition(os.sep)[0] for name in names]
        classes = sorted(set(tops)) if all(os.sep in name for name in names) else []
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number[top] for top in tops]) if len(classes) > 1 else None

        def read(rows: Sequence[int]) -> list[Pixels]:
            files = (folder / names[row] for row in rows)
            with ThreadPoolExecutor(_THREADS) as pool:
                return list(pool.map(partial(decode, short_side=self.short_side), files))

        source = Source(names, read, labels, classes if len(classes) > 1 else ())
        return self.open(folder.resolve().name, [str(folder.resolve()), found], lambda: source)

    def _download(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
            raise ValueError(
                f"--data {self.spec}: torchvision could not download it ({reason(error)}); "
                f"put its archive into {self.root / 'torchvision'} yourself, or name a folder of images"
            ) from None

    # --- the cache --------------------------------------------------------------------------------------------

    def place(self, name: str, key: object) -> Path:
        """The folder of the set of this ``key``, whether it is there or not."""
        digest = hashlib.sha256(json.dumps([cache.FORMAT, name, self.short_side, key]).encode()).hexdigest()
        label = re.sub(r"[^\w.-]+", "_", name)[:40]
        return self.root / "images" / f"{label}-{self.short_side}px-{digest[:16]}"

    def open(self, name: str, key: object, make: Callable[[], Source], doing: str = "decoding") -> Images:
        """The images of ``make()``, which is called only where the cache has no set of this ``key``."""
        folder = self.place(name, key)
        decoded = cache.load(folder)
        if decoded is None:
            source = make()
            needed = float(len(source.names) * 2 * source.planes * self.short_side**2)  # at most
            if needed > self.limit:
                needed = cache.estimate(source)
            if needed <= self.limit:
                try:
                    decoded = cache.build(folder, source, self.limit, f"{doing} {name}", self.quiet)
                except ValueError as error:
                    raise ValueError(f"--data {self.spec}: {error}") from None
                except OSError as error:
                    raise OSError(
                        f"cannot keep decoded images in {self.root} ({error.strerror or error}): make room there, "
                        "choose another folder with --cache, or decode at each use with --cache-gb 0"
                    ) from None
            if decoded is None:
                self._say(
                    f"{self.spec}: decoded it takes about {max(needed, self.limit) / 1e9:.2g} GB, more than "
                    f"--cache-gb {self.limit / 1e9:g}: images are decoded at each use"
                )
                return Images(self._checked(source))
        short = decoded.extents.min(1)  # (N,)
        if short.max() < self.size:
            fits = short.max() // 32 * 32 or short.max()
            raise ValueError(
                f"--data {self.spec}: all {len(short)} images are smaller than the crop of {self.size} px, the largest "
                f"has a short side of {short.max()} px: use --size {fits}"
            )
        names = decoded.source.names
        small = (short < self.size).nonzero()[0].tolist()
        if skipped := decoded.skipped + [(names[row], self._too_small(short[row])) for row in small]:
            file = folder.with_name(folder.name + ".skipped.txt")
            self._report(skipped, len(short) + len(decoded.skipped), file)
        return Images(decoded.source, (short >= self.size).nonzero()[0])

    def _checked(self, source: Source) -> Source:
        """The source without images that are too small; names the first few that cannot be used."""
        named: set[int] = set()

        def read(rows: Sequence[int]) -> list[Pixels]:
            images = source.read(rows)
            for i, (row, image) in enumerate(zip(rows, images, strict=True)):
                if not isinstance(image, str) and min(image.shape[1:]) < self.size:
                    images[i] = self._too_small(min(image.shape[1:]))
                if isinstance(images[i], str) and row not in named:
                    named.add(row)
                    if len(named) <= 3:
                        self._say(
                            f"skipped {source.names[row]!r} ({images[i]}): the next image takes its place"
                        )
                    elif len(named) == 4:
                        self._say("more images are skipped; they are not named any further")
            return images

        return Source(source.names, read, source.labels, source.classes)

    def _too_small(self, short: int) -> str:
        return f"short side of {short} px, less than the crop of {self.size}"

    def _report(self, skipped: list[tuple[str, str]], count: int, file: Path) -> None:
        with contextlib.suppress(OSError):  # a cache that somebody else has built may be read-only
            file.write_text("".join(f"{name!r}: {reason}\n" for name, reason in skipped))
        shown = ", ".join(f"{name!r} ({reason})" for name, reason in skipped[:3])
        more = f" and {len(skipped) - 3} more, listed in {file}" if len(skipped) > 3 else ""
        self._say(f"{self.spec}: skipped {len(skipped)} of {count} images: {shown}{more}")

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr)


_LABELS = {"images": ("masks",), "rgb": ("depth", "normal", "instance")}
"""Beside a folder of photos called so, these hold its labels (``core.data.pairs``)."""


def walk(root: Path, suffixes: Set[str] = SUFFIXES) -> Iterator[tuple[str, int, int]]:
    """The files below ``root`` that end so: relative name, size, time of change. Hidden files and folders are left out,
    and the labels of labelled sets.

    Links to folders are followed, but each folder is entered once, so that loops end.
    """
    entered: set[tuple[int, int]] = set()

    def complain(error: OSError) -> None:
        print(f"skipped the folder {error.filename}: {reason(error)}", file=sys.stderr)

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=complain):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        labels = {name for photos, names in _LABELS.items() if photos in subfolders for name in names}
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in labels)
        relative = os.path.relpath(folder, root)
        for file in files:
            if os.path.splitext(file)[1].lower() in suffixes and not file.startswith("."):
                stamp = _stamp(os.path.join(folder, file))
                yield file if relative == "." else os.path.join(relative, file), *stamp


def _stamp(file: str) -> tuple[int, int]:
    """Size and time of change; -1 for what is no file (a broken link, say), which decoding will complain of."""
    try:
        status = os.stat(file)
    except OSError:
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)
