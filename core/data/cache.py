"""Decoded images on disk: one flat uint8 file, memory-mapped, and an index of it.

A set is built in a folder of another name, which is renamed when whole: an interrupted build leaves nothing that
could be mistaken for a set, and of two processes that build the same set at once the second takes the first's.
"""

from __future__ import annotations

import json
import mmap
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

FORMAT = 1  # part of every key: raise it when what is stored changes
_ABANDONED = 3600.0  # seconds without a write after which a build is taken for dead

Pixels = np.ndarray | str
"""(H,W,3) uint8 RGB, or the reason why there is none."""
Reader = Callable[[Sequence[int]], list[Pixels]]
"""Row numbers -> an image for each."""


@dataclass(frozen=True)
class Source:
    """Images that can be read again and again, at a cost: files to decode, scenes to render."""

    names: Sequence[str]
    read: Reader
    labels: Sequence[int] | None = None
    """-1 = not labelled."""
    classes: Sequence[str] = ()
    chunk: int = 256
    """How many to read at once."""


@dataclass(frozen=True)
class Decoded:
    """A set in the cache, without the images that could not be read: ``skipped`` has their names and the reasons."""

    names: list[str]
    labels: Tensor | None  # (N,) int64
    classes: list[str]
    skipped: list[tuple[str, str]]
    extents: np.ndarray  # (N,2) int64 height, width
    offsets: np.ndarray  # (N,) int64
    pixels: np.ndarray  # uint8, all images one after the other, each (H,W,3)

    def read(self, rows: Sequence[int]) -> list[Pixels]:
        """Views into the file: nothing is copied yet."""
        extents, offsets = self.extents[rows].tolist(), self.offsets[rows].tolist()
        return [
            self.pixels[offset : offset + 3 * height * width].reshape(height, width, 3)
            for (height, width), offset in zip(extents, offsets, strict=True)
        ]


def load(folder: Path) -> Decoded | None:
    """The set in ``folder``; None where there is none or it is damaged."""
    try:
        index = json.loads((folder / "index.json").read_text())
        extents = np.array(index["extents"], np.int64).reshape(-1, 2)
        ends = np.cumsum(3 * extents.prod(1))
        with open(folder / "pixels.bin", "rb") as file:
            pixels = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        if len(pixels) != ends[-1]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    labels = None if index["labels"] is None else torch.tensor(index["labels"], dtype=torch.int64)
    skipped = [(name, reason) for name, reason in index["skipped"]]
    offsets = ends - 3 * extents.prod(1)
    return Decoded(index["names"], labels, index["classes"], skipped, extents, offsets, pixels)


def exceeds(source: Source, limit: float) -> bool:
    """Whether the decoded set will take more than ``limit`` bytes, going by 64 images spread over it."""
    rows = np.linspace(0, len(source.names) - 1, num=min(64, len(source.names))).astype(int).tolist()
    sizes = [0 if isinstance(image, str) else image.nbytes for image in source.read(rows)]
    return sum(sizes) / len(sizes) * len(source.names) > limit


def build(folder: Path, source: Source, limit: float, title: str, quiet: bool) -> Decoded | str | None:
    """Reads all of ``source`` into ``folder``, with a progress bar on terminals unless ``quiet``.

    Returns the set; None where it would take more than ``limit`` bytes; or the first reason where no image at all
    can be read. OSError where it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.glob("building-*"):
        if time.time() - (other / "pixels.bin").stat().st_mtime > _ABANDONED:
            shutil.rmtree(other, ignore_errors=True)
    building = folder.parent / f"building-{uuid.uuid4().hex}"
    building.mkdir()
    try:
        kept: list[int] = []
        extents: list[tuple[int, int]] = []
        skipped: list[tuple[str, str]] = []
        count, written = len(source.names), 0
        with (
            open(building / "pixels.bin", "wb") as file,
            tqdm(total=count, desc=title, unit="img", disable=quiet or None) as bar,
        ):
            for first in range(0, count, source.chunk):
                rows = range(first, min(first + source.chunk, count))
                for row, image in zip(rows, source.read(rows), strict=True):
                    if isinstance(image, str):
                        skipped.append((source.names[row], image))
                        continue
                    written += image.nbytes
                    if written > limit:
                        return None
                    file.write(np.ascontiguousarray(image).data)
                    kept.append(row)
                    extents.append(image.shape[:2])
                bar.update(len(rows))
        if not kept:
            name, reason = skipped[0]
            return f"{name!r}: {reason}"
        index = {
            "names": [source.names[row] for row in kept],
            "labels": None if source.labels is None else [int(source.labels[row]) for row in kept],
            "classes": list(source.classes),
            "extents": extents,
            "skipped": skipped,
        }
        (building / "index.json").write_text(json.dumps(index))
        try:
            building.rename(folder)
        except OSError:  # something is there: another process's whole set, or a damaged one
            if load(folder) is None:
                shutil.rmtree(folder)
                building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return load(folder)
