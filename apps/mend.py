"""Mends photos of any size with a trained context encoder; pixels outside the hole stay exactly as they are.

``python -m kintsugi.apps.mend --in photo.jpg --mask mask.png --out out.png``; white (> 127) in the mask is the hole.

The network was trained on squares of side S whose holes cover at most a quarter. So the hole is covered with
overlapping windows, from small to large: windows of S pixels at full resolution where the hole is thin; where these
would be mostly hole, windows twice as large, shrunk to S, and so on up to the whole photo.

The network gives colors and structure, but no detail. Detail comes from patches of the photo itself, unless the option
is --detail net.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.apps import jobs
from kintsugi.data import photos
from kintsugi.data.decode import rgb
from kintsugi.data.photos import open_upright, read_photo, write_png
from kintsugi.fill.patches import complete
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command

MOST_HOLE = 1 / 3  # largest fraction of a window that may be hole; beyond it a larger window is used

Painter = Callable[[Tensor, Tensor], Tensor]
"""Images (N,3,S,S) in [0,1] and holes (N,1,S,S) -> images with the holes painted."""
Detail = Callable[[Tensor, Tensor], Tensor]
"""One mended image (3,H,W) in [0,1] and its hole (1,H,W) -> the image with detail in the hole."""


# --- windows --------------------------------------------------------------------------------------------------


@torch.no_grad()
def mend(image: Tensor, mask: Tensor, mender: Painter, size: int, batch: int = 16) -> Tensor:
    """Paints the hole of one image of any size: (3,H,W) in [0,1], mask (1,H,W), 1 = hole -> (3,H,W) in [0,1].

    mender paints squares of side ``size``, ``batch`` of them at a time. Outside the hole the image is unchanged; inside
    it the image's content is not used.

    Windows of one size overlap by half, with smooth weights that sum to 1 at every pixel. The weights of windows with
    too much hole are passed on to the next size. So every transition is smooth, between windows and between sizes. A
    shrunk pixel is the mean of its visible pixels; if less than half of it is visible, it is hole.
    """
    hole = mask[0] > 0.5  # (H,W)
    known = (~hole)[None].to(image)  # (1,H,W)
    result = image.masked_fill(hole, 0)
    left = hole.to(image)  # each pixel's weight that is still to be painted, (H,W)
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
                amount = given[y, x] * weight
                result[:, y, x] += amount * _resize(square, (height, width))[0]
                left[y, x] -= amount
    return result.clamp_(0, 1)


Place = tuple[slice, slice]
"""The rows and the columns of a window."""


def _window_sizes(extent: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Heights and widths of windows: squares of ``size``, 2 ``size``, ... px, the largest square, the whole image."""
    short = min(extent)
    doublings = max(0, math.ceil(math.log2(short / size)))
    squares = [(size << i, size << i) for i in range(doublings)] + [(short, short)]
    return squares if extent == squares[-1] else [*squares, extent]


def _windows(extent: tuple[int, int], window: tuple[int, int]) -> Iterator[tuple[Place, Tensor]]:
    """Overlapping windows of an image, and their weights (h,w), which sum to 1 at every pixel of the image."""
    down, across = (_line(length, side) for length, side in zip(extent, window, strict=True))
    for y, vertical in down:
        for x, horizontal in across:
            yield (y, x), vertical[:, None] * horizontal


def _line(length: int, side: int) -> list[tuple[slice, Tensor]]:
    """``_windows`` along one axis: places and weights (side,), Hann windows divided by their sum."""
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


def mend_file(
    photo: Path,
    mask_file: Path,
    out: Path,
    mender: Painter,
    size: int,
    *,
    invert: bool = False,
    detail: Detail | None = None,
) -> str:
    """Mends a photo and writes it as PNG: upright, 8-bit RGB, with its alpha channel and color profile.

    invert: black is the hole, instead of white. detail: adds detail to what the network painted. Returns a note on the
    photo's conversion, or "". Raises ValueError with one line if the photo and the mask do not fit together.
    """
    image, note = read_photo(photo)
    hole = _read_hole(mask_file, invert)
    if hole.shape != image.size[::-1]:
        raise ValueError(
            f"{mask_file} is {hole.shape[1]}x{hole.shape[0]} px but {photo} is {image.width}x{image.height} px "
            "upright: make the mask as large as the photo"
        )
    color = "black (<= 127)" if invert else "white (> 127)"
    if not hole.any():
        raise ValueError(
            f"{mask_file} has no hole: no pixel is {color}; paint the hole {color.split()[0]}, or "
            + ("leave --invert out" if invert else "add --invert")
        )
    if hole.all():
        raise ValueError(
            f"{mask_file} is all hole: every pixel is {color}, so there is nothing to mend from; "
            + ("try without --invert" if invert else "try --invert")
        )
    pixels = np.array(image.convert("RGB"))  # convert leaves the colors under an alpha as they are
    mask = torch.from_numpy(hole)
    mended = mend(torch.from_numpy(pixels).permute(2, 0, 1) / 255, mask[None], mender, size)
    if detail is not None:
        mended = detail(mended, mask[None])
    pixels[hole] = (255 * mended[:, mask]).round().byte().T.numpy()
    result = Image.fromarray(pixels)
    if image.mode == "RGBA":
        result.putalpha(image.getchannel("A"))
    write_png(result, out, image.info["icc_profile"])
    return note


def _read_hole(path: Path, invert: bool) -> np.ndarray:
    """A mask as bool (H,W), True = hole; transparent pixels are not hole."""
    image, _ = open_upright(path)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white" if invert else "black")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return (np.asarray(rgb(image).convert("L")) > 127) != invert


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MendConfig(jobs.PhotosConfig):
    """Mends a photo, or a folder of photos, and writes PNG. Pixels outside the hole stay as they are."""

    mask: Path
    """White (> 127) is the hole. One mask for all photos, or a folder of masks named like the photos."""
    invert: bool = False
    """Black is the hole, instead of white."""
    detail: Literal["patches", "net"] = "patches"
    """patches: sharp, by patches of the photo itself that continue what the network painted; net: the network alone."""
    seed: int = 0
    """With patches: another seed gives another result, where the photo leaves a choice."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")


@dataclass(frozen=True)
class MendJob(jobs.PhotoJob):
    """A photo, the PNG to write, and the mask of its hole."""

    mask: Path


def find_jobs(config: MendConfig) -> list[MendJob]:
    """The jobs for --in, --mask and --out. Raises ValueError with one line if the paths do not fit together."""
    found = jobs.find_jobs(config.source, config.out)
    if not config.mask.exists():
        raise ValueError(f"--mask {config.mask}: no such file or folder")
    masks = [config.mask] * len(found)
    if config.mask.is_dir():
        stems = {path.stem: path for path in photos.images_in(config.mask)}
        masks = [stems.get(job.photo.stem, config.mask / f"{job.photo.stem}.png") for job in found]
    jobs.refuse_overwriting([job.out for job in found], masks)
    return [MendJob(job.photo, job.out, mask) for job, mask in zip(found, masks, strict=True)]


def run(config: MendConfig) -> int:
    """Mends all photos and returns how many failed. For a single photo a failure raises."""
    from kintsugi.recon.inpainting import load_mender  # here, because it imports all of training

    todo = find_jobs(config)
    device = pick_device(config.device)
    mender = load_mender(checkpoint.chosen(config.ckpt, "inpainting"), device)

    def paint(image: Tensor, mask: Tensor) -> Tensor:
        return mender(image.to(device), mask.to(device)).cpu()

    def add_patches(mended: Tensor, mask: Tensor) -> Tensor:
        return complete(mended.to(device), mask.to(device), config.seed).cpu()

    detail = add_patches if config.detail == "patches" else None

    def mend_one(job: MendJob) -> str:
        return mend_file(job.photo, job.mask, job.out, paint, mender.size, invert=config.invert, detail=detail)

    return jobs.run_jobs(todo, mend_one, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    run_command(MendConfig, run, argv)


if __name__ == "__main__":
    main()
