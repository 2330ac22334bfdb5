"""HHA, compared with planes whose result is known, with a loop over windows, and with the authors' own image."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kintsugi.data.hha import estimate_gravity, fit_normals, hha, rays
from kintsugi.rng import generator
from kintsugi.scenes import rendering

CAMERA = torch.tensor([[[60.0, 0, 31.5], [0, 62.0, 23.5], [0, 0, 1]]])


def plane_depth(normal: Tensor, distance: float, height: int = 48, width: int = 64) -> Tensor:
    """Depth (1,1,H,W) of the plane normal . point = distance, 0 where it is behind the camera or far."""
    across, along = rays(CAMERA, height, width)
    slope = normal[0] * across + normal[1] * along + normal[2]
    depth = distance / slope
    return torch.where((slope > 0) & (depth < 50), depth, 0)


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.0, 0.8, 0.6), (-0.48, 0.6, 0.64)])
def test_normals_of_planes(normal: tuple[float, float, float]):
    truth = torch.tensor(normal)
    depth = plane_depth(truth, 2.0)
    found = fit_normals(depth, CAMERA, depth > 0, 3)
    seen = found.any(1)
    assert seen.float().mean() > 0.4
    torch.testing.assert_close(found.permute(0, 2, 3, 1)[seen], truth.expand(int(seen.sum()), 3), atol=2e-3, rtol=0)


def test_normals_are_those_of_a_loop():
    """numpy's least squares in each window, with missing depth, noise and edges."""
    depth = 2 + torch.rand(1, 1, 12, 14, generator=generator(0))
    known = torch.rand(1, 1, 12, 14, generator=generator(1)) < 0.7
    found = fit_normals(depth, CAMERA, known, 2)[0].numpy()
    camera = CAMERA[0].numpy().astype(float)
    for v in range(12):
        for u in range(14):
            places = [
                (j, i)
                for j in range(max(0, v - 2), min(12, v + 3))
                for i in range(max(0, u - 2), min(14, u + 3))
                if known[0, 0, j, i]
            ]
            rows = np.array(
                [[(i - camera[0, 2]) / camera[0, 0], (j - camera[1, 2]) / camera[1, 1], 1] for j, i in places]
            )
            inverse = np.array([1 / depth[0, 0, j, i].item() for j, i in places])
            plane = np.linalg.lstsq(rows, inverse, rcond=None)[0]
            plane /= np.linalg.norm(plane) * np.sign(
                plane @ [(u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1], 1]
            )
            np.testing.assert_allclose(found[:, v, u], plane, atol=1e-3)


def test_no_normal_where_the_known_pixels_lie_on_a_line():
    known = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    known[..., 10, :] = True
    assert not fit_normals(torch.full((1, 1, 20, 20), 3.0), CAMERA, known, 3).any()


def test_gravity_of_scenes():
    """Estimated from depth alone, it equals the renderer's for any direction of the camera."""
    found = rendering.render(3, torch.arange(8), (120, 160))
    camera = found["intrinsics"].clone()
    camera[:, :2, 2] -= 0.5
    down = estimate_gravity(fit_normals(found["depth"], camera, found["depth"] > 0, 2))
    degrees = torch.rad2deg((down * found["gravity"]).sum(1).clamp(-1, 1).acos())
    assert degrees.median() < 1
    assert degrees.max() < 5


def test_the_three_planes_of_a_room():
    """A floor 1.2 m below a level camera: its height is 0, its angle 0, and near points have a high disparity."""
    depth = plane_depth(torch.tensor([0.0, 1.0, 0.0]), 1.2)
    down = torch.tensor([[0.0, 1.0, 0.0]])
    disparity, height, angle = hha(depth, CAMERA, gravity=down)[0].int()
    seen = depth[0, 0] > 0
    inner = torch.zeros_like(seen)
    inner[28:47, 1:-1] = True
    assert height[seen].unique().tolist() == [0]
    assert set(angle[seen & inner].tolist()) <= {38, 39}
    expected = (31000 / (100 * depth[0, 0]).clamp(min=100)).round().clamp(max=255)
    assert torch.equal(disparity[seen], expected[seen].int())
    assert not hha(depth, CAMERA, gravity=down)[0][:, ~seen].any()


def test_heights_without_a_floor_start_130_cm_below_the_camera():
    table = plane_depth(torch.tensor([0.0, 1.0, 0.0]), 0.5)
    height = hha(table, CAMERA, gravity=torch.tensor([[0.0, 1.0, 0.0]]))[0, 1]
    assert height[table[0, 0] > 0].unique().tolist() == [80]


def test_the_angle_of_a_ceiling_is_180_degrees_more():
    normal = torch.tensor([0.0, -1.0, 0.0])
    depth = plane_depth(normal, 1.0)
    angle = hha(depth, CAMERA, gravity=-normal[None])[0, 2]
    assert int(angle[4, 32]) == 38 + 180


def test_one_by_one_equals_the_batch():
    found = rendering.render(1, torch.arange(3), (96, 128))
    together = hha(found["depth"], found["intrinsics"])
    alone = torch.cat([hha(found["depth"][i : i + 1], found["intrinsics"][i : i + 1]) for i in range(3)])
    assert (together.int() - alone.int()).abs().max() <= 1


@pytest.mark.skipif("KINTSUGI_DATA" not in os.environ, reason="needs the authors' picture in KINTSUGI_DATA")
def test_it_is_the_authors_picture():
    folder = Path(os.environ["KINTSUGI_DATA"]) / "hha_reference"
    depth = np.asarray(Image.open(folder / "depth.png")).astype(np.float32) / 1e4
    truth = torch.from_numpy(np.array(Image.open(folder / "hha_matlab.png"))).permute(2, 0, 1).int()
    camera = torch.tensor([[[518.858, 0, 325.582], [0, 519.470, 253.736], [0, 0, 1]]])
    found = hha(torch.from_numpy(depth)[None, None], camera)[0].int()
    assert (found - truth).abs().max() <= 1
    assert math.isclose((found == truth).float().mean().item(), 1, abs_tol=0.15)
