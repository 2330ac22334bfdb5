from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused, Run, refusal
from helpers.informed_features import Knowing
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kintsugi.data.pairs import VOC_CLASSES, VOID
from kintsugi.eval.dense import DenseSettings
from kintsugi.eval.segmentation import FigureGround, Segmentation, main, mean_iou, pixel_loss, region_similarity
from kintsugi.eval.tasks import FrozenFeatures
from kintsugi.eval.weights import Weights
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.discriminators import DiscriminatorSpec
from kintsugi.train import checkpoint
from kintsugi.train.compute import Compute

CPU = Compute(torch.device("cpu"))
ALEXNET = Weights("alexnet", Backbone("alexnet").plain())


def save(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, images: str, masks: str) -> None:
    for part, values in ((images, image), (masks, mask)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(folder / part / f"{name}.png")


def colors(folder: Path, shuffled: bool = False) -> str:
    """Blocks of pure color; the class is the color or, if shuffled, independent of it."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for i in range(count):
            ids = rng.integers(3, size=(4, 4)).repeat(16, 0).repeat(16, 1)
            truth = rng.integers(3, size=ids.shape) if shuffled else ids
            save(folder / part, str(i), 255 * np.eye(3)[ids], truth, "images", "masks")
    return str(folder)


def test_mean_iou_against_nested_loops():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 9, 7)), rng.integers(0, 5, (2, 9, 7))
    truth[0, :3] = VOID
    expected = []
    for k in range(5):
        both = union = present = 0
        for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
            if t == VOID:
                continue
            present += t == k
            both += t == k and p == k
            union += t == k or p == k
        expected.append(both / union if present else None)
    mean, each = mean_iou(torch.from_numpy(predicted), torch.from_numpy(truth), 5)
    assert each[4] is None  # predicted, but not in the truth: it lowers the others and has no figure of its own
    assert each[:4] == pytest.approx(expected[:4])
    assert mean == pytest.approx(sum(e for e in expected if e is not None) / 4)


def test_region_similarity_against_nested_loops():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 2, (5, 6, 7)), rng.integers(0, 2, (5, 6, 7))
    truth[1, :2] = VOID
    truth[3], predicted[3] = 0, 0
    truth[4] = 0
    clips = ["b", "b", "a", "a", "a"]
    expected: dict[str, list[float]] = {"b": [], "a": []}
    for t, p, clip in zip(truth, predicted, clips, strict=True):
        both = either = 0
        for x, y in zip(t.ravel(), p.ravel(), strict=True):
            both += x == 1 and y == 1
            either += x != VOID and (x == 1 or y == 1)
        expected[clip].append(both / either if either else 1.0)
    found = region_similarity(torch.from_numpy(predicted), torch.from_numpy(truth), clips)
    assert found == pytest.approx({clip: np.mean(each) for clip, each in expected.items()})
    assert expected["a"][1:] == [1, 0]


def test_the_loss_is_the_mean_over_pixels_that_are_not_void():
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    target[0, 0] = VOID
    logs = logits.log_softmax(1)
    each = [
        -logs[n, target[n, y, x], y, x].item()
        for n in range(2)
        for y in range(4)
        for x in range(5)
        if target[n, y, x] != VOID
    ]
    assert pixel_loss(logits, target.byte()).item() == pytest.approx(np.mean(each), rel=1e-5)
    assert pixel_loss(logits, torch.full_like(target, VOID)) == 0


def test_features_with_the_answer_beat_those_without(tmp_path: Path):
    settings = DenseSettings(dense_protocols=("frozen",), steps_frozen=60, batch_dense=4, lr_frozen=3e-2)
    task = Segmentation(colors(tmp_path / "true"), settings, CPU)
    features = Knowing(ALEXNET, 0, CPU)
    result = task.measure(features, "frozen", 0)
    knowing = result.figures["frozen mIoU"]
    assert knowing > 0.85
    assert knowing == pytest.approx(np.mean(list(result.details["IoU"].values())))
    assert list(result.details["IoU"]) == ["0", "1", "2"]
    assert task.measure(features, "frozen", 0).figures == result.figures
    assert task.measure(FrozenFeatures(ALEXNET, 0, CPU), "frozen", 0).figures["frozen mIoU"] < knowing - 0.05
    shuffled = Segmentation(colors(tmp_path / "shuffled", shuffled=True), settings, CPU)
    # Three classes at random: a third right, a fifth of the union.
    assert shuffled.measure(Knowing(ALEXNET, 0, CPU), "frozen", 0).figures["frozen mIoU"] < 0.3


def clips(folder: Path, shuffled: bool = False) -> str:
    """A white square moves over clips of various grays; 255 in the masks is foreground too, as in DAVIS."""
    rng = np.random.default_rng(0)
    for clip in range(6):
        for i in range(3):
            y, x = rng.integers(48, size=2)
            mask = np.zeros((64, 64))
            mask[y : y + 16, x : x + 16] = 255 if clip % 2 else 1
            image = np.where(mask[..., None] > 0, 255, 15 * clip).repeat(3, 2)
            truth = 255 * rng.integers(2, size=mask.shape) if shuffled else mask
            save(folder, f"{i:05d}", image, truth, f"frames/clip{clip}", f"masks/clip{clip}")
    return str(folder)


def test_figure_and_ground(tmp_path: Path):
    settings = DenseSettings(dense_protocols=("frozen",), steps_frozen=60, batch_dense=4, lr_frozen=3e-2)
    task = FigureGround(clips(tmp_path / "true"), settings, CPU)
    assert (len(task.train), len(task.val)) == (12, 6)  # a third of the six clips, whole
    result = task.measure(Knowing(ALEXNET, 0, CPU), "frozen", 0)
    assert result.figures["frozen J"] > 0.7
    assert result.figures["frozen J"] == pytest.approx(np.mean(list(result.details["J"].values())))
    assert set(result.details["J"]) == set(task.clips)
    shuffled = FigureGround(clips(tmp_path / "shuffled", shuffled=True), settings, CPU)
    # Half of the pixels at random: a third of the union is right. All background gives 0, all foreground a half.
    assert shuffled.measure(Knowing(ALEXNET, 0, CPU), "frozen", 0).figures["frozen J"] < 0.55


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for i in range(2):
            image, mask = rng.integers(0, 255, (64, 96, 3)), rng.integers(0, 3, (64, 96))
            save(tmp_path / "camvid" / part, str(i), image, mask, "images", "masks")
    return tmp_path / "camvid"


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    """A run's folder with a checkpoint of two encoders, untrained."""
    nets = {"generator": Backbone("alexnet").build(), "discriminator": DiscriminatorSpec(32, width=8).build().encoder}
    encoders = {role: {"spec": net.spec.plain(), "state": net.state_dict()} for role, net in nets.items()}
    content = {"method": "toy", "step": 1, "config": {}, "state": {}, "encoders": encoders}
    checkpoint.save(tmp_path / "run/step-00000001.pt", content)
    return tmp_path / "run"


TINY = "--seeds 2 --steps-frozen 2 --steps-finetune 2 --batch-dense 2 --crop 64 --device cpu".split()


def test_the_command_reports_both_encoders_and_random_weights(
    camvid: Path, ckpt: Path, capsys: pytest.CaptureFixture[str]
):
    main(["--ckpt", str(ckpt), "--data", str(camvid), "--void", "2", *TINY])
    printed = capsys.readouterr().out
    results = json.loads((ckpt / "segmentation-camvid/report.json").read_text())["results"]
    names = ["toy", "random init (alexnet)", "toy, discriminator", "random init (discriminator)"]
    assert [result["weights"] for result in results] == [name for name in names for _ in range(4)]
    assert [(result["protocol"], result["seed"]) for result in results[:4]] == [
        (protocol, seed) for seed in (0, 1) for protocol in ("frozen", "finetune")
    ]
    for result in results:
        ((name, value),) = result["figures"].items()
        assert name == {"frozen": "frozen mIoU", "finetune": "fine-tuned mIoU"}[result["protocol"]]
        assert value == pytest.approx(np.mean(list(result["details"]["IoU"].values())))
        assert set(result["details"]["IoU"]) == {"0", "1"}  # 2 is void
    assert all(name in printed for name in names)
    events = EventAccumulator(str(ckpt / "segmentation-camvid"))
    events.Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("segmentation camvid/")]
    assert tags == [
        f"segmentation camvid/{name}, {protocol}: input, truth, predicted, by random weights"
        for name in ("toy", "toy, discriminator")
        for protocol in ("frozen", "fine-tuned")
    ]

    again = ckpt / "again"
    main(["--ckpt", str(ckpt), "--data", str(camvid), "--void", "2", *TINY, "--out", str(again)])
    fresh = json.loads((again / "report.json").read_text())["results"]
    assert [result["figures"] for result in fresh] == [result["figures"] for result in results]


def test_the_command_recognizes_clips_by_their_folders(tmp_path: Path, ckpt: Path):
    data = clips(tmp_path / "film")
    argv = ["--ckpt", str(ckpt), "--data", data, "--roles", "generator", *TINY, "--seeds", "1"]
    main(argv)
    results = json.loads((ckpt / "segmentation-film/report.json").read_text())["results"]
    assert {name for result in results for name in result["figures"]} == {"frozen J", "fine-tuned J"}
    assert {result["task"] for result in results} == {"figure-ground film"}


def test_bad_input_is_one_line(run: Run, refused: Refused, camvid: Path, ckpt: Path, tmp_path: Path):
    assert "has no critic that takes RGB alone: choose --roles from generator" in refusal(
        run("kintsugi.eval.segmentation", "--ckpt", ckpt, "--data", camvid, "--roles", "critic")
    )
    assert "no folder" in refused(main, ["--ckpt", ckpt, "--data", tmp_path / "none"])
    assert "no checkpoint at" in refused(main, ["--ckpt", tmp_path / "nowhere", "--data", camvid])
    assert "--seeds must be at least 1" in refused(main, ["--ckpt", ckpt, "--data", camvid, "--seeds", 0])
    (tmp_path / "film/frames").mkdir(parents=True)
    assert "make frames/CLIP/ and masks/CLIP/" in refused(main, ["--ckpt", ckpt, "--data", tmp_path / "film"])
    Image.new("L", (96, 64), 7).save(camvid / "val/masks/0.png")
    assert "val has class ids up to 7, train only up to 2; is --void 255" in refused(
        main, ["--ckpt", ckpt, "--data", camvid]
    )


def test_the_command_reads_voc_from_the_given_cache(tmp_path: Path, ckpt: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object, **options: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", offline)
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "empty"))
    root = tmp_path / "cache/torchvision/VOCdevkit/VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        names = [f"{split}{i}" for i in range(2)]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            save(
                root, name, rng.integers(0, 255, (64, 96, 3)), rng.integers(0, 3, (64, 96)), "PNG", "SegmentationClass"
            )
            (root / "JPEGImages").mkdir(exist_ok=True)
            Image.open(root / f"PNG/{name}.png").save(root / f"JPEGImages/{name}.jpg")
    argv = ["--ckpt", str(ckpt), "--data", "voc2012", "--roles", "generator", *TINY, "--seeds", "1"]
    main([*argv, "--cache", str(tmp_path / "cache")])
    cells = json.loads((ckpt / "segmentation-voc2012/report.json").read_text())["results"]
    assert set(cells[0]["details"]["IoU"]) == set(VOC_CLASSES)
    assert [name for name, iou in cells[0]["details"]["IoU"].items() if iou is not None] == VOC_CLASSES[:3]
