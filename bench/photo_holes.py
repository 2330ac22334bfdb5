"""Fills without learning in photos at native resolution, alone and followed by patches of the photo.

Run ``python -m bench.photo_holes --data FOLDER --lpips FILE``. Each photo's central square gets the same holes. Telea
and Navier-Stokes are OpenCV's.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from bench.common import RESULTS, machine
from kintsugi.augment import masks
from kintsugi.data.photos import images_in, read_photo, to_image, to_tensor
from kintsugi.fill.classical import Fill, biharmonic
from kintsugi.fill.patches import with_patches
from kintsugi.losses.perceptual import open_lpips
from kintsugi.metrics.reconstruction import hole_figures
from kintsugi.rng import generator
from kintsugi.train.config import parse_command, user_errors


@dataclass(frozen=True, kw_only=True)
class PhotoHolesConfig:
    """Compares fills without learning on the holes of photos."""

    data: Path
    """A folder of photos."""
    every: int = 7
    """Takes every Nth photo by its name; others may have been used to choose settings."""
    count: int = 40
    """Largest number of photos."""
    size: int = 160
    """Side of the central squares, px."""
    lpips: str = "auto"
    """auto, download, off, or a FILE of torchvision's AlexNet."""
    out: Path = RESULTS
    """Folder for photo-holes.json."""


def holes(size: int, count: int) -> dict[str, Tensor]:
    """Kind of hole -> masks (count,1,size,size), 1 = hole."""
    middle = size // 2

    def box(side: int) -> Tensor:
        mask = torch.zeros(count, 1, size, size)
        mask[..., middle - side // 2 : middle + side // 2, middle - side // 2 : middle + side // 2] = 1
        return mask

    def lines(width: int, *corners: tuple[float, float]) -> Tensor:
        drawn = np.zeros((size, size), np.uint8)
        points = np.array([[round(x * size), round(y * size)] for x, y in corners])
        cv2.polylines(drawn, [points], False, 1, width)
        return torch.from_numpy(drawn).float().expand(count, 1, size, size)

    return {
        "scratch of 10 px": lines(10, (0.06, 0.2), (0.5, 0.45), (0.94, 0.3)),
        "stroke of 24 px": lines(24, (0.12, 0.25), (0.88, 0.44), (0.38, 0.81)),
        "box of 40 px": box(40),
        "box of 80 px": box(80),
        "regions": masks.regions(count, size, generator(0)),
    }


def opencv(method: int) -> Fill:
    """One of OpenCV's two fills, with a radius of 3 px."""

    def fill(images: Tensor, masks: Tensor) -> Tensor:
        filled = []
        for image, mask in zip(images, masks, strict=True):
            filled.append(cv2.inpaint(np.array(to_image(image)), mask[0].byte().numpy(), 3, method))
        return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2) / 255

    return fill


def run(config: PhotoHolesConfig) -> None:
    photos = images_in(config.data)[:: config.every][: config.count]
    truth = torch.stack([_square(photo, config.size) for photo in photos])
    lpips, _ = open_lpips(config.lpips)
    classical = {"biharmonic": biharmonic, "Telea": opencv(cv2.INPAINT_TELEA), "Navier-Stokes": opencv(cv2.INPAINT_NS)}
    fills = classical | {f"{name}, patches": with_patches(fill) for name, fill in classical.items()}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for kind, mask in holes(config.size, len(truth)).items():
        result[kind] = {}
        for name, fill in fills.items():
            start = time.perf_counter()
            filled = fill(truth * (1 - mask), mask)
            seconds = (time.perf_counter() - start) / len(truth)
            row = {"seconds": round(seconds, 3)}
            for figure, values in hole_figures(filled, truth, mask, lpips).items():
                row[figure] = values.mean().item()
                row[f"{figure}_deviation"] = statistics.stdev(values.tolist())
            result[kind][name] = row
            print(kind, name, {key: round(value, 3) for key, value in row.items()}, flush=True)
    about = {"photos": len(truth), "size": config.size, "every": config.every, "machine": machine()}
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "photo-holes.json").write_text(json.dumps({"holes": result, **about}, indent=1, default=str) + "\n")


def _square(path: Path, size: int) -> Tensor:
    """The central square of a photo at native resolution, (3,size,size) in [0,1]."""
    pixels = to_tensor(read_photo(path)[0])
    height, width = pixels.shape[1:]
    if min(height, width) < size:
        raise ValueError(f"{path} is {width}x{height} px: use a --size of at most {min(height, width)}")
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top : top + size, left : left + size]


def main() -> None:
    with user_errors():
        run(parse_command(PhotoHolesConfig, None))


if __name__ == "__main__":
    main()
