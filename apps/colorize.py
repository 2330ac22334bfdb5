"""Colorizes photos of any size with a trained colorizer; their lightness does not change.

``python -m kintsugi.apps.colorize --in gray.jpg --out color.png``. The network predicts chroma at about the size at
which it was trained; the chroma is resized to the photo's size and joined with the photo's lightness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.apps import jobs
from kintsugi.color import lab_to_rgb, rgb_to_lab
from kintsugi.data import photos
from kintsugi.recon.colorization import Colorization, Colorizer, load_colorizer
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command

ROWS = 2048  # rows of a photo that are computed at a time, to limit memory


@torch.no_grad()
def colorize(
    image: Tensor, net: Colorizer, side: int, temperature: float | None = None, known: Tensor | None = None
) -> Tensor:
    """Colorizes an image (3,H,W) in [0,1] from its lightness, which stays the same -> (3,H,W) in [0,1].

    side: the short side of the image that the network sees, px. temperature: of the annealed mean; default: the
    network's. known: (1,H,W), 1 where the image's own colors are used as hints.
    """
    height, width = image.shape[-2:]
    size = photos.whole_strides((height, width), side)
    small = interpolate(image[None], size, mode="bilinear", antialias=True)  # (1,3,h,w)
    if known is None:
        out, _ = net(small)
    else:
        where = interpolate(known[None], size, mode="area")
        hinted = interpolate(rgb_to_lab((image * known)[None])[:, 1:] * known, size, mode="area") / where.clamp(
            min=1e-6
        )
        out, _ = net(small, hinted, (where > 0).to(small))
    ab = net.chroma(out, temperature)  # (1,2,h/4,w/4)
    result = torch.empty_like(image)
    for top in range(0, height, ROWS):
        rows = slice(top, min(top + ROWS, height))
        lightness = rgb_to_lab(image[None, :, rows])[:, :1]
        # The rows of the resized chroma: the same bilinear interpolation, some rows at a time.
        y = (torch.arange(rows.start, rows.stop, device=image.device) + 0.5) / height * 2 - 1
        x = (torch.arange(width, device=image.device) + 0.5) / width * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]  # (1,rows,W,2): x, y
        piece = torch.nn.functional.grid_sample(ab, grid, padding_mode="border", align_corners=False)
        result[:, rows] = lab_to_rgb(torch.cat([lightness, piece], 1))[0]
    return result


@dataclass(frozen=True, kw_only=True)
class ColorizeConfig(jobs.PhotosConfig):
    """Colorizes a photo, or a folder of photos, and writes PNG. Photos in color are colorized from their lightness."""

    side: int = 0
    """Short side of the image that the network sees, px; default: the size of its training crops."""
    temperature: float = 0.0
    """Temperature of the annealed mean: near 1 is duller, near 0 more vivid and spotty; default: the checkpoint's."""
    hints: Path | None = None
    """A picture as large as the photo, transparent except where it gives a color. Needs a network trained with
    --hints."""


def run(config: ColorizeConfig) -> int:
    """Colorizes all photos and returns how many failed. For a single photo a failure raises."""
    todo = jobs.find_jobs(config.source, config.out)
    if config.side < 0:
        raise ValueError(f"--side must be at least 1, not {config.side}")
    if config.temperature < 0:
        raise ValueError(f"--temperature must be positive, not {config.temperature}")
    file, device = checkpoint.chosen(config.ckpt, Colorization.name), pick_device(config.device)
    net = load_colorizer(file, device)
    if config.hints is not None and not net.config.hints:
        raise ValueError(f"{file} was trained without hints: name one trained with --hints, or leave --hints out")

    def colorize_one(job: jobs.PhotoJob) -> str:
        image, note = photos.read_photo(job.photo)
        pixels = photos.to_tensor(image).to(device)
        known = None
        if config.hints is not None:
            layer = np.array(_hints(config.hints, image.size))
            known = torch.from_numpy(layer[..., 3:] > 127).permute(2, 0, 1).to(pixels)
            colors = torch.from_numpy(layer[..., :3]).permute(2, 0, 1).to(pixels) / 255
            pixels = with_hints(pixels, colors, known)
        side = config.side or net.config.size
        painted = colorize(pixels, net, side, config.temperature or None, known)
        result = photos.to_image(painted)
        if image.mode == "RGBA":
            result.putalpha(image.getchannel("A"))
        photos.write_png(result, job.out)
        return "" if "grayscale" in note else note

    return jobs.run_jobs(todo, colorize_one, stop=not config.source.is_dir())


def _hints(path: Path, size: tuple[int, int]) -> Image.Image:
    """The picture of hints as RGBA. Raises ValueError with one line if its size is not ``size`` or it is opaque."""
    layer, _ = photos.open_upright(path)
    if layer.size != size:
        raise ValueError(
            f"--hints {path} is {layer.width}x{layer.height} px but the photo is {size[0]}x{size[1]} px: make it as "
            "large as the photo"
        )
    layer = layer.convert("RGBA")
    if (np.asarray(layer.getchannel("A")) > 127).all():
        raise ValueError(f"--hints {path} has no transparent pixel: make it transparent except where it gives a color")
    return layer


def with_hints(image: Tensor, colors: Tensor, known: Tensor) -> Tensor:
    """The image with the chroma of ``colors`` where they are known; it keeps its lightness. All (3,H,W) in [0,1].

    known: (1,H,W), 1 = known.
    """
    lab = torch.cat([rgb_to_lab(image[None])[:, :1], rgb_to_lab(colors[None])[:, 1:]], 1)
    return torch.where(known > 0, lab_to_rgb(lab)[0], image)


def main(argv: Sequence[str] | None = None) -> None:
    run_command(ColorizeConfig, run, argv)


if __name__ == "__main__":
    main()
