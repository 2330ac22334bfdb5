"""The sets that torchvision downloads, with fakes in place of its classes."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
from helpers.image_files import assert_one_line, put, values
from PIL import Image
from torchvision import datasets

from kintsugi.data.images import open_images


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


class FakeSet:
    """A fake of torchvision's sets that hold their images in memory: image i is filled with i."""

    def __init__(self, count: int, side: int, labels: np.ndarray) -> None:
        self.count, self.side, self.labels, self.targets = count, side, labels, labels.tolist()
        self.classes = ["ant", "bee", "cat"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.full((self.side, self.side, 3), i, np.uint8)), self.targets[i]


def test_cifar10_is_loaded_once_and_keeps_its_split(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    requested: list[tuple[Path, bool]] = []

    def cifar10(root: Path, train: bool, download: bool) -> FakeSet:
        requested.append((root, train))
        return FakeSet(20 if train else 10, 32, np.arange(20 if train else 10) % 3)

    monkeypatch.setattr(datasets, "CIFAR10", cifar10)
    for _ in range(2):
        split = open_images("cifar10", 32)
        assert values(split.train) == list(range(20))
        assert sorted(values(split.heldout)) == list(range(10))
        for images in split.train, split.heldout:
            assert images.classes == ["ant", "bee", "cat"]
            assert images.labels is not None
            assert images.labels.tolist() == [value % 3 for value in values(images)]
    assert requested == [(cache_folder / "torchvision", True), (cache_folder / "torchvision", False)]
    with pytest.raises(ValueError, match="use --size 32"):
        open_images("cifar10", 64)


def test_stl10_trains_on_its_unlabeled_images_too(monkeypatch: pytest.MonkeyPatch):
    def stl10(root: Path, split: str, download: bool) -> FakeSet:
        count = {"train": 4, "unlabeled": 6, "test": 3}[split]
        return FakeSet(count, 96, np.full(count, -1) if split == "unlabeled" else np.arange(count, dtype=np.uint8) % 3)

    monkeypatch.setattr(datasets, "STL10", stl10)
    split = open_images("stl10", 64)
    assert values(split.train) == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert split.train.labels is not None
    assert split.train.labels.tolist() == [0, 1, 2, 0, -1, -1, -1, -1, -1, -1]
    assert sorted(values(split.heldout)) == [0, 1, 2]


def test_voc2012_is_unpacked_only_where_images_are_missing(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    downloads: list[str] = []

    class Voc:
        def __init__(self, root: Path, year: str, image_set: str, download: bool) -> None:
            folder = root / "JPEGImages"
            self.images = [str(folder / f"{image_set}{i}.jpg") for i in range(4)]
            if download:
                downloads.append(image_set)
                for file in self.images:
                    put(Path(file))
            elif not folder.is_dir():
                raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setattr(datasets, "VOCDetection", Voc)
    for _ in range(2):
        split = open_images("voc2012", 32)
        assert split.train.names == [f"train{i}.jpg" for i in range(4)]
        assert sorted(split.heldout.names) == [f"val{i}.jpg" for i in range(4)]
        assert split.train.labels is None
        assert downloads == ["train", "val"]
    (cache_folder / "torchvision/JPEGImages/val2.jpg").unlink()
    open_images("voc2012", 32)
    assert downloads == ["train", "val", "val"]


def test_imagenet(data: Path):
    for split_name, count in ("train", 5), ("val", 3):
        for i in range(count):
            for label, wnid in enumerate(["n01", "n02"]):
                put(data / split_name / wnid / f"{i}.png", 10 * i + label)
    split = open_images(f"imagenet:{data}", 32)
    assert len(split.train) == 10
    assert len(split.heldout) == 6
    for images in split.train, split.heldout:
        assert images.classes == ["n01", "n02"]
        assert images.labels is not None
        assert images.labels.tolist() == [value % 10 for value in values(images)]
    put(data / "val/n03/0.png")
    with pytest.raises(ValueError, match="same classes"):
        open_images(f"imagenet:{data}", 32)


def test_imagenet_archives_are_unpacked(data: Path, monkeypatch: pytest.MonkeyPatch):
    def imagenet(root: Path, split: str) -> None:
        put(root / split / "n01/0.png")
        put(root / split / "n02/0.png")

    monkeypatch.setattr(datasets, "ImageNet", imagenet)
    assert len(open_images(f"imagenet:{data}", 32).train) == 2


def test_a_missing_imagenet_is_one_line(data: Path):
    with pytest.raises(ValueError, match="neither train/ nor its archive") as error:
        open_images(f"imagenet:{data}", 32)
    assert_one_line(error, "ILSVRC2012_devkit_t12.tar.gz")
    with pytest.raises(ValueError, match="no such folder"):
        open_images(f"imagenet:{data}/none", 32)


@pytest.mark.parametrize("spec", ["cifar10", "stl10", "voc2012"])
@pytest.mark.parametrize("error", [urllib.error.URLError("no route\nto host"), RuntimeError("File corrupted.")])
def test_a_failed_download_is_one_line(spec: str, error: Exception, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    for kind in "CIFAR10", "STL10", "VOCDetection":
        monkeypatch.setattr(datasets, kind, fail)
    with pytest.raises(ValueError, match=f"--data {spec}: torchvision could not download it") as met:
        open_images(spec, 32)
    assert_one_line(met, "archive", "folder")
