from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kintsugi.data.pairs import VOID, open_clips, open_pairs


def write(root: Path, split: str, name: str, size: tuple[int, int], ids: np.ndarray | None = None) -> None:
    height, width = size
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    picture = np.arange(height * width * 3).reshape(height, width, 3) % 251
    Image.fromarray(picture.astype(np.uint8)).save(root / split / "images" / f"{name}.png")
    mask = np.arange(height * width).reshape(height, width) % 4 if ids is None else ids
    Image.fromarray(mask.astype(np.uint8)).save(root / split / "masks" / f"{name}.png")


def test_a_folder_is_read_padded_and_its_void_marked(tmp_path: Path):
    write(tmp_path, "train", "a", (6, 8))
    write(tmp_path, "train", "b", (4, 5))
    pairs = open_pairs(str(tmp_path), "train", void=3)
    assert pairs.images.shape == (2, 3, 6, 8)
    assert pairs.classes == ["0", "1", "2"]
    expected = np.arange(48).reshape(6, 8) % 4
    expected[expected == 3] = VOID
    assert np.array_equal(pairs.targets[0].numpy(), expected)
    assert (pairs.targets[1, 4:] == VOID).all()
    assert (pairs.targets[1, :, 5:] == VOID).all()
    picture = np.arange(60).reshape(4, 5, 3)
    assert np.array_equal(pairs.images[1, :, :4, :5].permute(1, 2, 0).numpy(), picture)


def test_scenes_have_exact_classes_and_disjoint_splits():
    train, val = (open_pairs("scenes", split, scenes=4, size=32) for split in ("train", "val"))
    assert train.images.shape == (4, 3, 32, 32)
    assert len(val) == 1
    assert not any(torch.equal(val.images[0], image) for image in train.images)
    assert train.targets.max() < len(train.classes)


def test_an_unreadable_pair_is_skipped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, "train", "good", (6, 8))
    write(tmp_path, "train", "torn", (6, 8))
    torn = tmp_path / "train/images/torn.png"
    torn.write_bytes(torn.read_bytes()[:20])
    assert len(open_pairs(str(tmp_path), "train")) == 1
    assert "skipped 1 of 2 pairs" in capsys.readouterr().err


def test_pairs_that_do_not_match_are_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no folder .*train; make .*images"):
        open_pairs(str(tmp_path / "none"), "train")
    write(tmp_path, "val", "a", (6, 8), np.zeros((6, 7)))
    with pytest.raises(ValueError, match=r"a\.png is 7x6 px but its image is 8x6"):
        open_pairs(str(tmp_path), "val")
    (tmp_path / "val/masks/a.png").rename(tmp_path / "val/masks/b.png")
    with pytest.raises(
        ValueError, match=r"2 files in images and masks have no partner of the same name \(the first: a\)"
    ):
        open_pairs(str(tmp_path), "val")
    write(tmp_path, "train", "a", (6, 8), np.full((6, 8), VOID))
    with pytest.raises(ValueError, match="only void pixels: check --void"):
        open_pairs(str(tmp_path), "train")
    Image.new("RGB", (8, 6)).save(tmp_path / "train/masks/a.png")
    with pytest.raises(ValueError, match="one 8-bit channel"):
        open_pairs(str(tmp_path), "train")


def test_two_images_of_one_name_are_refused(tmp_path: Path):
    write(tmp_path, "train", "a", (6, 8))
    Image.new("RGB", (8, 6)).save(tmp_path / "train/images/a.jpg")
    with pytest.raises(ValueError, match=r"both a\.jpg and a\.png"):
        open_pairs(str(tmp_path), "train")


def test_a_folder_without_images_is_one_line(tmp_path: Path):
    for name in ("images", "masks"):
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"images holds no images"):
        open_pairs(str(tmp_path), "train")


def write_clips(root: Path, names: str, frames: int = 2) -> None:
    for clip in names:
        for i in range(frames):
            for kind in ("frames", "masks"):
                (root / kind / clip).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), (ord(clip), i, 0)).save(root / f"frames/{clip}/{i}.png")
            mask = np.zeros((6, 8), np.uint8)
            mask[i, :3] = (1, 7, 255)
            Image.fromarray(mask).save(root / f"masks/{clip}/{i}.png")


def test_clips_are_held_out_whole(tmp_path: Path):
    write_clips(tmp_path, "abcdefgh")
    train, val = (open_clips(str(tmp_path), split) for split in ("train", "val"))
    held = sorted("abcdefgh", key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:2]
    assert val.clips == [clip for clip in sorted(held) for _ in range(2)]
    assert train.clips == [clip for clip in "abcdefgh" if clip not in held for _ in range(2)]
    for clips in (train, val):
        assert clips.images[:, 0, 0, 0].tolist() == [ord(clip) for clip in clips.clips]
        assert clips.images[:, 1, 0, 0].tolist() == [0, 1] * (len(clips) // 2)
        assert clips.targets[1].nonzero().tolist() == [[1, 0], [1, 1], [1, 2]]
        assert clips.targets.max() == 1  # 255 is foreground too
        assert clips.classes == ["background", "foreground"]
    write_clips(tmp_path / "two", "ab")
    assert len(open_clips(str(tmp_path / "two"), "val")) == 2  # at least one


def test_clips_that_do_not_match_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match=r"no folder .*frames: make frames/CLIP/ and masks/CLIP/"):
        open_clips(str(tmp_path), "train")
    write_clips(tmp_path, "a")
    with pytest.raises(ValueError, match="1 clips are not enough"):
        open_clips(str(tmp_path), "train")
    write_clips(tmp_path, "bcd", 3)
    (tmp_path / "frames/e").mkdir()
    with pytest.raises(ValueError, match=r"1 clips are in only one of frames and masks \(the first: e\)"):
        open_clips(str(tmp_path), "train")
    (tmp_path / "frames/e").rmdir()
    torn = tmp_path / "frames/b/0.png"
    torn.write_bytes(torn.read_bytes()[:20])
    for split in ("train", "val"):
        clips = open_clips(str(tmp_path), split)
        assert clips.clips.count("b") in (0, 2)
    assert "skipped 1 of 3 pairs" in capsys.readouterr().err
    Image.new("RGB", (8, 6)).save(tmp_path / "masks/b/1.png")
    with pytest.raises(ValueError, match=r"1\.png is not a mask: it must have one channel, 0 = background, not mode"):
        [open_clips(str(tmp_path), split) for split in ("train", "val")]
    (tmp_path / "masks/b/1.png").unlink()
    with pytest.raises(ValueError, match=r"1 files in frames/b and masks/b have no partner"):
        [open_clips(str(tmp_path), split) for split in ("train", "val")]
