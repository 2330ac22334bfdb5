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

from kintsugi.apps import jobs
from kintsugi.data import photos
from kintsugi.nets.colorizer import colorize, with_hints
from kintsugi.recon.colorization import Colorization, load_colorizer
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command


@dataclass(frozen=True, kw_only=True)
class ColorizeConfig(jobs.PhotosConfig):
    """Colorizes a photo, or a folder of photos, and writes PNG. Photos in color are colorized from their lightness."""

    side: int = 0
    """Short side of the image that the network sees, px; default: a third more than that of its training crops."""
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
    file, device = (
        checkpoint.chosen(config.ckpt, Colorization.name, shipped_name="colorizer"),
        pick_device(config.device),
    )
    net = load_colorizer(file, device)
    if config.hints is not None and not net.spec.hints:
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
        with jobs.progress(job.photo.name) as report:
            painted = colorize(pixels, net, config.side, config.temperature or None, known, report)
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


def main(argv: Sequence[str] | None = None) -> None:
    run_command(ColorizeConfig, run, argv)


if __name__ == "__main__":
    main()
