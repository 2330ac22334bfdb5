"""Photos in the page: read from the person's file, shown smaller if they are large, and written as PNG.

What the page shows may be smaller than the photo. What a network receives, and what is downloaded, never is: strokes
and points are transferred to the photo's own pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from kintsugi.color import lab_to_rgb, rgb_to_lab
from kintsugi.data import photos

SHOWN = 1600  # longest side of a photo in the page, px
LARGEST = 40.0  # megapixels of a photo that the page takes
LARGEST_TO_ENLARGE = 1.0  # megapixels; the result has 16 times as many
PAINTED = 64  # alpha above which a pixel of the editor belongs to a stroke, of 255
DAB = 0.015  # radius of a color hint as a fraction of the photo's short side: 1 to 3 px of the network's input


@dataclass(frozen=True)
class Photo:
    """A person's photo: upright, 8-bit RGB or RGBA, at full size."""

    image: Image.Image
    name: str
    """The name of its file, without folder and suffix."""

    @property
    def tensor(self) -> Tensor:
        """Its colors, (3,H,W) in [0,1]."""
        return photos.to_tensor(self.image)

    def with_colors(self, colors: Image.Image) -> Photo:
        """The photo with other colors, of any size; it keeps its transparency and its color profile."""
        image = colors.convert("RGB")
        if self.image.mode == "RGBA":
            image.putalpha(self.image.getchannel("A").resize(image.size, Image.Resampling.BICUBIC))
        image.info["icc_profile"] = self.image.info.get("icc_profile")
        return replace(self, image=image)


def open_photo(path: str | Path, largest: float = LARGEST) -> Photo:
    """Reads a photo of at most ``largest`` megapixels. Raises ValueError with one line if it cannot."""
    path = Path(path)
    try:
        with Image.open(path) as header:
            width, height = header.size
    except Exception:  # Pillow's decoders raise all kinds of errors on damaged files
        raise ValueError(f"{path.name} cannot be read as an image: is it damaged, or not a photo?") from None
    if width * height > largest * 1e6:
        raise ValueError(
            f"{path.name} is {width}x{height} px, which is {width * height / 1e6:.1f} megapixels; here photos may have "
            f"at most {largest:g}: shrink it first"
        )
    try:
        image, _ = photos.read_photo(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None
    return Photo(image, path.stem)


def shown(image: Image.Image, most: int = SHOWN, least: int = 1) -> Image.Image:
    """The image as RGB for the page: its longest side has ``least`` to ``most`` px."""
    side = max(image.size)
    scale = min(max(side, least), most) / side
    if scale == 1:
        return image.convert("RGB")
    width, height = (max(1, round(scale * length)) for length in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def save_png(photo: Photo, folder: Path, suffix: str) -> str:
    """Writes the photo as NAME-SUFFIX.png into a new folder in ``folder``. Returns its path."""
    out = Path(tempfile.mkdtemp(dir=folder)) / f"{photo.name}-{suffix}.png"
    photos.write_png(photo.image, out, photo.image.info.get("icc_profile"))
    return str(out)


# --- strokes --------------------------------------------------------------------------------------------------


def hole_of(layers: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Where the person painted, in the photo's own pixels: bool (H,W), True = hole.

    layers: what the editor returns, uint8 (h,w,4), transparent where nothing is painted. size: the photo's width and
    height. A pixel of the photo is hole if its center lies in a painted pixel of the editor. Raises ValueError with one
    line if nothing is painted, or everything, or if the proportions do not fit.
    """
    x, y = (2 * np.arange(length) + 1 for length in size)  # twice the centers of the photo's columns and rows
    hole = np.zeros(size[::-1], dtype=bool)
    for layer in layers:
        height, width = layer.shape[:2]
        if max(height * size[0] / width / size[1], width * size[1] / height / size[0]) > 1.05:
            raise ValueError("The strokes do not fit the photo: press Clear canvas, then paint them again")
        rows, columns = y * height // (2 * size[1]), x * width // (2 * size[0])
        hole |= layer[rows[:, None], columns, 3] > PAINTED
    if not hole.any():
        raise ValueError("Nothing is painted yet: paint over what should go, then press Mend")
    if hole.all():
        raise ValueError("The whole photo is painted, so there is nothing to mend it from: leave some of it free")
    return hole


# --- color hints ----------------------------------------------------------------------------------------------


class Hint(NamedTuple):
    """A point and its color. x and y: fractions of the photo's width and height."""

    x: float
    y: float
    color: str
    """As the page's color picker gives it: #rrggbb or rgba(r, g, b, a)."""


def rgb_of(color: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a color picker's value. Raises ValueError with one line if it is none."""
    if color.startswith("rgba(") and color.endswith(")"):
        color = f"rgb({','.join(str(round(float(x))) for x in color[5:-1].split(',')[:3])})"
    return ImageColor.getrgb(color)[:3]


def gray(image: Image.Image) -> Image.Image:
    """The image without its colors: Lab with a = b = 0, so that the lightness is that of the colorized photo."""
    lightness = rgb_to_lab(photos.to_tensor(image)[None])[:, :1]
    lab = torch.cat([lightness, torch.zeros_like(lightness).expand(-1, 2, -1, -1)], 1)
    return photos.to_image(lab_to_rgb(lab)[0]).convert("L").convert("RGB")


def hint_layers(hints: Sequence[Hint], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The hints as squares on a photo of this width and height: colors (3,H,W) in [0,1]; known (1,H,W), 1 = known."""
    colors, known = Image.new("RGB", size), Image.new("L", size)
    radius = max(1.0, DAB * min(size))
    for hint in hints:
        x, y = hint.x * size[0], hint.y * size[1]
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(colors).rectangle(box, fill=rgb_of(hint.color))
        ImageDraw.Draw(known).rectangle(box, fill=255)
    return photos.to_tensor(colors), photos.to_tensor(known)[:1]


def with_points(image: Image.Image, hints: Sequence[Hint]) -> Image.Image:
    """The image with a dot of each hint's color, with a white and a dark ring, so that it can be seen anywhere."""
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    radius = max(4.0, DAB * min(image.size))
    for hint in hints:
        x, y = hint.x * image.width, hint.y * image.height
        for grown, color in ((radius + 3, "#202020"), (radius + 2, "#ffffff"), (radius, rgb_of(hint.color))):
            draw.ellipse((x - grown, y - grown, x + grown, y + grown), fill=color)
    return marked
