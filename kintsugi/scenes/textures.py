"""Procedural textures of the built-in scenes: color as a function of the position on a surface, in meters.

Colors are linear RGB. In shapes, M is the number of surfaces and S the number of points on each.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN, WOOD, TILES, BRICKS, STRIPES, CHECKS, MARBLE, SKY, BOOKS, PICTURE, BORDER, PANELS = range(12)


def value_noise(u: Tensor, v: Tensor, seed: Tensor) -> Tensor:
    """Smooth noise in [0,1] with features of about size 1.

    u, v and seed must broadcast; the result has the broadcast shape.
    """
    cell_u, cell_v = u.floor(), v.floor()
    x, y = u - cell_u, v - cell_v
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    left = _times(cell_u, _U) + _times(seed, _SEED)
    right = left + _U
    low, high = _times(cell_v, _V), _times(cell_v + 1, _V)
    return _mix(
        _mix(_scramble(left + low), _scramble(right + low), x),
        _mix(_scramble(left + high), _scramble(right + high), x),
        y,
    )


def shade(
    kind: Tensor,
    u: Tensor,
    v: Tensor,
    first: Tensor,
    second: Tensor,
    scale: Tensor,
    seed: Tensor,
    reach_u: Tensor,
    reach_v: Tensor,
) -> Tensor:
    """The color, linear RGB (3,M,S), of surfaces at the points (u, v), (M,S), in meters from each surface's middle.

    kind (M,): the texture, ``PLAIN`` to ``PANELS``. first, second (3,M): the two colors of the pattern. scale (M,):
    size of its repeat, meters. seed (M,): integers that make the patterns of similar parts differ. reach_u, reach_v
    (M,): half the size of the part along u and v, meters, for patterns that fill the part once.
    """
    rough = value_noise(7 * u, 7 * v, seed[:, None])
    fine = value_noise(31 * u, 31 * v, seed[:, None] + 1)
    mix = 0.12 * rough
    light = 1 + 0.14 * (rough - 0.5) + 0.1 * (fine - 0.5)
    for number, pattern in _PATTERNS.items():  # each is computed only on the surfaces that have it
        rows = (kind == number).nonzero()[:, 0]
        a, b = u[rows] / scale[rows, None], v[rows] / scale[rows, None]
        s, t = u[rows] / reach_u[rows, None], v[rows] / reach_v[rows, None]
        mix[rows] = pattern(a, b, s, t, seed[rows, None]).clamp(0, 1)
    bricks = (kind == BRICKS).nonzero()[:, 0]
    a, b = u[bricks] / scale[bricks, None], v[bricks] / scale[bricks, None]
    light[bricks] += 0.25 * (_hash(_along_course(a, b).floor(), b.floor(), seed[bricks, None]) - 0.5)
    color = _mix(first[..., None], second[..., None], mix) * light

    books = (kind == BOOKS).nonzero()[:, 0]
    spine = (u[books] / 0.045).floor()
    tint = torch.stack([_hash(spine, spine, seed[books, None] + k) for k in range(3)])
    color[:, books] = 0.05 + 0.6 * tint * tint * (1 - 0.7 * _line(u[books] / 0.045, 0.12))
    prints = (kind == PICTURE).nonzero()[:, 0]
    color[:, prints] = _picture(
        u[prints] / reach_u[prints, None],
        v[prints] / reach_v[prints, None],
        first[:, prints, None],
        second[:, prints, None],
        seed[prints, None],
    )
    return color


# Each pattern returns the fraction of the second color, (M,S). a, b (M,S): the point, in units of the pattern's repeat.
# s, t (M,S): the point, in -1..1 over the part. seed (M,1).


def _wood(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    plank = b.floor()
    grain = 0.6 * value_noise(1.5 * a + 5 * plank, 9 * b, seed)
    length = 0.4 * _hash(plank, (a / 6 + _hash(plank, plank, seed)).floor(), seed)
    return torch.maximum(grain + length, 1.3 * _line(b, 0.03))


def _tiles(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    grout = torch.maximum(_line(a, 0.035), _line(b, 0.035))
    return torch.maximum(0.9 * grout, 0.25 * ((a.floor() + b.floor()) % 2))


def _bricks(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return torch.maximum(_line(_along_course(a, b), 0.03), _line(b, 0.06))


def _along_course(a: Tensor, b: Tensor) -> Tensor:
    """Position along a course of bricks, in units of a brick, which is two repeats long.

    Every other course is shifted by half a brick.
    """
    return a / 2 + 0.5 * (b.floor() % 2)


def _stripes(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return ((a - a.floor()) < 0.5).to(a)


def _checks(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return 0.5 * _stripes(a, b, s, t, seed) + 0.5 * _stripes(b, a, s, t, seed)


def _marble(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return 0.8 * (torch.sin(6 * a + 9 * value_noise(2 * a, 2 * b, seed)) * 0.5 + 0.5) ** 2


def _border(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    edge = _outward(s, t)
    return ((edge > 0.78) & (edge < 0.9)).to(a)


def _panels(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return 0.8 * torch.maximum(_line(s, 0.02), (_outward(s, t) > 0.96).to(a))


_PATTERNS = {
    WOOD: _wood,
    TILES: _tiles,
    BRICKS: _bricks,
    STRIPES: _stripes,
    CHECKS: _checks,
    MARBLE: _marble,
    BORDER: _border,
    PANELS: _panels,
}


def sky(s: Tensor, t: Tensor, first: Tensor, seed: Tensor) -> Tensor:
    """The view through a window, brighter than the room: linear RGB (3,M,S).

    s, t (M,S): the point, in -1..1 over the window, t upwards. first (3,M): color of the sky at the horizon. seed (M,).
    """
    seed = seed[:, None]
    hills = -0.35 + 0.5 * (value_noise(1.7 * s, torch.zeros_like(s), seed) - 0.5)
    leaves = 0.4 + 0.9 * value_noise(9 * s, 9 * t, seed)
    clouds = value_noise(2 * s, 4 * t, seed + 3) ** 2
    zenith, forest = (torch.tensor(c, device=s.device)[:, None, None] for c in ([0.75, 0.85, 1.0], [0.13, 0.22, 0.07]))
    blue = _mix(zenith, first[..., None], (0.5 + 0.5 * t).clamp(0, 1))
    return 1.6 * torch.where(t < hills, forest * leaves, _mix(blue, torch.ones_like(blue), 0.6 * clouds))


def _picture(s: Tensor, t: Tensor, first: Tensor, second: Tensor, seed: Tensor) -> Tensor:
    """A framed print with a horizon, a disc and washes of color: linear RGB (3,M,S)."""
    wash = value_noise(1.5 * s, 1.5 * t, seed)
    ground = _mix(first, second, (t < -0.2 + 0.4 * wash).to(s))
    disc = ((s - 0.4 * torch.sin(seed)) ** 2 + (t - 0.3) ** 2 < 0.08).to(s)
    image = _mix(ground * (0.6 + 0.7 * wash), 1 - first, 0.8 * disc)
    edge = _outward(s, t)
    return image.masked_fill(edge > 0.72, 0.8).masked_fill(edge > 0.9, 0.08)


def _mix(a: Tensor, b: Tensor, amount: Tensor | float) -> Tensor:
    """Interpolates linearly between a and b.

    Not torch.lerp, because its last bit depends on the layout of the tensors, and so on the batch.
    """
    return a + (b - a) * amount


def _outward(s: Tensor, t: Tensor) -> Tensor:
    """How far out a point of a part is: 0 in the middle, 1 at the edges."""
    return torch.maximum(s.abs(), t.abs())


def _line(x: Tensor, width: Tensor | float) -> Tensor:
    """1 if x is within ``width`` of an integer, else 0."""
    return ((x - x.round()).abs() < width).to(x)


# Hashes use integers, so that every device makes the same pattern.
_U, _V, _SEED = 374761393, 668265263, 974634533


def _times(number: Tensor, factor: int) -> Tensor:
    """An integer-valued tensor times a factor, modulo 2^32; int32."""
    return number.to(torch.int32) * factor


def _hash(u: Tensor, v: Tensor, seed: Tensor) -> Tensor:
    """A pseudo-random number in [0,1) for integers u, v and seed."""
    return _scramble(_times(u, _U) + _times(v, _V) + _times(seed, _SEED))


def _scramble(h: Tensor) -> Tensor:
    """Hashes int32 numbers to numbers in [0,1)."""
    h = (h ^ ((h >> 13) & 0x7FFFF)) * 1274126177
    return ((h ^ (h >> 16)) & 0xFFFFFF).float() / 2**24
