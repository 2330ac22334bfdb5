"""Detection: the sources of boxes, the figure, the detector, and the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from PIL import Image
from torch import Tensor

from kintsugi.data.boxes import Boxed, Things, open_boxes, things_of
from kintsugi.data.store import Store
from kintsugi.eval import detection
from kintsugi.eval.detection import (
    Body,
    Detection,
    DetectionSettings,
    average_precision,
    detect,
    detector,
    fit,
    mirrored,
)
from kintsugi.eval.tasks import FrozenFeatures
from kintsugi.eval.weights import Weights
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.discriminators import SRGANDiscriminatorSpec
from kintsugi.rng import generator
from kintsugi.scenes.classes import BED, CHAIR, CLASSES, FLOOR, LAMP, WALL
from kintsugi.train.compute import Compute

CPU = Compute(torch.device("cpu"))
COLORS = {"blue": (40, 60, 220), "red": (220, 50, 40)}


def annotation(things: list[tuple[str, tuple[int, int, int, int], bool]]) -> str:
    """An annotation of VOC: classes, boxes by first and last pixel, counted from 1, and whether they are difficult."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>"
        f"<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for name, box, difficult in things
    )
    return f"<annotation><size><width>80</width></size>{objects}</annotation>"


def write(root: Path, part: str, name: str, xml: str, pixels: np.ndarray) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
    (root / "Annotations" / f"{name}.xml").write_text(xml)
    with (root / "ImageSets/Main" / f"{part}.txt").open("a") as listed:
        listed.write(f"{name}\n")


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Gray noise of 80x64 px with a colored square in the left half and one in the right: a folder laid out as VOC."""
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(90, 150, (64, 80, 3)).astype(np.uint8)
        things = []
        for name, start in zip(sorted(COLORS, reverse=i % 2 == 0), (0, 40), strict=True):
            left, top, side = start + rng.integers(0, 8), rng.integers(0, 30), rng.integers(24, 32)
            pixels[top : top + side, left : left + side] = COLORS[name]
            things.append((name, (left + 1, top + 1, left + side, top + side), False))
        write(tmp_path / "voc", "trainval" if i < 6 else "test", f"{i:03d}", annotation(things), pixels)
    return tmp_path / "voc"


# --- the sources of boxes -------------------------------------------------------------------------------------


def test_boxes_of_instances_are_those_of_a_loop():
    random = generator(1)
    instance = torch.randint(1, 9, (6, 8), generator=random).repeat_interleave(4, 0).repeat_interleave(4, 1)
    kinds = torch.tensor([0, WALL, FLOOR, CHAIR, BED, LAMP, CHAIR, LAMP, BED])
    semantic = kinds[instance].byte()
    semantic[instance == 3] = torch.where(torch.rand(24, 32, generator=random) < 0.8, CHAIR, LAMP).byte()[instance == 3]
    instance[0, 0], semantic[0, 0] = 20, BED  # tiny
    found = things_of(instance.short(), semantic)
    expected = {}
    for number in instance.unique().tolist():
        places = [(y, x) for y in range(24) for x in range(32) if instance[y, x] == number]
        classes = [int(semantic[place]) for place in places]
        kind = max(set(classes), key=classes.count)
        if kind not in (WALL, FLOOR):
            y, x = [p[0] for p in places], [p[1] for p in places]
            box = (min(x), min(y), max(x) + 1, max(y) + 1)
            expected[box, CLASSES[kind]] = min(box[2] - box[0], box[3] - box[1]) < 2
    names = [name for i, name in enumerate(CLASSES) if i not in (0, 1, 2)]
    got = {
        (tuple(int(v) for v in box), names[label]): bool(difficult)
        for box, label, difficult in zip(found.boxes.tolist(), found.labels.tolist(), found.difficult, strict=True)
    }
    assert got == expected
    assert len(got) == 7
    assert sum(got.values()) == 1
    assert found.width == 32


def test_scenes_have_things():
    train, test = open_boxes("scenes", scenes=4, size=64)
    assert (len(train), len(test)) == (4, 1)
    assert train.read(3).shape == (3, 64, 64)
    assert len(train.classes) == 17
    for things in train.things:
        assert (things.boxes[:, 2:] > things.boxes[:, :2]).all()
        assert 0 <= things.boxes.min() < things.boxes.max() <= 64
    assert any((~things.difficult).any() for things in train.things)


def test_voc_counts_pixels_from_one_and_names_difficult_ones(tmp_path: Path):
    gray = np.full((60, 80, 3), 99, np.uint8)
    write(tmp_path, "trainval", "a", annotation([("cat", (1, 1, 80, 60), False), ("dog", (11, 6, 20, 30), True)]), gray)
    write(tmp_path, "trainval", "b", annotation([]), gray)
    write(tmp_path, "test", "c", annotation([("cat", (5, 5, 99, 70), False)]), gray)  # over the edge: cut
    train, test = open_boxes(str(tmp_path))
    assert train.classes == test.classes == ["cat", "dog"]
    assert train.things[0].boxes.tolist() == [[0, 0, 80, 60], [10, 5, 20, 30]]
    assert train.things[0].labels.tolist() == [0, 1]
    assert train.things[0].difficult.tolist() == [False, True]
    assert train.things[0].width == 80
    assert train.things[1].boxes.shape == (0, 4)
    assert test.things[0].boxes.tolist() == [[4, 4, 80, 60]]
    assert train.read(0).shape == (3, 60, 80)
    assert train.read(0).unique().tolist() == [99]


def test_voc2007_is_read_where_torchvision_keeps_it(squares: Path, tmp_path: Path):
    kept = tmp_path / "cache/torchvision/VOCdevkit/VOC2007"
    shutil.copytree(squares, kept)
    for file in (kept / "JPEGImages").iterdir():
        file.rename(file.with_suffix(".jpg"))  # what torchvision looks for
    train, test = open_boxes("voc2007", Store(cache=tmp_path / "cache"))
    assert (len(train), len(test)) == (6, 2)
    assert train.classes == ["blue", "red"]


def test_bad_files_are_skipped_counted_and_named(squares: Path, capsys: pytest.CaptureFixture[str]):
    (squares / "Annotations/000.xml").write_text("<annotation><object>")
    (squares / "Annotations/001.xml").write_text(annotation([("red", (30, 5, 20, 9), False)]))
    (squares / "Annotations/002.xml").unlink()
    (squares / "JPEGImages/003.png").write_bytes(b"nothing")
    train, _ = open_boxes(str(squares))
    printed = capsys.readouterr().err
    assert len(train) == 2
    assert "skipped 4 of 6 images" in printed
    assert "000 (no element found" in printed
    assert "001 (the box of a red is empty or outside the image), 002 (No such file or directory) and 1 more" in printed


def remove_list(root: Path) -> None:
    (root / "ImageSets/Main/test.txt").unlink()


def empty_all(root: Path) -> None:
    for file in (root / "Annotations").iterdir():
        file.write_text("")


def add_a_class(root: Path) -> None:
    (root / "Annotations/007.xml").write_text(annotation([("violet", (1, 1, 9, 9), False)]))


def make_all_difficult(root: Path) -> None:
    for file in (root / "Annotations").iterdir():
        file.write_text(annotation([("red", (1, 1, 9, 9), True)]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_list, "ImageSets/Main/test.txt; name a folder with JPEGImages/"),
        (empty_all, "has a readable annotation; replace the files"),
        (add_a_class, "'violet' is only in the test images"),
        (make_all_difficult, "all boxes of trainval or of test are difficult"),
    ],
)
def test_folders_that_cannot_be_used_are_one_line(spoil: Callable[[Path], None], message: str, squares: Path):
    spoil(squares)
    with pytest.raises(ValueError, match="--data ") as error:
        open_boxes(str(squares))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_image_that_breaks_off_is_named(squares: Path):
    file = squares / "JPEGImages/000.png"
    file.write_bytes(file.read_bytes()[:200])
    train, _ = open_boxes(str(squares))
    with pytest.raises(ValueError, match=r"000\.png cannot be read"):
        train.read(0)


# --- the figure -----------------------------------------------------------------------------------------------


def truth(*things: tuple[list[list[float]], list[int], list[bool]]) -> Boxed:
    rows = [
        Things(100, torch.tensor(where).view(-1, 4), torch.tensor(labels), torch.tensor(difficult, dtype=torch.bool))
        for where, labels, difficult in things
    ]
    return Boxed(lambda i: torch.zeros(3, 100, 100, dtype=torch.uint8), rows, ["cat", "dog", "owl"])


def detections(where: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(where).view(-1, 4), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


LEFT, RIGHT, LOW = [0.0, 0.0, 40.0, 40.0], [50.0, 0.0, 90.0, 40.0], [0.0, 60.0, 30.0, 90.0]


def test_perfect_detections_have_a_precision_of_one():
    there = truth(([LEFT, RIGHT], [0, 1], [False, False]), ([LOW], [0], [False]))
    found = [detections([LEFT, RIGHT], [0, 1], [0.9, 0.8]), detections([LOW], [0], [0.3])]
    assert average_precision(found, there) == (1.0, {"cat": 1.0, "dog": 1.0})


def test_precision_of_a_case_worked_by_hand():
    """Right, wrong, right: precision 1 to a recall of .5, 2/3 beyond; an owl is seen where none is, which has no
    figure; and nobody finds the dog."""
    there = truth(([LEFT, RIGHT, LOW], [0, 0, 1], [False] * 3))
    moved = [4.0, 0.0, 44.0, 40.0]  # overlap .82
    found = [detections([moved, LOW, RIGHT, LOW], [0, 0, 0, 2], [0.9, 0.8, 0.7, 0.6])]
    mean, each = average_precision(found, there)
    cat = (51 + 50 * 2 / 3) / 101  # recalls 0, .01, ..., .5 and the rest
    assert each == pytest.approx({"cat": cat, "dog": 0.0}, abs=1e-6)
    assert mean == pytest.approx(cat / 2, abs=1e-6)


def test_difficult_things_are_ignored():
    there = truth(([LEFT, RIGHT], [0, 0], [False, True]))
    both, one = detections([LEFT, RIGHT], [0, 0], [0.5, 0.9]), detections([LEFT], [0], [0.5])
    assert average_precision([both], there)[0] == average_precision([one], there)[0] == 1.0


# --- the detector ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        (Backbone(), {4: 4, 8: 8, 16: 16, 32: 32}),
        (Backbone(stem="small"), {4: 4, 8: 8, 16: 8, 32: 8}),
        (Backbone("dcgan"), {4: 4, 8: 8, 16: 16, 32: 32}),
        (SRGANDiscriminatorSpec(size=64, width=8), {4: 4, 8: 8, 16: 16, 32: 16}),
    ],
)
def test_every_encoder_gets_the_same_strides(spec: Backbone, source: dict[int, int]):
    encoder = Weights("weights", spec.plain()).encoder(0)
    body = Body(encoder, CPU, frozen=True, width=32).eval()
    assert body.source == source
    maps = body(torch.rand(1, 3, 64, 96))
    assert [m.shape[2:] for m in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert body.strides == [4, 8, 16, 32, 64]


def test_mirrored_boxes_lie_where_mirrored_images_have_them(squares: Path):
    train, _ = open_boxes(str(squares))
    image, turned = train.read(0).flip(-1), mirrored(train.things[0])
    for box, label in zip(turned.boxes.int().tolist(), turned.labels.tolist(), strict=True):
        inside = image[:, box[1] : box[3], box[0] : box[2]].flatten(1)
        assert inside.unique(dim=1).flatten().tolist() == list(COLORS[train.classes[label]])


def learn(squares: Path, frozen: bool, steps: int) -> tuple[list[float], float, dict[str, Tensor], dict[str, Tensor]]:
    """Losses, AP50 on the training images, and the encoder's state before and after."""
    train, _ = open_boxes(str(squares))
    settings = DetectionSettings(detection_batch=2, detection_lr=1e-3, detection_steps=steps)
    torch.manual_seed(0)
    net = detector(Weights("weights", Backbone().plain()).encoder(0), 2, 64, 32, CPU, frozen)
    before = {name: value.clone() for name, value in net.backbone.encoder.state_dict().items()}
    losses = fit(net, train, 0, settings, CPU).tolist()
    return (losses, average_precision(detect(net, train, CPU), train)[0], before, net.backbone.encoder.state_dict())


def test_a_few_images_are_learned(squares: Path):
    losses, precision, _, _ = learn(squares, frozen=False, steps=25)
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert precision > 0.7


def test_a_frozen_encoder_changes_in_its_statistics_alone(squares: Path):
    losses, _, before, after = learn(squares, frozen=True, steps=2)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert len(losses) == 2
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)


def test_training_keeps_the_statistics_of_the_batch_norms(squares: Path):
    """They are the same after two steps as after one: only ``fit_batch_norms`` changes them."""
    one, two = (learn(squares, frozen=False, steps=steps)[3] for steps in (1, 2))
    assert not torch.equal(one["layer1.0.conv1.weight"], two["layer1.0.conv1.weight"])
    assert torch.equal(one["layer1.0.bn1.running_var"], two["layer1.0.bn1.running_var"])


# --- the task and the command ---------------------------------------------------------------------------------

SMALL = ["--detection-steps", "1", "--detection-size", "64", "--detection-width", "32", "--detection-batch", "1"]


def test_results_are_the_same_for_the_same_seed(squares: Path):
    settings = DetectionSettings(
        detection_steps=2,
        detection_batch=1,
        detection_size=64,
        detection_width=32,
        detection_protocols=("frozen", "finetune"),
    )
    task = Detection(str(squares), settings, CPU)
    assert task.name == "boxes in voc"
    json.dumps(task.settings("frozen"))
    features = FrozenFeatures(Weights("weights", Backbone("dcgan").plain()), 0, CPU)
    results = [task.measure(features, protocol, 0) for protocol in ("frozen", "finetune", "finetune")]
    assert list(results[0].figures) == ["AP50, frozen"]
    assert list(results[1].figures) == ["AP50, fine-tuned"]
    assert results[1] == results[2]
    assert set(results[1].details["AP50 by class"]) == {"blue", "red"}


def test_the_command(squares: Path, trained: Path, tmp_path: Path):
    args = [*SMALL, "--seeds", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    detection.main([*args, "--data", str(squares), "--ckpt", str(trained)])
    assert "AP50, fine-tuned" in (tmp_path / "out/report.md").read_text()


def test_bad_settings_and_a_missing_tool_are_one_line(
    squares: Path, trained: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    assert "--detection-width must be a multiple of 32" in refused(detection.main, ["--detection-width", "48"])
    assert "--detection-size must be at least 64" in refused(detection.main, ["--detection-size", "20"])
    assert "--detection-steps must be at least 1" in refused(detection.main, ["--detection-steps", "0"])
    monkeypatch.setattr(detection.importlib.util, "find_spec", lambda name: None)
    args: list[str | Path] = [*SMALL, "--device", "cpu", "--ckpt", trained, "--data", squares]
    assert "pip install pycocotools" in refused(detection.main, args)
