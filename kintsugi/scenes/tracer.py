"""Intersects rays with boxes, cylinders and spheres, for many scenes at once, on any device.

A part is a unit shape (the cube [-1,1]^3, the cylinder x^2+z^2 <= 1 with |y| <= 1, the unit sphere) that is scaled by
its half extents, turned by a yaw about the vertical, and moved to its center. World axes: x right, y up, z forward,
meters. Vectors are (3,...), because sums over the first dimension are fast.

A room has about fifty parts, but only one or two of them cover a pixel. So intersections are computed only for pairs of
a part and a ray that may meet. For rays from the eye, these are the rays inside the part's rectangle in the image. For
shadows, rays are grouped, and a group is tested against a part only if balls around both touch (``_near``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("box", "cylinder", "sphere")
_TINY = 1e-9
_NEAR = 0.05  # meters; a part that comes nearer to the camera is assumed to cover all pixels
_SLOT_BITS = 20  # bits for a part's number


@dataclass(frozen=True)
class Shapes:
    """The L parts of N scenes: first boxes, then cylinders, then spheres."""

    scene: Tensor  # (L,) int64, 0..N-1
    kind: Tensor  # (L,) int64, into KINDS; ascending
    center: Tensor  # (3,L) meters
    half: Tensor  # (3,L) half extents, meters
    yaw: Tensor  # (L,) radians

    @functools.cached_property
    def frames(self) -> Tensor:
        """Matrices, (L,3,3), from vectors in the world to vectors in the frame of each part.

        In its own frame the part is a unit shape.
        """
        cos, sin, zero = self.yaw.cos(), self.yaw.sin(), torch.zeros_like(self.yaw)
        turn = torch.stack([cos, zero, -sin, zero, zero + 1, zero, sin, zero, cos], -1).view(-1, 3, 3)
        return turn / self.half.T[..., None]

    def only(self, chosen: Tensor) -> Shapes:
        """The parts for which ``chosen``, bool (L,), is true."""
        return Shapes(
            self.scene[chosen], self.kind[chosen], self.center[:, chosen], self.half[:, chosen], self.yaw[chosen]
        )

    def runs(self, slot: Tensor) -> Iterator[tuple[str, slice]]:
        """Splits a list of parts by kind of shape. Yields each kind and its slice of the list.

        slot (M,): the parts' numbers, ascending.
        """
        kinds = torch.arange(len(KINDS), device=slot.device)
        ends = torch.searchsorted(self.kind[slot], kinds, right=True)
        first = 0
        for kind, end in zip(KINDS, ends.tolist(), strict=True):
            yield kind, slice(first, end)
            first = end


@dataclass(frozen=True)
class Cameras:
    """One pinhole camera for each of N scenes. Pixel centers are at half-integers from the top left corner."""

    eye: Tensor  # (N,3) position, meters
    axes: Tensor  # (N,3,3), rows: right, down, ahead
    focal: Tensor  # (N,) px
    height: int
    width: int

    @functools.cached_property
    def lens(self) -> Tensor:
        """Matrices, (N,3,3), from pixels (x, y, 1) to directions in the world.

        The directions are scaled to length one along the camera's axis.
        """
        scale = 1 / self.focal
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        inverse = torch.stack(
            [scale, zero, -self.width / 2 * scale, zero, scale, -self.height / 2 * scale, zero, zero, one], -1
        ).view(-1, 3, 3)
        return self.axes.transpose(1, 2) @ inverse


@dataclass(frozen=True)
class Candidates:
    """M pairs of a part and a pixel that it may cover, in ascending order of ``slot``."""

    slot: Tensor  # (M,) int64, the part's number
    pixel: Tensor  # (M,) int64, index into the flattened (N,H,W)

    def at(self, chosen: Tensor) -> Candidates:
        """The pairs at the indices ``chosen``, int64."""
        return Candidates(self.slot[chosen], self.pixel[chosen])


def find_candidates(shapes: Shapes, cameras: Cameras) -> Candidates:
    """Pairs each part with every pixel of its bounding rectangle in the image."""
    signs = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)]).T
    corner = signs.to(shapes.half)[:, None] * shapes.half[..., None]  # (3,L,8)
    corner = torch.stack(turned(corner, -shapes.yaw[:, None])) + shapes.center[..., None]
    from_eye = (corner - cameras.eye.T[:, shapes.scene, None]).permute(1, 2, 0)  # (L,8,3)
    in_camera = from_eye @ cameras.axes[shapes.scene].transpose(1, 2)
    right, down, ahead = in_camera.unbind(-1)  # (L,8) each
    scale = cameras.focal[shapes.scene, None] / ahead.clamp(min=_NEAR)
    everywhere = ahead.amin(1) < _NEAR
    nowhere = ahead.amax(1) < _TINY

    def bounds(corners: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first pixel and the number of pixels, (L,) each, from the corners (L,8) in px."""
        low = corners.amin(1).floor().masked_fill(everywhere, 0).clamp(0, length).long()
        high = corners.amax(1).ceil().masked_fill(everywhere, length).clamp(0, length).long()
        return low, (high - low).masked_fill(nowhere, 0)

    left, columns = bounds(scale * right + cameras.width / 2, cameras.width)
    top, rows = bounds(scale * down + cameras.height / 2, cameras.height)
    part, row = _ranges(top, rows)  # (part, row) for each row of each rectangle
    start = (shapes.scene[part] * cameras.height + row) * cameras.width + left[part]
    line, pixel = _ranges(start, columns[part])
    return Candidates(part[line], pixel)


def nearest(
    shapes: Shapes, cameras: Cameras, candidates: Candidates, ray: Tensor, x: Tensor, y: Tensor, far: Tensor
) -> tuple[Tensor, Tensor]:
    """Finds the first part that each of R rays from the eyes hits.

    ray: int64 (M,S), the rays that the part of each candidate is tested against. x, y: (R,), the image points through
    which the rays pass, px. far: (R,), the depth at which each ray ends if it hits no part, meters. Returns the depth
    along the camera's axis, meters (R,), and the number of the part, int64 (R,), -1 for none.
    """
    frames = shapes.frames
    into = (frames @ cameras.lens[shapes.scene]).flatten(1).T.contiguous()  # (9,L): pixels to parts' frames
    from_center = cameras.eye[shapes.scene] - shapes.center.T
    origin = (frames @ from_center[..., None])[..., 0].T.contiguous()  # (3,L)
    # One integer holds the bits of the depth, which ascend with it, and below them the part's number. So the smallest
    # integer is the nearest hit.
    best = far.view(torch.int32).long() << _SLOT_BITS
    for kind, run in shapes.runs(candidates.slot):
        slot, tested = candidates.slot[run], ray[run]
        start, way = tuple(origin[:, slot, None]), directions(into[:, slot, None], x[tested], y[tested])
        enter, leave = _crossing(kind, start, way)
        hit = ((enter < leave) & (enter > 1e-4)).flatten().nonzero()[:, 0]
        code = enter.flatten()[hit].view(torch.int32).long() << _SLOT_BITS
        code |= (slot + 1)[:, None].expand_as(enter).flatten()[hit]
        best.scatter_reduce_(0, tested.flatten()[hit], code, "amin")
    return (best >> _SLOT_BITS).int().view(torch.float32), (best & (2**_SLOT_BITS - 1)) - 1


def blocked(shapes: Shapes, scene: Tensor, origin: Tensor, end: Tensor) -> Tensor:
    """Whether a part is between the two ends of each segment; bool (G,S).

    origin, end: (3,G,S), meters, for G groups of S segments. scene: int64 (G,), ascending, the scene of each group. The
    segments of a group should be close together, because every part near the group is tested against all of them.
    """
    part, group = _near(shapes, scene, origin, end)
    frames, center = shapes.frames, shapes.center.T[..., None]
    hit = torch.zeros(origin[0].shape, dtype=torch.bool, device=origin.device)
    for kind, run in shapes.runs(part):
        slot, which = part[run], group[run]
        start, way = origin[:, which], end[:, which] - origin[:, which]  # (3,K,S)
        xx, _, xz, _, yy, _, zx, _, zz = frames.flatten(1).T[:, slot, None]
        x, y, z = start - center[slot].transpose(0, 1)
        enter, leave = _crossing(
            kind,
            (xx * x + xz * z, yy * y, zx * x + zz * z),
            (xx * way[0] + xz * way[2], yy * way[1], zx * way[0] + zz * way[2]),
        )
        between = enter.clamp(min=1e-3) < leave.clamp(max=0.999)
        pair, ray = between.nonzero().unbind(1)
        hit[which[pair], ray] = True
    return hit


def _near(shapes: Shapes, scene: Tensor, origin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a part and a group of segments (as in ``blocked``) that may meet: numbers of part and group, (K,) each.

    One ball encloses a group's origins, another one its ends. Between them, the segments stay inside balls whose center
    and radius change linearly from the first to the second. A segment can hit a part only if the part's own ball
    touches one of these.
    """
    a, a_radius = _ball(origin)  # (3,G), (G,)
    b, b_radius = _ball(end)
    half = shapes.half
    wide = torch.where(shapes.kind == 1, torch.maximum(half[0], half[2]), torch.hypot(half[0], half[2]))
    radius = torch.where(shapes.kind == 2, half.amax(0), torch.hypot(wide, half[1]))

    first = torch.searchsorted(scene, shapes.scene)
    last = torch.searchsorted(scene, shapes.scene, right=True)
    part, group = _ranges(first, last - first)  # every part with each group of its scene

    axis, growth = b - a, b_radius - a_radius
    length = norm(axis).clamp(min=_TINY)
    slope = (growth / length).clamp(-0.999, 0.999)
    bend = slope / (1 - slope * slope).sqrt()
    to_part = shapes.center[:, part] - a[:, group]
    along = dot(to_part, (axis / length)[:, group])
    aside = (dot(to_part, to_part) - along * along).clamp(min=0).sqrt()
    # The ball that comes closest, between 0 and 1: where the derivative of the gap is 0.
    closest = ((along + bend[group] * aside) / length[group]).clamp(0, 1)
    gap = torch.hypot(along - closest * length[group], aside) - a_radius[group] - closest * growth[group]
    met = (gap < radius[part] + 1e-3).nonzero()[:, 0]
    return part[met], group[met]


def _ball(points: Tensor) -> tuple[Tensor, Tensor]:
    """A ball that encloses points (3,G,S): center (3,G), radius (G,)."""
    middle = points.mean(-1)
    return middle, norm(points - middle[..., None]).amax(-1)


def _ranges(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenates the ranges first[i], ..., first[i] + count[i] - 1 for all i. Returns the i of each entry, and the
    entries.

    first, count: int64 (K,). Both results have sum(count) entries.
    """
    owner = torch.repeat_interleave(count)
    start = first - (count.cumsum(0) - count)
    return owner, torch.arange(len(owner), device=owner.device) + start[owner]


def local_normal(shapes: Shapes, part: Tensor, point: Tensor) -> Tensor:
    """Unit outward normals (3,M), in the frames of the parts (M,), at points (3,M) of the world on their surfaces."""
    half = shapes.half[:, part]
    unit = torch.stack(turned(point - shapes.center[:, part], shapes.yaw[part])) / half
    normal = cube_normal(unit)
    for kind, mask in (("cylinder", shapes.kind[part] == 1), ("sphere", shapes.kind[part] == 2)):
        which = mask.nonzero()[:, 0]
        slope = unit[:, which] / half[:, which]
        if kind == "cylinder":  # the gradient of x^2 + z^2, or up or down
            x, y, z = unit[:, which]
            cap = torch.stack([torch.zeros_like(y), y.sign(), torch.zeros_like(y)])
            slope[1] = 0
            slope = torch.where(y.abs() > torch.hypot(x, z), cap, slope)
        normal[:, which] = slope
    return normal / norm(normal).clamp(min=_TINY)


def cube_normal(point: Tensor) -> Tensor:
    """Unit outward normals (3,...) at points (3,...) on the sides of the cube [-1,1]^3."""
    axis = largest_axis(point)
    return torch.stack([point[i].sign() * (axis == i) for i in range(3)])


def room_exit(origin: Tensor, direction: Tensor, room: Tensor) -> Tensor:
    """How far rays go until they leave the room, in units of their direction; (...).

    origin: inside the room. room: its size; the room is [0,room]. All arguments are (3,...), meters.
    """
    far = torch.where(direction > 0, room, 0)
    return ((far - origin) / direction).amin(0)


def directions(lens: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The x, y and z of the directions of rays through the image points (x, y), px.

    lens: (9,...), the entries of matrices like ``Cameras.lens``, row by row.
    """
    a, b, c, d, e, f, g, h, i = lens
    return a * x + b * y + c, d * x + e * y + f, g * x + h * y + i


# Written out, because torch's own argmax and norm over a first dimension of three take fifty times as long.


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Scalar products of vectors (3,...)."""
    return (one * other).sum(0)


def norm(vector: Tensor) -> Tensor:
    """Lengths of vectors (3,...)."""
    return dot(vector, vector).sqrt()


def largest_axis(vector: Tensor) -> Tensor:
    """Which of the three components of vectors (3,...) has the largest magnitude, int64 0..2."""
    x, y, z = vector.abs()
    return (y > x).long().masked_fill(z > torch.maximum(x, y), 2)


def turned(vector: Tensor | tuple[Tensor, Tensor, Tensor], yaw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turns vectors (3,...) from world axes into the frame of a part with this yaw, radians.

    With -yaw it turns them from the frame of the part into world axes.
    """
    x, y, z = vector
    cos, sin = yaw.cos(), yaw.sin()
    return cos * x - sin * z, y, sin * x + cos * z


def _crossing(
    kind: str, origin: tuple[Tensor, Tensor, Tensor], way: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a unit shape, in units of their direction.

    enter >= leave for rays that miss it. origin, way: in the frame of the part.
    """
    (ox, oy, oz), (dx, dy, dz) = origin, way
    if kind == "box":
        x, y, z = _slab(ox, dx), _slab(oy, dy), _slab(oz, dz)
        return torch.maximum(torch.maximum(x[0], y[0]), z[0]), torch.minimum(torch.minimum(x[1], y[1]), z[1])
    if kind == "cylinder":
        side, caps = _round(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz), _slab(oy, dy)
        return torch.maximum(side[0], caps[0]), torch.minimum(side[1], caps[1])
    return _round(dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz)


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Solves -1 <= o + t d <= 1 for t. Returns the lower and the upper end."""
    inverse = d.reciprocal()
    middle, reach = o * inverse, inverse.abs()
    return -(middle + reach), reach - middle


def _round(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Solves a t^2 + 2 b t + c <= 1 for t. Returns the lower and the upper end, which are equal if a ray misses."""
    root = (b * b - a * (c - 1)).clamp(min=0).sqrt()
    inverse = a.reciprocal()
    return -(b + root) * inverse, (root - b) * inverse
