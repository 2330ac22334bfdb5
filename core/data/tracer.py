"""Rays against boxes, cylinders and spheres, in batch, on any device; for the built-in scenes.

A world holds P parts, each a unit shape (the cube [-1,1]^3, the cylinder x^2+z^2 <= 1 with |y| <= 1, the unit
sphere) that is scaled by its half sizes, turned by a yaw about the vertical and moved to its centre. World axes: x
right, y up, z forward, metres. The loop is over parts, not over images, so that what is touched at once fits a CPU's
cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FAR = 1e4
_TINY = 1e-9


@dataclass(frozen=True)
class Shapes:
    """Boxes first, then cylinders, then spheres, with their numbers; all tensors (N,P,...)."""

    center: Tensor  # (N,P,3)
    half: Tensor  # (N,P,3)
    yaw: Tensor  # (N,P)
    boxes: int
    cylinders: int


@dataclass(frozen=True)
class Hits:
    """Where rays meet the nearest surface; ``part`` is the number of the part, -1 = the room itself."""

    distance: Tensor  # (N,R) in units of the ray's direction
    part: Tensor  # (N,R) int64


def room_exit(origin: Tensor, direction: Tensor, room: Tensor) -> Tensor:
    """Distance (N,R) at which rays that begin inside the room [0, room] leave it; room (N,3)."""
    far = torch.where(direction > 0, room[:, None], torch.zeros_like(direction))
    return ((far - origin) / direction).amin(-1)


def nearest(origin: Tensor, direction: Tensor, shapes: Shapes, room: Tensor) -> Hits:
    """The nearest surface in front of each ray, origin (N,1 or R,3), direction (N,R,3)."""
    distance = room_exit(origin, direction, room)
    part = torch.full_like(distance, -1, dtype=torch.int64)
    o, d = _coordinates(origin), _coordinates(direction)
    for p in range(shapes.yaw.shape[1]):
        enter, leave = _interval(o, d, shapes, p)
        closer = (enter < torch.minimum(leave, distance)) & (enter > 1e-4)
        distance = torch.where(closer, enter, distance)
        part.masked_fill_(closer, p)
    return Hits(distance, part)


def blocked(origin: Tensor, direction: Tensor, shapes: Shapes, see_through: Tensor) -> Tensor:
    """Whether something stands between ``origin`` and ``origin + direction`` (N,R,3), bool (N,R); parts that are
    ``see_through`` (N,P) do not count."""
    hit = torch.zeros(direction.shape[:2], dtype=torch.bool, device=direction.device)
    o, d = _coordinates(origin), _coordinates(direction)
    last = torch.where(see_through, -FAR, 0.999)  # (N,P): nothing is that near
    for p in range(shapes.yaw.shape[1]):
        enter, leave = _interval(o, d, shapes, p)
        hit |= enter.clamp(min=1e-3) < torch.minimum(leave, last[:, p, None])
    return hit


def to_local(points: Tensor, shapes: Shapes, part: Tensor) -> Tensor:
    """Points (N,R,3) in metres in the frame of their part (N,R), not scaled."""
    rows = torch.arange(len(part), device=part.device)[:, None]
    moved = points - shapes.center[rows, part]
    return torch.stack(_turned(moved.unbind(-1), shapes.yaw[rows, part]), -1)


def local_normal(local: Tensor, half: Tensor, part: Tensor, shapes: Shapes) -> Tensor:
    """Unit outward normals (N,R,3), in the part's frame, at points on its surface."""
    unit = local / half
    box = torch.nn.functional.one_hot(unit.abs().argmax(-1), 3).to(unit) * unit.sign()
    radial = unit * torch.tensor([1.0, 0.0, 1.0], device=unit.device) / half  # the gradient of x^2 + z^2
    cap = torch.zeros_like(unit)
    cap[..., 1] = unit[..., 1].sign()
    on_cap = unit[..., 1].abs() > unit[..., [0, 2]].norm(dim=-1)
    cylinder = torch.where(on_cap[..., None], cap, radial)
    sphere = unit / half
    kind = part[..., None]
    normal = torch.where(
        kind < shapes.boxes, box, torch.where(kind < shapes.boxes + shapes.cylinders, cylinder, sphere)
    )
    return normal / normal.norm(dim=-1, keepdim=True).clamp(min=_TINY)


def to_world(vectors: Tensor, yaw: Tensor) -> Tensor:
    """Turns vectors (N,R,3) from parts' frames into the world's."""
    return torch.stack(_turned(vectors.unbind(-1), -yaw), -1)


_Coordinates = tuple[Tensor, Tensor, Tensor]


def _interval(origin: _Coordinates, direction: _Coordinates, shapes: Shapes, p: int) -> tuple[Tensor, Tensor]:
    """Where each ray enters and leaves part ``p``, (N,R) each; enter >= leave where it misses.

    The part's yaw and half sizes are one linear map, so that each of the R rays costs few operations.
    """
    hx, hy, hz = shapes.half[:, p, None].unbind(-1)  # (N,1) each
    cos, sin = shapes.yaw[:, p, None].cos(), shapes.yaw[:, p, None].sin()
    cx, cy, cz = shapes.center[:, p, None].unbind(-1)
    xx, xz, zx, zz, yy = cos / hx, -sin / hx, sin / hz, cos / hz, 1 / hy
    dx = torch.addcmul(xx * direction[0], xz, direction[2])
    dy = yy * direction[1]
    dz = torch.addcmul(zx * direction[0], zz, direction[2])
    ox = torch.addcmul(xx * origin[0] - (xx * cx + xz * cz), xz, origin[2])
    oy = yy * origin[1] - yy * cy
    oz = torch.addcmul(zx * origin[0] - (zx * cx + zz * cz), zz, origin[2])
    if p < shapes.boxes:
        x, y, z = _slab(ox, dx), _slab(oy, dy), _slab(oz, dz)
        return torch.maximum(torch.maximum(x[0], y[0]), z[0]), torch.minimum(torch.minimum(x[1], y[1]), z[1])
    if p < shapes.boxes + shapes.cylinders:
        side, caps = _round(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz), _slab(oy, dy)
        return torch.maximum(side[0], caps[0]), torch.minimum(side[1], caps[1])
    return _round(dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz)


def _coordinates(vectors: Tensor) -> _Coordinates:
    return vectors[..., 0], vectors[..., 1], vectors[..., 2]


def _turned(vector: tuple[Tensor, ...], yaw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = vector
    cos, sin = yaw.cos(), yaw.sin()
    return cos * x - sin * z, y, sin * x + cos * z


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """-1 <= o + t d <= 1."""
    inverse = d.reciprocal()
    middle, reach = o * inverse, inverse.abs()
    return -(middle + reach), reach - middle


def _round(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """a t^2 + 2 b t + c <= 1; both ends are the same where a ray passes by."""
    root = torch.addcmul(b * b, a, c - 1, value=-1).clamp(min=0).sqrt()
    inverse = a.reciprocal()
    return -(b + root) * inverse, (root - b) * inverse
