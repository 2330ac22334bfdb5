"""How furniture is described, and how it becomes rows of the table of parts that is traced.

A ``Piece`` is a list of parts (boxes, cylinders, spheres) and of the smaller pieces that stand on it. It has a frame of
its own, in meters: x to its side, y up, z the way it faces; its back is at z = 0. A number in it is either a float, the
same for all N scenes, or a tensor (N,) with one for each. ``PartTable.place`` turns a piece into rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kintsugi.scenes.draws import Draws
from kintsugi.scenes.materials import Material
from kintsugi.scenes.tracer import KINDS

Number = float | Tensor
"""A number that is the same for all N scenes, or a tensor (N,) with one for each."""
Vector = tuple[Number, Number, Number]
ABSENT = -50.0
"""The height, in meters, that marks a part as absent.

All scenes of a batch have the same rows. ``Scenes.parts`` drops the absent ones.
"""


@dataclass(frozen=True)
class Pose:
    """Where a piece stands, in world axes, meters; and its yaw, its turn about the vertical, in radians; (N,) each."""

    x: Tensor
    y: Tensor
    z: Tensor
    yaw: Tensor

    @functools.cached_property
    def _cos_and_sin(self) -> tuple[Tensor, Tensor]:
        return self.yaw.cos(), self.yaw.sin()

    def moved(self, x: Number, y: Number, z: Number) -> Pose:
        """The pose at the point (x, y, z), meters, of this pose's own frame, with the same yaw."""
        cos, sin = self._cos_and_sin
        return Pose(self.x + cos * x + sin * z, self.y + y, self.z - sin * x + cos * z, self.yaw)

    def turned(self, angle: float) -> Pose:
        """The pose at the same point, turned further by an angle in radians."""
        return Pose(self.x, self.y, self.z, self.yaw + angle)


@dataclass(frozen=True)
class Part:
    """One shape of a piece, with its center and half extents in meters."""

    shape: str  # one of tracer.KINDS
    center: Vector
    half: Vector
    material: Material
    turn: float = 0.0  # radians; turns the frame about the piece's origin, so it also turns the center
    present: Tensor | bool = True  # bool (N,): which scenes have it


box = functools.partial(Part, "box")
cylinder = functools.partial(Part, "cylinder")
sphere = functools.partial(Part, "sphere")


class Piece:
    """One object: its class, its parts, and the pieces that stand on it, in the order in which they are placed.

    label: its class. at, turn: its position, meters, and its turn, radians, in the frame in which it is placed.
    present: bool (N,), which scenes have it. A scene without it does not have the pieces on it either.
    """

    def __init__(
        self, label: int, *parts: Part | Piece, at: Vector = (0, 0, 0), turn: float = 0.0, present: Tensor | bool = True
    ) -> None:
        self.label, self.parts, self.at, self.turn, self.present = label, parts, at, turn, present


def standing(
    make: Callable[[Draws], Piece], draws: Draws, at: Vector, present: Tensor | bool = True, turn: float = 0.0
) -> Piece:
    """Makes a piece that stands on another one, or next to it.

    make: makes the piece. at, present, turn: as in ``Piece``, in the frame of the other piece. Random values among them
    are drawn before the piece is.
    """
    piece = make(draws)
    return Piece(piece.label, *piece.parts, at=at, turn=turn, present=present)


class PartTable:
    """Collects the parts of N scenes as rows for the tracer."""

    def __init__(self, zero: Tensor) -> None:
        """zero (N,): zeros, float32, that set the number of scenes and the device."""
        self.zero, self.everywhere = zero, zero == 0
        self.instances = 6  # the last number used; 1 is the floor, 2 the ceiling, 3..6 are the walls
        self._rows: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}

    def place(self, piece: Piece, pose: Pose, present: Tensor | None = None) -> None:
        """Adds a piece at a pose, in the scenes where ``present``, bool (N,), is true; None = in all.

        It gets the next instance number. The pieces on it get the numbers after that.
        """
        pose = pose.moved(*piece.at).turned(piece.turn)
        present = (self.everywhere if present is None else present) & piece.present
        self.instances += 1
        instance = self.instances
        for part in piece.parts:
            if isinstance(part, Piece):
                self.place(part, pose, present)
            else:
                self._add(part, piece.label, instance, pose, present)

    def _add(self, part: Part, label: int, instance: int, pose: Pose, present: Tensor) -> None:
        """Adds the row of one part. pose: that of its piece."""
        pose = pose.turned(part.turn) if part.turn else pose
        at = pose.moved(*part.center)
        center = (at.x, torch.where(present & part.present, at.y, ABSENT), at.z)
        numbers = (KINDS.index(part.shape), label, instance)
        self._rows[part.shape].append(self._row(numbers, part.material, pose.yaw, center, part.half))

    def with_room(self, surfaces: Sequence[tuple[int, Material]], size: Tensor) -> Tensor:
        """The whole table, (N,P+3,19): P parts, ordered by kind of shape, then the walls, the floor and the ceiling.

        surfaces: class and material of walls, floor and ceiling. size: (N,3), width, height and depth of the room,
        meters. A row holds the kind of shape, then the values of ``kintsugi.scenes.scene_batch.PartProperties``, in
        their order.
        """
        middle = (size / 2).unbind(-1)
        rows = [row for kind in KINDS for row in self._rows[kind]]
        rows += [self._row((0, label, 0), material, self.zero, middle, middle) for label, material in surfaces]
        return torch.stack(rows, 1)

    def _row(
        self, numbers: Sequence[int], material: Material, yaw: Tensor, center: Sequence[Tensor], half: Sequence[Number]
    ) -> Tensor:
        """One row of the table, (N,19). numbers: kind of shape, class and instance."""
        look = (material.texture.float(), material.scale, material.gloss)
        colors = (*material.first.unbind(-1), *material.second.unbind(-1))
        row = (*numbers, *look, yaw, *center, *half, *colors)
        return torch.stack([v if isinstance(v, Tensor) else torch.full_like(self.zero, v) for v in row], -1)
