"""What the cameras' rays hit: surfaces with their points, normals and depths."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from kintsugi.scenes import tracer
from kintsugi.scenes.scene_batch import Parts, Scenes
from kintsugi.scenes.tracer import Cameras, Candidates


@dataclass(frozen=True)
class Stage:
    """N scenes, their parts, and a camera for each, which takes a picture of R = H W pixels."""

    scenes: Scenes
    parts: Parts
    cameras: Cameras
    x: Tensor  # (R,) px, of the pixels' centers
    y: Tensor  # (R,) px

    @functools.cached_property
    def subpixels(self) -> tuple[Tensor, Tensor]:
        """x and y of four points in each pixel, (R,4) each, px."""
        dx, dy = torch.tensor([[-0.25, 0.25, -0.25, 0.25], [-0.25, -0.25, 0.25, 0.25]], device=self.x.device)
        return self.x[:, None] + dx, self.y[:, None] + dy


def make_stage(scenes: Scenes, height: int, width: int) -> Stage:
    """Adds a camera of ``height`` x ``width`` pixels to each of N scenes."""
    view = scenes.viewpoint
    focal = 0.5 * max(height, width) / (view.field / 2).tan()  # (N,) px
    index = torch.arange(height * width)
    x, y = (index % width + 0.5).to(focal.device), (index // width + 0.5).to(focal.device)
    return Stage(scenes, scenes.parts(), Cameras(view.eye, view.axes, focal, height, width), x, y)


@dataclass(frozen=True)
class Surface:
    """The points that A x B rays hit, and the surfaces there.

    Rays are arranged in A rows of B rays. All rays of a row are in the same scene.
    """

    scene: Tensor  # (A,) int64, the scene of each row
    point: Tensor  # (3,A,B) world axes, meters
    normal: Tensor  # (3,A,B) world axes, unit
    depth: Tensor  # (A,B) meters along the camera's axis
    slot: Tensor  # (A,B) int64, which column of ``Parts`` was hit
    side: Tensor  # (A,B) int64: 0 floor, 1 ceiling, 2..5 walls; for a part, 6 + the axis (0..2) of its normal

    def key(self) -> Tensor:
        """A number for each ray, int64 (A,B), equal for two rays that hit the same smooth piece of surface."""
        return 16 * self.slot + self.side


def per_scene(values: Tensor, scene: Tensor) -> Tensor:
    """Selects values of the scenes (A,) of a ``Surface``, in a shape that combines with its rays.

    values: (N,3) or (N,), one for each scene. Returns (3,A,1) or (A,1).
    """
    return values.movedim(0, -1).index_select(-1, scene)[..., None]


def first_hits(stage: Stage, scene: Tensor, x: Tensor, y: Tensor, candidates: Candidates, ray: Tensor) -> Surface:
    """Finds the surface that each ray through the image points ``x``, ``y`` (A,B), px, hits first.

    scene: int64 (A,), the scene of each row of rays. candidates: M pairs of a part and a pixel that it may cover. ray:
    int64 (M,S), the S rays that the part of each candidate is tested against, as indices into the flattened (A,B).
    """
    shapes, cameras = stage.parts.shapes, stage.cameras
    way = torch.stack(tracer.directions(per_scene(cameras.lens.flatten(1), scene), x, y))  # (3,A,B)
    eye, room = per_scene(cameras.eye, scene), per_scene(stage.scenes.size, scene)
    far = tracer.room_exit(eye, way, room)
    depth, part = tracer.nearest(shapes, cameras, candidates, ray, x.flatten(), y.flatten(), far.flatten())
    depth, part = depth.view_as(far), part.view_as(far)
    point = eye + depth * way

    # First all rays are treated as if they hit the room itself.
    middle = room / 2
    unit = (point - middle) / middle
    axis = tracer.largest_axis(unit)
    above = unit.gather(0, axis[None])[0] > 0
    side = torch.tensor([2, 0, 4], device=x.device)[axis] + above
    floor_or_ceiling = torch.where(axis == 1, 1 + above.long(), 0)  # 0 is a wall
    slot = len(shapes.scene) + len(cameras.eye) * floor_or_ceiling + scene[:, None]
    normal = -tracer.cube_normal(unit)

    # Then those that hit a part are corrected.
    rows, columns = (part >= 0).nonzero(as_tuple=True)
    met = part[rows, columns]
    own = tracer.local_normal(shapes, met, point[:, rows, columns])
    slot[rows, columns] = met
    side[rows, columns] = 6 + tracer.largest_axis(own)
    normal[:, rows, columns] = torch.stack(tracer.turned(own, -shapes.yaw[met]))
    return Surface(scene, point, normal, depth, slot, side)
