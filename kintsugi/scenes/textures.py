"""Procedural surfaces for the built-in scenes: color as a function of where on the surface, in meters."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN, WOOD, TILES, BRICKS, STRIPES, CHECKS, MARBLE, SKY, BOOKS, PICTURE, BORDER, PANELS = range(12)


def value_noise(u: Tensor, v: Tensor, seed: Tensor) -> Tensor:
    """Smooth noise in [0,1] with features of size 1; any shape."""
    cell_u, cell_v = u.floor(), v.floor()
    x, y = u - cell_u, v - cell_v
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    here = _whole(cell_u, _U) + _whole(seed, _SEED)
    low, high = _whole(cell_v, _V), _whole(cell_v + 1, _V)
    there = here + _U
    return _mix(
        _mix(_scrambled(here + low), _scrambled(there + low), x),
        _mix(_scrambled(here + high), _scrambled(there + high), x),
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
    """Linear RGB (3,M,S) of M surfaces of ``kind`` (M,), at S points of each, (u,v) (M,S) meters from its middle.

    first, second (3,M): the two colors of the pattern. scale (M,): the size of its repeat, meters. seed (M,): tells
    alike parts apart. reach_u, reach_v (M,): half the part's size along u and v, for patterns that fill it once.
    """
    rough = value_noise(7 * u, 7 * v, seed[:, None])
    fine = value_noise(31 * u, 31 * v, seed[:, None] + 1)
    mix = 0.12 * rough
    light = 1 + 0.14 * (rough - 0.5) + 0.1 * (fine - 0.5)
    for number, pattern in _PATTERNS.items():  # each is computed where it is
        there = (kind == number).nonzero()[:, 0]
        a, b = u[there] / scale[there, None], v[there] / scale[there, None]
        s, t = u[there] / reach_u[there, None], v[there] / reach_v[there, None]
        mix[there] = pattern(a, b, s, t, seed[there, None]).clamp(0, 1)
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


# How much of the second color there is, (M,S), of (a,b) in repeats, of (s,t) in -1..1 over the part, and of the seed.


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
    """In bricks, two repeats long; every other course is shifted by half of one."""
    return a / 2 + 0.5 * (b.floor() % 2)


def _stripes(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return ((a - a.floor()) < 0.5).to(a)


def _checks(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return 0.5 * _stripes(a, b, s, t, seed) + 0.5 * _stripes(b, a, s, t, seed)


def _marble(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return 0.8 * (torch.sin(6 * a + 9 * value_noise(2 * a, 2 * b, seed)) * 0.5 + 0.5) ** 2


def _border(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    edge = _outwards(s, t)
    return ((edge > 0.78) & (edge < 0.9)).to(a)


def _panels(a: Tensor, b: Tensor, s: Tensor, t: Tensor, seed: Tensor) -> Tensor:
    return 0.8 * torch.maximum(_line(s, 0.02), (_outwards(s, t) > 0.96).to(a))


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
    """What is seen through a window, linear RGB (3,M,S), brighter than the room; s, t (M,S) in -1..1, t upwards; first
    (3,M), seed (M,)."""
    seed = seed[:, None]
    hills = -0.35 + 0.5 * (value_noise(1.7 * s, torch.zeros_like(s), seed) - 0.5)
    leaves = 0.4 + 0.9 * value_noise(9 * s, 9 * t, seed)
    clouds = value_noise(2 * s, 4 * t, seed + 3) ** 2
    zenith, forest = (torch.tensor(c, device=s.device)[:, None, None] for c in ([0.75, 0.85, 1.0], [0.13, 0.22, 0.07]))
    blue = _mix(zenith, first[..., None], (0.5 + 0.5 * t).clamp(0, 1))
    return 1.6 * torch.where(t < hills, forest * leaves, _mix(blue, torch.ones_like(blue), 0.6 * clouds))


def _picture(s: Tensor, t: Tensor, first: Tensor, second: Tensor, seed: Tensor) -> Tensor:
    """A framed print: a horizon, a disc and washes of color."""
    wash = value_noise(1.5 * s, 1.5 * t, seed)
    ground = _mix(first, second, (t < -0.2 + 0.4 * wash).to(s))
    disc = ((s - 0.4 * torch.sin(seed)) ** 2 + (t - 0.3) ** 2 < 0.08).to(s)
    image = _mix(ground * (0.6 + 0.7 * wash), 1 - first, 0.8 * disc)
    edge = _outwards(s, t)
    return image.masked_fill(edge > 0.72, 0.8).masked_fill(edge > 0.9, 0.08)


def _mix(a: Tensor, b: Tensor, amount: Tensor | float) -> Tensor:
    """torch.lerp, whose last bit depends on the tensors' layout and so on the batch that a scene is rendered in."""
    return a + (b - a) * amount


def _outwards(s: Tensor, t: Tensor) -> Tensor:
    """0 in the middle of a part, 1 at its edges."""
    return torch.maximum(s.abs(), t.abs())


def _line(x: Tensor, width: Tensor | float) -> Tensor:
    """1 within ``width`` of whole numbers."""
    return ((x - x.round()).abs() < width).to(x)


# Hashes are of integers, so that every device makes the same pattern.
_U, _V, _SEED = 374761393, 668265263, 974634533


def _whole(number: Tensor, factor: int) -> Tensor:
    return number.to(torch.int32) * factor


def _hash(u: Tensor, v: Tensor, seed: Tensor) -> Tensor:
    """Whole numbers to [0,1)."""
    return _scrambled(_whole(u, _U) + _whole(v, _V) + _whole(seed, _SEED))


def _scrambled(h: Tensor) -> Tensor:
    h = (h ^ ((h >> 13) & 0x7FFFF)) * 1274126177
    return ((h ^ (h >> 16)) & 0xFFFFFF).float() / 2**24
