"""Damaged image files of many kinds: none crashes or hangs the run, and each is counted."""

from __future__ import annotations

import io
import os
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kintsugi.data import decode as decoding
from kintsugi.data.folders import open_folder
from kintsugi.data.images import open_images
from kintsugi.data.opener import Opener
from kintsugi.data.store import Store

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}
OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [{}, {"progressive": True}, {"quality": 95, "optimize": True}],
    "PNG": [{}, {"compress_level": 0}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}],
    "WEBP": [{}, {"lossless": True}],
}


def originals() -> list[tuple[str, bytes]]:
    y, x = np.mgrid[0:1:40j, 0:1:56j]
    picture = Image.fromarray((255 * np.stack([x, y, np.sin(9 * x * y) ** 2], -1)).astype(np.uint8))
    found = []
    for kind, options in OPTIONS.items():
        for option in options:
            for image in (picture, picture.convert("L"), picture.convert("P")):
                if image.mode == "P" and kind in ("JPEG", "WEBP"):
                    image = picture.convert("CMYK" if kind == "JPEG" else "RGBA")
                if image.mode == "P" and option.get("compression") == "jpeg":
                    continue
                file = io.BytesIO()
                image.save(file, kind, **option)
                found.append((SUFFIXES[kind], file.getvalue()))
    return found


def mutated(draw: random.Random, whole: bytes) -> bytes:
    """A copy with one kind of damage, at random places."""
    data, way = bytearray(whole), draw.randrange(7)
    if way == 0:  # flipped bits
        for _ in range(draw.choice([1, 3, 30])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif way == 1:  # flipped bits of the header, where sizes, offsets and counts are
        for _ in range(draw.choice([1, 3])):
            data[draw.randrange(min(200, len(data)))] ^= 1 << draw.randrange(8)
    elif way == 2:
        del data[draw.randrange(len(data)) :]
    elif way == 3:  # absurd numbers: 2 or 4 bytes all ones, or nearly
        size, place = draw.choice([2, 4]), draw.randrange(min(200, len(data)))
        data[place : place + size] = draw.choice([b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), bytes(size)])
    elif way == 4:  # a hole of zeros
        place = draw.randrange(len(data))
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif way == 5:  # a piece twice
        place = draw.randrange(len(data))
        data[place:place] = data[place : place + draw.randrange(200)]
    else:
        data[draw.randrange(len(data)) :] = draw.randbytes(draw.randrange(300))
    return bytes(data)


@pytest.mark.filterwarnings("ignore:::PIL")  # as the product does
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_skipped_and_counted(
    count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    draw, sources, folder = random.Random(0), originals(), tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    for i in range(count - 10):
        suffix, whole = sources[i % len(sources)]
        if i % 10 == 9:
            suffix = draw.choice(list(SUFFIXES.values()))  # of any format
        name = f"{i}{draw.choice(['', ' ', '%s', os.sep + 'x', chr(10), 'é'])}".replace(os.sep, "-") + suffix
        (folder / draw.choice(["", "more"]) / name).write_bytes(mutated(draw, whole))
    for i, (suffix, whole) in enumerate(sources[:4]):
        (folder / f"whole{i}{suffix}").write_bytes(whole)
    for name in ("a.png", "b.jpg"):
        (folder / name).symlink_to(name)  # to itself
    (folder / "c.png").symlink_to("d.png")
    (folder / "d.png").symlink_to("c.png")
    (folder / "loop").symlink_to(folder)
    (folder / "e.png").write_bytes(b"")
    os.mkfifo(folder / "f.png")

    longest = [0.0]
    original = decoding.decode

    def timed(file: Path, short_side: int) -> object:
        begun = time.thread_time()
        try:
            return original(file, short_side)
        finally:
            longest[0] = max(longest[0], time.thread_time() - begun)

    monkeypatch.setattr("kintsugi.data.decode.decode", timed)
    split = open_images(str(folder), 16, Store(cache=tmp_path / "cache"))
    # libtiff prints lines of its own, which Pillow gives no way to silence.
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "skipped" in line)
    match = re.search(r"skipped (\d+) of (\d+) images", line)
    assert match
    skipped, whole_count = map(int, match.groups())
    kept = len(split.train) + len(split.heldout)
    assert whole_count == count == skipped + kept
    assert skipped > count / 4
    (listed,) = (tmp_path / "cache").rglob("*.skipped.txt")
    assert len(listed.read_text().splitlines()) == skipped
    assert longest[0] < 10  # seconds of computing, for one file
    print(f"{count} files: {skipped} skipped, {kept} kept, the slowest took {longest[0]:.2f} s")


def test_of_many_threads_one_decodes_a_large_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Several images just below Pillow's limit would take all memory."""
    for i in range(12):
        Image.new("RGB", (60, 50)).save(tmp_path / f"{i}.{'png' if i % 2 else 'webp'}")
    inside, most, original = [0], [0], decoding.crop_and_shrink

    def counted(*args: object) -> np.ndarray:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "crop_and_shrink", counted)
    threads = ThreadPoolExecutor(4)
    monkeypatch.setattr("kintsugi.data.decode.pool", lambda: threads)
    for large, expected in ((3001, range(2, 5)), (2999, range(1, 2))):
        most[0] = 0
        monkeypatch.setattr(decoding, "_LARGE", large)
        images = open_folder(Opener(str(tmp_path), 16, Store(cache=tmp_path / f"cache{large}", quiet=True)), tmp_path)
        assert len(images) == 12
        assert most[0] in expected
    assert not decoding._ONE_AT_A_TIME.locked()
    assert threading.active_count() < 10


@pytest.mark.parametrize("depth", [0.0, 5.0])
def test_depth_that_is_missing_almost_everywhere(depth: float):
    import torch

    from kintsugi.data.hha import hha

    holes = torch.zeros(2, 1, 24, 32)
    holes[:, :, 5, 7] = depth  # depth of a single pixel is known
    planes = hha(holes, torch.tensor([[[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]]).repeat(2, 1, 1))
    assert planes.dtype == torch.uint8
    known = holes > 0
    assert planes.masked_fill(known, 0).sum() == 0
    assert known.sum() == (2 if depth else 0)
