"""What the methods that learn from clips share: commands, the tower, crops and colors of frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.clip_cases import WORLD, build, still
from helpers.command_line import Refused
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kintsugi.pretext import frame_order, odd_one_out
from kintsugi.pretext.video import view
from kintsugi.rng import generator
from kintsugi.train import checkpoint

MODULES = {"frame-order": frame_order, "odd-one-out": odd_one_out}
TINY = (
    "--encoder alexnet --size 32 --short-side 36 --batch 4 --steps 4 --log-every 1 --show-every 2 --eval-every 2 "
    "--save-every 2 --eval-images 6 --tuples 50 --dim 16 --device cpu"
).split()
EXTRA = {
    "frame-order": "--tau-max 3 --tau-min 1".split(),
    "odd-one-out": "--length 4 --within 5 --window 6 --encoding stack --fusion differences".split(),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of eight frames: a bright square that moves to the right over a plain color."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in range(4):
        (folder / f"clip{clip}").mkdir()
        for frame in range(8):
            picture = np.full((40, 56, 3), (50 + 20 * clip, 90, 140 - 20 * clip), np.uint8)
            picture[10:22, 4 * frame : 4 * frame + 14] = (230, 200, 60 * clip)
            Image.fromarray(picture).save(folder / f"clip{clip}/{frame:03d}.png")
    return folder


@pytest.fixture(params=MODULES, scope="module")
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def start(method: str, data: Path | str, folder: Path, *more: str) -> None:
    MODULES[method].main([*TINY, *EXTRA[method], "--data", str(data), "--out", str(folder), *more])


@pytest.fixture(scope="module")
def whole(method: str, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of four steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    start(method, clips, folder)
    return folder


def test_what_a_run_leaves(method: str, whole: Path):
    tags = EventAccumulator(str(whole), size_guidance={"images": 0}).Reload().Tags()
    assert len(tags["images"]) == 1
    assert {"losses/cross_entropy", "training/accuracy/all", "held-out figures/accuracy"} <= set(tags["scalars"])
    rows = json.loads((whole / "quality.json").read_text())
    assert list(rows) == ["chance", "pixel distances", "pixels", "random init", method]
    assert rows["chance"]["accuracy"] == pytest.approx(50 if method == "frame-order" else 100 / 6)
    assert 0 <= rows[method]["accuracy"] <= 100
    encoder = checkpoint.load_encoder(whole, "encoder")
    assert {stride: maps.shape[1] for stride, maps in encoder(torch.rand(2, 3, 64, 96)).items()} == encoder.channels


def test_the_built_in_clips_suffice(method: str, tmp_path: Path):
    start(method, "scenes", tmp_path / "run", "--scenes", "3", "--frames", "6", "--steps", "1")
    assert (tmp_path / "run/step-00000001.pt").is_file()


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        ("frame-order", ["--tau-max", "1"], "--tau-max must be at least 2, not 1"),
        ("frame-order", ["--tau-min", "0"], "--tau-min must be at least 1, not 0"),
        ("frame-order", ["--in-order", "1"], "--in-order must be in (0, 1), not 1"),
        ("frame-order", ["--smallest-crop", "0"], "--smallest-crop must be in [0.001, 1], not 0"),
        ("frame-order", ["--jitter", "2"], "--jitter must be in [0, 1], not 2"),
        ("frame-order", ["--size", "16"], "use at least 32"),
        ("frame-order", ["--every", "0"], "--every must be at least 1, not 0"),
        ("frame-order", ["--data", "nowhere"], "name a folder with a folder of frames or a video file"),
        ("odd-one-out", ["--subclips", "2"], "--subclips must be at least 3, not 2"),
        ("odd-one-out", ["--length", "2"], "--length must be at least 3, not 2"),
        ("odd-one-out", ["--within", "5", "--length", "6"], "--within 5 and --window 9 must not decrease"),
        ("odd-one-out", ["--encoding", "stack", "--length", "5"], "use --length 4, not 5"),
        ("odd-one-out", ["--encoding", "flow"], "'flow'"),
    ],
)
def test_bad_settings_are_one_line(module: str, args: list[str | Path], message: str, refused: Refused):
    assert message in refused(MODULES[module].main, args)


def test_clips_that_are_too_short_are_one_line(method: str, clips: Path, refused: Refused):
    longer = ["--tau-max", "9", "--tau-min", "2"] if method == "frame-order" else ["--window", "14"]
    message = refused(MODULES[method].main, [*TINY, *EXTRA[method], "--data", str(clips), *longer])
    assert "0 of 4 clips have 14 frames, the longest has 8; two are needed" in message
    assert "use a smaller --tau-max" in message or "use a smaller --window" in message


@pytest.mark.parametrize("size", [32, 100])
@pytest.mark.parametrize("encoder", ["alexnet", "resnet18"])
def test_the_tower_keeps_positions(encoder: str, size: int):
    tower = build("frame-order", encoder=encoder, size=size).tower.eval()
    image = torch.rand(1, 3, size, size, generator=generator(0))
    output, mirrored = tower(image), tower(image.flip(3))
    assert output.shape == (1, 16)
    assert not torch.allclose(output, mirrored, atol=1e-3)


def test_all_frames_of_a_tuple_are_cut_and_colored_alike():
    config = replace(frame_order.demo(), size=32, even=False)
    frames = view(still(5, [1.0] * 5), config, WORLD, 3)
    for k in range(1, 5):
        assert torch.allclose(frames[:, k], frames[:, 0], atol=1e-5)
    assert (frames[0, 0] - frames[1, 0]).abs().mean() > 0.02  # but tuples differ from each other
    assert not torch.allclose(frames, view(still(5, [1.0] * 5), config, WORLD, 4), atol=0.02)
