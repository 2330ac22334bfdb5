"""How furniture is written down, and how a piece becomes rows of the table of parts that is traced.

A ``Piece`` is a table: one row for each box, cylinder or sphere, then the smaller pieces that stand on it. Its frame is
in meters: x to its side, y up, z the way it faces; its back is at z = 0. Numbers are the same for all scenes, or (N,)
tensors with one for each. ``PartTable.place`` is the interpreter.
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
Vector = tuple[Number, Number, Number]
ABSENT = -50.0
"""The height, in meters, of parts that a scene does not have. All scenes of a batch have the same rows."""


@dataclass(frozen=True)
class Pose:
    """Where a piece stands, in meters, and its yaw about the vertical, in radians; (N,) each."""

    x: Tensor
    y: Tensor
    z: Tensor
    yaw: Tensor

    @functools.cached_property
    def _cos_and_sin(self) -> tuple[Tensor, Tensor]:
        return self.yaw.cos(), self.yaw.sin()

    def moved(self, x: Number, y: Number, z: Number) -> Pose:
        """The pose at a point of this pose's frame."""
        cos, sin = self._cos_and_sin
        return Pose(self.x + cos * x + sin * z, self.y + y, self.z - sin * x + cos * z, self.yaw)

    def turned(self, angle: float) -> Pose:
        """The same point, turned by an angle in radians."""
        return Pose(self.x, self.y, self.z, self.yaw + angle)


@dataclass(frozen=True)
class Part:
    """One row of a piece: a shape with its center and half extents in meters."""

    shape: str  # of tracer.KINDS
    center: Vector
    half: Vector
    material: Material
    turn: float = 0.0  # radians; the frame is turned by it before the center is applied
    present: Tensor | bool = True  # bool (N,): which scenes have it


box = functools.partial(Part, "box")
cylinder = functools.partial(Part, "cylinder")
sphere = functools.partial(Part, "sphere")


class Piece:
    """One instance of a class: its parts, and the pieces that stand on it, in the order in which they are placed.

    at, turn: its position (meters) and turn (radians) in the frame that it is placed in. present: bool (N,), which
    scenes have it; a scene without it has none of the pieces on it either.
    """

    def __init__(
        self, label: int, *parts: Part | Piece, at: Vector = (0, 0, 0), turn: float = 0.0, present: Tensor | bool = True
    ) -> None:
        self.label, self.parts, self.at, self.turn, self.present = label, parts, at, turn, present


def standing(
    make: Callable[[Draws], Piece], draws: Draws, at: Vector, present: Tensor | bool = True, turn: float = 0.0
) -> Piece:
    """A piece that stands on or at another one, whose ``at`` and ``present`` are drawn before the piece itself."""
    piece = make(draws)
    return Piece(piece.label, *piece.parts, at=at, turn=turn, present=present)


class PartTable:
    """Collects the parts of N scenes as rows for the tracer."""

    def __init__(self, zero: Tensor) -> None:
        """zero (N,): zeros, float32, that set the number of scenes and the device."""
        self.zero, self.everywhere = zero, zero == 0
        self.instances = 6  # used so far: 1 floor, 2 ceiling, 3..6 walls
        self._rows: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}

    def place(self, piece: Piece, pose: Pose, present: Tensor | None = None) -> None:
        """Adds a piece at a pose, in the scenes where ``present``, bool (N,), is true, or in all.

        Its parts get the next instance number; the pieces on it get those that follow.
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
        pose = pose.turned(part.turn) if part.turn else pose
        at = pose.moved(*part.center)
        center = (at.x, torch.where(present & part.present, at.y, ABSENT), at.z)
        numbers = (KINDS.index(part.shape), label, instance)
        self._rows[part.shape].append(self._row(numbers, part.material, pose.yaw, center, part.half))

    def with_room(self, surfaces: Sequence[tuple[int, Material]], size: Tensor) -> Tensor:
        """The table (N,P+3,19): P parts by kind of shape, then the walls, the floor and the ceiling.

        surfaces: class and material of those three. size (N,3): width, height and depth of the room, meters. A row has
        the kind of shape, then ``kintsugi.scenes.scene_batch.PartProperties``.
        """
        middle = (size / 2).unbind(-1)
        rows = [row for kind in KINDS for row in self._rows[kind]]
        rows += [self._row((0, label, 0), material, self.zero, middle, middle) for label, material in surfaces]
        return torch.stack(rows, 1)

    def _row(
        self, numbers: Sequence[int], material: Material, yaw: Tensor, center: Sequence[Tensor], half: Sequence[Number]
    ) -> Tensor:
        """numbers: kind of shape, class and instance. The row is (N,19)."""
        look = (material.texture.float(), material.scale, material.gloss)
        colors = (*material.first.unbind(-1), *material.second.unbind(-1))
        row = (*numbers, *look, yaw, *center, *half, *colors)
        return torch.stack([v if isinstance(v, Tensor) else torch.full_like(self.zero, v) for v in row], -1)
