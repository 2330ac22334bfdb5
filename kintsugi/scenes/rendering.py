"""Renders a synthetic world of furnished rooms: as many as needed, with exact depth, normals, instances and classes.

Sample i of a seed is a function of (seed, i) alone. The CPU draws one row of uniform numbers for each scene. All else
is computed from these rows for a whole batch, on any device, without a loop over images: the layout of rooms,
furniture, lights and cameras (``kintsugi.scenes.layout``), tracing (``kintsugi.scenes.hits``,
``kintsugi.scenes.shadows``) and shading (``kintsugi.scenes.shading``).

Results are in camera axes: x right, y down, z forward.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kintsugi import rng
from kintsugi.scenes.draws import DRAWS, Draws
from kintsugi.scenes.hits import Stage, Surface, first_hits, make_stage
from kintsugi.scenes.layout import draw_scenes
from kintsugi.scenes.scene_batch import Scenes
from kintsugi.scenes.shading import shade_edges, shade_smooth
from kintsugi.scenes.shadows import light_visibility
from kintsugi.scenes.tracer import find_candidates

SOURCE_FILES = [Path(rng.__file__), *sorted(Path(__file__).parent.glob("*.py"))]
"""The source files on which the look of a scene depends. Caches of scenes have a digest of them in their keys."""

_RAYS = 131_072  # number of rays traced together on a CPU, which takes about 200 MB
_SCENES = 256  # number of scenes laid out together, and on a GPU also traced together


def render(
    seed: int, indices: Tensor, size: int | tuple[int, int], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Renders the scenes ``indices`` (N,) of a seed at a ``size`` in px, the side of a square or (height, width).

    Returns, on ``device``:

    - image (N,3,H,W): sRGB in [0,1]
    - depth (N,1,H,W): meters along the camera's axis
    - normal (N,3,H,W): unit vectors in camera axes
    - instance (N,H,W): int16; 1 is the floor, 2 the ceiling, 3..6 are the walls
    - semantic (N,H,W): uint8, indices into ``CLASSES``
    - intrinsics (N,3,3): px, for pixel centers at half-integers
    - gravity (N,3): unit vectors that point down, in camera axes
    """
    return _render(seed, indices, torch.zeros(len(indices)), size, device)


def render_clip(
    seed: int, indices: Tensor, size: int | tuple[int, int], frames: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Renders ``frames`` moments, T of them, of each scene while the camera walks and things move.

    Arguments and results are as for ``render``, but with shapes (N,T,...) instead of (N,...). The first moment equals
    the result of ``render``.
    """
    moments = torch.linspace(0, 1, frames).repeat(len(indices))
    result = _render(seed, indices.repeat_interleave(frames), moments, size, device)
    return {name: value.unflatten(0, (len(indices), frames)) for name, value in result.items()}


def _render(
    seed: int, indices: Tensor, moments: Tensor, size: int | tuple[int, int], device: torch.device | str
) -> dict[str, Tensor]:
    """Lays scenes out and renders them in chunks that fit into memory. moments (N,) in [0,1]."""
    height, width = (size, size) if isinstance(size, int) else size
    on_cpu = torch.device(device).type == "cpu"
    chunk = max(1, _RAYS // (height * width)) if on_cpu else _SCENES
    results = []
    for numbers, moment in zip(indices.split(_SCENES), moments.split(_SCENES), strict=True):
        uniform = torch.stack([torch.rand(DRAWS, generator=rng.generator(seed, int(number))) for number in numbers])
        scenes = draw_scenes(Draws(uniform.to(device)), moment.to(device))
        results += [_view(scenes.rows(first, chunk), height, width) for first in range(0, len(scenes), chunk)]
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}


def _view(scenes: Scenes, height: int, width: int) -> dict[str, Tensor]:
    """Renders one batch: traces a ray through each pixel's center, and shades four points of each pixel."""
    stage = make_stage(scenes, height, width)
    count, candidates = len(scenes), find_candidates(stage.parts.shapes, stage.cameras)
    every = torch.arange(count, device=stage.x.device)
    x, y = stage.x.expand(count, -1), stage.y.expand(count, -1)  # (N,R)
    center = first_hits(stage, every, x, y, candidates, candidates.pixel[:, None])

    light = light_visibility(stage, center)  # (2,N,R)
    color = shade_smooth(stage, center, light).flatten(1, 2)  # (3,N*R,4)
    at, sharp = shade_edges(stage, center, light, candidates)
    color[:, at] = sharp
    image = _exposed(color.view(3, count, -1), scenes.exposure)  # (3,N,R*4)
    image = image.unflatten(2, (height, width, 4)).mean(-1).transpose(0, 1)  # (N,3,H,W)
    return {"image": image.clamp(0, 1).contiguous()} | _maps(stage, center)


def _exposed(color: Tensor, exposure: Tensor) -> Tensor:
    """Converts linear RGB (3,N,...) to sRGB. exposure (N,): relative to the mean of the image."""
    # In double, because the order of a sum depends on the batch.
    glare = color.mean((0, 2), dtype=torch.float64).float()[:, None]
    linear = -torch.expm1(-color * (1.35 * exposure[:, None] / glare.clamp(min=1e-3)))
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)


def _maps(stage: Stage, center: Surface) -> dict[str, Tensor]:
    """All results of ``render`` except the image. center: what the rays through the pixels' centers hit."""
    focal, height, width = stage.cameras.focal, stage.cameras.height, stage.cameras.width
    axes = stage.cameras.axes
    semantic, instance = stage.parts.columns[:2, center.slot]
    instance = torch.where(center.side < 6, center.side + 1, instance)
    normal = axes @ center.normal.transpose(0, 1)  # (N,3,R)
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    intrinsics = torch.stack([focal, zero, width / 2 * one, zero, focal, height / 2 * one, zero, zero, one], -1)
    return {
        "depth": center.depth.unflatten(1, (1, height, width)),
        "normal": normal.unflatten(2, (height, width)),
        "instance": instance.unflatten(1, (height, width)).to(torch.int16),
        "semantic": semantic.unflatten(1, (height, width)).to(torch.uint8),
        "intrinsics": intrinsics.view(-1, 3, 3),
        "gravity": -axes[:, :, 1],
    }
