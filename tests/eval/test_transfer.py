from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import resnet18

from kintsugi.catalog import METHODS
from kintsugi.eval import transfer
from kintsugi.eval.dense import DenseTask
from kintsugi.train import checkpoint

TINY = (
    "--seeds 1 --device cpu --size 32 --pooled-features 200 --labels 0.2 --steps-linear 4 --steps-tuned 1 "
    "--batch-tuned 4 --labeled-scenes 6 --steps-frozen 2 --steps-finetune 1 --batch-dense 2 --crop 64 --train-scenes 4"
).split()


@pytest.fixture
def ckpts(trained: Path, tmp_path: Path) -> list[str]:
    """An inpainter and a plain autoencoder."""
    content = checkpoint.load(trained)
    content["config"]["mask"] = "none"
    plain = tmp_path / "plain.pt"
    checkpoint.save(plain, {name: value for name, value in content.items() if name != "format"})
    return [str(trained), str(plain)]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """One folder of each kind."""
    rng = np.random.default_rng(0)

    def draw(file: str, *shape: int, most: int = 255) -> None:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, most, shape, dtype=np.uint8)).save(path)

    for i in range(3):
        for part in ("train", "test"):
            for name in ("a", "b"):
                draw(f"classes/{part}/{name}/{i}.png", 48, 48, 3)
        for clip in ("one", "two", "three"):
            draw(f"clips/frames/{clip}/{i}.png", 64, 64, 3)
            draw(f"clips/masks/{clip}/{i}.png", 64, 64, most=2)
    return tmp_path


def test_all_weights_on_every_task(ckpts: list[str], folders: Path, capsys: pytest.CaptureFixture[str]):
    out = folders / "report"
    weights = folders / "theirs.safetensors"
    torch.manual_seed(0)
    save_file(resnet18().state_dict(), weights)
    argv = [
        "--ckpts",
        *ckpts,
        "--published",
        f"resnet18={weights}",
        "--classification",
        str(folders / "classes"),
        "scenes",
        "--figure-ground",
        str(folders / "clips"),
        "--out",
        str(out),
        *TINY,
    ]
    transfer.main(argv)
    printed = capsys.readouterr().out
    record = json.loads((out / "report.json").read_text())
    names = list(dict.fromkeys(result["weights"] for result in record["results"]))
    assert names == [
        "inpainting",
        "random init (alexnet)",
        "autoencoder",
        "resnet18, theirs.safetensors",
        "random init (resnet18)",
        "pixels",
    ]
    columns = {(result["task"], name) for result in record["results"] for name in result["figures"]}
    assert {task for task, _ in columns} == {
        "classes",
        "what is in scenes",
        "segmentation scenes",
        "geometry scenes",
        "figure-ground clips",
    }
    assert not any(result["error"] for result in record["results"])
    assert len(record["results"]) == len(names) * (7 + 3 + 2 + 2 + 2)
    assert all(0 <= value <= 1 for result in record["results"] for value in result["figures"].values())
    text = (out / "report.md").read_text()
    assert text in printed
    assert "| inpainting" in text
    assert Image.open(out / "report.png").size[0] > 500
    events = EventAccumulator(str(out))
    events.Reload()
    assert "report" in events.Tags()["images"]
    assert "classes, kNN/pixels" in events.Tags()["scalars"]


def test_a_failing_experiment_does_not_end_the_run(
    ckpts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    argv = ["--ckpts", ckpts[0], "--classification", "--geometry", "--no-pixels", "--out", str(tmp_path / "r"), *TINY]

    def full(self: DenseTask, *rest: Any) -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(DenseTask, "_train_all", full)
        transfer.main(argv)
    printed = capsys.readouterr().out
    assert "fine-tuned" not in printed
    assert "- segmentation scenes, inpainting, finetune, seed 0: OutOfMemoryError: out of memory" in printed
    transfer.main(argv)  # only the failed ones are run again
    printed = capsys.readouterr().out
    assert printed.count("seed 0: fine-tuned") == 2
    assert "seed 0: frozen" not in printed


def test_missing_methods_are_trained_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, capsys: pytest.CaptureFixture[str]
):
    started: list[list[str]] = []

    def train(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        """Only the colorizer can be trained here."""
        started.append(command)
        if "kintsugi.recon.colorization" not in command:
            return subprocess.CompletedProcess(command, 1)
        folder = tmp_path / "runs/colorization/latest"
        folder.mkdir(parents=True)
        (folder / "step-00000001.pt").write_bytes(trained.read_bytes())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", train)
    config = transfer.TransferConfig(runs=tmp_path / "runs", train="demo", train_data="photos")
    assert [name for name, _ in transfer._latest(config)] == [""]
    assert len(started) == len(METHODS)
    assert started[0][1:] == [
        "-m",
        "kintsugi.recon.inpainting",
        "--preset",
        "demo",
        "--runs",
        str(tmp_path / "runs"),
        "--data",
        "photos",
    ]
    assert "warning: byol could not be trained; its row is left out" in capsys.readouterr().err


def test_bad_input_is_one_line(refused: Refused, ckpts: list[str], tmp_path: Path):
    assert "train them all with --train demo" in refused(transfer.main, [])
    twice = ["--ckpts", ckpts[0], ckpts[0], *TINY]
    assert "two rows are called inpainting: name them" in refused(transfer.main, twice)
    named = ["--ckpts", f"one={ckpts[0]}", f"two={ckpts[0]}", "--segmentation", tmp_path / "none", *TINY]
    assert "no folder" in refused(transfer.main, named)
    assert "write ENCODER=SOURCE" in refused(transfer.main, ["--ckpts", ckpts[0], "--published", "weights.pth"])
