"""Files of every kind, compared with Pillow, OpenCV or arithmetic; and files that are no images."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from kintsugi.data.decode import SUFFIXES, decode


def smooth(height: int, width: int) -> np.ndarray:
    """(H,W,3) uint8, without any symmetry."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * x, 255 * y**2, 120 + 100 * np.sin(4 * x + y)], axis=-1).astype(np.uint8)


def pixels(file: Path, short_side: int = 1000) -> np.ndarray:
    """The decoded image, (H,W,3) int, so that differences don't wrap around."""
    image = decode(file, short_side)
    assert isinstance(image, np.ndarray), image
    assert image.dtype == np.uint8
    assert image.shape[0] == 3
    return image.transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix(suffix: str, tmp_path: Path):
    image = smooth(40, 60)
    file = tmp_path / f"image{suffix.upper()}"
    Image.fromarray(image).save(file, quality=95)
    assert np.abs(pixels(file) - image).max() < (16 if suffix in (".jpg", ".jpeg", ".jpe", ".webp") else 1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, suffix: str, tmp_path: Path):
    file = tmp_path / f"turned{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth(40, 60)).save(file, exif=exif, lossless=True)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    assert np.array_equal(pixels(file), upright)
    assert upright.shape[:2] == ((40, 60) if orientation < 5 else (60, 40))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b""])
def test_damaged_exif_loses_no_picture(exif: bytes, tmp_path: Path):
    Image.fromarray(smooth(40, 60)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert np.abs(pixels(tmp_path / "a.jpg") - smooth(40, 60)).max() < 16


def test_cmyk_jpeg(tmp_path: Path):
    image = Image.fromarray(smooth(40, 60)).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=98)
    c, m, y, k = (np.asarray(band, float) / 255 for band in image.split())
    oracle = 255 * np.stack([(1 - c) * (1 - k), (1 - m) * (1 - k), (1 - y) * (1 - k)], axis=-1)
    assert np.abs(pixels(tmp_path / "a.jpg") - oracle).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray(suffix: str, tmp_path: Path):
    gray = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), gray)
    oracle = (gray / 257).round().astype(int)
    assert np.array_equal(pixels(tmp_path / f"a{suffix}"), np.stack([oracle] * 3, axis=-1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_color(suffix: str, tmp_path: Path):
    color = smooth(40, 60).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / f"a{suffix}"), np.ascontiguousarray(color[..., ::-1]))
    assert np.array_equal(pixels(tmp_path / f"a{suffix}"), smooth(40, 60))


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_float_tiff(white: float, tmp_path: Path):
    gray = np.linspace(0, white, 40 * 60, dtype=np.float32).reshape(40, 60)
    gray[0, 0] = np.nan
    Image.fromarray(gray).save(tmp_path / "a.tif")
    oracle = np.nan_to_num(gray * (255 / white)).round().astype(int)
    assert np.array_equal(pixels(tmp_path / "a.tif"), np.stack([oracle] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_gray_and_palette(mode: str, tmp_path: Path):
    image = Image.fromarray(smooth(40, 60)).convert(mode)
    image.save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_white(mode: str, tmp_path: Path):
    alpha = np.tile(np.linspace(0, 255, 60), (40, 1)).astype(np.uint8)
    image = Image.fromarray(smooth(40, 60)).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    color = np.asarray(image.convert("RGB"), float)  # Pillow drops alpha here
    oracle = 255 + (color - 255) * (alpha[..., None] / 255)
    assert np.abs(pixels(tmp_path / "a.png") - oracle).max() <= 1


def test_palette_with_transparency_lies_over_white(tmp_path: Path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 128, 255]))
    of_entry = np.array([[10, 20, 30], [255, 255, 255], [127, 227, 127], [0, 0, 200]])
    assert np.abs(pixels(tmp_path / "a.png") - of_entry[np.asarray(image)]).max() <= 1


# --- size -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "stored"),
    [
        (200, 300, (50, 75)),
        (300, 200, (75, 50)),
        (201, 301, (50, 75)),
        (40, 60, (40, 60)),  # never enlarged
        (100, 900, (50, 100)),  # at most 2:1
        (900, 100, (100, 50)),
        (3, 900, (3, 6)),
        (1, 1, (1, 1)),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_stored_size(height: int, width: int, stored: tuple[int, int], suffix: str, tmp_path: Path):
    Image.fromarray(smooth(height, width)).save(tmp_path / f"a{suffix}")
    assert pixels(tmp_path / f"a{suffix}", 50).shape[:2] == stored


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_image_is_cropped_around_its_middle_and_shrunk(suffix: str, tmp_path: Path):
    image = smooth(400, 1000)
    Image.fromarray(image).save(tmp_path / f"a{suffix}", quality=95)
    oracle = cv2.resize(image[:, 100:900], (100, 50), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels(tmp_path / f"a{suffix}", 50) - oracle).max() < 4


def test_a_turned_photo_is_cropped_along_its_long_side(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth(200, 1000)).save(tmp_path / "a.png", exif=exif)
    image = pixels(tmp_path / "a.png", 50)
    oracle = np.rot90(cv2.resize(smooth(200, 1000)[:, 300:700], (100, 50), interpolation=cv2.INTER_AREA), -1)
    assert image.shape == (100, 50, 3)
    assert np.abs(image - oracle).max() < 4


# --- files that are none --------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG whose header gives this size, but which holds almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def saved(suffix: str) -> bytes:
    import io

    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(
        file, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}[suffix]
    )
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("fraction", [0.5, 0.02])
def test_truncated(suffix: str, fraction: float, tmp_path: Path):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(saved(suffix)[: int(fraction * len(saved(suffix)))])
    assert isinstance(decode(file, 50), str)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"this is no picture", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # Pillow would run Ghostscript
        (png(60_000, 60_000), "exceeds limit"),
        (png(2**31 - 1, 1), "exceeds limit"),
        (png(0, 0), ""),
        (b"\xff\xd8\xff\xe0" + bytes(100), ""),
    ],
)
def test_a_file_that_is_no_image_has_a_reason_of_one_line(content: bytes, words: str, tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(content)
    why = decode(tmp_path / "a.jpg", 50)
    assert isinstance(why, str)
    assert words in why
    assert "\n" not in why
    assert 0 < len(why) <= 120


def test_links_pipes_and_folders_are_not_files(tmp_path: Path):
    (tmp_path / "link.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would block
    for name in ("link.png", "pipe.png", "none.png", "."):
        assert decode(tmp_path / name, 50) == "not a file"
