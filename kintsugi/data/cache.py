"""Decoded images on disk: one flat, memory-mapped uint8 file, and an index of arrays that loads fast.

The channels of a pixel lie together: decoders return them so, and resizing is fastest that way.

A set is built in a temporary folder, which is renamed when it is complete. So an interrupted build leaves nothing that
could be mistaken for a set. If two processes build the same set at once, the second one to finish uses the first one's.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

FORMAT = 4  # part of every key: raise it when the stored format changes
_ABANDONED = 3600.0  # seconds without a write after which a build counts as dead

Pixels = np.ndarray | str
"""An image, uint8 (planes,H,W), mostly RGB; or, if it cannot be read, the reason."""
Reader = Callable[[Sequence[int]], list[Pixels]]
"""Reads the images with these row numbers, in their order."""


@dataclass(frozen=True)
class Source:
    """Images that can be read repeatedly: files to decode, scenes to render, or a set that is decoded already."""

    names: Sequence[str]
    read: Reader
    labels: Tensor | None = None
    """(N,) int64, indices into ``classes``; -1 = unknown."""
    classes: Sequence[str] = ()
    chunk: int = 256
    """How many images to read at once while a set is built."""
    planes: int = 3
    """Number of planes of each image."""
    extents: np.ndarray | None = None
    """(N,2) int64, height and width of each image, px; None unless the images are decoded already."""
    skipped: Sequence[tuple[str, str]] = ()
    """Images that were left out already: name and reason of each."""


# --- an index -------------------------------------------------------------------------------------------------


def save_index(file: Path, names: Sequence[str], about: object, **arrays: np.ndarray) -> None:
    """Writes names, a JSON value and arrays of numbers into one file.

    A name may hold any byte except zero, as file names do.
    """
    text = b"".join(os.fsencode(name) + b"\0" for name in names)
    with open(file, "wb") as out:
        given = {"names": np.frombuffer(text, np.uint8), "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        np.savez(out, allow_pickle=False, **given, **arrays)
        out.flush()
        os.fsync(out.fileno())


def load_index(file: Path) -> tuple[list[str], Any, dict[str, np.ndarray]] | None:
    """Reads the names, JSON value and arrays that ``save_index`` wrote; None if the file is missing or damaged."""
    try:
        with np.load(file) as found:  # checks every array's checksum
            arrays = {name: found[name] for name in found.files}
        names = os.fsdecode(arrays.pop("names").tobytes()).split("\0")[:-1]
        return names, json.loads(arrays.pop("about").tobytes()), arrays
    # np.load of a single array gives no context manager: that is a TypeError, or an AttributeError in Python 3.10.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None


# --- a set ----------------------------------------------------------------------------------------------------


def load(folder: Path) -> Source | None:
    """Opens the set in ``folder``; None if it is missing or damaged."""
    index = load_index(folder / "index.npz")
    if index is None:
        return None
    names, about, arrays = index
    try:
        with open(folder / "pixels.bin", "rb") as file:
            pixels = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        classes, planes, extents = about["classes"], about["planes"], arrays["extents"]
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        skipped = [(name, reason) for name, reason in about["skipped"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sizes = planes * extents.prod(1)
    starts = sizes.cumsum() - sizes
    if len(pixels) != sizes.sum() or any(len(values) != len(names) for values in arrays.values()):
        return None

    def read(rows: Sequence[int]) -> list[Pixels]:  # views into the file: nothing is copied
        places = zip(starts[rows].tolist(), sizes[rows].tolist(), extents[rows].tolist(), strict=True)
        return [
            pixels[start : start + size].reshape(*extent, planes).transpose(2, 0, 1) for start, size, extent in places
        ]

    return Source(names, read, labels, classes, planes=planes, extents=extents, skipped=skipped)


def estimate(source: Source) -> float:
    """About how many bytes the set takes when decoded, from 64 images spread evenly over it."""
    count = len(source.names)
    rows = np.linspace(0, count - 1, num=min(64, count)).astype(int).tolist()
    return count * float(np.mean([0 if isinstance(image, str) else image.nbytes for image in source.read(rows)]))


def build(folder: Path, source: Source, limit: float, title: str, quiet: bool = False) -> Source | None:
    """Decodes all of ``source`` into ``folder`` and opens it; None if it exceeds ``limit`` bytes.

    Shows a progress bar on terminals, with ``title``. Several processes may build at once. Raises ValueError if no
    image can be read, and OSError if the set cannot be written; nothing is left behind then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    building = folder.parent / f"building-{uuid.uuid4().hex}"
    try:
        building.mkdir()
        if not _write(building, source, limit, title, quiet):
            return None
        try:
            building.rename(folder)
        except OSError:  # another process was faster, or the folder holds a damaged set
            if load(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return load(folder)


def _write(folder: Path, source: Source, limit: float, title: str, quiet: bool) -> bool:
    """Writes the set's two files. Returns False if the set exceeds ``limit`` bytes; the files are incomplete then."""
    extents = np.zeros((len(source.names), 2), np.int64)  # stays 0 for images that are skipped
    skipped = list(source.skipped)
    count, written = len(source.names), 0
    with (
        open(folder / "pixels.bin", "wb") as file,
        tqdm(total=count, desc=title, unit="img", disable=quiet or None) as bar,  # None: shown only on a terminal
    ):
        for first in range(0, count, source.chunk):
            rows = range(first, min(first + source.chunk, count))
            for row, image in zip(rows, source.read(rows), strict=True):
                if isinstance(image, str):
                    skipped.append((source.names[row], image))
                    continue
                written += image.nbytes
                if written > limit:
                    return False
                file.write(np.ascontiguousarray(image.transpose(1, 2, 0)).data)
                extents[row] = image.shape[1:]
            bar.update(len(rows))
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave a complete index of empty pixels
    kept = np.flatnonzero(extents.all(1))
    if not len(kept):
        name, reason = skipped[0]
        raise ValueError(f"none of its {count} images can be read (the first, {name!r}: {reason})")
    save_index(
        folder / "index.npz",
        [source.names[row] for row in kept.tolist()],
        {"classes": list(source.classes), "planes": source.planes, "skipped": skipped},
        extents=extents[kept],
        **({} if source.labels is None else {"labels": source.labels[kept].numpy()}),
    )
    return True


def _remove_abandoned(root: Path) -> None:
    """Removes the temporary folders of builds that were killed."""
    for folder in root.glob("building-*"):
        with contextlib.suppress(OSError):  # another process may be removing it, or have just created it
            if time.time() - (folder / "pixels.bin").stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder)
