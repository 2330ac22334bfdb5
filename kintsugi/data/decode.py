"""Image files of any kind as upright 8-bit RGB of the size in which they are stored."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kintsugi.data.cache import Pixels

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"))
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # by content, whatever the suffix says

_LARGE = 2**25  # pixels; of many threads only one at a time decodes such an image, which takes up to 2 GB
_ONE_AT_A_TIME = threading.Lock()

# Pillow complains of damaged metadata and of large pictures, one by one; what matters is counted in one line.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode(file: Path, short_side: int) -> Pixels:
    """An image file as it is stored, upright; or the reason why it cannot be read."""
    try:
        if not file.is_file():
            return "not a file"  # but a broken link, say, or a pipe, which would be waited for
        if file.stat().st_size == 0:
            return "an empty file"
    except Exception as error:
        return reason(error)
    return _decoded(file, short_side)


def decode_bytes(content: bytes, short_side: int) -> Pixels:
    """As ``decode``, of a file's content."""
    return _decoded(io.BytesIO(content), short_side) if content else "an empty file"


def _decoded(file: Path | io.BytesIO, short_side: int) -> Pixels:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            ratio = max(image.size) / max(1, min(image.size))
            image.draft(None, (2 * short_side, 2 * short_side))  # a JPEG is decoded smaller, for less work
            with _ONE_AT_A_TIME if image.width * image.height > _LARGE else contextlib.nullcontext():
                image.load()
                with contextlib.suppress(Exception):  # damaged EXIF is no reason to lose the picture
                    ImageOps.exif_transpose(image, in_place=True)
                return stored(image, short_side, ratio)
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        return reason(error)


def stored(image: Image.Image, short_side: int, ratio: float = 0) -> np.ndarray:
    """Pixels as they are stored, (3,h,w) uint8 RGB: the long side cut in the middle to at most twice the short one,
    then the short side reduced to ``short_side`` px (bicubic, antialiased), if it is larger.

    ``ratio`` of the sides, 0 = as they are: given where a JPEG was decoded smaller, which rounds them.
    """
    image = rgb(image)
    width, height = min(image.width, 2 * image.height), min(image.height, 2 * image.width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    short = min(width, height, short_side)
    long = round(short * min(2.0, ratio or max(width, height) / min(width, height)))
    image = image.resize(
        (long, short) if width > height else (short, long),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
        reducing_gap=1.5,  # averages whole pixels first: 45 dB from doing without on photos, in a third less time
    )
    return np.asarray(image).transpose(2, 0, 1)  # (h,w,3) -> (3,h,w), not moved


def rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB, color profiles ignored.

    Transparency is laid over white; gray of 16 bits is divided by 257; float gray is taken as [0,1], or as 0..255
    where it exceeds 1. Pillow itself converts palettes, CMYK, YCbCr and 16-bit color.
    """
    if image.mode.startswith("I") or image.mode == "F":
        gray = np.nan_to_num(np.asarray(image, np.float64), posinf=1.0, neginf=0.0)
        scale = 1 / 257 if image.mode != "F" else 255 if gray.max() <= 1 else 1
        return Image.fromarray((scale * gray).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """What went wrong, in one short line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]
