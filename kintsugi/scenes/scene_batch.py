"""A batch of scenes as tensors: all that tracing and shading need.

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
    """What a part is and how it looks; each (...), vectors (3,...)."""

    semantic: Tensor  # class
    instance: Tensor  # 0 for walls, floor and ceiling
    texture: Tensor
    scale: Tensor
    gloss: Tensor
    yaw: Tensor
    center: Tensor
    half: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Parts:
    """All that rays can meet in N scenes: L parts, then each room's walls, floor and ceiling. One column for each."""

    shapes: Shapes  # of the L parts alone
    columns: Tensor  # (18,L+3N), rows in the order of PartProperties

    def at(self, slot: Tensor) -> PartProperties:
        """The properties of the columns ``slot`` (...), int64."""
        found = self.columns.index_select(1, slot.flatten()).unflatten(1, slot.shape)
        return PartProperties(*found[:6], *found[6:].split(3))


@dataclass(frozen=True)
class Scenes:
    """N furnished rooms with lights and cameras."""

    size: Tensor  # (N,3) width, height, depth
    trim: Tensor  # (N,3) linear RGB of ceilings and skirtings
    exposure: Tensor  # (N,)
    lights: Lights
    viewpoint: Viewpoint
    table: Tensor  # (N,P+3,19), as kintsugi.scenes.pieces.PartTable makes it; it holds absent parts too

    def __len__(self) -> int:
        return len(self.size)

    def rows(self, first: int, count: int) -> Scenes:
        """``count`` scenes from ``first`` on."""
        return _cut(self, slice(first, first + count))

    def parts(self) -> Parts:
        """The parts that are present, ordered by kind of shape."""
        pieces = self.table[:, :-3].transpose(0, 1)  # (P,N,19)
        present = (pieces[..., 8] > ABSENT / 2).nonzero()  # (L,2) part and scene; by kind, because P is in that order
        columns = pieces[present[:, 0], present[:, 1]].T  # (19,L)
        room = self.table[:, -3:].transpose(0, 1).flatten(0, 1).T  # (19,3N)
        shapes = Shapes(present[:, 1], columns[0].long(), columns[7:10], columns[10:13], columns[6])
        return Parts(shapes, torch.cat([columns[1:], room[1:]], 1))


def _cut(record: Record, rows: slice) -> Record:
    """The same record for some of its scenes."""
    values = [getattr(record, field.name) for field in fields(record)]
    parts: list[Any] = [value[rows] if isinstance(value, Tensor) else _cut(value, rows) for value in values]
    return type(record)(*parts)
