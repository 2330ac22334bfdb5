"""Mends photos of any size with a trained context encoder; everything outside the hole stays bit for bit.

``python -m kintsugi.apps.mend --in photo.jpg --mask mask.png --out out.png`` — white (> 127) in the mask is the hole.

The network paints squares of its own side S, with holes of up to about a quarter. So the hole is covered with
overlapping windows, from small to large: those of S pixels, at full resolution, where the hole is thin, and windows
twice as large, shrunk to S, where too little else can be seen; at last the whole photo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.apps import jobs
from kintsugi.data import photos
from kintsugi.data.decode import rgb
from kintsugi.data.photos import open_upright, read_photo, write_png
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command

MOST_HOLE = 1 / 3  # of a window; beyond it a larger one is taken

Painter = Callable[[Tensor, Tensor], Tensor]
"""Images (N,3,S,S) in [0,1] and holes (N,1,S,S) -> images with the holes painted."""


# --- windows --------------------------------------------------------------------------------------------------


@torch.no_grad()
def mend(image: Tensor, mask: Tensor, mender: Painter, size: int, batch: int = 16) -> Tensor:
    """Paints the hole of one image of any size: (3,H,W) in [0,1], mask (1,H,W), 1 = hole -> (3,H,W).

    mender paints squares of side ``size``, ``batch`` of them at a time. Outside the hole the image is returned as it
    is, inside it nothing of it is used.

    Windows of one size tile the image with half their side as stride, with smooth weights that sum to 1 in every
    pixel. What is given to windows that hold too much hole is left to those of the next size, so every transition is
    smooth, between windows and between sizes. A shrunk pixel is the mean of what is seen in it, and hole where that is
    less than half of it.
    """
    hole = mask[0] > 0.5  # (H,W)
    known = (~hole)[None].to(image)  # (1,H,W)
    result = image.masked_fill(hole, 0)
    left = hole.to(image)  # the weight of each pixel that is not painted yet, (H,W)
    extent = (hole.shape[0], hole.shape[1])
    for height, width in _window_sizes(extent, size):
        given = left.clone()
        windows = [
            (place, weight)
            for place, weight in _windows(extent, (height, width))
            if given[place].amax() > 1e-3 and ((height, width) == extent or hole[place].float().mean() <= MOST_HOLE)
        ]
        for first in range(0, len(windows), batch):
            chunk = windows[first : first + batch]
            visible = torch.cat([_resize(known[:, y, x], (size, size)) for (y, x), _ in chunk])  # (n,1,S,S)
            squares = torch.cat(
                [_resize(result[:, y, x] * known[:, y, x], (size, size)) for (y, x), _ in chunk]
            )  # (n,3,S,S)
            holes = (visible < 0.5).to(image)
            squares = mender(squares / visible.clamp(min=0.5) * (1 - holes), holes).to(image)
            for ((y, x), weight), square in zip(chunk, squares, strict=True):
                share = given[y, x] * weight
                result[:, y, x] += share * _resize(square, (height, width))[0]
                left[y, x] -= share
    return result.clamp_(0, 1)


Place = tuple[slice, slice]


def _window_sizes(extent: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Squares of ``size`` px, twice that, ... that fit into the image, the largest that fits, the image itself."""
    short = min(extent)
    doublings = max(0, math.ceil(math.log2(short / size)))
    squares = [(size << i, size << i) for i in range(doublings)] + [(short, short)]
    return squares if extent == squares[-1] else [*squares, extent]


def _windows(extent: tuple[int, int], window: tuple[int, int]) -> Iterator[tuple[Place, Tensor]]:
    """Overlapping windows and their weights (h,w), which sum to 1 in every pixel of the image."""
    down, across = (_line(length, side) for length, side in zip(extent, window, strict=True))
    for y, vertical in down:
        for x, horizontal in across:
            yield (y, x), vertical[:, None] * horizontal


def _line(length: int, side: int) -> list[tuple[slice, Tensor]]:
    """``_windows`` along one axis: Hann windows, divided by their sum."""
    starts = torch.linspace(0, length - side, 1 + math.ceil(2 * (length - side) / side)).round().int().tolist()
    places = [slice(start, start + side) for start in starts]
    hann = torch.sin(torch.pi * (torch.arange(side) + 0.5) / side) ** 2
    total = torch.zeros(length)
    for place in places:
        total[place] += hann
    return [(place, hann / total[place]) for place in places]


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C,h,w) -> (1,C,*size)."""
    return interpolate(image[None], size, mode="bilinear", antialias=True)


# --- files ----------------------------------------------------------------------------------------------------


def mend_file(photo: Path, mask_file: Path, out: Path, mender: Painter, size: int, *, invert: bool = False) -> str:
    """Mends a photo into a PNG: upright, 8-bit RGB, with its alpha and color profile.

    invert: black is the hole, instead of white. Returns what should be said of it, or "". ValueError of
    one line where photo and mask don't fit.
    """
    image, said = read_photo(photo)
    hole = _read_hole(mask_file, invert)
    if hole.shape != image.size[::-1]:
        raise ValueError(
            f"{mask_file} is {hole.shape[1]}x{hole.shape[0]} px but {photo} is {image.width}x{image.height} px "
            "upright: make the mask as large as the photo"
        )
    color = "black (<= 127)" if invert else "white (> 127)"
    if not hole.any():
        raise ValueError(
            f"{mask_file} has no hole: nothing in it is {color}; paint the hole, or use --invert the other way"
        )
    if hole.all():
        raise ValueError(
            f"{mask_file} is all hole: everything in it is {color}, so nothing is left to mend from; "
            "should --invert be the other way?"
        )
    pixels = np.array(image.convert("RGB"))  # convert leaves the colors under an alpha as they are
    mask = torch.from_numpy(hole)
    mended = mend(torch.from_numpy(pixels).permute(2, 0, 1) / 255, mask[None], mender, size)
    pixels[hole] = (255 * mended[:, mask]).round().byte().T.numpy()
    result = Image.fromarray(pixels)
    if image.mode == "RGBA":
        result.putalpha(image.getchannel("A"))
    write_png(result, out, image.info["icc_profile"])
    return said


def _read_hole(path: Path, invert: bool) -> np.ndarray:
    """A mask as bool (H,W), True = hole; what is transparent in it is no hole."""
    image, _ = open_upright(path)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white" if invert else "black")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return (np.asarray(rgb(image).convert("L")) > 127) != invert


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config(jobs.PhotosConfig):
    """Mends a photo, or a folder of them; writes PNG. Pixels outside the hole stay as they are."""

    mask: Path
    """White (> 127) is the hole. One mask for all photos, or a folder of masks named like the photos."""
    invert: bool = False
    """Black is the hole, instead of white."""


@dataclass(frozen=True)
class Job(jobs.Job):
    mask: Path


def find_jobs(config: Config) -> list[Job]:
    """What is to be mended into what. ValueError of one line where the paths make no sense."""
    found = jobs.find_jobs(config.source, config.out)
    if not config.mask.exists():
        raise ValueError(f"--mask {config.mask}: no such file or folder")
    masks = [config.mask] * len(found)
    if config.mask.is_dir():
        stems = {path.stem: path for path in photos.images_in(config.mask)}
        masks = [stems.get(job.photo.stem, config.mask / f"{job.photo.stem}.png") for job in found]
    jobs.refuse_overwriting([job.out for job in found], masks)
    return [Job(job.photo, job.out, mask) for job, mask in zip(found, masks, strict=True)]


def run(config: Config) -> int:
    """Mends everything and returns how many files failed; a single file that fails raises."""
    from kintsugi.recon.inpainting import load_mender  # here, because it imports all of training

    todo = find_jobs(config)
    device = pick_device(config.device)
    mender = load_mender(checkpoint.chosen(config.ckpt, "inpainting"), device)

    def paint(image: Tensor, mask: Tensor) -> Tensor:
        return mender(image.to(device), mask.to(device)).cpu()

    def mend_one(job: Job) -> str:
        return mend_file(job.photo, job.mask, job.out, paint, mender.size, invert=config.invert)

    return jobs.run_jobs(todo, mend_one, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    run_command(Config, run, argv)


if __name__ == "__main__":
    main()
