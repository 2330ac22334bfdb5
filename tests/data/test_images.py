from __future__ import annotations

import errno
import os
import resource
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from kintsugi.data import cache, images
from kintsugi.data.images import Images, open_images
from kintsugi.scenes import rendering


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files decoded so far."""
    files: list[Path] = []
    decode = images.decode

    def noting(file: Path, short_side: int) -> cache.Pixels:
        files.append(file)
        return decode(file, short_side)

    monkeypatch.setattr(images, "decode", noting)
    return files


def put(file: Path, value: int = 0, height: int = 40, width: int = 60) -> None:
    """A PNG filled with ``value``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file)


def names(folder: Path, size: int = 32) -> list[str]:
    split = open_images(str(folder), size)
    return sorted(split.train.names + split.heldout.names)


def values(*parts: Images) -> list[int]:
    """What the images are filled with."""
    return [int(image[0, 0, 0]) for part in parts for image in part.batch(torch.arange(len(part)))["image"]]


# --- what is found in a folder --------------------------------------------------------------------------------


def test_folders_are_searched_to_the_bottom_and_hidden_files_left_out(data: Path):
    shown = ["a.png", "b/c/d.PNG", "b/newline\nname.png", "b/ünïcödé 画像.png", "e.png/f.png"]
    for name in [*shown, ".hidden.png", ".git/x.png", "b/._c.png", "b/notes.txt.png/.x.png"]:
        put(data / name)
    (data / "readme.txt").write_text("no image")
    assert names(data) == sorted(shown)


def test_labels_of_labeled_sets_are_no_photos(data: Path):
    photos = ["train/images/a.png", "val/images/b.png", "kitchen/rgb/c.png", "masks/d.png"]
    for name in [*photos, "train/masks/a.png", "val/masks/b.png", "kitchen/depth/c.png", "kitchen/normal/c.png"]:
        put(data / name)
    assert names(data) == sorted(photos)


def test_a_folder_that_cannot_be_read_is_named(data: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    put(data / "a.png")
    put(data / "b.png")
    put(data / "locked/c.png")
    scandir = os.scandir

    def refusing(path: str):
        if os.path.basename(path) == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert names(data) == ["a.png", "b.png"]
    assert f"skipped the folder {data / 'locked'}: Permission denied" in capsys.readouterr().err


def test_a_name_that_is_no_unicode(data: Path):
    put(data / "a.png")
    put(data / "b.png")
    try:
        os.rename(data / "b.png", os.fsencode(data) + b"/\xff\xfe.png")
    except OSError:
        pytest.skip("this file system refuses such names")
    for _ in range(2):  # decoded, then from the cache
        assert names(data) == ["a.png", os.fsdecode(b"\xff\xfe.png")]


def test_links_are_followed_and_loops_end(data: Path, tmp_path: Path):
    put(data / "b/one.png")
    put(tmp_path / "elsewhere/two.png")
    (data / "b/up").symlink_to(data)
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "three.png").symlink_to(tmp_path / "elsewhere/two.png")
    assert names(data) == ["b/one.png", "linked/two.png", "three.png"]


def test_the_order_is_that_of_the_names(data: Path):
    for name in "zebra.png", "b/y.png", "a.png", "b/x.png", "c/10.png", "c/9.png":
        put(data / name)
    train = open_images(str(data), 32).train.names
    assert train == sorted(train)


# --- labels ---------------------------------------------------------------------------------------------------


def test_class_folders(data: Path):
    for name in "dog/a.png", "dog/deep/b.png", "cat/a.png", "cat/b.png", "ant/a.png", "cat/c.png":
        put(data / name)
    split = open_images(str(data), 32)
    for part in split.train, split.heldout:
        assert part.classes == ["ant", "cat", "dog"]
        assert part.labels is not None
        assert [part.classes[i] for i in part.labels.tolist()] == [name.split("/")[0] for name in part.names]
        batch = part.batch(torch.arange(len(part)).flip(0))
        assert torch.equal(batch["label"], part.labels.flip(0))


@pytest.mark.parametrize("others", [["b/x.png", "c.png"], ["a/y.png", "a/deep/z.png"]])
def test_no_classes_where_images_lie_elsewhere_or_in_one_folder(others: list[str], data: Path):
    for name in ["a/x.png", *others]:
        put(data / name)
    train = open_images(str(data), 32).train
    assert train.labels is None
    assert train.classes == []
    assert "label" not in train.batch(torch.tensor([0]))


# --- batches --------------------------------------------------------------------------------------------------


def test_batches_are_padded_right_and_below(data: Path):
    rng = np.random.default_rng(0)
    whole = {}
    for name, height, width in ("a.png", 32, 60), ("b.png", 48, 33), ("c.png", 40, 40), ("d.png", 32, 32):
        whole[name] = rng.integers(1, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(whole[name]).save(data / name)
    train = open_images(str(data), 32).train
    indices = torch.tensor([2, 0, 1, 0])
    batch = train.batch(indices)
    assert batch["image"].dtype == torch.uint8
    assert torch.equal(batch["index"], indices)
    taken = [whole[train.names[i]] for i in indices.tolist()]
    assert batch["image"].shape == (4, 3, max(len(t) for t in taken), max(t.shape[1] for t in taken))
    for image, extent, oracle in zip(batch["image"], batch["extent"].tolist(), taken, strict=True):
        assert tuple(extent) == oracle.shape[:2]
        padded = np.pad(oracle, [(0, image.shape[1] - extent[0]), (0, image.shape[2] - extent[1]), (0, 0)])
        assert np.array_equal(image.permute(1, 2, 0), padded)


def test_a_subset_of_a_subset(data: Path):
    for i in range(12):
        put(data / f"{i:02d}.png", i)
    train = open_images(str(data), 32).train
    part = train.subset(torch.tensor([7, 2, 4])).subset(torch.tensor([2, 0]))
    assert part.names == [train.names[4], train.names[7]]
    assert values(part) == [int(name[:2]) for name in part.names]


# --- held out -------------------------------------------------------------------------------------------------


def made(count: int, first: int = 0) -> Images:
    return Images(cache.Source([f"{i}.png" for i in range(first, first + count)], lambda rows: []))


def test_about_a_twentieth_is_held_out():
    split = images.held_out(made(4000))
    assert 150 < len(split.heldout) < 250
    assert sorted(split.train.names + split.heldout.names) == sorted(made(4000).names)


def test_adding_images_moves_none():
    few, many = images.held_out(made(2000)), images.held_out(made(3000))
    assert set(few.heldout.names) <= set(many.heldout.names)
    assert set(few.train.names) <= set(many.train.names)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_part_is_empty(count: int):
    for first in range(50):
        split = images.held_out(made(count, first))
        assert len(split.train) + len(split.heldout) == count
        assert min(len(split.train), len(split.heldout)) >= 1


def test_at_most_so_many_are_held_out():
    assert len(images.held_out(made(40_000)).heldout) == 1024


def test_held_out_images_are_mixed():
    held = images.held_out(made(4000)).heldout.names
    first = [int(name.removesuffix(".png")) for name in held[:16]]
    assert min(first) < 1000
    assert max(first) > 3000


def test_one_image_cannot_be_split(data: Path):
    put(data / "only.png")
    with pytest.raises(ValueError, match=r"one image \('only.png'\).* add more"):
        open_images(str(data), 32)


# --- files that cannot be used --------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    said = str(error.value)
    assert "\n" not in said
    assert all(word in said for word in words), said


@pytest.fixture
def bad(data: Path) -> Path:
    """Two good images, a small one and five that are none."""
    put(data / "good1.png", 1)
    put(data / "good2.png", 2)
    put(data / "small.png", 3, 31, 60)
    (data / "empty.png").write_bytes(b"")
    (data / "text.jpg").write_text("no image")
    (data / "cut.png").write_bytes((data / "good1.png").read_bytes()[:70])
    (data / "new\nline.webp").write_text("no image")
    (data / "link.png").symlink_to("nowhere")
    return data


def test_bad_files_are_skipped_and_named_once(bad: Path, kept: Path, capsys: pytest.CaptureFixture[str]):
    assert names(bad) == ["good1.png", "good2.png"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "skipped 6 of 8 images: 'cut.png' (" in said[0]
    (listed,) = kept.glob("images/*.skipped.txt")
    assert str(listed) in said[0]
    lines = listed.read_text().splitlines()
    assert len(lines) == 6
    assert r"'new\nline.webp': not an image" in lines
    assert any(line.startswith("'small.png': short side of 31 px") for line in lines)
    assert "'link.png': not a file" in lines
    open_images(str(bad), 32)  # from the cache
    assert capsys.readouterr().err.splitlines() == said
    open_images(str(bad), 32, quiet=True)
    assert capsys.readouterr().err == ""


def test_nothing_to_learn_from(data: Path, kept: Path):
    with pytest.raises(ValueError, match="no such folder") as error:
        open_images(str(data / "none"), 32)
    one_line(error, str(data / "none"), "cifar10")
    with pytest.raises(ValueError, match="no images in this folder") as error:
        open_images(str(data), 32)
    one_line(error, str(data), ".jpg")
    put(data / "a.png")
    with pytest.raises(ValueError, match="no such folder"):
        open_images(str(data / "a.png"), 32)
    (data / "a.png").write_text("not one")
    (data / "b.jpg").write_text("that can be read")
    with pytest.raises(ValueError, match="none of its 2 images can be read") as error:
        open_images(str(data), 32)
    one_line(error, str(data), "'a.png': not an image")
    assert not list(kept.glob("images/*"))


@pytest.mark.parametrize(("side", "fits"), [(50, 32), (96, 96), (20, 20)])
def test_images_smaller_than_the_crop(side: int, fits: int, data: Path):
    for i in range(3):
        put(data / f"{i}.png", i, side, side + 10)
    with pytest.raises(ValueError, match=f"smaller than the crop of 128 .*--size {fits}$") as error:
        open_images(str(data), 128)
    one_line(error, "all 3 images")
    assert len(open_images(str(data), fits).train) == 2


def test_a_short_side_below_the_crop(data: Path):
    with pytest.raises(ValueError, match="--short-side 20 is less than --size 32"):
        open_images(str(data), 32, short_side=20)


# --- the cache ------------------------------------------------------------------------------------------------


def test_images_are_decoded_once_and_changes_are_noticed(data: Path, decoded: list[Path]):
    for i in range(6):
        put(data / f"{i}.png", i)

    def newly_decoded(size: int = 32) -> int:
        before = len(decoded)
        split = open_images(str(data), size, short_side=36)
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
def test_a_damaged_cache_is_built_again(damage: Callable[[Path], None], data: Path, kept: Path):
    for i in range(3):
        put(data / f"{i}.png", i)
    open_images(str(data), 32)
    (folder,) = kept.glob("images/*")
    damage(folder)
    split = open_images(str(data), 32)
    assert sorted(values(split.train, split.heldout)) == [0, 1, 2]
    assert list(kept.glob("images/*")) == [folder]


def test_an_interrupted_build_leaves_nothing(data: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(3):
        put(data / f"{i}.png", i)

    def interrupted(file: Path, short_side: int) -> cache.Pixels:
        raise KeyboardInterrupt

    decode = images.decode
    monkeypatch.setattr(images, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_images(str(data), 32)
    assert not list(kept.glob("images/*"))
    monkeypatch.setattr(images, "decode", decode)
    assert len(names(data)) == 3


def test_builds_that_were_killed_are_removed_in_time(data: Path, kept: Path):
    for age, name in (7200, "building-old"), (10, "building-running"):
        file = kept / "images" / name / "pixels.bin"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"half")
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    put(data / "a.png")
    put(data / "b.png")
    assert len(names(data)) == 2
    assert [folder.name for folder in kept.glob("images/building-*")] == ["building-running"]


def test_two_builds_at_once(tmp_path: Path):
    both = threading.Barrier(2)

    def read(rows: object) -> list[cache.Pixels]:
        both.wait(10)  # neither is whole before both are under way
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
    data: Path, kept: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
):
    for i in range(8):
        put(data / f"{i}/{i}.png", i)
    put(data / "8/small.png", 8, 20, 20)
    (data / "9").mkdir()
    (data / "9/text.png").write_text("no image")
    split = open_images(str(data), 32, cache_gb=1e-5)  # 8 images of 40x60 take 6e-5
    said = capsys.readouterr().err
    assert "--cache-gb 1e-05: images are decoded at each use" in said
    assert not list(kept.glob("images/*"))
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
    one_line(error, "not an image")


def test_the_limit_holds_where_the_estimate_was_low(data: Path, kept: Path):
    """Of 200 images the 64 that the estimate goes by are small."""
    sample = set(np.linspace(0, 199, 64).astype(int).tolist())
    for i in range(200):
        side = 8 if i in sample else 64
        put(data / f"{i:03d}.png", i, side, side)
    split = open_images(str(data), 8, short_side=64, cache_gb=1e-3)  # they take 1.7e-3
    assert len(split.train) + len(split.heldout) == 200
    assert not list(kept.glob("images/*"))


def test_a_cache_that_cannot_be_written(data: Path, tmp_path: Path):
    put(data / "a.png")
    put(data / "b.png")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot keep decoded images in") as error:
        open_images(str(data), 32, cache_dir=tmp_path / "file/cache")
    one_line(error, str(tmp_path / "file/cache"), os.strerror(errno.ENOTDIR), "--cache")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 20,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_space_left(data: Path, kept: Path, full_disk: None):
    for i in range(10):
        put(data / f"{i}.png", i)
    with pytest.raises(OSError, match="cannot keep decoded images in") as error:
        open_images(str(data), 32)
    one_line(error, "make room", "--cache-gb 0", os.strerror(errno.EFBIG))
    assert not list(kept.glob("images/*"))


@pytest.mark.slow
def test_a_million_images_open_in_seconds(data: Path, monkeypatch: pytest.MonkeyPatch):
    """Of those that are kept; without walking and decoding, which take as long as the disk and the processor do."""
    names = [f"n{i % 1000:08d}/{i}.JPEG" for i in range(1_000_000)]
    monkeypatch.setattr(images, "walk", lambda root: ((name, 9, 9) for name in names))
    monkeypatch.setattr(images, "decode", lambda file, short_side: np.zeros((3, 1, 1), np.uint8))
    first = open_images(str(data), 1)
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split = open_images(str(data), 1)
    assert time.process_time() - begun < 6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB
    assert len(split.train) + len(split.heldout) == 1_000_000
    assert split.heldout.names == first.heldout.names
    assert len(split.train.classes) == 1000


# --- named sets -----------------------------------------------------------------------------------------------


def test_scenes(monkeypatch: pytest.MonkeyPatch):
    train = open_images("scenes", 16, scenes=6).train
    batch = train.batch(torch.arange(len(train)))
    assert batch["extent"].tolist() == [[24, 24]] * len(train)
    indices = torch.tensor([int(name.removeprefix("scene-")) for name in train.names])
    rendered = rendering.render(0, indices, 24)["image"]
    assert (batch["image"] / 255 - rendered).abs().max() <= 0.5 / 255 + 1e-5
    monkeypatch.setattr(rendering, "render", None)  # not asked again
    assert torch.equal(open_images("scenes", 16, scenes=6).train.batch(batch["index"])["image"], batch["image"])


class Held:
    """Stands in for torchvision's sets that hold their images in memory: image i is filled with i."""

    def __init__(self, count: int, side: int, labels: np.ndarray) -> None:
        self.count, self.side, self.labels, self.targets = count, side, labels, labels.tolist()
        self.classes = ["ant", "bee", "cat"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.full((self.side, self.side, 3), i, np.uint8)), self.targets[i]


def test_cifar10_is_asked_for_once_and_keeps_its_split(kept: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[Path, bool]] = []

    def cifar10(root: Path, train: bool, download: bool) -> Held:
        asked.append((root, train))
        return Held(20 if train else 10, 32, np.arange(20 if train else 10) % 3)

    monkeypatch.setattr(datasets, "CIFAR10", cifar10)
    for _ in range(2):
        split = open_images("cifar10", 32)
        assert values(split.train) == list(range(20))
        assert sorted(values(split.heldout)) == list(range(10))
        for part in split.train, split.heldout:
            assert part.classes == ["ant", "bee", "cat"]
            assert part.labels is not None
            assert part.labels.tolist() == [value % 3 for value in values(part)]
    assert asked == [(kept / "torchvision", True), (kept / "torchvision", False)]
    with pytest.raises(ValueError, match="use --size 32"):
        open_images("cifar10", 64)


def test_stl10_trains_on_its_unlabeled_images_too(monkeypatch: pytest.MonkeyPatch):
    def stl10(root: Path, split: str, download: bool) -> Held:
        count = {"train": 4, "unlabeled": 6, "test": 3}[split]
        return Held(count, 96, np.full(count, -1) if split == "unlabeled" else np.arange(count, dtype=np.uint8) % 3)

    monkeypatch.setattr(datasets, "STL10", stl10)
    split = open_images("stl10", 64)
    assert values(split.train) == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert split.train.labels is not None
    assert split.train.labels.tolist() == [0, 1, 2, 0, -1, -1, -1, -1, -1, -1]
    assert sorted(values(split.heldout)) == [0, 1, 2]


def test_voc2012_is_unpacked_only_where_images_are_missing(kept: Path, monkeypatch: pytest.MonkeyPatch):
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
    (kept / "torchvision/JPEGImages/val2.jpg").unlink()
    open_images("voc2012", 32)
    assert downloads == ["train", "val", "val"]


def test_imagenet(data: Path):
    for part, count in ("train", 5), ("val", 3):
        for i in range(count):
            for label, wnid in enumerate(["n01", "n02"]):
                put(data / part / wnid / f"{i}.png", 10 * i + label)
    split = open_images(f"imagenet:{data}", 32)
    assert len(split.train) == 10
    assert len(split.heldout) == 6
    for part in split.train, split.heldout:
        assert part.classes == ["n01", "n02"]
        assert part.labels is not None
        assert part.labels.tolist() == [value % 10 for value in values(part)]
    put(data / "val/n03/0.png")
    with pytest.raises(ValueError, match="same classes"):
        open_images(f"imagenet:{data}", 32)


def test_imagenet_archives_are_unpacked(data: Path, monkeypatch: pytest.MonkeyPatch):
    def imagenet(root: Path, split: str) -> None:
        put(root / split / "n01/0.png")
        put(root / split / "n02/0.png")

    monkeypatch.setattr(datasets, "ImageNet", imagenet)
    assert len(open_images(f"imagenet:{data}", 32).train) == 2


def test_imagenet_that_is_not_there(data: Path):
    with pytest.raises(ValueError, match="neither train/ nor its archive") as error:
        open_images(f"imagenet:{data}", 32)
    one_line(error, "ILSVRC2012_devkit_t12.tar.gz")
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
    one_line(met, "archive", "folder")


# --- real photos ----------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.skipif("KINTSUGI_DATA" not in os.environ, reason="KINTSUGI_DATA names no folder")
def test_real_class_folders(decoded: list[Path]):
    folder = Path(os.environ["KINTSUGI_DATA"]) / "caltech101/train"
    split = open_images(str(folder), 64)
    assert len(split.train) + len(split.heldout) == len(decoded) == sum(1 for _ in folder.glob("*/*.jpg"))
    assert len(split.train.classes) == 101
    again = open_images(str(folder), 64)
    assert len(decoded) == len(split.train) + len(split.heldout)
    assert again.heldout.names == split.heldout.names
    batch = split.heldout.batch(torch.arange(64))
    assert batch["extent"].amin() == 96
    assert batch["image"].float().std() > 50
