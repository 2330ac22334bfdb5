from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Run
from torch import Tensor

from kintsugi import rng, scenes
from kintsugi.scenes import CLASSES, SOURCE_FILES, render, render_clip, tracer
from kintsugi.scenes.classes import TABLE, VASE
from kintsugi.scenes.draws import DRAWS, Draws
from kintsugi.scenes.layout import draw_scenes
from kintsugi.scenes.materials import Material
from kintsugi.scenes.pieces import ABSENT, PartTable, Piece, Pose, box, sphere

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
            same = rooms["instance"][:, dy : dy + SIDE - 2, dx : dx + SIDE - 2] == rooms["instance"][:, 1:-1, 1:-1]
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
        below = points[i][floor] @ rooms["gravity"][i]  # meters below the camera
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
    assert (far > steps.mean(1)).all()  # smooth: neighbors differ less than the ends


def test_a_piece_is_placed_with_what_stands_on_it():
    zero, black = torch.zeros(2), torch.zeros(2, 3)
    gray = Material(zero.long(), black, black, zero + 1, zero)
    ball = sphere((0, 0.1, 0), (0.1, 0.2, 0.3), gray)
    vase = Piece(VASE, ball, at=(1, 0.7, 0), turn=math.pi / 2, present=torch.tensor([True, False]))
    parts = PartTable(zero)
    quarter = Pose(zero + 3, zero, zero + 4, zero + math.pi / 2)  # its z is the world's x, its x the world's -z
    parts.place(Piece(TABLE, box((0, 0, 2), (1, 1, 1), gray), vase), quarter)
    columns = parts.with_room((), black)[..., [0, 1, 2, 6, 7, 8, 9, 10, 11, 12]]
    board = [0, TABLE, 7, math.pi / 2, 5, 0, 4, 1, 1, 1]
    on_it = [2, VASE, 8, math.pi, 3, 0.8, 3, 0.1, 0.2, 0.3]
    without = [*on_it[:5], ABSENT, *on_it[6:]]
    assert torch.allclose(columns, torch.tensor([[board, on_it], [board, without]]), atol=1e-5)


def marched(
    origin: np.ndarray, direction: np.ndarray, center: np.ndarray, half: np.ndarray, yaw: float, kind: str
) -> np.ndarray:
    """For each ray (R,3) from origin (3,), the first of many t at which the point is inside the part, or inf."""
    t = np.linspace(0, 12, 60001)
    points = origin + t[:, None, None] * direction - center
    cos, sin = math.cos(yaw), math.sin(yaw)
    x = (cos * points[..., 0] - sin * points[..., 2]) / half[0]
    y = points[..., 1] / half[1]
    z = (sin * points[..., 0] + cos * points[..., 2]) / half[2]
    inside = {
        "box": (abs(x) <= 1) & (abs(y) <= 1) & (abs(z) <= 1),
        "cylinder": (x**2 + z**2 <= 1) & (abs(y) <= 1),
        "sphere": x**2 + y**2 + z**2 <= 1,
    }[kind]
    return np.where(inside.any(0), t[inside.argmax(0)], math.inf)


def camera(rng: np.random.Generator, height: int, width: int) -> tracer.Cameras:
    """A camera near the corner of a room of 10 m that faces into it."""
    eye = rng.uniform(0.1, 1.0, 3)
    ahead = rng.uniform(4, 6, 3) - eye
    ahead /= np.linalg.norm(ahead)
    right = np.cross([0, 1, 0], ahead)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(ahead, right), ahead])
    eyes, turned = torch.tensor(eye)[None].float(), torch.tensor(axes)[None].float()
    return tracer.Cameras(eyes, turned, torch.tensor([16.0]), height, width)


@pytest.mark.parametrize("kind", tracer.KINDS)
def test_intersections_against_marching(kind: str):
    rng = np.random.default_rng(1)
    height, width = 5, 7
    y, x = (grid.flatten() + 0.5 for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    hits = 0
    for _ in range(20):
        center, half, yaw = rng.uniform(3, 7, 3), rng.uniform(0.3, 1.5, 3), rng.uniform(-3, 3)
        shapes = tracer.Shapes(
            torch.tensor([0]),
            torch.tensor([tracer.KINDS.index(kind)]),
            torch.tensor(center)[:, None].float(),
            torch.tensor(half)[:, None].float(),
            torch.tensor([yaw]).float(),
        )
        eyes = camera(rng, height, width)
        way = eyes.lens[0] @ torch.stack([x, y, torch.ones_like(x)])  # (3,R)
        start = eyes.eye.T.expand(3, len(x))
        far = tracer.room_exit(start, way, torch.full((3, 1), 10.0))
        candidates = tracer.find_candidates(shapes, eyes)
        depth, part = tracer.nearest(shapes, eyes, candidates, candidates.pixel[:, None], x, y, far)
        expected = torch.tensor(marched(eyes.eye[0].numpy(), way.T.numpy(), center, half, yaw, kind))
        met = expected.isfinite()
        assert torch.equal(part >= 0, met)
        assert (depth - expected)[met].abs().lt(1e-3).all()
        assert torch.equal(depth[part < 0], far[part < 0])
        hits += int(met.sum())

        there = tracer.blocked(shapes, torch.tensor([0]), start[:, None], (start + 12 * way)[:, None])[0]
        assert torch.equal(there, part >= 0)
        before = start + 0.99 * depth * way
        assert not tracer.blocked(shapes, torch.tensor([0]), start[:, None], before[:, None]).any()
        nothing = shapes.only(torch.tensor([False]))
        assert not tracer.blocked(nothing, torch.tensor([0]), start[:, None], (start + 12 * way)[:, None]).any()
    assert 100 < hits < 20 * len(x) - 100


def test_what_is_left_out_would_not_have_been_met(monkeypatch: pytest.MonkeyPatch):
    """Every part against every ray of its scene finds what the parts near each ray find."""
    count, side = 3, 40
    draws = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(0))
    furnished = draw_scenes(Draws(draws), torch.zeros(count))
    shapes, view = furnished.parts().shapes, furnished.viewpoint
    eyes = tracer.Cameras(view.eye, view.axes, torch.full((count,), 30.0), side, side)
    pixel = torch.arange(side * side)
    x, y = (pixel % side + 0.5).repeat(count), (pixel // side + 0.5).repeat(count)
    far, near_parts = torch.full((count * side**2,), 9.0), tracer.find_candidates(shapes, eyes)
    slot = torch.arange(len(shapes.scene)).repeat_interleave(side**2)
    every = tracer.Candidates(slot, (shapes.scene[:, None] * side**2 + pixel).flatten())
    assert len(near_parts.slot) < 0.1 * len(every.slot)

    def nearest(candidates: tracer.Candidates) -> tuple[Tensor, Tensor]:
        return tracer.nearest(shapes, eyes, candidates, candidates.pixel[:, None], x, y, far)

    for found, expected in zip(nearest(near_parts), nearest(every), strict=True):
        assert torch.equal(found, expected)

    scene = torch.arange(count).repeat_interleave(50)
    ends = torch.rand(2, 3, len(scene), 1, generator=torch.Generator().manual_seed(1))
    ends = ends * furnished.size.T[:, scene, None]
    near = ends + 0.2 * torch.rand(2, 3, len(scene), 8, generator=torch.Generator().manual_seed(2))
    found = tracer.blocked(shapes, scene, *near)
    owner, group = (shapes.scene[:, None] == scene).nonzero().unbind(1)
    monkeypatch.setattr(tracer, "_near", lambda *_: (owner, group))
    assert torch.equal(found, tracer.blocked(shapes, scene, *near))
    assert 0.05 < found.float().mean() < 0.9


def test_the_contact_sheet_command(run: Run, tmp_path: Path):
    done = run("kintsugi.apps.scenes", "--count", "2", "--size", "32", "--maps", "--out", "sheet.png")
    assert done.returncode == 0, done.stderr
    from PIL import Image

    assert Image.open(tmp_path / "sheet.png").size == (5 * 34 + 2, 2 * 34 + 2)


def test_a_cache_of_scenes_depends_on_every_file_that_draws_them():
    folder = Path(scenes.__file__).parent
    assert {*folder.glob("*.py"), Path(rng.__file__)} == set(SOURCE_FILES)
    assert folder / "rendering.py" in SOURCE_FILES
