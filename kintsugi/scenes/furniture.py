"""The furniture and other pieces of the built-in scenes, each a list of parts (see ``kintsugi.scenes.pieces``).

A part is given by its center and its half extents, both in meters, and its material. w, h and r are half the width,
half the height and the radius. Random sizes and materials are drawn in the order in which they are written, so the
order must not change.
"""

from __future__ import annotations

import math

from torch import Tensor

from kintsugi.scenes.classes import (
    BALL,
    BED,
    BOOK,
    BOX,
    CHAIR,
    CUPBOARD,
    DOOR,
    LAMP,
    PICTURES,
    PLANT,
    RUG,
    SCREEN,
    SHELF,
    SOFA,
    TABLE,
    VASE,
    WINDOW,
)
from kintsugi.scenes.draws import Draws
from kintsugi.scenes.materials import (
    BLACK,
    FABRICS,
    GREENS,
    LAMPSHADES,
    METALS,
    PAINTS,
    TOYS,
    WALLS,
    WHITE,
    WOODS,
    Material,
    fabric,
    material,
    painted,
    plain,
    wood,
)
from kintsugi.scenes.pieces import Part, Piece, Vector, box, cylinder, sphere, standing
from kintsugi.scenes.textures import BOOKS, BORDER, CHECKS, MARBLE, PANELS, PICTURE, PLAIN, STRIPES, WOOD

# --- seats and beds -------------------------------------------------------------------------------------------


def sofa(draws: Draws) -> Piece:
    w, cloth, cushion = draws.between(0.75, 1.05), fabric(draws), fabric(draws)
    arm, seat = w - 0.09, w / 2 - 0.05
    return Piece(
        SOFA,
        box((0, 0.24, 0.46), (w, 0.16, 0.42), cloth),
        box((0, 0.58, 0.13), (w, 0.28, 0.12), cloth),  # back
        box((-arm, 0.36, 0.46), (0.1, 0.24, 0.43), cloth),
        box((-seat, 0.45, 0.53), (w / 2 - 0.08, 0.07, 0.34), cloth),
        box((arm, 0.36, 0.46), (0.1, 0.24, 0.43), cloth),
        box((seat, 0.45, 0.53), (w / 2 - 0.08, 0.07, 0.34), cloth),
        box((0.35 - w, 0.66, 0.36), (0.19, 0.16, 0.07), cushion, turn=0.25),
    )


def armchair(draws: Draws) -> Piece:
    cloth, legs = fabric(draws), wood(draws)
    return Piece(
        SOFA,
        box((0, 0.33, 0.42), (0.34, 0.11, 0.36), cloth),
        box((0, 0.64, 0.12), (0.34, 0.3, 0.1), cloth),  # back
        *(box((x, 0.4, 0.42), (0.07, 0.18, 0.36), cloth) for x in (-0.36, 0.36)),
        *(cylinder((x, 0.11, 0.7), (0.025, 0.11, 0.025), legs) for x in (-0.28, 0.28)),
    )


def chair(draws: Draws) -> Piece:
    frame, seat = painted(draws), fabric(draws)
    return Piece(
        CHAIR,
        box((0, 0.45, 0.22), (0.2, 0.025, 0.2), seat),
        box((0, 0.72, 0.035), (0.2, 0.22, 0.02), frame),  # back
        *(box((x, 0.215, z), (0.02, 0.215, 0.02), frame) for x in (-0.17, 0.17) for z in (0.05, 0.38)),
    )


def bed(draws: Draws) -> Piece:
    w, frame, cover, sheet = draws.between(0.5, 0.9), wood(draws), fabric(draws), plain(draws, WHITE)
    return Piece(
        BED,
        box((0, 0.17, 1.0), (w, 0.17, 1.0), frame),
        box((0, 0.42, 1.0), (w - 0.02, 0.09, 0.97), sheet),
        box((0, 0.42, 1.3), (w + 0.01, 0.11, 0.68), cover),
        box((0, 0.52, 0.03), (w, 0.52, 0.03), frame),  # headboard
        *(box((x, 0.56, 0.25), (w / 2 - 0.07, 0.06, 0.17), sheet) for x in (-w / 2, w / 2)),  # pillows
    )


# --- along the walls ------------------------------------------------------------------------------------------


def shelf(draws: Draws) -> Piece:
    w, h, paint = draws.between(0.38, 0.5), draws.between(0.7, 1.0), painted(draws)
    gap, books = (2 * h - 0.06) / 4, material(draws, (BOOKS,), TOYS)  # gap: from board to board
    return Piece(
        SHELF,
        box((0, h, 0.02), (w, h, 0.02), paint),  # back
        *(box((x, h, 0.16), (0.02, h, 0.16), paint) for x in (-w, w)),
        *(box((0, 0.03 + i * gap, 0.16), (w, 0.018, 0.16), paint) for i in range(5)),
        *(_row_of_books(draws, w, gap, 0.05 + i * gap, books) for i in range(4)),
        standing(vase, draws, at=(draws.between(-0.2, 0.2), 2 * h, 0.16), present=draws.chance(0.5)),
    )


def _row_of_books(draws: Draws, w: Tensor, gap: Tensor, bottom: Tensor, books: Material) -> Piece:
    """Books on a board, from its left end on. All sizes are (N,), meters.

    w: half width of the board. bottom: its height. gap: height up to the next board.
    """
    tall, wide = gap * draws.between(0.28, 0.4), w * draws.between(0.25, 0.85)
    row = box((wide - w + 0.03, bottom + tall, 0.14), (wide, tall, 0.1), books)
    return Piece(BOOK, row, present=draws.chance(0.75))


def cupboard(draws: Draws) -> Piece:
    w, h = draws.between(0.4, 0.55), draws.between(0.42, 1.0)
    return Piece(
        CUPBOARD,
        box((0, h, 0.25), (w, h, 0.25), material(draws, (PANELS, PANELS, WOOD), PAINTS + WOODS)),
        box((0, 2 * h + 0.015, 0.25), (w + 0.03, 0.015, 0.27), wood(draws)),
        standing(table_lamp, draws, at=(-0.2, 2 * h + 0.03, 0.25), present=draws.chance(0.4)),
        standing(vase, draws, at=(0.2, 2 * h + 0.03, 0.25), present=draws.chance(0.6)),
    )


def screen_unit(draws: Draws) -> Piece:
    w, dark = draws.between(0.7, 0.95), plain(draws, ("101216", "1b1d22"), gloss=0.6)
    screen = box((0, 0.86, 0.18), (w * 0.68, 0.38, 0.025), dark)
    foot = box((0, 0.45, 0.18), (0.15, 0.03, 0.09), dark)
    return Piece(
        CUPBOARD,
        box((0, 0.22, 0.22), (w, 0.2, 0.22), material(draws, (PANELS, WOOD), PAINTS + WOODS)),
        Piece(SCREEN, screen, foot),
    )


def desk(draws: Draws) -> Piece:
    w, top, dark = draws.between(0.5, 0.6), wood(draws), plain(draws, ("101216", "22262d"), gloss=0.6)
    return Piece(
        TABLE,
        box((0, 0.73, 0.3), (w, 0.02, 0.3), top),
        *(box((x, 0.355, 0.3), (0.02, 0.355, 0.27), top) for x in (0.03 - w, w - 0.03)),
        Piece(SCREEN, box((0, 0.98, 0.12), (0.27, 0.16, 0.015), dark), present=draws.chance(0.6)),
        standing(table_lamp, draws, at=(w - 0.15, 0.75, 0.2), present=draws.chance(0.6)),
        Piece(BOOK, box((-0.3, 0.78, 0.35), (0.1, 0.03, 0.14), plain(draws, TOYS)), turn=0.1),
        standing(chair, draws, at=(0, 0, 1.0), turn=math.pi, present=draws.chance(0.8)),
    )


# --- in the middle of the room --------------------------------------------------------------------------------


def rug(draws: Draws) -> Piece:
    carpet = material(draws, (BORDER, BORDER, STRIPES, CHECKS), FABRICS, FABRICS, (0.15, 0.4), 0.0)
    return Piece(RUG, box((0, 0.008, 0), (draws.between(0.7, 1.1), 0.008, draws.between(0.55, 0.8)), carpet))


def dining_table(draws: Draws) -> Piece:
    top, w, deep = wood(draws), draws.between(0.5, 0.7), draws.between(0.38, 0.45)
    leg_x, leg_z, chair_z = w - 0.05, deep - 0.05, deep + 0.3
    seats = ((-0.25, chair_z, math.pi), (0.28, chair_z, math.pi), (0.0, -chair_z, 0.0))
    return Piece(
        TABLE,
        box((0, 0.73, 0), (w, 0.02, deep), top),
        *(box((x, 0.355, z), (0.03, 0.355, 0.03), top) for x in (-leg_x, leg_x) for z in (-leg_z, leg_z)),
        *(standing(chair, draws, (x, 0, z), draws.chance(0.85), turn + 0.15 * x) for x, z, turn in seats),
        standing(vase, draws, at=(draws.between(-0.2, 0.2), 0.75, 0)),
    )


def low_table(draws: Draws) -> Piece:
    top, r = painted(draws), draws.between(0.32, 0.45)
    return Piece(
        TABLE,
        cylinder((0, 0.4, 0), (r, 0.02, r), top),
        cylinder((0, 0.19, 0), (0.05, 0.19, 0.05), top),
        cylinder((0, 0.025, 0), (r / 2, 0.012, r / 2), top),
        Piece(BOOK, box((0.1, 0.45, 0.05), (0.12, 0.025, 0.09), plain(draws, TOYS)), present=draws.chance(0.7)),
    )


# --- lamps, plants and small things ---------------------------------------------------------------------------


def floor_lamp(draws: Draws) -> Piece:
    metal, shade = plain(draws, METALS, gloss=0.5), plain(draws, LAMPSHADES)
    return Piece(
        LAMP,
        cylinder((0, 0.015, 0), (0.14, 0.015, 0.14), metal),
        cylinder((0, 0.7, 0), (0.013, 0.7, 0.013), metal),
        cylinder((0, 1.5, 0), (0.17, 0.14, 0.17), shade),
    )


def table_lamp(draws: Draws) -> Piece:
    return Piece(
        LAMP,
        sphere((0, 0.08, 0), (0.07, 0.08, 0.07), plain(draws, TOYS, gloss=0.5)),
        cylinder((0, 0.25, 0), (0.11, 0.09, 0.11), plain(draws, LAMPSHADES)),
    )


def pendant(draws: Draws, y: Tensor, ceiling: Tensor) -> Piece:
    """A lamp that hangs from the ceiling. y: height of its bulb; ceiling: height of the ceiling; (N,) each, meters."""
    return Piece(
        LAMP,
        sphere((0, y, 0), (0.16, draws.between(0.08, 0.16), 0.16), plain(draws, WHITE)),
        cylinder((0, (y + ceiling) / 2, 0), (0.01, (ceiling - y) / 2, 0.01), plain(draws, BLACK)),
    )


def plant(draws: Draws) -> Piece:
    pot = material(draws, (PLAIN, STRIPES), WALLS + TOYS)
    green, tall = material(draws, (MARBLE,), GREENS, GREENS[:2], (0.05, 0.12), 0.1), draws.between(0.5, 1.1)
    return Piece(
        PLANT,
        cylinder((0, 0.14, 0), (0.13, 0.14, 0.13), pot),
        cylinder((0, 0.28 + tall / 2, 0), (0.02, tall / 2, 0.02), wood(draws)),
        *(_leaves(draws, number, tall, green) for number in range(5)),
    )


def _leaves(draws: Draws, number: int, tall: Tensor, green: Material) -> Part:
    """One of five bunches of leaves, in a spiral from the bottom up.

    number: 0..4. tall: (N,), height of the stem, meters.
    """
    angle, r = 2.4 * number + draws.between(0, 1), draws.between(0.1, 0.17)
    reach = 0.1 * (number > 0)
    at = (reach * angle.cos(), 0.3 + tall * (0.45 + 0.15 * number), reach * angle.sin())
    return sphere(at, (r, r * draws.between(0.7, 1.2), r), green)


def vase(draws: Draws) -> Piece:
    clay, h = material(draws, (PLAIN, STRIPES), TOYS + WALLS, PAINTS, (0.04, 0.1), 0.5), draws.between(0.07, 0.12)
    return Piece(VASE, sphere((0, h, 0), (0.07, h, 0.07), clay), cylinder((0, 1.9 * h, 0), (0.03, 0.3 * h, 0.03), clay))


def ball(draws: Draws, r: Tensor) -> Piece:
    """A ball of radius r (N,), meters."""
    skin = material(draws, (PLAIN, STRIPES, CHECKS), TOYS, TOYS, (0.08, 0.2), 0.6)
    return Piece(BALL, sphere((0, r, 0), (r, r, r), skin))


def carton(draws: Draws, half: tuple[Tensor, Tensor, Tensor]) -> Piece:
    """A box with the half extents ``half``, (N,) each, meters."""
    paper = material(draws, (PLAIN, STRIPES, PANELS, PICTURE), (*TOYS, "c69c6d"), PAINTS, (0.1, 0.3), 0.1)
    return Piece(BOX, box((0, half[1], 0), half, paper))


# --- on the walls ---------------------------------------------------------------------------------------------


def window(draws: Draws, w: Tensor, h: Tensor, y: Tensor, glass: Material) -> Piece:
    """A window with the half width w and half height h, and its middle at height y; (N,) each, meters.

    Half of the windows have curtains.
    """
    sill, curtain, drawn = plain(draws, WHITE), fabric(draws), draws.chance(0.5)
    return Piece(
        WINDOW,
        box((0, y, 0), (w, h, 0.02), glass),
        box((0, y - h - 0.03, 0.05), (w + 0.06, 0.02, 0.07), sill),
        *(box((x, y - 0.1, 0.05), (0.13, h + 0.25, 0.025), curtain, present=drawn) for x in (-(w + 0.1), w + 0.1)),
    )


def door(draws: Draws) -> Piece:
    return Piece(
        DOOR,
        box((0, 1.0, 0), (0.42, 1.0, 0.03), material(draws, (PANELS,), WHITE + WOODS)),
        sphere((0.33, 1.0, 0.06), (0.03, 0.03, 0.03), plain(draws, METALS[1:2], gloss=0.8)),
    )


def picture(draws: Draws, x: float) -> Piece:
    """A framed print. x: how far it hangs to the side of the pose at which it is placed, meters."""
    present, half = draws.chance(0.75), (draws.between(0.16, 0.32), draws.between(0.18, 0.34), 0.015)
    at: Vector = (x, draws.between(1.55, 1.75), 0)
    return Piece(PICTURES, box(at, half, material(draws, (PICTURE,), FABRICS, TOYS)), present=present)
