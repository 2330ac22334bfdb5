"""Folders of small images, for the smallest runs of all methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make(root: Path) -> dict[str, Path]:
    """All of them, made if they are missing: ``photos``, ``clips`` and ``labeled``."""
    folders = {"photos": root / "photos", "clips": root / "clips", "labeled": root / "labeled"}
    if not root.exists():
        for folder, fill in zip(folders.values(), (photos, clips, labeled), strict=True):
            folder.mkdir(parents=True)
            fill(folder)
    return folders


def photos(folder: Path) -> None:
    """24 JPEGs, each a smooth color field with an edge, so that holes can be guessed from around."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1:72j, 0:1:96j]
    for i in range(24):
        low, high, slope = rng.random(3), rng.random(3), rng.normal(size=2)
        field = (slope[0] * x + slope[1] * y > slope.sum() / 2)[..., None]
        image = np.where(field, low, high) * (0.7 + 0.3 * np.sin(6 * x + i))[..., None]
        Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(folder / f"photo{i:02d}.jpg")


def clips(folder: Path) -> None:
    """Three clips, as folders of frames in which a square moves or stands still."""
    rng = np.random.default_rng(0)
    for clip in ("left", "right", "still"):
        (folder / clip).mkdir()
        for frame in range(10):
            pixels = rng.integers(0, 60, (40, 48, 3), dtype=np.uint8)
            place = {"left": 2 + 3 * frame, "right": 30 - 3 * frame, "still": 12}[clip]
            pixels[10:22, place : place + 12] = (220, 120, 40)
            Image.fromarray(pixels).save(folder / clip / f"{frame:03d}.png")


def labeled(folder: Path, height: int = 40, width: int = 48) -> None:
    """train/ and test/ of three classes, each of one color in noise; height and width of the images in px."""
    rng = np.random.default_rng(1)
    for part, count in (("train", 14), ("test", 4)):
        for number, color in enumerate([(40, 60, 200), (40, 180, 60), (200, 50, 40)]):
            (folder / part / f"class{number}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(color, 40, (height, width, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / f"class{number}" / f"{i}.png")
