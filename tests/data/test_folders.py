"""Folders that hold more than plain photos, decoded once or at each use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kintsugi.data import decode as decoding
from kintsugi.data.decode import decode, rgb
from kintsugi.data.image_set import Split
from kintsugi.data.images import open_images
from kintsugi.data.store import Store

ORIENTATION = 0x0112


def picture(height: int = 40, width: int = 56, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth, so that JPEG and resizing change it little, and without symmetry, so that each rotation shows."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = np.random.default_rng(seed).random(channels)
    waves = [0.5 + 0.3 * np.sin(3 * x * (k + 1) + phase[k] * 6) - 0.2 * y * (k + 1) for k in range(channels)]
    return (255 * np.stack(waves, -1).clip(0, 1)).round().astype(np.uint8)


def save(file: Path, array: np.ndarray | None = None, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if array is None else array).save(file, **options)
    return file


def fill(folder: Path, count: int = 6, **size: int) -> Path:
    for i in range(count):
        save(folder / f"{i:03d}.png", picture(seed=i, **size))
    return folder


def pixels(file: Path, short_side: int = 1000) -> np.ndarray:
    """The decoded image, (H,W,3)."""
    image = decode(file, short_side)
    assert isinstance(image, np.ndarray), image
    assert image.dtype == np.uint8
    return image.transpose(1, 2, 0)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Split]:
    """``open_images`` with a cache for each test."""

    def call(spec: Path, size: int = 32, **settings: Any) -> Split:
        return open_images(str(spec), size, Store(**{"cache": tmp_path / "cache", **settings}))

    return call


def everything(split: Split) -> dict[str, np.ndarray]:
    """Every image by name, (3,H,W)."""
    found: dict[str, np.ndarray] = {}
    for images in (split.train, split.heldout):
        batch = images.batch(torch.arange(len(images)))
        for name, image, (height, width) in zip(images.names, batch["image"], batch["extent"], strict=True):
            found[name] = image[:, :height, :width].numpy()
    return found


def test_links_are_followed_once(tmp_path: Path, opened: Callable[..., Split]) -> None:
    folder = fill(tmp_path / "set", 3)
    save(tmp_path / "elsewhere" / "x.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "file.png").symlink_to(folder / "000.png")
    names = set(everything(opened(folder)))
    assert names == {"000.png", "001.png", "002.png", "file.png", "linked/x.png"}


def test_links_and_pipes_are_skipped(
    tmp_path: Path, opened: Callable[..., Split], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(tmp_path / "set", 3)
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    os.mkfifo(folder / "pipe.png")  # opening it would block
    (folder / "folder.png").mkdir()
    assert len(everything(opened(folder))) == 3
    assert "skipped 3 of 6" in capsys.readouterr().err


def test_odd_names(tmp_path: Path, opened: Callable[..., Split], capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    odd = ["two\nlines.png", "ünïcödé 日本.png", os.fsdecode(b"caf\xe9.png"), "'\".png", "-r.png"]
    for i, name in enumerate(odd):
        save(folder / name, picture(seed=i))
    (folder / "bad\nand \udce9.png").write_bytes(b"nothing of the kind")
    for _ in range(2):  # built, then from the cache
        found = everything(opened(folder))
        assert sorted(found) == sorted(odd)
        for i, name in enumerate(odd):
            assert np.array_equal(found[name].transpose(1, 2, 0), picture(seed=i))
        errors = capsys.readouterr().err
        assert len(errors.splitlines()) == 1
        assert "skipped 1 of 6" in errors


def turned(file: Path, array: np.ndarray, orientation: int, **options: Any) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return save(file, array, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    """Photos, 16-bit gray and transparent images are upright; each takes another path through the decoder."""
    photo = turned(tmp_path / "a.jpg", picture(), orientation, quality=95)
    with Image.open(photo) as image:
        assert np.array_equal(pixels(photo), np.asarray(ImageOps.exif_transpose(image)))

    gray = picture(channels=1)[..., 0]
    deep = turned(tmp_path / "b.png", gray.astype(np.uint16) * 257, orientation)
    clear = turned(tmp_path / "c.png", np.dstack((picture(), np.full_like(gray, 255))), orientation)
    tiff = turned(tmp_path / "d.tif", picture(), orientation)
    webp = turned(tmp_path / "e.webp", picture(), orientation, lossless=True)

    def upright(array: np.ndarray) -> np.ndarray:
        image = Image.fromarray(array)
        image.getexif()[ORIENTATION] = orientation
        return np.asarray(ImageOps.exif_transpose(image))

    assert np.array_equal(pixels(deep), np.repeat(upright(gray)[..., None], 3, 2))
    for file in (clear, tiff, webp):
        assert np.array_equal(pixels(file), upright(picture())), file.name
    # Also at a reduced size: orientations 5 to 8 swap the sides.
    assert pixels(photo, 20).shape == ((28, 20, 3) if orientation > 4 else (20, 28, 3))


def test_16_bit_and_float_gray(tmp_path: Path) -> None:
    gray = picture(channels=1)[..., 0]
    expected = np.repeat(gray[..., None], 3, 2)
    deep = save(tmp_path / "a.png", gray.astype(np.uint16) * 257)
    with Image.open(deep) as image:
        assert image.mode == "I;16"
    assert np.array_equal(pixels(deep), expected)
    assert np.array_equal(pixels(save(tmp_path / "b.tif", gray.astype(np.uint16) * 257)), expected)
    assert np.array_equal(pixels(save(tmp_path / "c.tif", gray.astype(np.float32) / 255)), expected)
    assert np.array_equal(pixels(save(tmp_path / "d.tif", gray.astype(np.float32))), expected)
    holes = gray.astype(np.float32) / 255
    holes[0, 0], holes[1, 1], holes[2, 2] = np.nan, np.inf, -np.inf  # must not darken the other pixels
    black, white = np.s_[[0, 2], [0, 2]], np.s_[1, 1]
    expected[black], expected[white] = 0, 255
    assert np.array_equal(pixels(save(tmp_path / "e.tif", holes)), expected)


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[..., None] / 255
    return opacity * color + (1 - opacity) * 255


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    color, alpha = picture(), picture(seed=9, channels=1)[..., 0]
    alpha[:4], alpha[-4:] = 0, 255
    rgba = save(tmp_path / "a.png", np.dstack((color, alpha)))
    assert np.abs(pixels(rgba) - over_white(color, alpha)).max() <= 1

    gray = Image.merge("LA", (Image.fromarray(color[..., 0]), Image.fromarray(alpha)))
    gray.save(tmp_path / "b.png")
    expected = over_white(np.repeat(color[..., :1], 3, 2), alpha)
    assert np.abs(pixels(tmp_path / "b.png") - expected).max() <= 1

    palette = Image.fromarray(color).quantize(16)
    values = np.asarray(palette.getpalette("RGB"), np.uint8).reshape(-1, 3)
    opacity = np.linspace(0, 255, len(values)).astype(np.uint8)
    palette.save(tmp_path / "c.png", transparency=opacity.tobytes())
    indices = np.asarray(palette)
    assert np.abs(pixels(tmp_path / "c.png") - over_white(values[indices], opacity[indices])).max() <= 1

    key = tuple(color[5, 5].tolist())
    Image.fromarray(color).save(tmp_path / "d.png", transparency=key)  # one color is transparent
    expected = np.where((color == key).all(-1, keepdims=True), 255, color)
    assert np.array_equal(pixels(tmp_path / "d.png"), expected)


def test_any_mode_becomes_rgb() -> None:
    for mode in "1 L P RGB RGBA LA PA RGBa RGBX CMYK YCbCr HSV I F I;16 I;16B".split():
        assert rgb(Image.new(mode, (5, 4))).mode == "RGB", mode


def test_jpegs_are_decoded_small_and_to_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = rng.integers(60, 700, 2).tolist()
        array = picture(height, width)
        jpeg, png = (save(tmp_path / "a.jpg", array, quality=95), save(tmp_path / "a.png", array, compress_level=0))
        ours, full = pixels(jpeg, 24), pixels(png, 24)
        assert ours.shape == full.shape, (height, width)
        assert np.abs(ours.astype(int) - full).mean() < 4, (height, width)
    loaded: list[tuple[int, int]] = []
    monkeypatch.setattr(decoding, "crop_and_shrink", lambda image, *rest: loaded.append(image.size))
    decode(save(tmp_path / "a.jpg", picture(400, 600)), 48)
    assert loaded == [(150, 100)]


def test_decoding_at_a_reduced_size_does_not_make_images_too_small(
    tmp_path: Path, opened: Callable[..., Split], capsys: pytest.CaptureFixture[str]
) -> None:
    """1000 x 65 px hold a crop of 64, however the image is turned; 1000 x 63 px do not."""
    folder = tmp_path / "set"
    for side in (63, 64, 65):
        save(folder / f"wide{side}.jpg", picture(side, 1000))
        turned(folder / f"turned{side}.jpg", picture(side, 1000), 6)
        save(folder / f"tall{side}.jpg", picture(1000, side))
    found = everything(opened(folder, 64, short_side=64))
    assert sorted(found) == sorted(f"{way}{side}.jpg" for way in ("wide", "turned", "tall") for side in (64, 65))
    assert found["wide65.jpg"].shape == (3, 64, 128)
    assert found["turned65.jpg"].shape == (3, 128, 64)
    assert "skipped 3 of 9" in capsys.readouterr().err


def test_an_image_that_vanishes_after_indexing(
    tmp_path: Path, opened: Callable[..., Split], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(tmp_path / "set", 4)

    def vanishing(file: Path, short_side: int) -> object:
        if file.name == "002.png":
            file.unlink(missing_ok=True)
        return decode(file, short_side)

    monkeypatch.setattr(decoding, "decode", vanishing)
    assert sorted(everything(opened(folder))) == ["000.png", "001.png", "003.png"]
    assert "skipped 1 of 4 images: '002.png'" in capsys.readouterr().err


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files decoded so far."""
    names: list[str] = []

    def counted(file: Path, short_side: int) -> object:
        names.append(file.name)
        return decode(file, short_side)

    monkeypatch.setattr(decoding, "decode", counted)
    return names


def test_a_cached_set_of_many_names_opens_without_decoding(
    tmp_path: Path, opened: Callable[..., Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3000):
        (folder / f"{i}.png").write_bytes(b"stands for a picture")
    tiny = picture(8, 8).transpose(2, 0, 1)
    monkeypatch.setattr(decoding, "decode", lambda file, short_side: tiny)
    names = opened(folder, 8).train.names

    def never(*args: object, **options: object) -> object:
        raise AssertionError("decoded")

    monkeypatch.setattr(decoding, "decode", never)
    monkeypatch.setattr(Image, "open", never)
    monkeypatch.setattr("builtins.open", only_cache(tmp_path / "cache"))
    again = opened(folder, 8)
    assert again.train.names == names
    assert again.train.batch(torch.arange(5))["image"].shape == (5, 3, 8, 8)


def only_cache(root: Path) -> Callable[..., object]:
    """``open`` that opens nothing outside ``root``: only ``stat`` is called on the set's own files."""
    really = open

    def checked(file: object, *args: object, **options: object) -> object:
        assert Path(str(file)).is_relative_to(root), file
        return really(file, *args, **options)  # type: ignore[call-overload]

    return checked


def test_over_the_limit_images_are_decoded_at_each_use(
    tmp_path: Path, opened: Callable[..., Split], decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    for name in "ab":
        fill(folder / name, 8)
    cached = opened(folder)
    decoded.clear()
    fresh = opened(folder, cache=tmp_path / "other", limit_gb=1e-6)
    assert "--cache-gb" in capsys.readouterr().err
    assert not list((tmp_path / "other").rglob("pixels.bin"))
    assert fresh.train.names == cached.train.names
    assert fresh.heldout.names == cached.heldout.names
    for _ in range(2):
        decoded.clear()
        indices = torch.tensor([5, 0, 3, 5])
        ours, theirs = fresh.train.batch(indices), cached.train.batch(indices)
        assert ours.keys() == theirs.keys() == {"image", "extent", "index", "label"}
        assert all(ours[key].equal(theirs[key]) for key in ours)
        assert len(decoded) == 4


def test_over_the_limit_unusable_images_are_replaced_by_the_next(
    tmp_path: Path, opened: Callable[..., Split], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(tmp_path / "set", 20)
    images = opened(folder, limit_gb=1e-6).train
    capsys.readouterr()
    before = images.batch(torch.arange(8))
    (folder / images.names[2]).write_bytes(b"spoilt")
    (folder / images.names[3]).unlink()
    save(folder / images.names[6], picture(20, 20))  # smaller than the crop of 32
    last = len(images) - 1
    (folder / images.names[last]).unlink()
    for _ in range(2):
        batch = images.batch(torch.tensor([2, 3, 4, 6, last, 1]))
        assert batch["image"].equal(before["image"][[4, 4, 4, 7, 0, 1]])  # the next one after the last is the first
        assert batch["index"].tolist() == [2, 3, 4, 6, last, 1]
    lines = capsys.readouterr().err.splitlines()
    for place in (2, 3, 6):
        assert sum(repr(images.names[place]) in line for line in lines) == 1  # named once
    assert len(lines) == 4  # no more than three are named
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"none of 1\d images can be used"):
        images.batch(torch.arange(3))


def test_a_replacing_image_brings_its_label(tmp_path: Path, opened: Callable[..., Split]) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "set" / name, 4)
    images = opened(tmp_path / "set", limit_gb=1e-6).train
    assert images.labels is not None
    edge = images.labels.tolist().index(1) - 1  # the last of class a
    (tmp_path / "set" / images.names[edge]).unlink()
    assert images.batch(torch.tensor([edge]))["label"].tolist() == [1]
