"""Fills of the holes of photos at native resolution: classical ones, patches of the photo, and trained networks.

The central square of each photo gets the same holes: a scratch, a stroke, two boxes, regions. OpenCV's two fills, Telea
and Navier-Stokes, are measured where OpenCV is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from kintsugi.augment import masks
from kintsugi.data.photos import images_in, read_pixels, to_image
from kintsugi.fill.classical import Fill, biharmonic
from kintsugi.fill.patches import with_patches
from kintsugi.losses.perceptual import Lpips
from kintsugi.metrics.reconstruction import hole_figures
from kintsugi.recon.painters import PhotoPainter, open_painter
from kintsugi.rng import generator

Figures = dict[str, dict[str, dict[str, float]]]
"""Kind of hole -> fill -> figure -> mean over the photos; ``FIGURE_deviation``: standard deviation over the photos."""


def squares(folder: Path, size: int, every: int, count: int) -> Tensor:
    """The central squares, at native resolution, of up to ``count`` photos of a folder: (N,3,size,size) in [0,1].

    Takes every ``every``-th photo by its name. Raises ValueError with one line if there is none, or one is too small.
    """
    photos = images_in(folder)[::every][:count] if folder.is_dir() else []
    if not photos:
        raise ValueError(f"--data {folder}: no photos there; with --native, name a folder of photos")
    return torch.stack([_square(photo, size) for photo in photos])


def _square(path: Path, size: int) -> Tensor:
    pixels = read_pixels(path)
    height, width = pixels.shape[1:]
    if min(height, width) < size:
        raise ValueError(f"{path} is {width}x{height} px: use squares of at most {min(height, width)} px")
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top : top + size, left : left + size]


def holes(size: int, count: int) -> dict[str, Tensor]:
    """Kind of hole -> masks (count,1,size,size), 1 = hole."""
    middle = size // 2

    def box(side: int) -> Tensor:
        mask = torch.zeros(count, 1, size, size)
        mask[..., middle - side // 2 : middle + side // 2, middle - side // 2 : middle + side // 2] = 1
        return mask

    def line(width: int, *corners: tuple[float, float]) -> Tensor:
        drawn = Image.new("L", (size, size))
        ImageDraw.Draw(drawn).line([(x * size, y * size) for x, y in corners], fill=1, width=width, joint="curve")
        return torch.from_numpy(np.array(drawn)).float().expand(count, 1, size, size)

    return {
        "scratch of 10 px": line(10, (0.06, 0.2), (0.5, 0.45), (0.94, 0.3)),
        "stroke of 24 px": line(24, (0.12, 0.25), (0.88, 0.44), (0.38, 0.81)),
        "box of 40 px": box(40),
        "box of 80 px": box(80),
        "regions": masks.regions(count, size, generator(0)),
    }


def fills(ckpts: Sequence[Path], device: torch.device) -> dict[str, Fill]:
    """Name of a row -> fill: the classical ones, patches after one of them, and each network alone and with patches."""
    found: dict[str, Fill] = {"biharmonic": biharmonic, **_opencv()}
    last = next(reversed(found))  # Navier-Stokes, if there is OpenCV
    found[f"{last}, patches"] = with_patches(found[last])
    for ckpt in ckpts:
        method, painter = open_painter(ckpt, device)
        name = method if method not in found else f"{method} {ckpt}"
        found[name] = lambda images, masks, painter=painter: _photo_by_photo(painter, images, masks)  # type: ignore[misc]
        found[f"{name}, patches"] = with_patches(found[name])
    return found


def _photo_by_photo(painter: PhotoPainter, images: Tensor, masks: Tensor) -> Tensor:
    return torch.stack([painter(*pair, lambda done: None) for pair in zip(images, masks, strict=True)])


def _opencv() -> dict[str, Fill]:
    """OpenCV's two fills, with a radius of 3 px; none without OpenCV."""
    try:
        import cv2
    except ImportError:
        return {}

    def fill(method: int) -> Fill:
        def filled(images: Tensor, masks: Tensor) -> Tensor:
            pairs = zip(images.cpu(), masks.cpu(), strict=True)
            found = [cv2.inpaint(np.array(to_image(i)), m[0].byte().numpy(), 3, method) for i, m in pairs]
            return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).to(images.device) / 255

        return filled

    return {"Telea": fill(cv2.INPAINT_TELEA), "Navier-Stokes": fill(cv2.INPAINT_NS)}


@torch.no_grad()
def measure_photos(
    truth: Tensor, fills: Mapping[str, Fill], lpips: Lpips | None, report: Callable[[str], object] = lambda line: None
) -> Figures:
    """The figures of each fill (``hole_figures``) and its seconds for a photo, for each kind of hole.

    truth: (N,3,S,S) in [0,1]. report: called with a line for each kind and fill.
    """
    result: Figures = {}
    for kind, mask in holes(truth.shape[-1], len(truth)).items():
        result[kind] = {}
        mask = mask.to(truth.device)
        for name, fill in fills.items():
            start = time.perf_counter()
            filled = fill(truth * (1 - mask), mask)
            row = {"seconds": (time.perf_counter() - start) / len(truth)}
            for figure, values in hole_figures(filled, truth, mask, lpips).items():
                row[figure] = values.mean().item()
                row[f"{figure}_deviation"] = statistics.stdev(values.tolist()) if len(values) > 1 else 0.0
            result[kind][name] = row
            report(f"{kind}, {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    return result
