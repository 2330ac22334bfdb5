"""Supervised training from scratch: its data, and that it learns, resumes and can be transferred."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from helpers.nested import tensors
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy

from kintsugi.eval import supervised
from kintsugi.eval.supervised import SupervisedConfig, figures, main, marked, open_training
from kintsugi.train import checkpoint

TINY = (
    "--size 32 --short-side 40 --batch 8 --steps 6 --warmup 2 --log-every 2 --show-every 6 --eval-every 3 "
    "--save-every 3 --device cpu"
).split()
COLORS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def draw(folder: Path, count: int, seed: int) -> None:
    """Class folders, each of images of one color in noise."""
    rng = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = (rng.normal(color, 40, (40, 48, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    draw(folder / "train", 14, 0)
    draw(folder / "test", 4, 1)
    return folder


def test_held_out_are_training_images_never_test_ones(named: Path):
    split = open_training(SupervisedConfig(data=str(named), size=32, short_side=40), quiet=True)
    names = {f"{name}/{i}.png" for name in COLORS for i in range(14)}
    assert set(split.train.names) | set(split.heldout.names) == names
    assert not set(split.train.names) & set(split.heldout.names)
    assert split.train.classes == sorted(COLORS)
    plain = open_training(SupervisedConfig(data=str(named / "train"), size=32, short_side=40), quiet=True)
    assert plain.heldout.names == split.heldout.names


def test_it_learns_resumes_bit_for_bit_and_can_be_transferred(named: Path, tmp_path: Path):
    args = [*TINY, "--data", str(named), "--steps", "12", "--save-every", "6", "--strength", "0.2"]
    main([*args, "--out", str(tmp_path / "whole")])
    main([*args, "--out", str(tmp_path / "parts")])
    (tmp_path / "parts" / "step-00000012.pt").unlink()
    main(["--resume", "--out", str(tmp_path / "parts")])
    whole, parts = (checkpoint.load(checkpoint.find(tmp_path / run))["state"] for run in ("whole", "parts"))
    assert len(tensors(whole)) > 100
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(parts), strict=True))

    events = EventAccumulator(str(tmp_path / "whole"), size_guidance={"images": 0}).Reload()
    loss = [event.value for event in events.Scalars("losses/cross_entropy")]
    assert loss[-1] < 0.5 * loss[0]
    assert len(events.Tags()["images"]) == 1
    rows = json.loads((tmp_path / "whole" / "quality.json").read_text())
    assert list(rows) == ["the commonest class", "pixels", "random init", "supervised"]
    maps = checkpoint.load_encoder(tmp_path / "whole", "encoder")(torch.rand(2, 3, 64, 96))
    assert {stride: m.shape[1:] for stride, m in maps.items()} == {
        4: (64, 16, 24),
        8: (128, 8, 12),
        16: (256, 4, 6),
        32: (512, 2, 3),
    }


def test_another_network_and_optimizer(named: Path, tmp_path: Path):
    args = "--steps 1 --optimizer sgd --lr 0.1 --norm group --stem small --smoothing 0.1".split()
    main([*TINY, *args, "--data", str(named), "--out", str(tmp_path / "run")])
    content = checkpoint.load(checkpoint.find(tmp_path / "run"), "supervised")
    assert content["encoders"]["encoder"]["spec"] == {
        "kind": "backbone",
        "name": "resnet18",
        "norm": "group",
        "width": 1.0,
        "stem": "small",
    }
    assert content["state"]["optimizers"]["both"]["param_groups"][0]["lr"] == pytest.approx(0.1 * 8 / 256 / 2)


def test_figures_are_those_of_a_loop():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.5, 0.0, 3.0]])
    labels = torch.tensor([0, 1, 0])
    batches = [{"label": labels[:2], "x": logits[:2]}, {"label": labels[2:], "x": logits[2:]}]
    found = figures(batches, lambda batch: batch["x"])
    losses = [-(row[label].exp() / row.exp().sum()).log().item() for row, label in zip(logits, labels, strict=True)]
    assert found == pytest.approx({"accuracy": 200 / 3, "loss": sum(losses) / 3})
    assert found["loss"] == pytest.approx(cross_entropy(logits, labels).item())


def test_the_baseline_is_the_most_common_class_of_training(named: Path):
    config = SupervisedConfig(data=str(named), size=32, short_side=40)
    images = open_training(config, quiet=True).train
    method = supervised.Supervised(config, supervised.World(torch.device("cpu")), images)
    method.counts = torch.tensor([1, 6, 2])
    found = method.baselines([{"label": torch.tensor([1, 1, 0, 2])}])["the commonest class"]
    assert found["accuracy"] == 50
    probability = torch.tensor([7 / 12, 7 / 12, 2 / 12, 3 / 12])
    assert found["loss"] == pytest.approx(-probability.log().mean().item())


def test_bars_are_as_long_as_the_confidence():
    picture = marked(torch.full((2, 3, 32, 32), 0.5), torch.tensor([True, False]), torch.tensor([1.0, 0.25]))
    bar = picture[:, -4]  # a line of pixels through both bars, which are drawn twice as large
    assert int((bar[1] - 0.7).abs().lt(1e-6).sum()) == 64
    assert int((bar[0] - 0.85).abs().lt(1e-6).sum()) == 16


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "scenes"], "--data scenes: its images have no class; name a folder"),
        ([], "--data: name a folder"),
        (["--data", "nowhere"], "--data nowhere"),
        (["--smoothing", "1"], "--smoothing must be in [0, 1)"),
        (["--strength", "-1"], "--strength must be at least 0"),
    ],
)
def test_bad_settings_are_one_line(args: list[str | Path], message: str, refused: Refused):
    assert message in refused(main, args)


def test_images_without_classes_and_other_classes_at_resume(photos: Path, tmp_path: Path, refused: Refused):
    assert "not in class folders" in refused(main, ["--data", photos, "--size", "32", "--out", "a"])
    draw(tmp_path / "changing", 2, 2)
    main([*TINY, "--steps", "1", "--data", str(tmp_path / "changing"), "--out", str(tmp_path / "b")])
    (tmp_path / "changing" / "red").rename(tmp_path / "changing" / "violet")
    message = refused(main, ["--resume", "--out", tmp_path / "b", "--steps", "2"])
    assert "has other classes than when this run began" in message
