"""Decoded images on disk: one flat uint8 file, memory-mapped, and an index of it.

A set is built in a folder of another name, which is renamed when whole: an interrupted build leaves nothing that
could be mistaken for a set, and of two processes that build the same set at once the second takes the first's.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

FORMAT = 2  # part of every key: raise it when what is stored changes
_ABANDONED = 3600.0  # seconds without a write after which a build is taken for dead

Pixels = np.ndarray | str
"""(planes,H,W) uint8, mostly RGB, or the reason why there is none."""
Reader = Callable[[Sequence[int]], list[Pixels]]
"""Row numbers -> an image for each."""


@dataclass(frozen=True)
class Source:
    """Images that can be read again and again: files to decode, scenes to render, or what is kept of them here."""

    names: Sequence[str]
    read: Reader
    labels: Tensor | None = None
    """(N,) int64, indices into ``classes``; -1 = unknown."""
    classes: Sequence[str] = ()
    chunk: int = 256
    """How many are best read at once."""
    planes: int = 3


@dataclass(frozen=True)
class Decoded:
    """A set in the cache: the images that could be read, and the names of the others with the reasons."""

    source: Source
    extents: np.ndarray  # (N,2) int64 height, width
    skipped: list[tuple[str, str]]


def load(folder: Path) -> Decoded | None:
    """The set in ``folder``; None where there is none or it is damaged."""
    try:
        index = json.loads((folder / "index.json").read_text())
        with open(folder / "pixels.bin", "rb") as file:
            pixels = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        names, classes, planes = index["names"], index["classes"], index.get("planes", 3)
        labels = None if index["labels"] is None else torch.tensor(index["labels"], dtype=torch.int64)
        skipped = [(name, reason) for name, reason in index["skipped"]]
        extents = np.array(index["extents"], np.int64).reshape(len(names), 2)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sizes = planes * extents.prod(1)
    starts = sizes.cumsum() - sizes
    if len(pixels) != sizes.sum():
        return None

    def read(rows: Sequence[int]) -> list[Pixels]:  # views into the file: nothing is copied yet
        places = zip(starts[rows].tolist(), sizes[rows].tolist(), extents[rows].tolist(), strict=True)
        return [pixels[start : start + size].reshape(planes, *extent) for start, size, extent in places]

    return Decoded(Source(names, read, labels, classes, planes=planes), extents, skipped)


def estimate(source: Source) -> float:
    """About how many bytes the decoded set takes, going by 64 images spread over it."""
    count = len(source.names)
    rows = np.linspace(0, count - 1, num=min(64, count)).astype(int).tolist()
    return count * float(
        np.mean([0 if isinstance(image, str) else image.nbytes for image in source.read(rows)])
    )


def build(folder: Path, source: Source, limit: float, title: str, quiet: bool = False) -> Decoded | None:
    """Reads all of ``source`` into ``folder``, with a progress bar on terminals; None where it exceeds ``limit`` bytes.

    Safe to run in several processes at once. ValueError where not one image can be read; OSError where the set cannot
    be written, which leaves nothing behind.
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
        except OSError:  # another process was faster, or what is there is damaged
            if load(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return load(folder)


def _write(folder: Path, source: Source, limit: float, title: str, quiet: bool) -> bool:
    """Writes the set's two files; False, and they are not whole, where it exceeds ``limit`` bytes."""
    kept: list[int] = []
    extents: list[tuple[int, int]] = []
    skipped: list[tuple[str, str]] = []
    count, written = len(source.names), 0
    with (
        open(folder / "pixels.bin", "wb") as file,
        tqdm(total=count, desc=title, unit="img", disable=quiet or None) as bar,  # None: unless on a terminal
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
                file.write(np.ascontiguousarray(image).data)
                kept.append(row)
                extents.append(image.shape[1:])
            bar.update(len(rows))
        file.flush()
        os.fsync(file.fileno())  # or a power cut may leave a whole index of empty pixels
    if not kept:
        name, reason = skipped[0]
        raise ValueError(f"none of its {count} images can be read (the first, {name!r}: {reason})")
    index = {
        "names": [source.names[row] for row in kept],
        "labels": None if source.labels is None else source.labels[kept].tolist(),
        "classes": list(source.classes),
        "extents": extents,
        "planes": source.planes,
        "skipped": skipped,
    }
    (folder / "index.json").write_text(json.dumps(index))
    return True


def _remove_abandoned(root: Path) -> None:
    """Frees the space of builds that were killed."""
    for folder in root.glob("building-*"):
        with contextlib.suppress(OSError):  # another process may be removing it, or still be making it
            if time.time() - (folder / "pixels.bin").stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder)
