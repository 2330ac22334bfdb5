"""Palettes and materials of the built-in scenes: the textures, colors and gloss of wood, fabric, walls and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kintsugi.scenes.draws import Draws
from kintsugi.scenes.textures import BRICKS, CHECKS, MARBLE, PANELS, PLAIN, STRIPES, TILES, WOOD

# Palettes: hex codes of sRGB colors.
WALLS = tuple("ece4d6 d9d2c5 c9d4d8 b9c8b7 e3cfc0 a9b7c6 d8c27a 9fb0a0 c98f7c 8d9cab efe9e1".split())
WOODS = tuple("8a5a33 b07d4b 5a3820 caa06e 6d4a2f d9b98a 3c2a1e".split())
FABRICS = tuple("7b2d26 2f4858 556b2f c9a227 5b4b8a ad6a6c 3d5a80 88a096 bb8588 37474f d8d0c0 264653 e76f51".split())
PAINTS = tuple("f4f1ea 2a2d34 b23a48 3a6ea5 e9c46a 588157 f2f2f2 d4a373 6d6875".split())
TOYS = tuple("d62828 1d7fbf f2b705 2a9d4f f28482 7b3fa0 f7f7f2 ff7f11".split())
GREENS = tuple("3a5a40 588157 4f772d 2d6a4f 6a994e".split())
METALS = tuple("2a2d34 c0a060 d0d0d0".split())
FLOOR_TILES = tuple("d9d2c5 b7b7a4 8d99ae e5e5e5 a98467 6b705c".split())
GROUTS = tuple("f2efe8 6b6b6b c8c2b8".split())
SKIES = tuple("5b9bd5 7fb2e5 a9c9e8".split())
WHITE, BLACK = PAINTS[:1], PAINTS[1:2]
LAMPSHADES = (PAINTS[4], PAINTS[0])


@dataclass(frozen=True)
class Material:
    """The material of a surface in each of N scenes."""

    texture: Tensor  # (N,) int64, one of PLAIN to PANELS in kintsugi.scenes.textures
    first: Tensor  # (N,3) linear RGB, the pattern's first color
    second: Tensor  # (N,3) linear RGB, its second color
    scale: Tensor  # (N,) meters, the size of the pattern's repeat
    gloss: Tensor  # (N,) strength of highlights; 0 is matte


def material(
    draws: Draws,
    textures: Sequence[int],
    first: Sequence[str],
    second: Sequence[str] | None = None,
    scale: tuple[float, float] = (0.1, 0.3),
    gloss: float = 0.1,
) -> Material:
    """Draws a material: one of the textures, a color from each palette, and a scale in meters.

    first, second: palettes, hex codes of sRGB colors. Without a second palette, the second color is a darker version of
    the first. scale: the range from which it is drawn.
    """
    one = draws.color(first)
    two = 0.55 * one if second is None else draws.color(second)
    return Material(draws.choice(textures), one, two, draws.between(*scale), torch.full_like(one[:, 0], gloss))


def plain(draws: Draws, palette: Sequence[str], gloss: float = 0.1) -> Material:
    """Draws a material of one color, without a pattern."""
    return material(draws, (PLAIN,), palette, gloss=gloss)


def wood(draws: Draws) -> Material:
    """Draws planks of wood."""
    return material(draws, (WOOD,), WOODS, None, (0.08, 0.16), 0.25)


def painted(draws: Draws) -> Material:
    """Draws the painted or bare wood of furniture."""
    return material(draws, (PLAIN, PLAIN, WOOD), PAINTS + WOODS, None, (0.1, 0.2), 0.2)


def fabric(draws: Draws) -> Material:
    """Draws the fabric of upholstery and curtains."""
    return material(draws, (PLAIN, PLAIN, STRIPES, CHECKS), FABRICS, FABRICS, (0.06, 0.2), 0.0)


def flooring(draws: Draws) -> Material:
    """Draws the material of the floor: planks in three rooms of five, else tiles or stone."""
    planks = material(draws, (WOOD,), WOODS, None, (0.12, 0.2), 0.35)
    tiles = material(draws, (TILES, TILES, MARBLE, PLAIN), FLOOR_TILES, GROUTS, (0.3, 0.55), 0.35)
    return _where(draws.chance(0.6), planks, tiles)


def wallpaper(draws: Draws) -> Material:
    """Draws the material of the walls: one color in three rooms of four, else bricks, stripes or panels."""
    bare = material(draws, (PLAIN,), WALLS, None, (0.5, 1.0), 0.0)
    patterned = material(draws, (BRICKS, STRIPES, PANELS, STRIPES), WALLS, WALLS, (0.12, 0.3), 0.0)
    return _where(draws.chance(0.75), bare, patterned)


def _where(condition: Tensor, one: Material, other: Material) -> Material:
    """``one`` in scenes where ``condition``, bool (N,), is true, ``other`` elsewhere."""
    return Material(
        torch.where(condition, one.texture, other.texture),
        torch.where(condition[:, None], one.first, other.first),
        torch.where(condition[:, None], one.second, other.second),
        torch.where(condition, one.scale, other.scale),
        torch.where(condition, one.gloss, other.gloss),
    )
