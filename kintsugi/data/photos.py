"""A user's own photos at full size: read from files, and written as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kintsugi.data.decode import SUFFIXES, rgb


def read_photo(path: Path) -> tuple[Image.Image, str]:
    """Reads a photo, upright, as 8-bit RGB or RGBA; and a note on its conversion, "" if nothing was lost.

    ``info["icc_profile"]`` of the result is the color profile that still applies, or None. Raises ValueError with one
    line if the file cannot be read.
    """
    image, raw = open_upright(path)
    deep = image.mode.startswith("I") or ";16" in raw
    lossless = image.mode in ("RGB", "RGBA", "P", "PA") and not deep
    converted = "" if lossless else f"{'16-bit ' if deep else ''}{image.mode.split(';')[0]}"
    converted = {"16-bit I": "16-bit grayscale", "L": "grayscale", "LA": "grayscale with alpha"}.get(
        converted, converted
    )
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    upright = image.convert("RGBA") if transparent else rgb(image)
    upright.info["icc_profile"] = None if converted else image.info.get("icc_profile")
    return upright, converted and f"8-bit RGB, converted from {converted}"


def open_upright(path: Path) -> tuple[Image.Image, str]:
    """Opens an image file, decoded and upright. Also returns how its pixels are stored, as Pillow describes it.

    Raises ValueError with one line if the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        with Image.open(path) as image:
            raw = str(image.tile)
            return ImageOps.exif_transpose(image), raw
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}): is it damaged?") from None


def write_png(image: Image.Image, out: Path, icc_profile: bytes | None = None) -> None:
    """Writes the file ``out`` completely or not at all. Creates its folder if needed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.part")
    try:
        image.save(unfinished, "PNG", icc_profile=icc_profile)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit image as a tensor (3,H,W) in [0,1]. Alpha is dropped; the colors of transparent pixels are kept."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def read_pixels(path: Path) -> Tensor:
    """A photo as (3,H,W) in [0,1], upright, without its alpha. Raises ValueError with one line if it cannot be read."""
    return to_tensor(read_photo(path)[0])


def to_image(image: Tensor) -> Image.Image:
    """A tensor (3,H,W) as an 8-bit image. Values are clipped to [0,1]."""
    return Image.fromarray((255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy())


def whole_strides(extent: tuple[int, int], side: int, stride: int = 32) -> tuple[int, int]:
    """Height and width, px, that are multiples of ``stride``, so that no feature map of a network has to be cropped.

    The short side is about ``side`` px. The proportions are about those of ``extent`` (height, width).
    """
    scale = side / min(extent)
    height, width = (max(stride, stride * round(scale * length / stride)) for length in extent)
    return height, width


def images_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, sorted by name. Hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
