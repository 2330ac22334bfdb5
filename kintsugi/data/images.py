"""Images to learn from: any folder, torchvision's sets, the built-in scenes; decoded once, split, read in batches."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import json
import os
import re
import stat
import sys
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset

from kintsugi.data import cache
from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import SUFFIXES, decode, reason, stored

if TYPE_CHECKING:
    from torchvision.datasets import VOCDetection

T = TypeVar("T")

HELDOUT = 0.05  # part of the images that training never sees
MOST_HELDOUT = 1024
_NAMED = "scenes, cifar10, stl10, voc2012, imagenet:PATH or shards:SET.tar"


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Threads that decode, for Pillow does it without Python's lock; made once."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 32), "decoder")


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
    def extents(self) -> Tensor:
        """Height and width of each, (N,2) int64; only where the source knows them."""
        assert self.source.extents is not None
        return torch.from_numpy(self.source.extents[self.rows])

    @property
    def classes(self) -> list[str]:
        return list(self.source.classes)

    def subset(self, indices: Tensor) -> Images:
        return Images(self.source, self.rows[indices.numpy()])

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The images at ``indices`` (n,), on the CPU:

        image uint8 (n,3,H,W) sRGB, channels last in memory, padded with 0 right and below to the batch's largest;
        extent int64 (n,2), height and width of each; index int64 (n,), as given; label int64 (n,) where the set has
        labels.

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
        padded = np.zeros((len(images), height, width, len(images[0])), np.uint8)
        for place, image in zip(padded, images, strict=True):
            place[: image.shape[1], : image.shape[2]] = image.transpose(1, 2, 0)
        batch = {"image": torch.from_numpy(padded).permute(0, 3, 1, 2), "extent": extent, "index": indices}
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
    one of several subfolders, those are classes), ``cifar10``, ``stl10`` (with its unlabeled images), ``voc2012``
    (downloaded by torchvision), ``imagenet:PATH`` with the archives or train/ and val/, or ``shards:`` and webdataset's
    shards: a folder of .tar, or a path or an http(s) URL, with braces for many, as set-{000..099}.tar.

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
    if spec.startswith("shards:"):
        return held_out(opener.shards(spec.removeprefix("shards:")))
    return held_out(opener.folder(Path(spec).expanduser()))


def open_labeled(
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
    known = [(part.labels >= 0).nonzero()[:, 0] for part in parts if part.labels is not None]  # not stl10's unlabeled
    return Split(*(part.subset(rows) for part, rows in zip(parts, known, strict=True)))


def held_out(images: Images) -> Split:
    """Held out are the images whose names hash lowest, about ``HELDOUT`` of them."""
    if len(images) < 2:
        raise ValueError(f"one image ({images.names[0]!r}) cannot be split into training and held-out ones: add more")
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
    def of(cls, spec: str, size: int, short_side: int, cache_dir: Path | None, cache_gb: float, quiet: bool) -> Opener:
        """With the defaults of ``open_images``."""
        short_side = short_side or round(1.5 * size)
        if short_side < size:
            raise ValueError(f"--short-side {short_side} is less than --size {size}: images must hold the crop")
        root = cache_dir or Path(os.environ.get("KINTSUGI_CACHE") or "~/.cache/kintsugi")
        return cls(spec, size, short_side, root.expanduser(), cache_gb * 1e9, quiet)

    # --- what there is to read --------------------------------------------------------------------------------

    def scenes(self, count: int, device: str) -> Images:
        from kintsugi.scenes import rendering  # here, because only those who use them pay for the import

        def read(rows: Sequence[int]) -> list[Pixels]:
            rendered = rendering.render(0, torch.tensor(rows), self.short_side, device)
            return list((255 * rendered["image"]).round().byte().cpu().numpy())  # (n,3,S,S)

        names = [f"scene-{i}" for i in range(count)]
        code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in rendering.SOURCE_FILES]
        source = Source(names, read, chunk=64)
        return self.open("scenes", [count, code], lambda: source, "rendering")

    def folder(self, path: Path) -> Images:
        if not path.is_dir():
            raise ValueError(f"--data {path}: no such folder; name a folder of images, or {_NAMED}")
        found, numbers = [], array("q")  # for a million names a list of tuples would take ten times as much
        for name, size, changed in walk(path):
            found.append(name)
            numbers.extend((size, changed))
        if not found:
            raise ValueError(f"--data {path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
        order = sorted(range(len(found)), key=found.__getitem__)
        return self._files(path, [found[i] for i in order], np.array(numbers).reshape(-1, 2)[order])

    def shards(self, what: str) -> Images:
        from kintsugi.data import shards  # here, because only those who use them pay for the import

        try:
            found = shards.names(what)
        except ValueError as error:
            raise ValueError(f"--data {self.spec}: {error}") from None

        def make() -> Source:
            place = self.root / "shards"
            try:
                files = shards.fetched(found, place, self.quiet)
                return shards.open_shards(files, self.short_side, place, pool())
            except ValueError as error:
                raise ValueError(f"--data {self.spec}: {error}") from None
            except OSError as error:
                raise OSError(
                    f"cannot copy shards into {place} ({error.strerror or error}): make room there, or choose another "
                    "folder with --cache"
                ) from None

        name = os.path.basename(found[0]).partition(".")[0]
        # A URL has no stamp: what has been copied and decoded is used from then on, without asking.
        return self.open(name, ["shards", [[shard, *_stamp(shard)] for shard in found]], make)

    def imagenet(self, path: Path, part: str) -> Images:
        if path.is_dir() and not (path / part).is_dir():
            from torchvision import datasets  # here, as below, because --help need not wait a second for it

            try:
                datasets.ImageNet(path, split=part)  # unpacks the archives
            except (OSError, RuntimeError) as error:
                raise ValueError(f"--data {self.spec}: neither {part}/ nor its archive ({reason(error)})") from None
        return self.folder(path / part)

    def voc(self, part: str) -> Images:
        return self.files(self.voc_dataset(part).images)

    def files(self, paths: Sequence[str]) -> Images:
        """Image files of one folder."""
        names = [os.path.basename(file) for file in paths]
        return self._files(Path(paths[0]).parent, names, np.array([_stamp(file) for file in paths]))

    def voc_dataset(self, part: str, year: str = "2012") -> VOCDetection:
        """torchvision's, downloaded where it is not there yet."""
        from torchvision import datasets

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
            from torchvision import datasets

            if self.spec == "cifar10":
                sets = [self._download(lambda: datasets.CIFAR10(place, train=train, download=True))]
                labels = torch.tensor(sets[0].targets)
            else:
                splits = ("train", "unlabeled") if train else ("test",)
                sets = [
                    self._download(functools.partial(datasets.STL10, place, split=split, download=True))
                    for split in splits
                ]
                labels = torch.cat([torch.from_numpy(data.labels.astype(np.int64)) for data in sets])
            images: ConcatDataset[tuple[Image.Image, int]] = ConcatDataset(sets)

            def read(rows: Sequence[int]) -> list[Pixels]:
                return [stored(images[row][0], self.short_side) for row in rows]

            return Source([f"{part}-{i}" for i in range(len(images))], read, labels, sets[0].classes)

        return self.open(f"{self.spec}-{part}", [], make)

    def _files(self, folder: Path, names: Sequence[str], stamps: np.ndarray) -> Images:
        """names: relative to ``folder``; stamps (N,2) int64: their sizes and times of change."""

        def read(rows: Sequence[int]) -> list[Pixels]:
            files = (folder / names[row] for row in rows)
            return list(pool().map(functools.partial(decode, short_side=self.short_side), files))

        def make() -> Source:
            tops = [name.partition(os.sep)[0] for name in names]
            classes = sorted(set(tops)) if all(os.sep in name for name in names) else []
            if len(classes) < 2:
                return Source(names, read)
            number = {name: i for i, name in enumerate(classes)}
            return Source(names, read, torch.tensor([number[top] for top in tops]), classes)

        # A million names would make a long text: their digest is the key.
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, names)))
        digest.update(stamps.tobytes())
        return self.open(folder.resolve().name, [str(folder.resolve()), digest.hexdigest()], make)

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
                if source.skipped:
                    self._report(list(source.skipped), len(source.names) + len(source.skipped), folder)
                return Images(self._checked(source))
        assert decoded.extents is not None
        short = decoded.extents.min(1)  # (N,)
        if short.max() < self.size:
            fits = short.max() // 32 * 32 or short.max()
            raise ValueError(
                f"--data {self.spec}: all {len(short)} images are smaller than the crop of {self.size} px, the largest "
                f"has a short side of {short.max()} px: use --size {fits}"
            )
        names = decoded.names
        small = (short < self.size).nonzero()[0].tolist()
        if skipped := [*decoded.skipped, *((names[row], self._too_small(short[row])) for row in small)]:
            self._report(skipped, len(short) + len(decoded.skipped), folder)
        return Images(decoded, (short >= self.size).nonzero()[0])

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
                        self._say(f"skipped {source.names[row]!r} ({images[i]}): the next image takes its place")
                    elif len(named) == 4:
                        self._say("more images are skipped; they are not named any further")
            return images

        return Source(source.names, read, source.labels, source.classes)

    def _too_small(self, short: int) -> str:
        return f"short side of {short} px, less than the crop of {self.size}"

    def _report(self, skipped: list[tuple[str, str]], count: int, folder: Path) -> None:
        """Says what was skipped of ``count`` images of the set in ``folder``, and lists it beside that."""
        file = folder.with_name(folder.name + ".skipped.txt")
        with contextlib.suppress(OSError):  # a cache that somebody else has built may be read-only
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{name!r}: {reason}\n" for name, reason in skipped))
        shown = ", ".join(f"{name!r} ({reason})" for name, reason in skipped[:3])
        more = f" and {len(skipped) - 3} more, listed in {file}" if len(skipped) > 3 else ""
        self._say(f"{self.spec}: skipped {len(skipped)} of {count} images: {shown}{more}")

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr)


_LABELS = {"images": ("masks",), "rgb": ("depth", "normal", "instance")}
"""Beside a folder of photos called so, these hold its labels (``kintsugi.data.pairs``)."""


def walk(root: Path, suffixes: Set[str] = SUFFIXES) -> Iterator[tuple[str, int, int]]:
    """The files below ``root`` that end so: relative name, size, time of change. Hidden files and folders are left out,
    and the labels of labeled sets.

    Links to folders are followed, but each folder is entered once, so that loops end.
    """
    entered: set[tuple[int, int]] = set()

    def below(folder: str, prefix: str) -> Iterator[tuple[str, int, int]]:
        try:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in entered:
                return
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError as error:
            print(f"skipped the folder {folder}: {reason(error)}", file=sys.stderr)
            return
        entered.add((here.st_dev, here.st_ino))
        subfolders = []
        for entry in entries:
            linked = entry.is_symlink()  # to itself, perhaps, of which is_dir() complains
            if os.path.isdir(entry) if linked else entry.is_dir():
                subfolders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                yield prefix + entry.name, *_stamp(entry.path)
        labels = {name for photos, names in _LABELS.items() if photos in subfolders for name in names}
        for name in sorted(set(subfolders) - labels):
            yield from below(os.path.join(folder, name), os.path.join(prefix, name, ""))

    return below(str(root), "")


def _stamp(file: str) -> tuple[int, int]:
    """Size and time of change; -1 for what is no file (a broken link, say), which decoding will complain of."""
    try:
        status = os.stat(file)
    except OSError:
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)
