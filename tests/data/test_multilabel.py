from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kintsugi.data.multilabel import MIN_FRACTION, object_labels, open_multilabel, presence
from kintsugi.data.pairs import VOC_CLASSES
from kintsugi.data.store import Store


def test_presence_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 6, (3, 40, 30)).astype(np.uint8)
    maps[1, maps[1] == 2] = 0
    maps[1, 0, 0] = 2  # one pixel of 1200 is too few
    maps[2] = np.where(maps[2] == 3, 255, maps[2])
    found = presence(torch.from_numpy(maps), 6)
    for n in range(3):
        for k in range(6):
            assert found[n, k] == ((maps[n] == k).sum() >= MIN_FRACTION * 1200)
    assert found[1, 2] == 0


def test_scenes_have_the_classes_that_are_in_them():
    split = open_multilabel("scenes", 32, scenes=4)
    assert len(split.train) == 4
    assert len(split.heldout) == 1
    labels = split.train.batch(torch.tensor([2, 0]))["label"]
    assert labels.shape == (2, len(split.train.classes))
    assert labels[:, :2].sum() >= 2  # rooms have a floor or a wall
    assert 0 < labels.float().mean() < 1


ANNOTATION = "<annotation>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult></object>"


def test_difficult_objects_are_unknown_unless_there_is_an_easy_one(tmp_path: Path):
    things = [("cat", 1), ("dog", 1), ("dog", 0), ("tvmonitor", 0), ("dog", 1)]
    (tmp_path / "a.xml").write_text(ANNOTATION.format("".join(OBJECT.format(*thing) for thing in things)))
    labels = dict(zip(VOC_CLASSES[1:], object_labels(tmp_path / "a.xml").tolist(), strict=True))
    assert {name: value for name, value in labels.items() if value} == {"cat": -1, "dog": 1, "tv": 1}


def test_voc2007_is_read_where_torchvision_puts_it(tmp_path: Path):
    root = tmp_path / "torchvision/VOCdevkit/VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split_name, names in (("trainval", ["000001", "000003"]), ("test", ["000002"])):
        (root / f"ImageSets/Main/{split_name}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            Image.new("RGB", (80, 70), (10, 20, 30)).save(root / f"JPEGImages/{name}.jpg")
            (root / f"Annotations/{name}.xml").write_text(ANNOTATION.format(OBJECT.format("cow", 0)))
    (root / "JPEGImages/000001.jpg").write_bytes(b"no image")  # skipped, and the other image keeps its labels
    (root / "Annotations/000003.xml").write_text(ANNOTATION.format(OBJECT.format("diningtable", 0)))
    split = open_multilabel("voc2007", 32, Store(cache=tmp_path, quiet=True))
    assert split.train.names == ["000003.jpg"]
    assert split.train.batch(torch.tensor([0]))["label"].tolist() == [
        [int(name == "table") for name in VOC_CLASSES[1:]]
    ]
    assert split.heldout.batch(torch.tensor([0]))["label"].sum() == 1


def test_voc2007_that_cannot_be_downloaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", offline)
    with pytest.raises(ValueError, match=r"voc2007: torchvision could not download it \(offline\)"):
        open_multilabel("voc2007", 32, Store(cache=tmp_path))
