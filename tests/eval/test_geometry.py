from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused, Run, refusal
from helpers.informed_features import Knowing
from helpers.random_surfaces import random_surfaces
from PIL import Image
from torch import nn

from kintsugi.eval.dense import DenseSettings
from kintsugi.eval.geometry import Geometry, depth_to_normals, errors, main, mean_frame, open_targets, unit
from kintsugi.eval.weights import Weights
from kintsugi.nets.backbones import Backbone
from kintsugi.train import checkpoint
from kintsugi.train.compute import Compute

CPU = Compute(torch.device("cpu"))
ALEXNET = Weights("alexnet", Backbone("alexnet").plain())
HEIGHT, WIDTH = 64, 80
FOCAL, MIDDLE = 70.0, (39.5, 31.5)


def plane(normal: np.ndarray, distance: float) -> np.ndarray:
    """Depth (H,W) in meters of the plane normal . point = -distance, seen pixel by pixel."""
    depth = np.zeros((HEIGHT, WIDTH))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            ray = np.array([(x - MIDDLE[0]) / FOCAL, (y - MIDDLE[1]) / FOCAL, 1])
            depth[y, x] = -distance / (normal @ ray)
    return depth


def kitchen(folder: Path, count: int = 30, shuffled: bool = False) -> Path:
    """Planes at various slants and distances, with colors that encode both; a strip of each frame is missing.

    They slant up and down only, because colors that encode a slant to the right would be wrong in mirror images.
    """
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    (folder / "intrinsics.txt").write_text(f"{FOCAL} 0 {MIDDLE[0]}\n0 {FOCAL} {MIDDLE[1]}\n0 0 1\n")
    for i in range(count):
        slant, distance = np.array([0, rng.uniform(-1, 1)]), rng.uniform(1, 4)
        normal = np.array([*slant, -1]) / math.sqrt(1 + slant @ slant)
        depth = plane(normal, distance)
        depth[:, :4] = 0
        height = np.log(np.maximum(depth, 0.5)) / 2.5
        color = np.stack([height, 0.5 + normal[1] / 2 + 0 * depth, 0.5 - normal[2] / 2 + 0 * depth], 2)
        if shuffled:
            color = other.uniform(size=(8, 10, 3)).repeat(8, 0).repeat(8, 1)
        Image.fromarray((255 * color).clip(0, 255).astype(np.uint8)).save(folder / f"rgb/{i:03d}.png")
        Image.fromarray((1000 * depth).round().astype(np.uint16)).save(folder / f"depth/{i:03d}.png")
    return folder


def test_unit_vectors():
    vectors = torch.randn(2, 3, 4, 5)
    assert torch.allclose(unit(vectors), nn.functional.normalize(vectors, dim=1), atol=1e-6)
    zero = torch.zeros(1, 3, 1, 1, requires_grad=True)
    unit(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_the_mean_frame_against_nested_loops():
    torch.manual_seed(2)
    _, targets = random_surfaces(3)
    targets[0, 0] = 0
    found = mean_frame(targets)
    known = [math.log(t) for t in targets[:, 0].flatten().tolist() if t > 0]
    everywhere = targets[:, 1:].sum((0, 2, 3))
    for y in range(5):
        for x in range(6):
            logs = [math.log(t) for t in targets[:, 0, y, x].tolist() if t > 0] or known
            assert found[0, y, x].item() == pytest.approx(math.exp(np.mean(logs)), rel=1e-4)
            normal = targets[:, 1:, y, x].sum(0)
            normal = normal if normal.any() else everywhere
            assert torch.allclose(found[1:, y, x], normal / normal.norm(), atol=1e-5)


def test_normals_of_depth_are_those_of_the_planes_and_face_the_camera():
    normals = [np.array([0.3, -0.4, -1]), np.array([-0.5, 0.1, -1]), np.array([0, 0, -1.0])]
    normals = [normal / np.linalg.norm(normal) for normal in normals]
    depth = torch.tensor(np.stack([plane(normal, 2.0) for normal in normals]))[:, None].float()
    depth[:, :, 10:14, 10:20] = 0
    matrix = torch.tensor([[FOCAL, 0, MIDDLE[0]], [0, FOCAL, MIDDLE[1]], [0, 0, 1]])
    found = depth_to_normals(depth, matrix)
    expected = torch.tensor(np.stack(normals)).float()[:, :, None, None].expand_as(found)
    known = (depth > 0).expand_as(found)
    assert torch.allclose(found[known], expected[known], atol=1e-3)
    assert not found[~known].any()


def test_a_film_is_cut_with_a_gap(tmp_path: Path):
    train, val = open_targets(str(kitchen(tmp_path / "film", 20)), 0)
    assert (len(train), len(val)) == (15, 4)  # one frame in between belongs to neither
    pictures = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "film/rgb").iterdir())]
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), np.stack(pictures[:15]))
    assert np.array_equal(val.images.permute(0, 2, 3, 1).numpy(), np.stack(pictures[16:]))
    assert (train.targets[:, 0, :, :4] == 0).all()
    assert (train.targets[:, 0, :, 4:] > 0).all()


def test_scenes_are_exact_and_their_mirror_images_are_too():
    train, val = open_targets("scenes", 4)
    assert train.targets.shape == (4, 4, 96, 96)
    assert len(val) == 1
    assert torch.allclose(train.targets[:, 1:].norm(dim=1), torch.ones(4, 96, 96), atol=1e-5)
    task = Geometry("scenes", DenseSettings(train_scenes=4), CPU)
    mirrored = task.mirror(train.targets)
    assert torch.equal(mirrored[:, [0, 2, 3]], train.targets[:, [0, 2, 3]].flip(-1))
    assert torch.equal(mirrored[:, 1], -train.targets[:, 1].flip(-1))
    # A mirror image shows mirrored space, so its normals must fit its depth too.
    matrix = torch.tensor([[1.0, 0, 47.5], [0, 1, 47.5], [0, 0, 1]])
    matrix[0, 0] = matrix[1, 1] = 80
    fitted = depth_to_normals(mirrored[:, :1], matrix)
    assert errors(torch.cat([mirrored[:, :1], fitted], 1), mirrored)[1]["median, degrees"] < 15


def test_features_with_the_answer_beat_those_without(tmp_path: Path):
    settings = DenseSettings(dense_protocols=("frozen",), steps_frozen=300, batch_dense=4, lr_frozen=0.1)
    task = Geometry(str(kitchen(tmp_path / "true")), settings, CPU)
    knowing = task.measure(Knowing(ALEXNET, 0, CPU), "frozen", 0)
    depth, normals = "frozen depth within 25 %", "frozen normals within 22.5°"
    assert list(knowing.figures) == [depth, normals]
    baseline = {
        depth: knowing.details["depth of the mean frame"]["within 25 %"],
        normals: knowing.details["normals of the mean frame"]["within 22.5°"],
    }
    assert all(knowing.figures[name] > 0.8 for name in baseline)
    assert all(knowing.figures[name] > baseline[name] + 0.2 for name in baseline)
    assert task.measure(Knowing(ALEXNET, 0, CPU), "frozen", 0).figures == knowing.figures
    shuffled = Geometry(str(kitchen(tmp_path / "shuffled", shuffled=True)), settings, CPU)
    ignorant = shuffled.measure(Knowing(ALEXNET, 0, CPU), "frozen", 0)
    assert all(ignorant.figures[name] < baseline[name] + 0.1 for name in baseline)


def test_pictures_show_near_white_and_missing_black():
    task = Geometry("scenes", DenseSettings(train_scenes=4), CPU)
    targets = task.val.targets.clone()
    targets[0, :, 0, 0] = 0
    depth, normals = task.paint(targets)
    assert depth.shape == normals.shape == (1, 3, 96, 96)
    assert (depth[0, :, 0, 0] == 0).all()
    assert (normals[0, :, 0, 0] == 0.5).all()
    nearest, farthest = targets[:, 0].flatten()[1:].argmin() + 1, targets[:, 0].argmax()
    assert depth[0, 0].flatten()[nearest] == pytest.approx(1)
    assert depth[0, 0].flatten()[farthest] == pytest.approx(0.1)


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    net = Backbone("alexnet").build()
    content = {
        "method": "toy",
        "step": 1,
        "config": {},
        "state": {},
        "encoders": {"encoder": {"spec": net.spec.plain(), "state": net.state_dict()}},
    }
    checkpoint.save(tmp_path / "run/step-00000001.pt", content)
    return tmp_path / "run"


TINY = "--seeds 1 --steps-frozen 2 --steps-finetune 1 --batch-dense 2 --train-scenes 4 --device cpu".split()


@pytest.mark.parametrize("data", ["scenes", "kitchen"])
def test_the_command_reports_depth_and_normals(data: str, tmp_path: Path, ckpt: Path):
    spec = data if data == "scenes" else str(kitchen(tmp_path / "kitchen", 10))
    main(["--ckpt", str(ckpt), "--data", spec, *TINY])
    results = json.loads((ckpt / f"geometry-{data}/report.json").read_text())["results"]
    assert [(result["weights"], result["protocol"]) for result in results] == [
        (name, protocol) for name in ("toy", "random init (alexnet)") for protocol in ("frozen", "finetune")
    ]
    assert list(results[1]["figures"]) == ["fine-tuned depth within 25 %", "fine-tuned normals within 22.5°"]
    assert not any(result["error"] for result in results)
    assert "NaN" not in json.dumps(results)


def test_bad_input_is_one_line(run: Run, refused: Refused, ckpt: Path, tmp_path: Path):
    assert "no such folder; name one with rgb/, depth/ and intrinsics.txt, or scenes" in refusal(
        run("kintsugi.eval.geometry", "--ckpt", ckpt, "--data", tmp_path / "none")
    )
    few = kitchen(tmp_path / "few", 4)
    assert "4 frames are too few" in refused(main, ["--ckpt", ckpt, "--data", few])
    blind = kitchen(tmp_path / "blind", 5)
    for file in (blind / "depth").iterdir():
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(file)
    assert "depth is 0, which means missing, in all of it" in refused(main, ["--ckpt", ckpt, "--data", blind])
    (few / "intrinsics.txt").unlink()
    assert "write 9 numbers into it" in refused(main, ["--ckpt", ckpt, "--data", few])
