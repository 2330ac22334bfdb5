"""Sets in the cache: built once, built again where damaged or where files have changed, or decoded at each use."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import assert_one_line, names, put, record_decoded, values

from kintsugi.data import cache, folders
from kintsugi.data import decode as decoding
from kintsugi.data.image_set import Images
from kintsugi.data.images import open_images
from kintsugi.data.store import Store


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files decoded so far."""
    return record_decoded(monkeypatch)


def test_images_are_decoded_once_and_changes_are_noticed(data: Path, decoded: list[Path]):
    for i in range(6):
        put(data / f"{i}.png", i)

    def newly_decoded(size: int = 32) -> int:
        before = len(decoded)
        split = open_images(str(data), size, Store(short_side=36))
        assert sorted(values(split.train, split.heldout)) == list(range(6))
        return len(decoded) - before

    assert newly_decoded() == 6
    assert newly_decoded() == 0
    assert newly_decoded(size=34) == 0
    stamp = os.stat(data / "3.png")
    os.utime(data / "3.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1000))
    assert newly_decoded() == 6
    os.rename(data / "3.png", data / "three.png")
    assert newly_decoded() == 6
    assert newly_decoded() == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "pixels.bin", 100),
        lambda folder: os.truncate(folder / "pixels.bin", 0),
        lambda folder: os.truncate(folder / "index.npz", 20),
        lambda folder: (folder / "index.npz").unlink(),
    ],
)
def test_a_damaged_cache_is_built_again(damage: Callable[[Path], None], data: Path, cache_folder: Path):
    for i in range(3):
        put(data / f"{i}.png", i)
    open_images(str(data), 32)
    (folder,) = cache_folder.glob("images/*")
    damage(folder)
    split = open_images(str(data), 32)
    assert sorted(values(split.train, split.heldout)) == [0, 1, 2]
    assert list(cache_folder.glob("images/*")) == [folder]


def test_an_interrupted_build_leaves_nothing(data: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(3):
        put(data / f"{i}.png", i)

    def interrupted(file: Path, short_side: int) -> cache.Pixels:
        raise KeyboardInterrupt

    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_images(str(data), 32)
    assert not list(cache_folder.glob("images/*"))
    monkeypatch.setattr(decoding, "decode", decode)
    assert len(names(data)) == 3


def test_killed_builds_are_removed_after_an_hour(data: Path, cache_folder: Path):
    for age, name in (7200, "building-old"), (10, "building-running"):
        file = cache_folder / "images" / name / "pixels.bin"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"half")
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    put(data / "a.png")
    put(data / "b.png")
    assert len(names(data)) == 2
    assert [folder.name for folder in cache_folder.glob("images/building-*")] == ["building-running"]


def test_two_builds_at_once(tmp_path: Path):
    both = threading.Barrier(2)

    def read(rows: object) -> list[cache.Pixels]:
        both.wait(10)  # neither is complete before both have begun
        return [np.full((3, 8, 8), i, np.uint8) for i in range(4)]

    source = cache.Source(list("abcd"), read)
    results: list[cache.Source | None] = []

    def build() -> None:
        results.append(cache.build(tmp_path / "set", source, 1e9, "", quiet=True))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [values(Images(result)) for result in results if result] == [[0, 1, 2, 3]] * 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["set"]


def test_too_large_a_set_is_decoded_at_each_use(
    data: Path, cache_folder: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
):
    for i in range(8):
        put(data / f"{i}/{i}.png", i)
    put(data / "8/small.png", 8, 20, 20)
    (data / "9").mkdir()
    (data / "9/text.png").write_text("no image")
    split = open_images(str(data), 32, Store(limit_gb=1e-5))  # 8 images of 40x60 take 6e-5
    printed = capsys.readouterr().err
    assert "--cache-gb 1e-05: images are decoded at each use" in printed
    assert not list(cache_folder.glob("images/*"))
    train, last = split.train, len(split.train) - 1
    for _ in range(2):
        decoded.clear()
        batch = train.batch(torch.tensor([0, 1, 2, last]))
        assert set(decoded) >= {data / train.names[i] for i in (0, 1, 2, last)}
        readable = [i for i, name in enumerate(train.names) if name[2:] not in ("small.png", "text.png")]
        shown = [next((r for r in readable if r >= i), readable[0]) for i in (0, 1, 2, last)]  # the next readable
        assert batch["image"][:, 0, 0, 0].tolist() == [int(train.names[i][0]) for i in shown]
        assert batch["label"].tolist() == [int(train.names[i][0]) for i in shown]
        assert batch["index"].tolist() == [0, 1, 2, last]
    assert capsys.readouterr().err.count("8/small.png") <= 1
    for name in train.names:
        (data / name).write_text("changed since")
    with pytest.raises(ValueError, match=f"none of {len(train)} images can be used") as error:
        train.batch(torch.tensor([0]))
    assert_one_line(error, "not an image")


def test_the_limit_holds_where_the_estimate_was_low(data: Path, cache_folder: Path):
    """200 images, of which only the 64 that the estimate is based on are small."""
    sample = set(np.linspace(0, 199, 64).astype(int).tolist())
    for i in range(200):
        side = 8 if i in sample else 64
        put(data / f"{i:03d}.png", i, side, side)
    split = open_images(str(data), 8, Store(short_side=64, limit_gb=1e-3))  # they take 1.7e-3
    assert len(split.train) + len(split.heldout) == 200
    assert not list(cache_folder.glob("images/*"))


def test_a_cache_that_cannot_be_written_is_one_line(data: Path, tmp_path: Path):
    put(data / "a.png")
    put(data / "b.png")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot keep decoded images in") as error:
        open_images(str(data), 32, Store(cache=tmp_path / "file/cache"))
    assert_one_line(error, str(tmp_path / "file/cache"), os.strerror(errno.ENOTDIR), "--cache")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 20,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line(data: Path, cache_folder: Path, full_disk: None):
    for i in range(10):
        put(data / f"{i}.png", i)
    with pytest.raises(OSError, match="cannot keep decoded images in") as error:
        open_images(str(data), 32)
    assert_one_line(error, "make room", "--cache-gb 0", os.strerror(errno.EFBIG))
    assert not list(cache_folder.glob("images/*"))


@pytest.mark.slow
def test_a_million_images_open_in_seconds(data: Path, monkeypatch: pytest.MonkeyPatch):
    """From the cache. Walking and decoding, whose time depends on disk and processor, are left out."""
    names = [f"n{i % 1000:08d}/{i}.JPEG" for i in range(1_000_000)]
    monkeypatch.setattr(folders, "walk", lambda root, report: ((name, 9, 9) for name in names))
    monkeypatch.setattr(decoding, "decode", lambda file, short_side: np.zeros((3, 1, 1), np.uint8))
    first = open_images(str(data), 1)
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split = open_images(str(data), 1)
    assert time.process_time() - begun < 6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB
    assert len(split.train) + len(split.heldout) == 1_000_000
    assert split.heldout.names == first.heldout.names
    assert len(split.train.classes) == 1000
