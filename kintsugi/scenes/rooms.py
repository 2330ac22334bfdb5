"""Furnished rooms as parts, lights and a camera: the world of the built-in scenes.

A row of uniform numbers is drawn for each scene; everything here is computed from those rows for a whole batch,
(N,) or (N,3). A piece that a scene does not have is sunk out of the world, so that all scenes of a batch run the same
code.

World axes: x right, y up, z forward, meters; the room is [0,width] x [0,height] x [0,depth], and the camera stands
near z = 0 and looks into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kintsugi.scenes import tracer
from kintsugi.scenes.textures import (
    BOOKS,
    BORDER,
    BRICKS,
    CHECKS,
    MARBLE,
    PANELS,
    PICTURE,
    PLAIN,
    SKY,
    STRIPES,
    TILES,
    WOOD,
)

CLASSES = (
    "wall",
    "floor",
    "ceiling",
    "window",
    "door",
    "picture",
    "rug",
    "table",
    "chair",
    "sofa",
    "bed",
    "shelf",
    "cupboard",
    "lamp",
    "plant",
    "ball",
    "box",
    "book",
    "vase",
    "screen",
)
(
    WALL,
    FLOOR,
    CEILING,
    WINDOW,
    DOOR,
    PICTURES,
    RUG,
    TABLE,
    CHAIR,
    SOFA,
    BED,
    SHELF,
    CUPBOARD,
    LAMP,
    PLANT,
    BALL,
    BOX,
    BOOK,
    VASE,
    SCREEN,
) = range(len(CLASSES))
DRAWS = 1536  # uniform numbers for each scene
_GONE = -50.0  # the height at which parts are put that a scene does not have


class Draws:
    """A row of uniform numbers for each scene, used up from left to right."""

    def __init__(self, uniform: Tensor) -> None:
        self.uniform_numbers, self.used = uniform, 0

    def unit(self) -> Tensor:
        self.used += 1
        return self.uniform_numbers[:, self.used - 1]

    def between(self, low: float, high: float) -> Tensor:
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> Tensor:
        return self.unit() < probability

    def whole(self, count: int) -> Tensor:
        """0 .. count-1, int64."""
        return (self.unit() * count).long()

    def pick(self, options: Sequence[int]) -> Tensor:
        return torch.tensor(options, device=self.uniform_numbers.device)[self.whole(len(options))]

    def color(self, palette: Sequence[str], spread: float = 0.06) -> Tensor:
        """A color of the palette (hex, sRGB), varied a little; linear RGB (N,3)."""
        known = torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in palette])
        chosen = known.to(self.uniform_numbers.device)[self.whole(len(palette))]
        varied = chosen + torch.stack([self.between(-spread, spread) for _ in range(3)], -1)
        # In double, because a power's last bit depends on where in a batch it stands.
        return (varied.clamp(0.02, 0.98).double() ** 2.2).float()


WALLS = ("ece4d6", "d9d2c5", "c9d4d8", "b9c8b7", "e3cfc0", "a9b7c6", "d8c27a", "9fb0a0", "c98f7c", "8d9cab", "efe9e1")
WOODS = ("8a5a33", "b07d4b", "5a3820", "caa06e", "6d4a2f", "d9b98a", "3c2a1e")
FABRICS = (
    "7b2d26",
    "2f4858",
    "556b2f",
    "c9a227",
    "5b4b8a",
    "ad6a6c",
    "3d5a80",
    "88a096",
    "bb8588",
    "37474f",
    "d8d0c0",
    "264653",
    "e76f51",
)
PAINTS = ("f4f1ea", "2a2d34", "b23a48", "3a6ea5", "e9c46a", "588157", "f2f2f2", "d4a373", "6d6875")
TOYS = ("d62828", "1d7fbf", "f2b705", "2a9d4f", "f28482", "7b3fa0", "f7f7f2", "ff7f11")
GREENS = ("3a5a40", "588157", "4f772d", "2d6a4f", "6a994e")


@dataclass(frozen=True)
class Stuff:
    """A material: a texture's number, its two colors (N,3), the size of its repeat in meters, its gloss (N,)."""

    texture: Tensor
    first: Tensor
    second: Tensor
    scale: Tensor
    gloss: Tensor


@dataclass(frozen=True)
class Parts:
    """Whatever rays may meet in N scenes, a column each: the L parts, then the N rooms' walls, floors and ceilings."""

    shapes: tracer.Shapes  # of the L parts alone
    columns: Tensor  # (18, L+3N), rows in the order of ``Properties``

    def at(self, slot: Tensor) -> Properties:
        """Of the columns ``slot`` (...)."""
        found = self.columns.index_select(1, slot.flatten()).unflatten(1, slot.shape)
        return Properties(*found[:6], *found[6:].split(3))


@dataclass(frozen=True)
class Properties:
    """Of what points lie on, each (...) or (3,...)."""

    semantic: Tensor
    instance: Tensor
    texture: Tensor
    scale: Tensor
    gloss: Tensor
    yaw: Tensor
    center: Tensor
    half: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Scenes:
    """N scenes, all that is needed to see them; what is a color is linear RGB."""

    room: Tensor  # (N,3) width, height, depth
    eye: Tensor  # (N,3)
    axes: Tensor  # (N,3,3) the camera's: right, down, ahead
    field: Tensor  # (N,) of view along the longer side, radians
    lamp_at: Tensor  # (N,3)
    lamp_light: Tensor  # (N,3)
    lamp_on: Tensor  # (N,) bool
    window_at: Tensor  # (N,3)
    window_way: Tensor  # (N,3) into the room
    window_light: Tensor  # (N,3)
    has_window: Tensor  # (N,) bool
    ambient: Tensor  # (N,3)
    exposure: Tensor  # (N,)
    trim: Tensor  # (N,3) of ceilings and skirtings
    table: Tensor  # (N,P+3,19) parts, sunk ones too, by kind; then walls, floor, ceiling

    def __len__(self) -> int:
        return len(self.room)

    def some(self, first: int, count: int) -> Scenes:
        return Scenes(*(getattr(self, field.name)[first : first + count] for field in fields(self)))

    def parts(self) -> Parts:
        pieces = self.table[:, :-3].transpose(0, 1)  # (P,N,19)
        present = (pieces[..., 8] > _GONE / 2).nonzero()  # by kind, for P is in that order
        columns = pieces[present[:, 0], present[:, 1]].T
        room = self.table[:, -3:].transpose(0, 1).flatten(0, 1).T  # (19,3N)
        shapes = tracer.Shapes(present[:, 1], columns[0].long(), columns[7:10], columns[10:13], columns[6])
        return Parts(shapes, torch.cat([columns[1:], room[1:]], 1))


# --- the world ------------------------------------------------------------------------------------------------


class World:
    """Rooms, furniture, lights and cameras of a batch at a moment (N,) of their clips, from their draws."""

    def __init__(self, draws: Draws, moment: Tensor) -> None:
        self.draws, self.moment = draws, moment
        self.zero = torch.zeros_like(moment)
        self.rows: dict[str, list[Tensor]] = {kind: [] for kind in tracer.KINDS}
        self.instances = 6  # 1 floor, 2 ceiling, 3..6 walls
        d = draws
        self.width, self.depth, self.height = d.between(3.4, 5.6), d.between(4.2, 6.5), d.between(2.4, 2.9)
        self.room = torch.stack([self.width, self.height, self.depth], -1)  # (N,3)
        self.floor_stuff = self._floor()
        self.wall_stuff = self._wall()
        self.trim = d.color(WALLS[:1], 0.02)
        self._furnish()
        self._lights()
        self._camera()

    # Materials.

    def stuff(
        self,
        textures: Sequence[int],
        first: Sequence[str],
        second: Sequence[str] | None = None,
        scale: tuple[float, float] = (0.1, 0.3),
        gloss: float = 0.1,
    ) -> Stuff:
        d = self.draws
        one = d.color(first)
        two = 0.55 * one if second is None else d.color(second)
        return Stuff(d.pick(textures), one, two, d.between(*scale), gloss + 0 * self.zero)

    def wood(self) -> Stuff:
        return self.stuff((WOOD,), WOODS, None, (0.08, 0.16), 0.25)

    def painted(self) -> Stuff:
        return self.stuff((PLAIN, PLAIN, WOOD), PAINTS + WOODS, None, (0.1, 0.2), 0.2)

    def fabric(self) -> Stuff:
        return self.stuff((PLAIN, PLAIN, STRIPES, CHECKS), FABRICS, FABRICS, (0.06, 0.2), 0.0)

    def _floor(self) -> Stuff:
        wood = self.stuff((WOOD,), WOODS, None, (0.12, 0.2), 0.35)
        tiles = self.stuff(
            (TILES, TILES, MARBLE, PLAIN),
            ("d9d2c5", "b7b7a4", "8d99ae", "e5e5e5", "a98467", "6b705c"),
            ("f2efe8", "6b6b6b", "c8c2b8"),
            (0.3, 0.55),
            0.35,
        )
        return _either(self.draws.chance(0.6), wood, tiles)

    def _wall(self) -> Stuff:
        plain = self.stuff((PLAIN,), WALLS, None, (0.5, 1.0), 0.0)
        rich = self.stuff((BRICKS, STRIPES, PANELS, STRIPES), WALLS, WALLS, (0.12, 0.3), 0.0)
        return _either(self.draws.chance(0.75), plain, rich)

    # Parts.

    def put(
        self,
        shape: str,
        at: tuple[object, object, object],
        half: tuple[object, object, object],
        what: int,
        stuff: Stuff,
        place: Place,
        here: Tensor,
        own: bool = False,
    ) -> None:
        """Adds a part at ``at`` in the frame of ``place``; where not ``here`` it is sunk out of the world."""
        x, y, z = (self.zero + value for value in at)  # type: ignore[operator]
        hx, hy, hz = (self.zero + value for value in half)  # type: ignore[operator]
        cos, sin = place.yaw.cos(), place.yaw.sin()
        if own:
            self.instances += 1
        height = torch.where(here, place.y + y, _GONE)
        center = (place.x + cos * x + sin * z, height, place.z - sin * x + cos * z)
        self.rows[shape].append(
            self._row(tracer.KINDS.index(shape), what, self.instances, stuff, place.yaw, center, (hx, hy, hz))
        )

    def _row(
        self,
        kind: int,
        what: int,
        instance: int | Tensor,
        stuff: Stuff,
        yaw: Tensor,
        center: Sequence[Tensor],
        half: Sequence[Tensor],
    ) -> Tensor:
        """Of ``Scenes.table``, (N,19): the kind of shape, then as in ``Parts.columns``."""
        row = [
            self.zero + kind,
            self.zero + what,
            self.zero + instance,
            stuff.texture,
            stuff.scale,
            stuff.gloss,
            yaw,
            *center,
            *half,
            *stuff.first.unbind(-1),
            *stuff.second.unbind(-1),
        ]
        return torch.stack([value.float() for value in row], -1)

    def scenes(self) -> Scenes:
        """The world as it is seen."""
        middle = (self.room / 2).unbind(-1)
        ceiling = replace(self.wall_stuff, texture=0 * self.zero + PLAIN, first=self.trim, gloss=self.zero)
        rooms = ((WALL, self.wall_stuff), (FLOOR, self.floor_stuff), (CEILING, ceiling))
        table = [row for kind in tracer.KINDS for row in self.rows[kind]]
        table += [self._row(0, what, 0, stuff, self.zero, middle, middle) for what, stuff in rooms]
        return Scenes(
            self.room,
            self.eye,
            self.axes,
            self.field,
            self.lamp_at,
            self.lamp_light,
            self.lamp_on,
            self.window_at,
            self.window_way,
            self.window_light,
            self.has_window,
            self.ambient,
            self.exposure,
            self.trim,
            torch.stack(table, 1),
        )

    # Furniture. Pieces stand with their back at z = 0 of their place and look along z; x is to their side.

    def _furnish(self) -> None:
        d, zero = self.draws, self.zero
        everywhere = zero == 0
        back = d.whole(8)  # what stands at the back wall, in the middle; from 5 on, two narrower pieces
        middle = Place(self.width * d.between(0.42, 0.58), zero, self.depth - 0.03, zero + math.pi)
        self.sofa(middle, (back == 0) | (back == 1))
        self.bed(middle, (back == 2) | (back == 3))
        self.screen_unit(middle, back == 4)
        two = back >= 5
        for side in (0.24, 0.76):
            kind = d.whole(4)
            place = Place(self.width * side, zero, self.depth - 0.03, zero + math.pi)
            self.shelf(place, two & (kind <= 1))
            self.cupboard(place, two & (kind == 2))
            self.desk(place, two & (kind == 3))
        for sign, x in ((1, zero + 0.03), (-1, self.width - 0.03)):
            kind = d.whole(6)
            place = Place(x, zero, self.depth * d.between(0.45, 0.6), zero + sign * math.pi / 2)
            self.shelf(place, kind == 0)
            self.cupboard(place, kind == 1)
            self.desk(place, kind == 2)
            self.armchair(place, kind == 3)
        self.center(d.whole(4))
        for corner in (zero + 0.35, self.width - 0.35):
            kind = d.whole(4)
            place = Place(corner, zero, self.depth - 0.38, zero)
            free = ~two
            self.floor_lamp(place, free & (kind == 0))
            self.plant(place, free & ((kind == 1) | (kind == 2)))
        self.toys()
        self.openings()
        self.pendant(everywhere)

    def sofa(self, place: Place, here: Tensor) -> None:
        w, f, c = self.draws.between(0.75, 1.05), self.fabric(), self.fabric()
        self.put("box", (0, 0.24, 0.46), (w, 0.16, 0.42), SOFA, f, place, here, own=True)
        self.put("box", (0, 0.58, 0.13), (w, 0.28, 0.12), SOFA, f, place, here)
        for side in (-1, 1):
            self.put("box", (side * (w - 0.09), 0.36, 0.46), (0.1, 0.24, 0.43), SOFA, f, place, here)
            self.put("box", (side * (w / 2 - 0.05), 0.45, 0.53), (w / 2 - 0.08, 0.07, 0.34), SOFA, f, place, here)
        self.put("box", (0.35 - w, 0.66, 0.36), (0.19, 0.16, 0.07), SOFA, c, place.turned(0.25), here)

    def armchair(self, place: Place, here: Tensor) -> None:
        f, legs = self.fabric(), self.wood()
        self.put("box", (0, 0.33, 0.42), (0.34, 0.11, 0.36), SOFA, f, place, here, own=True)
        self.put("box", (0, 0.64, 0.12), (0.34, 0.3, 0.1), SOFA, f, place, here)
        for side in (-1, 1):
            self.put("box", (side * 0.36, 0.4, 0.42), (0.07, 0.18, 0.36), SOFA, f, place, here)
            self.put("cylinder", (side * 0.28, 0.11, 0.7), (0.025, 0.11, 0.025), SOFA, legs, place, here)

    def bed(self, place: Place, here: Tensor) -> None:
        w, frame, cover, sheet = (
            self.draws.between(0.5, 0.9),
            self.wood(),
            self.fabric(),
            self.stuff((PLAIN,), PAINTS[:1]),
        )
        self.put("box", (0, 0.17, 1.0), (w, 0.17, 1.0), BED, frame, place, here, own=True)
        self.put("box", (0, 0.42, 1.0), (w - 0.02, 0.09, 0.97), BED, sheet, place, here)
        self.put("box", (0, 0.42, 1.3), (w + 0.01, 0.11, 0.68), BED, cover, place, here)
        self.put("box", (0, 0.52, 0.03), (w, 0.52, 0.03), BED, frame, place, here)
        for side in (-1, 1):
            self.put("box", (side * w / 2, 0.56, 0.25), (w / 2 - 0.07, 0.06, 0.17), BED, sheet, place, here)

    def shelf(self, place: Place, here: Tensor) -> None:
        d = self.draws
        w, h, wood = d.between(0.38, 0.5), d.between(0.7, 1.0), self.painted()
        self.put("box", (0, h, 0.02), (w, h, 0.02), SHELF, wood, place, here, own=True)
        for side in (-1, 1):
            self.put("box", (side * w, h, 0.16), (0.02, h, 0.16), SHELF, wood, place, here)
        for i in range(5):
            self.put("box", (0, 0.03 + i * (2 * h - 0.06) / 4, 0.16), (w, 0.018, 0.16), SHELF, wood, place, here)
        books, gap = self.stuff((BOOKS,), TOYS), (2 * h - 0.06) / 4
        for i in range(4):
            tall, wide = gap * d.between(0.28, 0.4), w * d.between(0.25, 0.85)
            some = here & d.chance(0.75)
            self.put(
                "box",
                (wide - w + 0.03, 0.05 + i * gap + tall, 0.14),
                (wide, tall, 0.1),
                BOOK,
                books,
                place,
                some,
                own=True,
            )
        self.vase(place.at(d.between(-0.2, 0.2), 2 * h, 0.16), here & d.chance(0.5))

    def cupboard(self, place: Place, here: Tensor) -> None:
        d = self.draws
        w, h = d.between(0.4, 0.55), d.between(0.42, 1.0)
        self.put(
            "box",
            (0, h, 0.25),
            (w, h, 0.25),
            CUPBOARD,
            self.stuff((PANELS, PANELS, WOOD), PAINTS + WOODS),
            place,
            here,
            own=True,
        )
        self.put("box", (0, 2 * h + 0.015, 0.25), (w + 0.03, 0.015, 0.27), CUPBOARD, self.wood(), place, here)
        self.table_lamp(place.at(-0.2, 2 * h + 0.03, 0.25), here & d.chance(0.4))
        self.vase(place.at(0.2, 2 * h + 0.03, 0.25), here & d.chance(0.6))

    def screen_unit(self, place: Place, here: Tensor) -> None:
        w = self.draws.between(0.7, 0.95)
        dark = self.stuff((PLAIN,), ("101216", "1b1d22"), None, gloss=0.6)
        self.put(
            "box",
            (0, 0.22, 0.22),
            (w, 0.2, 0.22),
            CUPBOARD,
            self.stuff((PANELS, WOOD), PAINTS + WOODS),
            place,
            here,
            own=True,
        )
        self.put("box", (0, 0.86, 0.18), (w * 0.68, 0.38, 0.025), SCREEN, dark, place, here, own=True)
        self.put("box", (0, 0.45, 0.18), (0.15, 0.03, 0.09), SCREEN, dark, place, here)

    def desk(self, place: Place, here: Tensor) -> None:
        d = self.draws
        w, wood = d.between(0.5, 0.6), self.wood()
        dark = self.stuff((PLAIN,), ("101216", "22262d"), None, gloss=0.6)
        self.put("box", (0, 0.73, 0.3), (w, 0.02, 0.3), TABLE, wood, place, here, own=True)
        for side in (-1, 1):
            self.put("box", (side * (w - 0.03), 0.355, 0.3), (0.02, 0.355, 0.27), TABLE, wood, place, here)
        self.put("box", (0, 0.98, 0.12), (0.27, 0.16, 0.015), SCREEN, dark, place, here & d.chance(0.6), own=True)
        self.table_lamp(place.at(w - 0.15, 0.75, 0.2), here & d.chance(0.6))
        self.put(
            "box",
            (-0.3, 0.78, 0.35),
            (0.1, 0.03, 0.14),
            BOOK,
            self.stuff((PLAIN,), TOYS),
            place.turned(0.1),
            here,
            own=True,
        )
        self.chair(place.at(0, 0, 1.0).turned(math.pi), here & d.chance(0.8))

    def chair(self, place: Place, here: Tensor) -> None:
        wood, seat = self.painted(), self.fabric()
        self.put("box", (0, 0.45, 0.22), (0.2, 0.025, 0.2), CHAIR, seat, place, here, own=True)
        self.put("box", (0, 0.72, 0.035), (0.2, 0.22, 0.02), CHAIR, wood, place, here)
        for x in (-0.17, 0.17):
            for z in (0.05, 0.38):
                self.put("box", (x, 0.215, z), (0.02, 0.215, 0.02), CHAIR, wood, place, here)

    def center(self, kind: Tensor) -> None:
        """The middle of the room: a dining table with chairs, a low table on a rug, a rug, or nothing."""
        d = self.draws
        spot = Place(
            self.width * d.between(0.38, 0.62), self.zero, self.depth * d.between(0.4, 0.47), d.between(-0.25, 0.25)
        )
        dining, low, rug = kind == 0, kind == 1, (kind == 1) | (kind == 2)
        carpet = self.stuff((BORDER, BORDER, STRIPES, CHECKS), FABRICS, FABRICS, (0.15, 0.4), 0.0)
        self.put(
            "box", (0, 0.008, 0), (d.between(0.7, 1.1), 0.008, d.between(0.55, 0.8)), RUG, carpet, spot, rug, own=True
        )
        wood, w, deep = self.wood(), d.between(0.5, 0.7), d.between(0.38, 0.45)
        self.put("box", (0, 0.73, 0), (w, 0.02, deep), TABLE, wood, spot, dining, own=True)
        for x in (-1, 1):
            for z in (-1, 1):
                self.put(
                    "box", (x * (w - 0.05), 0.355, z * (deep - 0.05)), (0.03, 0.355, 0.03), TABLE, wood, spot, dining
                )
        for side, front, turn in ((-0.25, 1, math.pi), (0.28, 1, math.pi), (0.0, -1, 0.0)):
            seat = spot.at(side, 0, front * (deep + 0.3)).turned(turn + 0.15 * side)
            self.chair(seat, dining & d.chance(0.85))
        self.vase(spot.at(d.between(-0.2, 0.2), 0.75, 0), dining)
        round_top, r = self.painted(), d.between(0.32, 0.45)
        self.put("cylinder", (0, 0.4, 0), (r, 0.02, r), TABLE, round_top, spot, low, own=True)
        self.put("cylinder", (0, 0.19, 0), (0.05, 0.19, 0.05), TABLE, round_top, spot, low)
        self.put("cylinder", (0, 0.025, 0), (r / 2, 0.012, r / 2), TABLE, round_top, spot, low)
        self.put(
            "box",
            (0.1, 0.45, 0.05),
            (0.12, 0.025, 0.09),
            BOOK,
            self.stuff((PLAIN,), TOYS),
            spot,
            low & d.chance(0.7),
            own=True,
        )

    def floor_lamp(self, place: Place, here: Tensor) -> None:
        metal, shade = (
            self.stuff((PLAIN,), ("2a2d34", "c0a060", "d0d0d0"), gloss=0.5),
            self.stuff((PLAIN,), PAINTS[4:5] + PAINTS[:1]),
        )
        self.put("cylinder", (0, 0.015, 0), (0.14, 0.015, 0.14), LAMP, metal, place, here, own=True)
        self.put("cylinder", (0, 0.7, 0), (0.013, 0.7, 0.013), LAMP, metal, place, here)
        self.put("cylinder", (0, 1.5, 0), (0.17, 0.14, 0.17), LAMP, shade, place, here)

    def table_lamp(self, place: Place, here: Tensor) -> None:
        self.put(
            "sphere",
            (0, 0.08, 0),
            (0.07, 0.08, 0.07),
            LAMP,
            self.stuff((PLAIN,), TOYS, gloss=0.5),
            place,
            here,
            own=True,
        )
        self.put(
            "cylinder",
            (0, 0.25, 0),
            (0.11, 0.09, 0.11),
            LAMP,
            self.stuff((PLAIN,), PAINTS[4:5] + PAINTS[:1]),
            place,
            here,
        )

    def pendant(self, here: Tensor) -> None:
        d = self.draws
        self.lamp_at = torch.stack(
            [self.width / 2, self.height - d.between(0.35, 0.6), self.depth * d.between(0.5, 0.65)], -1
        )
        x, y, z = self.lamp_at.unbind(-1)
        place = Place(x, self.zero, z, self.zero)
        self.put(
            "sphere",
            (0, y, 0),
            (0.16, d.between(0.08, 0.16), 0.16),
            LAMP,
            self.stuff((PLAIN,), PAINTS[:1]),
            place,
            here,
            own=True,
        )
        self.put(
            "cylinder",
            (0, (y + self.height) / 2, 0),
            (0.01, (self.height - y) / 2, 0.01),
            LAMP,
            self.stuff((PLAIN,), PAINTS[1:2]),
            place,
            here,
        )

    def plant(self, place: Place, here: Tensor) -> None:
        d = self.draws
        self.put(
            "cylinder",
            (0, 0.14, 0),
            (0.13, 0.14, 0.13),
            PLANT,
            self.stuff((PLAIN, STRIPES), WALLS + TOYS),
            place,
            here,
            own=True,
        )
        leaf, tall = self.stuff((MARBLE,), GREENS, GREENS[:2], (0.05, 0.12), 0.1), d.between(0.5, 1.1)
        self.put("cylinder", (0, 0.28 + tall / 2, 0), (0.02, tall / 2, 0.02), PLANT, self.wood(), place, here)
        for i in range(5):
            angle, r = 2.4 * i + d.between(0, 1), d.between(0.1, 0.17)
            reach = 0.1 * (i > 0)
            at = (reach * angle.cos(), 0.3 + tall * (0.45 + 0.15 * i), reach * angle.sin())
            self.put("sphere", at, (r, r * d.between(0.7, 1.2), r), PLANT, leaf, place, here)

    def vase(self, place: Place, here: Tensor) -> None:
        clay, h = (self.stuff((PLAIN, STRIPES), TOYS + WALLS, PAINTS, (0.04, 0.1), 0.5), self.draws.between(0.07, 0.12))
        self.put("sphere", (0, h, 0), (0.07, h, 0.07), VASE, clay, place, here, own=True)
        self.put("cylinder", (0, 1.9 * h, 0), (0.03, 0.3 * h, 0.03), VASE, clay, place, here)

    def toys(self) -> None:
        """Balls and boxes on the floor; over a clip they roll and slide towards the middle."""
        d = self.draws
        for i in range(3):
            r, here = d.between(0.09, 0.2), d.chance(0.55)
            way = d.between(0.3, 0.9) * self.moment
            x = self.width * (0.2 + 0.3 * i) + self.width * d.between(-0.08, 0.08)
            place = Place(
                x + way * (0.5 - 0.5 * i),
                self.zero,
                self.depth * d.between(0.24, 0.36) + 0.4 * way,
                d.between(0, 3) + way / 0.2,
            )
            ball = self.stuff((PLAIN, STRIPES, CHECKS), TOYS, TOYS, (0.08, 0.2), 0.6)
            self.put("sphere", (0, r, 0), (r, r, r), BALL, ball, place, here, own=True)
        for i in range(2):
            w, h, t = (d.between(0.12, 0.25) for _ in range(3))
            place = Place(
                self.width * d.between(0.18 + 0.5 * i, 0.3 + 0.5 * i),
                self.zero,
                self.depth * d.between(0.36, 0.42) + 0.2 * self.moment,
                d.between(-0.7, 0.7),
            )
            here = d.chance(0.45)
            carton = self.stuff((PLAIN, STRIPES, PANELS, PICTURE), (*TOYS, "c69c6d"), PAINTS, (0.1, 0.3), 0.1)
            self.put("box", (0, h, 0), (w, h, t), BOX, carton, place, here, own=True)

    def openings(self) -> None:
        """Windows, doors and pictures on the three walls in view."""
        d, zero = self.draws, self.zero
        walls = (
            (Place(self.width * d.between(0.3, 0.7), zero, self.depth, zero + math.pi), 0),
            (Place(zero, zero, self.depth * d.between(0.62, 0.78), zero + math.pi / 2), 1),
            (Place(self.width, zero, self.depth * d.between(0.62, 0.78), zero - math.pi / 2), 2),
        )
        self.window_at, self.window_way = torch.zeros_like(self.room), torch.zeros_like(self.room)
        self.has_window = zero > 0
        glass = self.stuff((SKY,), ("5b9bd5", "7fb2e5", "a9c9e8"))
        for place, number in walls:
            kind = d.whole(5)
            window = (kind <= 1) if number else (kind == 0)
            window = window & ~self.has_window if number else window
            w, h, y = d.between(0.45, 0.8), d.between(0.45, 0.6), d.between(1.45, 1.6)
            self.put("box", (0, y, 0), (w, h, 0.02), WINDOW, glass, place, window, own=True)
            self.put(
                "box",
                (0, y - h - 0.03, 0.05),
                (w + 0.06, 0.02, 0.07),
                WINDOW,
                self.stuff((PLAIN,), PAINTS[:1]),
                place,
                window,
            )
            curtain, drawn = self.fabric(), window & d.chance(0.5)
            for side in (-1, 1):
                self.put(
                    "box", (side * (w + 0.1), y - 0.1, 0.05), (0.13, h + 0.25, 0.025), WINDOW, curtain, place, drawn
                )
            out = torch.stack([place.yaw.sin(), zero, place.yaw.cos()], -1)  # into the room
            at = torch.stack([place.x, y, place.z], -1) + 0.04 * out
            self.window_at = torch.where(window[:, None], at, self.window_at)
            self.window_way = torch.where(window[:, None], out, self.window_way)
            self.has_window = self.has_window | window
            door = (kind == 2) & (number > 0)
            self.put(
                "box",
                (0, 1.0, 0),
                (0.42, 1.0, 0.03),
                DOOR,
                self.stuff((PANELS,), PAINTS[:1] + WOODS),
                place,
                door,
                own=True,
            )
            self.put(
                "sphere",
                (0.33, 1.0, 0.06),
                (0.03, 0.03, 0.03),
                DOOR,
                self.stuff((PLAIN,), ("c0a060",), gloss=0.8),
                place,
                door,
            )
            hung = (kind >= 3) | ((kind == 2) & (number == 0))
            for x in (-0.35, 0.35):
                shown = hung & d.chance(0.75)
                size = (d.between(0.16, 0.32), d.between(0.18, 0.34), 0.015)
                self.put(
                    "box",
                    (x, d.between(1.55, 1.75), 0),
                    size,
                    PICTURES,
                    self.stuff((PICTURE,), FABRICS, TOYS),
                    place,
                    shown,
                    own=True,
                )

    # Light and camera.

    def _lights(self) -> None:
        d = self.draws
        warm, cool = torch.tensor([1.0, 0.86, 0.68]), torch.tensor([0.92, 0.97, 1.0])
        device = self.zero.device
        lamp_on = torch.where(self.has_window, d.chance(0.45), True)
        self.lamp_light = (lamp_on * d.between(1.6, 2.8))[:, None] * warm.to(device)
        self.window_light = (self.has_window * d.between(6.0, 11.0))[:, None] * cool.to(device)
        self.ambient = d.between(0.22, 0.38)[:, None] * torch.lerp(warm, cool, 0.5).to(device)
        self.exposure = d.between(0.34, 0.5)
        self.lamp_on = lamp_on

    def _camera(self) -> None:
        d, go = self.draws, self.moment
        x = self.width * d.between(0.22, 0.78)
        at_z = self.depth * d.between(0.03, 0.1)
        target = torch.stack(
            [self.width * d.between(0.3, 0.7), d.between(0.5, 1.0), self.depth * d.between(0.75, 1.0)], -1
        )
        self.eye = torch.stack(
            [x + d.between(-0.35, 0.35) * go, d.between(1.15, 1.75) + 0.05 * go, at_z + d.between(0.1, 0.4) * go], -1
        )
        forward = target - self.eye
        yaw = torch.atan2(forward[:, 0], forward[:, 2]) + d.between(-0.1, 0.1) + d.between(-0.12, 0.12) * go
        pitch = torch.atan2(forward[:, 1], forward[:, [0, 2]].norm(dim=-1))
        roll = d.between(-0.04, 0.04)
        right = torch.stack([yaw.cos(), self.zero, -yaw.sin()], -1)
        ahead = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], -1)
        down = torch.stack([yaw.sin() * pitch.sin(), -pitch.cos(), yaw.cos() * pitch.sin()], -1)
        cos, sin = roll.cos()[:, None], roll.sin()[:, None]
        self.axes = torch.stack([cos * right + sin * down, cos * down - sin * right, ahead], 1)  # (N,3,3), rows
        self.field = d.between(math.radians(58), math.radians(78))


@dataclass(frozen=True)
class Place:
    """Where a piece stands and which way it looks; all (N,)."""

    x: Tensor
    y: Tensor
    z: Tensor
    yaw: Tensor

    def at(self, x: Tensor | float, y: Tensor | float, z: Tensor | float) -> Place:
        cos, sin = self.yaw.cos(), self.yaw.sin()
        return Place(self.x + cos * x + sin * z, self.y + y, self.z - sin * x + cos * z, self.yaw)

    def turned(self, angle: float) -> Place:
        return Place(self.x, self.y, self.z, self.yaw + angle)


def _either(first: Tensor, one: Stuff, other: Stuff) -> Stuff:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(first if a.ndim == 1 else first[:, None], a, b)

    return Stuff(*(pick(getattr(one, f), getattr(other, f)) for f in ("texture", "first", "second", "scale", "gloss")))
