from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from torch import Tensor

from core.data import scenes, tracer
from core.data.scenes import CLASSES, render, render_clip

SIDE = 48


@pytest.fixture(scope="module")
def rooms() -> dict[str, Tensor]:
    return render(3, torch.arange(12), SIDE)


def points_of(sample: dict[str, Tensor]) -> Tensor:
    """Every pixel's point in camera axes, (N,H,W,3), from depth and intrinsics alone."""
    height, width = sample["depth"].shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1)
    rays = torch.einsum("nij,hwj->nhwi", sample["intrinsics"].inverse(), pixels)
    return rays * sample["depth"][:, 0, :, :, None]


def test_shapes_and_ranges(rooms: dict[str, Tensor]):
    n = 12
    assert rooms["image"].shape == (n, 3, SIDE, SIDE)
    assert rooms["image"].dtype == torch.float32
    assert 0 <= rooms["image"].min() < 0.1
    assert 0.9 < rooms["image"].max() <= 1
    assert rooms["depth"].shape == (n, 1, SIDE, SIDE)
    assert rooms["depth"].min() > 0.05
    assert rooms["depth"].max() < 12
    assert rooms["semantic"].dtype == torch.uint8
    assert rooms["instance"].dtype == torch.int16
    assert rooms["semantic"].max() < len(CLASSES)
    assert all(value.isfinite().all() for value in rooms.values() if value.is_floating_point())
    norms = rooms["normal"].norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-4)
    assert render(0, torch.arange(1), (32, 48))["image"].shape == (1, 3, 32, 48)


def test_a_scene_depends_on_its_seed_and_index_alone(rooms: dict[str, Tensor]):
    alone = render(3, torch.tensor([7]), SIDE)
    for name, value in rooms.items():
        assert torch.equal(value[7:8], alone[name]), name
    other = render(4, torch.tensor([7]), SIDE)
    assert not torch.equal(other["image"], alone["image"])


def test_normals_are_those_of_the_depth_map(rooms: dict[str, Tensor]):
    points = points_of(rooms)
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    fitted = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)  # towards the camera
    given = rooms["normal"].permute(0, 2, 3, 1)
    smooth = torch.ones_like(given[:, 1:-1, 1:-1, 0], dtype=torch.bool)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            near = given[:, dy : dy + SIDE - 2, dx : dx + SIDE - 2]
            same = (
                rooms["instance"][:, dy : dy + SIDE - 2, dx : dx + SIDE - 2]
                == rooms["instance"][:, 1:-1, 1:-1]
            )
            smooth &= (near * given[:, 1:-1, 1:-1]).sum(-1).gt(0.999) & same
    agreement = (fitted * given[:, 1:-1, 1:-1]).sum(-1)[smooth]
    assert smooth.float().mean() > 0.5
    assert agreement.quantile(0.02) > 0.99
    towards = (given * points).sum(-1)
    assert (towards < 1e-3).float().mean() > 0.999  # a surface that is seen faces the camera


def test_the_floor_lies_along_gravity_at_one_height(rooms: dict[str, Tensor]):
    points, normal = points_of(rooms), rooms["normal"].permute(0, 2, 3, 1)
    for i in range(12):
        floor = rooms["semantic"][i] == CLASSES.index("floor")
        assert torch.allclose(normal[i][floor], -rooms["gravity"][i].expand_as(normal[i][floor]), atol=1e-4)
        below = points[i][floor] @ rooms["gravity"][i]  # metres below the camera
        assert below.std() < 1e-3
        assert 1.0 < below.mean() < 2.0
        everything = points[i].flatten(0, 1) @ rooms["gravity"][i]
        assert everything.max() < below.mean() + 1e-2  # nothing is under the floor


def test_every_class_appears_and_none_fills_the_view():
    many = render(0, torch.arange(100), 32)["semantic"].flatten(1).long()
    share = torch.nn.functional.one_hot(many, len(CLASSES)).float().mean(1)  # (100,classes)
    assert (share.amax(0) > 0).all(), [c for c, s in zip(CLASSES, share.amax(0), strict=True) if s == 0]
    assert len(CLASSES) >= 12
    assert share.mean(0).max() < 0.5
    assert (share > 0.002).sum(1).float().mean() > 6  # kinds of things in a scene


def test_clips_move_and_begin_with_the_still():
    clip = render_clip(0, torch.tensor([2, 5]), 32, frames=4)
    assert clip["image"].shape == (2, 4, 3, 32, 32)
    still = render(0, torch.tensor([2, 5]), 32)
    assert torch.equal(clip["image"][:, 0], still["image"])
    steps = (clip["image"][:, 1:] - clip["image"][:, :-1]).abs().mean((2, 3, 4))
    assert (steps > 1e-3).all()
    far = (clip["image"][:, 3] - clip["image"][:, 0]).abs().mean((1, 2, 3))
    assert (far > steps.mean(1)).all()  # smooth: neighbours differ less than the ends


def brute_force(
    origin: np.ndarray, direction: np.ndarray, center: np.ndarray, half: np.ndarray, yaw: float, kind: str
) -> float:
    """The first t of many at which the point is inside the part; inf if there is none."""
    t = np.linspace(0, 12, 60001)
    points = origin + t[:, None] * direction - center
    cos, sin = math.cos(yaw), math.sin(yaw)
    x = (cos * points[:, 0] - sin * points[:, 2]) / half[0]
    y = points[:, 1] / half[1]
    z = (sin * points[:, 0] + cos * points[:, 2]) / half[2]
    inside = {
        "box": (abs(x) <= 1) & (abs(y) <= 1) & (abs(z) <= 1),
        "cylinder": (x**2 + z**2 <= 1) & (abs(y) <= 1),
        "sphere": x**2 + y**2 + z**2 <= 1,
    }[kind]
    return float(t[inside.argmax()]) if inside.any() else math.inf


@pytest.mark.parametrize(
    ("kind", "boxes", "cylinders"), [("box", 1, 0), ("cylinder", 0, 1), ("sphere", 0, 0)]
)
def test_intersections_against_marching(kind: str, boxes: int, cylinders: int):
    rng = np.random.default_rng(1)
    room = torch.tensor([[10.0, 10.0, 10.0]])
    hits = 0
    for _ in range(60):
        center, half, yaw = rng.uniform(3, 7, 3), rng.uniform(0.3, 1.5, 3), rng.uniform(-3, 3)
        origin = rng.uniform(0.1, 1.0, 3)
        direction = center + rng.normal(size=3) * 0.8 - origin
        direction /= np.linalg.norm(direction)
        shapes = tracer.Shapes(
            torch.tensor(center)[None, None].float(), torch.tensor(half)[None, None].float(),
            torch.tensor([[yaw]]).float(),
            boxes, cylinders,
        )  # fmt: skip
        o, d = torch.tensor(origin)[None, None].float(), torch.tensor(direction)[None, None].float()
        found = tracer.nearest(o, d, shapes, room)
        expected = brute_force(origin, direction, center, half, yaw, kind)
        if math.isinf(expected):
            assert found.part.item() == -1
            continue
        hits += 1
        assert found.part.item() == 0
        assert abs(found.distance.item() - expected) < 1e-3
        there = tracer.blocked(o, 12 * d, shapes, torch.tensor([[False]]))
        assert there.item()
        assert not tracer.blocked(o, 0.9 * expected * d, shapes, torch.tensor([[False]])).item()
        assert not tracer.blocked(o, 12 * d, shapes, torch.tensor([[True]])).item()
    assert 15 < hits < 60


def test_the_contact_sheet_command(run: Run, tmp_path: Path):
    done = run("core.data.scenes", "--count", "2", "--size", "32", "--maps", "--out", "sheet.png")
    assert done.returncode == 0, done.stderr
    from PIL import Image

    assert Image.open(tmp_path / "sheet.png").size == (5 * 34 + 2, 2 * 34 + 2)
    assert scenes.SOURCE_FILES[-1].name == "scenes.py"
