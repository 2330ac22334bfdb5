"""Soft shadows: the fractions of the lamp and of the window that each pixel sees, from one ray per pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from kintsugi.scenes import tracer
from kintsugi.scenes.classes import LAMP, WINDOW
from kintsugi.scenes.hits import Stage, Surface
from kintsugi.scenes.lights_and_camera import Lights


def light_visibility(stage: Stage, surface: Surface) -> Tensor:
    """The fractions of the lamp and of the window that are visible from each pixel's point, (2,N,R) in [0,1].

    Each pixel tests one point of one light. Within a block of 4x4 pixels all points differ. The result of a pixel is
    the mean over its 4x4 neighborhood, without the pixels on other surfaces.
    """
    parts, height, width = stage.parts, stage.cameras.height, stage.cameras.width
    y, x, inside = _blocks(height, width, surface.point.device)
    pixel = y.clamp(max=height - 1) * width + x.clamp(max=width - 1)  # outside the image: any border pixel
    to_window, end = _targets(stage.scenes.lights, y, x)
    origin = (surface.point + 2e-3 * surface.normal)[:, :, pixel]  # (3,N,T,2,32)
    opaque = (parts.columns[0] != LAMP) & (parts.columns[0] != WINDOW)
    shapes = parts.shapes.only(opaque[: len(parts.shapes.scene)])
    count = len(stage.scenes)
    scene = torch.arange(count, device=pixel.device).repeat_interleave(pixel[..., 0].numel())
    free = ~tracer.blocked(shapes, scene, origin.flatten(1, 3), end.flatten(1, 3))

    # Four counts in the bytes of one integer: rays to the lamp, those that reach it, and the same for the window.
    counts = torch.zeros(count, height * width, dtype=torch.int32, device=pixel.device)
    bits = (1 + (free.view(count, -1, 2, 32).int() << 8)) << (16 * to_window.int())[:, None, :, None]
    counts[:, pixel[inside]] = bits[:, inside]
    total = _sum_of_neighbors(counts.unflatten(1, (height, width)), surface.key().unflatten(1, (height, width)))
    sent = torch.stack([total & 255, (total >> 16) & 255]).flatten(2)
    reached = torch.stack([(total >> 8) & 255, (total >> 24) & 255]).flatten(2)
    return reached / sent.clamp(min=1)


def _blocks(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Divides the image into T blocks of 8x8 pixels, and each block into two groups of 32: x + y even, and x + y odd.

    Returns y, x and whether the pixel is inside the image, (T,2,32) each. The rays of a group go to the same light and
    are traced together.
    """
    block = torch.tensor([[y, x] for odd in (0, 1) for y in range(8) for x in range(8) if (x + y) % 2 == odd])
    within_y, within_x = block.view(2, 32, 2).to(device).unbind(-1)  # (2,32)
    y = torch.arange(0, height, 8, device=device)[:, None, None, None] + within_y
    x = torch.arange(0, width, 8, device=device)[:, None, None] + within_x
    y, x = torch.broadcast_tensors(y, x)
    y, x = y.flatten(0, 1), x.flatten(0, 1)
    return y, x, (y < height) & (x < width)


def _targets(lights: Lights, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Which light the pixels ``y``, ``x`` (T,2,32) test, and at which point.

    Returns whether each group of pixels tests the window, bool (N,2); and the points on the lights, (3,N,T,2,32),
    meters.
    """
    odd = torch.tensor([False, True], device=y.device)
    to_window = lights.has_window[:, None] & (odd | ~lights.lamp_on[:, None])  # (N,2)
    spot = 4 * (y % 4) + x % 4  # (T,2,32)
    u = (spot * 0.7548776662) % 1.0 - 0.5  # the R2 sequence, spread evenly in two dimensions
    v = (spot * 0.5698402910) % 1.0 - 0.5
    flat = torch.stack([u, torch.zeros_like(u), v])[:, None]  # (3,1,T,2,32)
    upright = torch.stack([torch.zeros_like(v), v, torch.zeros_like(v)])[:, None]
    normal = lights.window_normal
    across = torch.stack([normal[:, 2], torch.zeros_like(normal[:, 0]), -normal[:, 0]])[..., None, None, None]
    on_lamp = lights.lamp_at.T[..., None, None, None] + 0.36 * flat
    on_window = lights.window_at.T[..., None, None, None] + 1.1 * u * across + 0.9 * upright
    return to_window, torch.where(to_window[:, None, :, None], on_window, on_lamp)


def _sum_of_neighbors(counts: Tensor, key: Tensor) -> Tensor:
    """Sums ``counts`` (N,H,W) over each pixel's 4x4 neighbors that have the same ``key`` (N,H,W) as the pixel."""
    total = torch.zeros_like(counts)
    for dy in range(-2, 2):
        for dx in range(-2, 2):
            # A roll wraps around to the opposite side of the image, which is rarely on the same surface.
            total += (key.roll((dy, dx), (1, 2)) == key) * counts.roll((dy, dx), (1, 2))
    return total
