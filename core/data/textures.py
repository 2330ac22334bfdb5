"""Procedural surfaces for the built-in scenes: colour as a function of where on the surface, in metres."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN, WOOD, TILES, BRICKS, STRIPES, CHECKS, MARBLE, SKY, BOOKS, PICTURE, BORDER, PANELS = range(12)


def value_noise(u: Tensor, v: Tensor, seed: Tensor) -> Tensor:
    """Smooth noise in [0,1] with features of size 1; any shape."""
    cell_u, cell_v = u.floor(), v.floor()
    x, y = u - cell_u, v - cell_v
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    low = _mix(_hash(cell_u, cell_v, seed), _hash(cell_u + 1, cell_v, seed), x)
    high = _mix(_hash(cell_u, cell_v + 1, seed), _hash(cell_u + 1, cell_v + 1, seed), x)
    return _mix(low, high, y)


def shade(
    kind: Tensor,
    u: Tensor,
    v: Tensor,
    first: Tensor,
    second: Tensor,
    scale: Tensor,
    seed: Tensor,
    reach: Tensor,
) -> Tensor:
    """Linear RGB (...,3) of surfaces of ``kind`` (...) at (u,v) metres from the middle of their part.

    first, second (...,3): the two colours of the pattern. scale: the size of its repeat, metres. seed: tells alike
    parts apart. reach (...,2): half the part's size along u and v, for patterns that fill their part once.
    """
    rough = value_noise(7 * u, 7 * v, seed)
    fine = value_noise(31 * u, 31 * v, seed + 1)
    a, b = u / scale, v / scale
    s, t = u / reach[..., 0], v / reach[..., 1]  # -1..1 over the part

    plank = (b).floor()
    grain = value_noise(1.5 * a + 5 * plank, 9 * b, seed) * 0.6 + 0.4 * _hash(
        plank, (a / 6 + _hash(plank, plank, seed)).floor(), seed
    )
    seam = _line(b, 0.03)
    row = b.floor()
    brick_a = a / 2 + 0.5 * (row % 2)
    mortar = torch.maximum(_line(brick_a, 0.03), _line(b, 0.06))
    grout = torch.maximum(_line(a, 0.035), _line(b, 0.035))
    board = (a.floor() + b.floor()) % 2
    stripe = ((a - a.floor()) < 0.5).to(u)
    check = 0.5 * stripe + 0.5 * ((b - b.floor()) < 0.5).to(u)
    veins = (torch.sin(6 * a + 9 * value_noise(2 * a, 2 * b, seed)) * 0.5 + 0.5) ** 2
    edge = torch.maximum(s.abs(), t.abs())
    border = ((edge > 0.78) & (edge < 0.9)).to(u)
    gap = torch.maximum(_line(s, 0.02), (edge > 0.96).to(u))

    mix = torch.zeros_like(u)
    for number, amount in (
        (PLAIN, 0.12 * rough), (WOOD, torch.maximum(grain, 1.3 * seam)),
        (TILES, torch.maximum(0.9 * grout, 0.25 * board)),
        (BRICKS, mortar), (STRIPES, stripe), (CHECKS, check), (MARBLE, veins * 0.8), (BORDER, border),
        (PANELS, 0.8 * gap),
    ):  # fmt: skip
        mix = torch.where(kind == number, amount, mix)
    colour = _mix(first, second, mix[..., None].clamp(0, 1))
    per_brick = torch.where(
        kind == BRICKS, 0.25 * (_hash(brick_a.floor(), row, seed) - 0.5), torch.zeros_like(u)
    )
    colour = colour * (1 + per_brick + 0.14 * (rough - 0.5) + 0.1 * (fine - 0.5))[..., None]

    spine = (u / 0.045).floor()
    tint = torch.stack([_hash(spine, spine, seed + k) for k in range(3)], -1)
    colour = torch.where(
        (kind == BOOKS)[..., None],
        0.05 + 0.6 * tint * tint * (1 - 0.7 * _line(u / 0.045, 0.12))[..., None],
        colour,
    )
    return torch.where((kind == PICTURE)[..., None], _picture(s, t, first, second, seed), colour)


def sky(s: Tensor, t: Tensor, first: Tensor, seed: Tensor) -> Tensor:
    """What is seen through a window, linear RGB (...,3), brighter than the room; s, t in -1..1, t upwards."""
    hills = -0.35 + 0.5 * (value_noise(1.7 * s, torch.zeros_like(s), seed) - 0.5)
    leaves = 0.4 + 0.9 * value_noise(9 * s, 9 * t, seed)
    clouds = value_noise(2 * s, 4 * t, seed + 3)[..., None] ** 2
    blue = _mix(
        torch.tensor([0.75, 0.85, 1.0], device=s.device), first, (0.5 + 0.5 * t).clamp(0, 1)[..., None]
    )
    green = torch.tensor([0.13, 0.22, 0.07], device=s.device) * leaves[..., None]
    return 1.6 * torch.where((t < hills)[..., None], green, _mix(blue, torch.ones_like(blue), 0.6 * clouds))


def _picture(s: Tensor, t: Tensor, first: Tensor, second: Tensor, seed: Tensor) -> Tensor:
    """A framed print: a horizon, a disc and washes of colour."""
    wash = value_noise(1.5 * s, 1.5 * t, seed)[..., None]
    ground = _mix(first, second, ((t < -0.2 + 0.4 * wash[..., 0]).to(s))[..., None])
    disc = ((s - 0.4 * torch.sin(seed)) ** 2 + (t - 0.3) ** 2 < 0.08).to(s)[..., None]
    image = _mix(ground * (0.6 + 0.7 * wash), 1 - first, 0.8 * disc)
    edge = torch.maximum(s.abs(), t.abs())[..., None]
    return torch.where(
        edge > 0.9,
        0.08 * torch.ones_like(image),
        torch.where(edge > 0.72, 0.8 * torch.ones_like(image), image),
    )


def _mix(a: Tensor, b: Tensor, amount: Tensor | float) -> Tensor:
    """torch.lerp, whose last bit depends on the tensors' layout and so on the batch that a scene is rendered in."""
    return a + (b - a) * amount


def _line(x: Tensor, width: Tensor | float) -> Tensor:
    """1 within ``width`` of whole numbers."""
    return ((x - x.round()).abs() < width).to(x)


def _hash(u: Tensor, v: Tensor, seed: Tensor) -> Tensor:
    """Whole numbers to [0,1); with integers, so that every device makes the same pattern."""
    h = u.to(torch.int32) * 374761393 + v.to(torch.int32) * 668265263 + seed.to(torch.int32) * 974634533
    h = (h ^ ((h >> 13) & 0x7FFFF)) * 1274126177
    return ((h ^ (h >> 16)) & 0xFFFFFF).to(u) / 2**24
