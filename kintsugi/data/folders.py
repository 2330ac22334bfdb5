"""Finds the image files below a folder, and opens folders and lists of files as sets of images."""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path

import numpy as np
import torch

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import SUFFIXES, decode_all, reason
from kintsugi.data.image_set import Images
from kintsugi.data.opener import Opener

SPECS = "scenes, cifar10, stl10, voc2012, imagenet:PATH or shards:SET.tar"
"""What --data may name besides a folder of images."""

_LABEL_FOLDERS = {"images": ("masks",), "rgb": ("depth", "normal", "instance")}
"""Folder of photos -> folders next to it that hold labels (``kintsugi.data.pairs``), which are not searched for images.
"""


def open_folder(opener: Opener, path: Path) -> Images:
    """Opens the images below a folder. If all of them lie in two or more subfolders, those are the classes.

    Raises ValueError with one line if there is no such folder or no image in it.
    """
    if not path.is_dir():
        raise ValueError(f"--data {path}: no such folder; name a folder of images, or {SPECS}")
    found, numbers = [], array("q")  # for a million names, a list of tuples would take ten times as much memory
    for name, size, changed in walk(path, opener.store.report):
        found.append(name)
        numbers.extend((size, changed))
    if not found:
        raise ValueError(f"--data {path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
    order = sorted(range(len(found)), key=found.__getitem__)
    return _open_named(opener, path, [found[i] for i in order], np.array(numbers).reshape(-1, 2)[order])


def open_files(opener: Opener, paths: Sequence[str]) -> Images:
    """Opens image files that all lie in the same folder, without classes."""
    names = [os.path.basename(file) for file in paths]
    return _open_named(opener, Path(paths[0]).parent, names, np.array([stamp(file) for file in paths]))


def _open_named(opener: Opener, folder: Path, names: Sequence[str], stamps: np.ndarray) -> Images:
    """Opens images by their names relative to ``folder``. stamps: int64 (N,2), size and time of change of each file."""

    def read(rows: Sequence[int]) -> list[Pixels]:
        return decode_all((folder / names[row] for row in rows), opener.short_side)

    def make() -> Source:
        tops = [name.partition(os.sep)[0] for name in names]
        classes = sorted(set(tops)) if all(os.sep in name for name in names) else []
        if len(classes) < 2:
            return Source(names, read)
        number = {name: i for i, name in enumerate(classes)}
        return Source(names, read, torch.tensor([number[top] for top in tops]), classes)

    # The key holds a digest of the names, because a million names would make a long text.
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, names)))
    digest.update(stamps.tobytes())
    return opener.open(folder.resolve().name, [str(folder.resolve()), digest.hexdigest()], make)


def walk(root: Path, report: Callable[[str], None], suffixes: Set[str] = SUFFIXES) -> Iterator[tuple[str, int, int]]:
    """Finds the files below ``root`` with one of the ``suffixes``: relative name, size in bytes, time of change in ns.

    Leaves out hidden files and folders, and folders of labels (``_LABEL_FOLDERS``). Follows links to folders, but
    enters each folder only once, so that loops end. ``report`` is called with one line for each folder that cannot be
    read.
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
            report(f"skipped the folder {folder}: {reason(error)}")
            return
        entered.add((here.st_dev, here.st_ino))
        subfolders = []
        for entry in entries:
            linked = entry.is_symlink()  # a link may point to itself, for which is_dir() raises
            if os.path.isdir(entry) if linked else entry.is_dir():
                subfolders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                yield prefix + entry.name, *stamp(entry.path)
        labels = {name for photos, names in _LABEL_FOLDERS.items() if photos in subfolders for name in names}
        for name in sorted(set(subfolders) - labels):
            yield from below(os.path.join(folder, name), os.path.join(prefix, name, ""))

    return below(str(root), "")


def stamp(file: str) -> tuple[int, int]:
    """A file's size in bytes and time of change in ns; -1, -1 if it is not a file, such as a broken link."""
    try:
        status = os.stat(file)
    except OSError:
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)
