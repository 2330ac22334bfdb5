"""Images in folders: which are found, their labels, batches and split, and files that cannot be used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import assert_one_line, names, put, record_decoded, values
from PIL import Image

from kintsugi.data import cache, image_set
from kintsugi.data.image_set import Images
from kintsugi.data.images import open_images
from kintsugi.data.store import Store
from kintsugi.scenes import rendering


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


# --- what is found in a folder --------------------------------------------------------------------------------


def test_folders_are_searched_to_the_bottom_and_hidden_files_left_out(data: Path):
    shown = ["a.png", "b/c/d.PNG", "b/newline\nname.png", "b/ünïcödé 画像.png", "e.png/f.png"]
    for name in [*shown, ".hidden.png", ".git/x.png", "b/._c.png", "b/notes.txt.png/.x.png"]:
        put(data / name)
    (data / "readme.txt").write_text("no image")
    assert names(data) == sorted(shown)


def test_label_images_are_not_photos(data: Path):
    photos = ["train/images/a.png", "val/images/b.png", "kitchen/rgb/c.png", "masks/d.png"]
    for name in [*photos, "train/masks/a.png", "val/masks/b.png", "kitchen/depth/c.png", "kitchen/normal/c.png"]:
        put(data / name)
    assert names(data) == sorted(photos)


def test_a_folder_that_cannot_be_read_is_reported(data: Path, monkeypatch: pytest.MonkeyPatch, capsys):
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


def test_a_name_that_is_not_unicode(data: Path):
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
    for images in split.train, split.heldout:
        assert images.classes == ["ant", "cat", "dog"]
        assert images.labels is not None
        assert [images.classes[i] for i in images.labels.tolist()] == [name.split("/")[0] for name in images.names]
        batch = images.batch(torch.arange(len(images)).flip(0))
        assert torch.equal(batch["label"], images.labels.flip(0))


@pytest.mark.parametrize("others", [["b/x.png", "c.png"], ["a/y.png", "a/deep/z.png"]])
def test_no_classes_where_images_lie_at_the_top_or_in_one_folder(others: list[str], data: Path):
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
    images = train.subset(torch.tensor([7, 2, 4])).subset(torch.tensor([2, 0]))
    assert images.names == [train.names[4], train.names[7]]
    assert values(images) == [int(name[:2]) for name in images.names]


# --- held out -------------------------------------------------------------------------------------------------


def made(count: int, first: int = 0) -> Images:
    return Images(cache.Source([f"{i}.png" for i in range(first, first + count)], lambda rows: []))


def test_about_a_twentieth_is_held_out():
    split = image_set.held_out(made(4000))
    assert 150 < len(split.heldout) < 250
    assert sorted(split.train.names + split.heldout.names) == sorted(made(4000).names)


def test_adding_images_moves_no_other():
    few, many = image_set.held_out(made(2000)), image_set.held_out(made(3000))
    assert set(few.heldout.names) <= set(many.heldout.names)
    assert set(few.train.names) <= set(many.train.names)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_side_is_empty(count: int):
    for first in range(50):
        split = image_set.held_out(made(count, first))
        assert len(split.train) + len(split.heldout) == count
        assert min(len(split.train), len(split.heldout)) >= 1


def test_at_most_1024_are_held_out():
    assert len(image_set.held_out(made(40_000)).heldout) == 1024


def test_held_out_images_are_mixed():
    held = image_set.held_out(made(4000)).heldout.names
    first = [int(name.removesuffix(".png")) for name in held[:16]]
    assert min(first) < 1000
    assert max(first) > 3000


def test_one_image_cannot_be_split(data: Path):
    put(data / "only.png")
    with pytest.raises(ValueError, match=r"one image \('only.png'\).* add more"):
        open_images(str(data), 32)


# --- files that cannot be used --------------------------------------------------------------------------------


@pytest.fixture
def bad(data: Path) -> Path:
    """Two good images, a small one and five files that are no images."""
    put(data / "good1.png", 1)
    put(data / "good2.png", 2)
    put(data / "small.png", 3, 31, 60)
    (data / "empty.png").write_bytes(b"")
    (data / "text.jpg").write_text("no image")
    (data / "cut.png").write_bytes((data / "good1.png").read_bytes()[:70])
    (data / "new\nline.webp").write_text("no image")
    (data / "link.png").symlink_to("nowhere")
    return data


def test_bad_files_are_skipped_and_reported_once(bad: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert names(bad) == ["good1.png", "good2.png"]
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert "skipped 6 of 8 images: 'cut.png' (" in printed[0]
    (listed,) = cache_folder.glob("images/*.skipped.txt")
    assert str(listed) in printed[0]
    lines = listed.read_text().splitlines()
    assert len(lines) == 6
    assert r"'new\nline.webp': not an image" in lines
    assert any(line.startswith("'small.png': short side of 31 px") for line in lines)
    assert "'link.png': not a file" in lines
    open_images(str(bad), 32)  # from the cache
    assert capsys.readouterr().err.splitlines() == printed
    open_images(str(bad), 32, Store(quiet=True))
    assert capsys.readouterr().err == ""


def test_no_images_are_refused_in_one_line(data: Path, cache_folder: Path):
    with pytest.raises(ValueError, match="no such folder") as error:
        open_images(str(data / "none"), 32)
    assert_one_line(error, str(data / "none"), "cifar10")
    with pytest.raises(ValueError, match="no images in this folder") as error:
        open_images(str(data), 32)
    assert_one_line(error, str(data), ".jpg")
    put(data / "a.png")
    with pytest.raises(ValueError, match="no such folder"):
        open_images(str(data / "a.png"), 32)
    (data / "a.png").write_text("not one")
    (data / "b.jpg").write_text("that can be read")
    with pytest.raises(ValueError, match="none of its 2 images can be read") as error:
        open_images(str(data), 32)
    assert_one_line(error, str(data), "'a.png': not an image")
    assert not list(cache_folder.glob("images/*"))


@pytest.mark.parametrize(("side", "fits"), [(50, 32), (96, 96), (20, 20)])
def test_images_smaller_than_the_crop(side: int, fits: int, data: Path):
    for i in range(3):
        put(data / f"{i}.png", i, side, side + 10)
    with pytest.raises(ValueError, match=f"smaller than the crop of 128 .*--size {fits}$") as error:
        open_images(str(data), 128)
    assert_one_line(error, "all 3 images")
    assert len(open_images(str(data), fits).train) == 2


def test_a_short_side_below_the_crop_is_refused(data: Path):
    with pytest.raises(ValueError, match="--short-side 20 is less than --size 32"):
        open_images(str(data), 32, Store(short_side=20))


# --- scenes and real photos -----------------------------------------------------------------------------------


def test_scenes_are_rendered_once(monkeypatch: pytest.MonkeyPatch):
    train = open_images("scenes", 16, scenes=6).train
    batch = train.batch(torch.arange(len(train)))
    assert batch["extent"].tolist() == [[24, 24]] * len(train)
    indices = torch.tensor([int(name.removeprefix("scene-")) for name in train.names])
    rendered = rendering.render(0, indices, 24)["image"]
    assert (batch["image"] / 255 - rendered).abs().max() <= 0.5 / 255 + 1e-5
    monkeypatch.setattr(rendering, "render", None)  # not rendered again
    assert torch.equal(open_images("scenes", 16, scenes=6).train.batch(batch["index"])["image"], batch["image"])


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
