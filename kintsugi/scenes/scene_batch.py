"""A batch of scenes as tensors: everything that tracing and shading need.

World axes: x right, y up, z forward, meters. A room is [0,width] x [0,height] x [0,depth].
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from kintsugi.scenes.lights_and_camera import Lights, Viewpoint
from kintsugi.scenes.pieces import ABSENT
from kintsugi.scenes.tracer import Shapes

Record = TypeVar("Record", "Scenes", Lights, Viewpoint)


@dataclass(frozen=True)
class PartProperties:
    """The class, place and look of parts.

    Each field is (...), or (3,...) for vectors and colors, where (...) is the shape of the ``slot`` given to
    ``Parts.at``.
    """

    semantic: Tensor  # index into CLASSES
    instance: Tensor  # number of the piece; 0 for walls, floor and ceiling
    texture: Tensor  # PLAIN to PANELS of kintsugi.scenes.textures
    scale: Tensor  # meters, the size of the texture's repeat
    gloss: Tensor  # strength of highlights; 0 is matte
    yaw: Tensor  # radians
    center: Tensor  # world axes, meters
    half: Tensor  # half extents, meters
    first: Tensor  # linear RGB, the texture's first color
    second: Tensor  # linear RGB, its second color


@dataclass(frozen=True)
class Parts:
    """Everything that rays can hit in N scenes, with one column for each.

    The columns are L parts, then the walls of the N rooms, then their floors, then their ceilings.
    """

    shapes: Shapes  # of the L parts only
    columns: Tensor  # (18,L+3N), rows in the order of PartProperties

    def at(self, slot: Tensor) -> PartProperties:
        """Looks up the properties of the columns with the numbers ``slot``, int64 of any shape."""
        found = self.columns.index_select(1, slot.flatten()).unflatten(1, slot.shape)
        return PartProperties(*found[:6], *found[6:].split(3))


@dataclass(frozen=True)
class Scenes:
    """N furnished rooms with lights and cameras."""

    size: Tensor  # (N,3) width, height, depth, meters
    trim: Tensor  # (N,3) linear RGB of ceilings and skirtings
    exposure: Tensor  # (N,)
    lights: Lights
    viewpoint: Viewpoint
    table: Tensor  # (N,P+3,19), from kintsugi.scenes.pieces.PartTable; includes absent parts

    def __len__(self) -> int:
        return len(self.size)

    def rows(self, first: int, count: int) -> Scenes:
        """The ``count`` scenes from number ``first`` on."""
        return _cut(self, slice(first, first + count))

    def parts(self) -> Parts:
        """The parts that are present, ordered by kind of shape; and the rooms."""
        pieces = self.table[:, :-3].transpose(0, 1)  # (P,N,19)
        present = (pieces[..., 8] > ABSENT / 2).nonzero()  # (L,2) part and scene; by kind, because P is in that order
        columns = pieces[present[:, 0], present[:, 1]].T  # (19,L)
        room = self.table[:, -3:].transpose(0, 1).flatten(0, 1).T  # (19,3N)
        shapes = Shapes(present[:, 1], columns[0].long(), columns[7:10], columns[10:13], columns[6])
        return Parts(shapes, torch.cat([columns[1:], room[1:]], 1))


def _cut(record: Record, rows: slice) -> Record:
    """A copy of the record with some of its scenes."""
    values = [getattr(record, field.name) for field in fields(record)]
    parts: list[Any] = [value[rows] if isinstance(value, Tensor) else _cut(value, rows) for value in values]
    return type(record)(*parts)
