"""Opens folders in which files of the same name form one sample, such as rgb/ and depth/, through the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import SUFFIXES, pool
from kintsugi.data.image_set import Images
from kintsugi.data.opener import Opener


def open_matched(
    opener: Opener,
    folders: Sequence[str],
    sample: Callable[[Sequence[Path]], Pixels],
    planes: int,
    kind: str,
    key: object = None,
) -> Images:
    """Opens the samples of the folder ``opener.spec``: one for each name that is in all of its subfolders ``folders``.

    folders: the first is that of the images. sample: makes planes, uint8 (planes,H,W), from the files of one name, or
    returns the reason why it cannot. planes: their number. kind and key (JSON): distinguish sets in the cache. Raises
    ValueError with one line if a folder is missing or no name is in all of them.
    """
    root = Path(opener.spec).expanduser()
    wanted = "/, ".join(folders) + "/"
    if not root.is_dir():
        raise ValueError(f"--data {opener.spec}: no such folder; name one with {wanted}, or use scenes")
    for name in folders:
        if not (root / name).is_dir():
            raise ValueError(f"--data {opener.spec}: no {name}/ in it; make {wanted} with files of the same names")
    files = [dict(_images(root / name)) for name in folders]
    stems = sorted(set(files[0]).intersection(*files[1:]))
    if not stems:
        raise ValueError(f"--data {opener.spec}: no name is in all of {wanted}")
    if lonely := max(map(len, files)) - len(stems):
        opener.store.report(f"{opener.spec}: {lonely} files left out that are not in all of {wanted}")
    paths = [tuple(found[stem] for found in files) for stem in stems]

    def read(rows: Sequence[int]) -> list[Pixels]:
        return list(pool().map(sample, (paths[row] for row in rows)))

    stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for group in paths for path in group]
    return opener.open(
        f"{kind}-{root.resolve().name}",
        [planes, str(root.resolve()), stamps, key],
        lambda: Source(stems, read, planes=planes),
    )


def _images(folder: Path) -> Iterator[tuple[str, Path]]:
    """The image files in a folder, sorted: name without suffix, and path. Hidden files are left out."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path.stem, path


def read_values(path: Path) -> np.ndarray:
    """Reads the numbers in a PNG: (h,w) or (h,w,C), uint8 or uint16. Numbers beyond 16 bits become 0."""
    with Image.open(path) as file:
        found = np.array(file)
    if found.dtype == np.int32:  # Pillow's mode I
        found = np.where(found < 2**16, found, 0).astype(np.uint16)
    return found


def nearest(maps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resizes maps (h,w,...) to the height and width ``shape``, taking the nearest original pixel for each pixel.

    First they are cropped, as ``decode.crop_and_shrink`` crops the image, so that they fit it.
    """
    height, width = min(maps.shape[0], 2 * maps.shape[1]), min(maps.shape[1], 2 * maps.shape[0])
    top, left = (maps.shape[0] - height) // 2, (maps.shape[1] - width) // 2
    rows = top + ((np.arange(shape[0]) + 0.5) * height / shape[0]).astype(int)
    columns = left + ((np.arange(shape[1]) + 0.5) * width / shape[1]).astype(int)
    return maps[rows[:, None], columns]
