"""A synthetic world of furnished rooms: unlimited, with exact depth, normals, instances and classes.

Sample i of a seed is a function of (seed, i) alone. A row of uniform numbers is drawn for each scene on the CPU; rooms,
furniture, lights and cameras are computed from those rows for a whole batch (``kintsugi.scenes.rooms``); then it is
traced (``kintsugi.scenes.tracer``) and shaded (``kintsugi.scenes.textures``) on any device, without a loop over images.

Results are in camera axes (x right, y down, z forward); the world's are those of ``kintsugi.scenes.rooms``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kintsugi.rng import generator
from kintsugi.scenes import rooms, textures, tracer
from kintsugi.scenes.rooms import CLASSES, DRAWS, LAMP, WINDOW, Draws, Parts, Scenes, World
from kintsugi.scenes.textures import SKY
from kintsugi.scenes.tracer import Cameras, Pairs, dot, length_of

__all__ = ["CLASSES", "SOURCE_FILES", "render", "render_clip"]

SOURCE_FILES = [Path(file or "") for file in (rooms.__file__, textures.__file__, tracer.__file__, __file__)]
"""What a scene's looks depend on: a cache of scenes is keyed by them."""

_RAYS = 131_072  # traced together on a CPU, in some 200 MB
_SCENES = 256  # laid out together, and on a GPU traced together


def render(
    seed: int, indices: Tensor, size: int | tuple[int, int], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Scenes ``indices`` (N,) of a seed, each ``size`` (a side, or height and width).

    image (N,3,H,W) sRGB in [0,1]; depth (N,1,H,W) meters along the camera's axis; normal (N,3,H,W) unit, camera axes;
    instance (N,H,W) int16; semantic (N,H,W) uint8, indices into ``CLASSES``; intrinsics (N,3,3) px, of pixel
    centers at half-integers; gravity (N,3) unit, camera axes, pointing down.
    """
    return _rendered(seed, indices, torch.zeros(len(indices)), size, device)


def render_clip(
    seed: int, indices: Tensor, size: int | tuple[int, int], frames: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """``frames`` moments of each scene while the camera walks and things move; as ``render``, with (N,T,...)."""
    moments = torch.linspace(0, 1, frames).repeat(len(indices))
    result = _rendered(seed, indices.repeat_interleave(frames), moments, size, device)
    return {name: value.unflatten(0, (len(indices), frames)) for name, value in result.items()}


def _rendered(
    seed: int, indices: Tensor, moments: Tensor, size: int | tuple[int, int], device: torch.device | str
) -> dict[str, Tensor]:
    height, width = (size, size) if isinstance(size, int) else size
    on_cpu = torch.device(device).type == "cpu"
    chunk = max(1, _RAYS // (height * width)) if on_cpu else _SCENES
    parts = []
    for rows, moment in zip(indices.split(_SCENES), moments.split(_SCENES), strict=True):
        draws = torch.stack([torch.rand(DRAWS, generator=generator(seed, int(row))) for row in rows])
        world = World(Draws(draws.to(device)), moment.to(device)).scenes()
        parts += [_view(world.some(i, chunk), height, width) for i in range(0, len(world), chunk)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


# --- seeing it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """A batch of N scenes, what is in them, and the pictures of R pixels that are taken of them."""

    scenes: Scenes
    parts: Parts
    eyes: Cameras
    x: Tensor  # (R,) of the pixels' centers, px
    y: Tensor  # (R,)

    @functools.cached_property
    def fine(self) -> tuple[Tensor, Tensor]:
        """x and y of four points of each pixel, (R,4)."""
        across, along = torch.tensor([[-0.25, 0.25, -0.25, 0.25], [-0.25, -0.25, 0.25, 0.25]], device=self.x.device)
        return self.x[:, None] + across, self.y[:, None] + along


@dataclass(frozen=True)
class _Surface:
    """What A x B rays meet; those of each a are of one scene."""

    scene: Tensor  # (A,)
    point: Tensor  # (3,A,B) world
    normal: Tensor  # (3,A,B) world, unit
    depth: Tensor  # (A,B) along the camera's axis
    slot: Tensor  # (A,B) into the columns of Parts
    side: Tensor  # (A,B) of the room: 0 floor, 1 ceiling, 2..5 walls; or 6 + the axis of a part's normal

    def key(self) -> Tensor:
        """One number for each smooth piece of surface, (A,B)."""
        return 16 * self.slot + self.side


def _of(values: Tensor, scene: Tensor) -> Tensor:
    """What each scene has, (N,3) or (N,), for a ``_Surface`` of theirs: (3,A,1) or (A,1)."""
    return values.movedim(0, -1).index_select(-1, scene)[..., None]


def _unit(vector: Tensor) -> Tensor:
    return vector / length_of(vector).clamp(min=1e-12)


def _view(scenes: Scenes, height: int, width: int) -> dict[str, Tensor]:
    """One batch traced at pixel centers, and shaded at four points of each pixel."""
    count = len(scenes)
    focal = 0.5 * max(height, width) / (scenes.field / 2).tan()  # (N,) px
    eyes, index = Cameras(scenes.eye, scenes.axes, focal, height, width), torch.arange(height * width)
    x, y = (index % width + 0.5).to(focal.device), (index // width + 0.5).to(focal.device)
    stage = _Stage(scenes, scenes.parts(), eyes, x, y)
    pairs = tracer.covered(stage.parts.shapes, eyes)
    pixel = (pairs.pixel % len(x))[:, None]
    center = _look(
        stage,
        torch.arange(count, device=focal.device),
        x.expand(count, -1),
        y.expand(count, -1),
        pairs,
        pairs.pixel[:, None],
        x[pixel],
        y[pixel],
    )
    light = _lit(stage, center)  # (2,N,R)
    color = _smooth(stage, center, light).flatten(1, 2)  # (3,N*R,4)
    at, sharp = _edges(stage, center, light, pairs)
    color[:, at] = sharp
    color = color.view(3, count, -1)  # (3,N,R*4)

    # In double, because the order of a sum depends on the batch.
    glare = color.mean((0, 2), dtype=torch.float64).float()[:, None]
    exposed = -torch.expm1(-color * (1.35 * scenes.exposure[:, None] / glare.clamp(min=1e-3)))
    image = _srgb(exposed).unflatten(2, (height, width, 4)).mean(-1).transpose(0, 1)

    side, slot = center.side, center.slot
    semantic, instance = stage.parts.columns[:2, slot]
    instance = torch.where(side < 6, side + 1, instance)
    normal = scenes.axes @ center.normal.transpose(0, 1)  # (N,3,R)
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    intrinsics = torch.stack([focal, zero, width / 2 * one, zero, focal, height / 2 * one, zero, zero, one], -1)
    return {
        "image": image.clamp(0, 1).contiguous(),
        "depth": center.depth.unflatten(1, (1, height, width)),
        "normal": normal.unflatten(2, (height, width)),
        "instance": instance.unflatten(1, (height, width)).to(torch.int16),
        "semantic": semantic.unflatten(1, (height, width)).to(torch.uint8),
        "intrinsics": intrinsics.view(-1, 3, 3),
        "gravity": -scenes.axes[:, :, 1],
    }


def _look(
    stage: _Stage, scene: Tensor, x: Tensor, y: Tensor, pairs: Pairs, ray: Tensor, ray_x: Tensor, ray_y: Tensor
) -> _Surface:
    """The surface that each ray through ``x``, ``y`` (A,B) px meets; the rest is as for ``tracer.nearest``."""
    shapes, eyes = stage.parts.shapes, stage.eyes
    way = torch.stack(tracer.ways(_of(eyes.lens.flatten(1), scene), x, y))  # (3,A,B)
    eye, room = _of(eyes.eye, scene), _of(stage.scenes.room, scene)
    far = tracer.room_exit(eye, way, room)
    depth, part = tracer.nearest(shapes, eyes, pairs, ray, ray_x, ray_y, far.flatten())
    depth, part = depth.view_as(far), part.view_as(far)
    point = eye + depth * way

    middle = room / 2
    unit = (point - middle) / middle
    axis = tracer.largest(unit)  # of the side of the room
    above = unit.gather(0, axis[None])[0] > 0
    side = torch.tensor([2, 0, 4], device=x.device)[axis] + above
    floor_or_ceiling = torch.where(axis == 1, 1 + above.long(), 0)  # else a wall
    slot = len(shapes.scene) + len(eyes.eye) * floor_or_ceiling + scene[:, None]
    normal = -tracer.cube_normal(unit)

    rows, columns = (part >= 0).nonzero(as_tuple=True)
    met = part[rows, columns]
    own = tracer.local_normal(shapes, met, point[:, rows, columns])
    slot[rows, columns] = met
    side[rows, columns] = 6 + tracer.largest(own)
    normal[:, rows, columns] = torch.stack(tracer.turned(own, -shapes.yaw[met]))
    return _Surface(scene, point, normal, depth, slot, side)


def _lit(stage: _Stage, surface: _Surface) -> Tensor:
    """How much of the lamp and of the window each point sees, (2,N,R) in [0,1].

    Each pixel looks at one point of one light; those of a 4x4 block look at different ones, and each takes the mean
    over its neighbors on the same surface: soft shadows for one ray a pixel.
    """
    scenes, parts, height, width = stage.scenes, stage.parts, stage.eyes.height, stage.eyes.width
    device, count = surface.point.device, len(scenes)
    # Rays of a block of 8x8 to the same light are traced together: those with x + y even, and those with x + y odd.
    block = torch.tensor([[y, x] for odd in (0, 1) for y in range(8) for x in range(8) if (x + y) % 2 == odd])
    within_y, within_x = block.view(2, 32, 2).to(device).unbind(-1)  # (2,32)
    y = torch.arange(0, height, 8, device=device)[:, None, None, None] + within_y
    x = torch.arange(0, width, 8, device=device)[:, None, None] + within_x
    # Beyond the border the last pixel is traced again, for nothing.
    inside = ((y < height) & (x < width)).flatten(0, 1)  # (T,2,32)
    pixel = (y.clamp(max=height - 1) * width + x.clamp(max=width - 1)).flatten(0, 1)  # (T,2,32)
    odd = torch.tensor([False, True], device=device)
    to_window = scenes.has_window[:, None] & (odd | ~scenes.lamp_on[:, None])  # (N,2)

    spot = (4 * (y % 4) + x % 4).flatten(0, 1)  # (T,2,32)
    u = (spot * 0.7548776662) % 1.0 - 0.5  # the R2 sequence: spread evenly in two dimensions
    v = (spot * 0.5698402910) % 1.0 - 0.5
    flat = torch.stack([u, torch.zeros_like(u), v])[:, None]  # (3,1,T,2,32)
    upright = torch.stack([torch.zeros_like(v), v, torch.zeros_like(v)])[:, None]
    out = scenes.window_way
    across = torch.stack([out[:, 2], torch.zeros_like(out[:, 0]), -out[:, 0]])[..., None, None, None]
    on_lamp = scenes.lamp_at.T[..., None, None, None] + 0.36 * flat
    on_window = scenes.window_at.T[..., None, None, None] + 1.1 * u * across + 0.9 * upright
    end = torch.where(to_window[:, None, :, None], on_window, on_lamp)  # (3,N,T,2,32)
    origin = (surface.point + 2e-3 * surface.normal)[:, :, pixel]
    opaque = (parts.columns[0] != LAMP) & (parts.columns[0] != WINDOW)
    shapes = parts.shapes.only(opaque[: len(parts.shapes.scene)])
    scene = torch.arange(count, device=device).repeat_interleave(pixel[..., 0].numel())
    free = ~tracer.blocked(shapes, scene, origin.flatten(1, 3), end.flatten(1, 3))

    # Four counts in the bytes of one number: rays to the lamp, and those that reach it; the same of the window.
    seen = torch.zeros(count, height * width, dtype=torch.int32, device=device)
    bits = (1 + (free.view(count, -1, 2, 32).int() << 8)) << (16 * to_window.int())[:, None, :, None]
    seen[:, pixel[inside]] = bits[:, inside]
    seen, key = seen.unflatten(1, (height, width)), surface.key().unflatten(1, (height, width))
    total = torch.zeros_like(seen)
    for dy in range(-2, 2):
        for dx in range(-2, 2):
            # Rolling over the border meets the far side of the image, which is rarely the same surface.
            total += (key.roll((dy, dx), (1, 2)) == key) * seen.roll((dy, dx), (1, 2))
    asked = torch.stack([total & 255, (total >> 16) & 255]).flatten(2)
    reached = torch.stack([(total >> 8) & 255, (total >> 24) & 255]).flatten(2)
    return reached / asked.clamp(min=1)


def _smooth(stage: _Stage, surface: _Surface, light: Tensor) -> Tensor:
    """Linear RGB at four points of each pixel, (3,N,R,4), as if its surface went on beyond its edges: the points lie on
    the tangent plane at the pixel's center, and have its light."""
    eyes = stage.eyes
    eye = _of(eyes.eye, surface.scene)
    lens = _of(eyes.lens.flatten(1), surface.scene)[..., None]  # (9,N,1,1)
    ray = torch.stack(tracer.ways(lens, *stage.fine))  # (3,N,R,4)
    facing = dot(ray, surface.normal[..., None])
    towards = dot(surface.point - eye, surface.normal)[..., None]
    distance = towards / facing.masked_fill(facing.abs() < 1e-3, torch.inf)
    center = surface.depth[..., None]
    distance = torch.where((distance > 0.8 * center) & (distance < 1.25 * center), distance, center)
    point = eye[..., None] + distance * ray  # (3,N,R,4)
    return _outgoing(*_material(stage, surface, point), *_received(stage.scenes, surface, light))


def _edges(stage: _Stage, surface: _Surface, light: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Which pixels (E,) of (N,R) made flat have a neighbor on another surface, and the linear RGB at four points of
    each, (3,E,4): there rays are traced, and their light is that of a neighbor on the same surface."""
    height, width, count = stage.eyes.height, stage.eyes.width, len(stage.x)
    key = surface.key()
    maps = key.unflatten(1, (height, width))
    edge = torch.zeros_like(maps, dtype=torch.bool)
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for move in around:
        edge |= maps.roll(move, (1, 2)) != maps
    at = edge.flatten().nonzero()[:, 0]  # (E,)
    scene, pixel = at // count, at % count

    number = torch.full((key.numel(),), -1, device=at.device)
    number[at] = torch.arange(len(at), device=at.device)
    mine = pairs.at((number[pairs.pixel] >= 0).nonzero()[:, 0])
    ray = number[mine.pixel][:, None] * 4 + torch.arange(4, device=at.device)
    fine_x, fine_y = stage.fine
    spot = mine.pixel % count
    traced = _look(stage, scene, fine_x[pixel], fine_y[pixel], mine, ray, fine_x[spot], fine_y[spot])

    dy, dx = torch.tensor(around, device=at.device).T
    near_y, near_x = (pixel[:, None] // width + dy) % height, (pixel[:, None] % width + dx) % width
    near = scene[:, None] * count + near_y * width + near_x  # (E,9)
    alike = traced.key()[..., None] == key.flatten()[near][:, None]  # (E,4,9)
    lights = light.flatten(1)[:, near][:, :, None]  # (2,E,1,9)
    shared = (alike * lights).sum(-1) / alike.sum(-1).clamp(min=1)
    own = light.flatten(1)[:, at, None]  # where nobody around is on that surface
    light = torch.where(alike.any(-1), shared, own)  # (2,E,4)
    material = _material(stage, traced, traced.point[..., None])
    return at, _outgoing(*material, *_received(stage.scenes, traced, light))[..., 0]


def _outgoing(albedo: Tensor, gloss: Tensor, glow: Tensor, diffuse: Tensor, shine: Tensor) -> Tensor:
    """Linear RGB (3,A,B,S) that leaves S points around each of A x B towards the eye: ``_material``, ``_received``."""
    reflected = albedo * diffuse[..., None] + (gloss * shine)[..., None]
    return torch.where(glow > 0, albedo * glow, reflected)


def _received(scenes: Scenes, surface: _Surface, light: Tensor) -> tuple[Tensor, Tensor]:
    """Light that reaches each point: what a white surface would send back of it, and what a glossy one reflects to the
    eye, (3,A,B) linear RGB each. light (2,A,B): how much of lamp and window is seen."""
    scene, point, normal = surface.scene, surface.point, surface.normal
    to_eye = _unit(_of(scenes.eye, scene) - point)
    beyond = _of(scenes.room, scene) - point
    # Corners get less light from all around: from floor, ceiling, both side walls and the one at the back.
    closed = torch.ones_like(surface.depth)
    for gap in (point[1], beyond[1], point[0], beyond[0], beyond[2]):
        closed = closed * (1 - torch.where(gap < 1e-3, 0.0, 0.38 * torch.exp(gap.clamp(min=0) / -0.22)))
    diffuse = _of(scenes.ambient, scene) * (closed * (0.75 + 0.25 * normal[1]))
    shine = torch.zeros_like(diffuse)
    lights = ((scenes.lamp_at, scenes.lamp_light), (scenes.window_at, scenes.window_light))
    for number, (at, power) in enumerate(lights):
        way = _of(at, scene) - point
        distance = length_of(way).clamp(min=0.05)
        way = way / distance
        strength = light[number] / (0.6 + distance * distance)
        if number == 1:
            strength = strength * -dot(way, _of(scenes.window_way, scene)).clamp(max=0)
        half = _unit(way + to_eye)
        power = _of(power, scene)
        diffuse = diffuse + power * (dot(normal, way).clamp(min=0) * strength)
        shine = shine + power * ((40 * dot(normal, half).clamp(min=0).log()).exp() * strength)  # to the 40th
    return diffuse, shine


def _material(stage: _Stage, surface: _Surface, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Albedo (3,A,B,S), gloss (A,B) and glow (A,B,S) of S points (3,A,B,S) on the surface of each of A x B."""
    scenes, own, side = stage.scenes, stage.parts.at(surface.slot), surface.side
    axis = torch.tensor([1, 1, 0, 0, 2, 2, 0, 1, 2], device=side.device)[side]
    x, y, z = tracer.turned(point - own.center[..., None], own.yaw[..., None])
    # Along a surface: u is the part's z on its x sides, else its x; v its z on top and below, else its height. All that
    # textures are told is (A*B,...).
    beside, level = axis == 0, axis == 1
    u, v = (torch.where(beside[..., None], z, x).flatten(0, 1), torch.where(level[..., None], z, y).flatten(0, 1))
    reach_u = torch.where(beside, own.half[2], own.half[0]).flatten()
    reach_v = torch.where(level, own.half[2], own.half[1]).flatten()
    first, kind = own.first.flatten(1), own.texture.flatten()
    instance = torch.where(side < 6, side + 1, own.instance)
    seed = instance + _of((1000 * scenes.exposure).floor(), surface.scene)  # other scenes have other patterns
    seed = seed.flatten()
    color = textures.shade(kind, u, v, first, own.second.flatten(1), own.scale.flatten(), seed, reach_u, reach_v)
    glow = torch.zeros_like(u)
    shade = (own.semantic == LAMP) & (own.first.amin(0) > 0.15) & _of(scenes.lamp_on, surface.scene)
    glow[shade.flatten()] = 1.3

    window = (kind == SKY).nonzero()[:, 0]
    s, t = u[window] / reach_u[window, None], v[window] / reach_v[window, None]
    frame = (s.abs() > 0.93) | (t.abs() > 0.93) | (s.abs() < 0.03) | (axis.flatten()[window, None] != 2)
    outside = textures.sky(s, t, first[:, window], seed[window])
    color[:, window] = outside.masked_fill(frame, 0.75)
    glow[window] = (~frame).float()

    color, glow = color.unflatten(1, side.shape), glow.unflatten(0, side.shape)
    skirting = ((side >= 2) & (side < 6))[..., None] & (point[1] < 0.09)
    return torch.where(skirting, _of(scenes.trim, surface.scene)[..., None], color), own.gloss, glow


def _srgb(linear: Tensor) -> Tensor:
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
