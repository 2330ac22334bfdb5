"""A synthetic world of furnished rooms: unlimited, with exact depth, normals, instances and classes.

Sample i of a seed is a function of (seed, i) alone. A row of uniform numbers is drawn for each scene on the CPU; rooms,
furniture, lights and cameras are computed from those rows for a whole batch (``core.data.rooms``); then it is traced
(``core.data.tracer``) and shaded (``core.data.textures``) on any device, without a loop over images.

Results are in camera axes (x right, y down, z forward); the world's are those of ``core.data.rooms``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from core.data import rooms, textures, tracer
from core.data.rooms import CEILING, CLASSES, DRAWS, FLOOR, LAMP, WALL, WINDOW, Draws, World
from core.data.textures import SKY
from core.rng import generator
from core.train.config import parse_command, user_errors

__all__ = ["CLASSES", "SOURCE_FILES", "render", "render_clip"]

SOURCE_FILES = [Path(file or "") for file in (rooms.__file__, textures.__file__, tracer.__file__, __file__)]
"""What a scene's looks depend on: a cache of scenes is keyed by them."""

_RAYS = 65_536  # traced together on a CPU: few enough for its cache, enough for torch to split them over its threads
_CHUNK_GPU = 256


def render(
    seed: int, indices: Tensor, size: int | tuple[int, int], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Scenes ``indices`` (N,) of a seed, each ``size`` (a side, or height and width).

    image (N,3,H,W) sRGB in [0,1]; depth (N,1,H,W) metres along the camera's axis; normal (N,3,H,W) unit, camera axes;
    instance (N,H,W) int16; semantic (N,H,W) uint8, indices into ``CLASSES``; intrinsics (N,3,3) px, of pixel
    centres at half-integers; gravity (N,3) unit, camera axes, pointing down.
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
    chunk = max(1, _RAYS // (height * width)) if on_cpu else _CHUNK_GPU

    def view(rows: Tensor, moment: Tensor) -> dict[str, Tensor]:
        draws = torch.stack([torch.rand(DRAWS, generator=generator(seed, int(row))) for row in rows])
        return _view(World(Draws(draws.to(device)), moment.to(device)), height, width)

    parts = [view(*part) for part in zip(indices.split(chunk), moments.split(chunk), strict=True)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


# --- seeing it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Surface:
    """What each ray of a batch meets; all (N,R,...)."""

    point: Tensor  # world
    normal: Tensor  # world
    depth: Tensor  # along the camera's axis
    part: Tensor  # -1 = the room
    side: Tensor  # of the room: 0 floor, 1 ceiling, 2..5 walls; or 6 + the axis of a part's normal


def _view(world: World, height: int, width: int) -> dict[str, Tensor]:
    """One batch traced at pixel centres, and shaded at four points of each pixel."""
    focal = 0.5 * max(height, width) / (world.field / 2).tan()  # (N,) px
    surface = _look(world, _rays(world, focal, height, width, torch.zeros(1, 2)))
    light = _lit(world, surface, height, width)  # (N,R,2)
    fine, fine_light = _refined(world, surface, light, focal, height, width)
    colour = _shaded(world, fine, fine_light)  # (N,4*R,3)
    glare = colour.mean((1, 2), keepdim=True)
    exposed = 1 - torch.exp(-colour * (1.35 * world.exposure[:, None, None] / glare.clamp(min=1e-3)))
    image = _srgb(exposed).unflatten(1, (height, width, 4)).mean(3).permute(0, 3, 1, 2)

    rows = torch.arange(len(focal), device=focal.device)[:, None]
    parts, part = world.parts, surface.part.clamp(min=0)
    in_room = surface.part < 0
    room_class = torch.tensor([FLOOR, CEILING, WALL, WALL, WALL, WALL, 0, 0, 0], device=focal.device)[
        surface.side
    ]
    semantic = torch.where(in_room, room_class, parts.semantic[rows, part].long())
    instance = torch.where(in_room, surface.side + 1, parts.instance[rows, part].long())
    normal = torch.einsum("nij,nrj->nri", world.axes, surface.normal)
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    intrinsics = torch.stack(
        [focal, zero, width / 2 * one, zero, focal, height / 2 * one, zero, zero, one], -1
    )
    return {
        "image": image.clamp(0, 1),
        "depth": surface.depth.unflatten(1, (1, height, width)),
        "normal": normal.unflatten(1, (height, width)).permute(0, 3, 1, 2),
        "instance": instance.unflatten(1, (height, width)).to(torch.int16),
        "semantic": semantic.unflatten(1, (height, width)).to(torch.uint8),
        "intrinsics": intrinsics.view(-1, 3, 3),
        "gravity": -world.axes[:, :, 1],
    }


def _rays(world: World, focal: Tensor, height: int, width: int, offsets: Tensor) -> Tensor:
    """Rays through each pixel's centre plus ``offsets`` (S,2) px, one metre long along the axis; (N,H*W*S,3), world."""
    y, x = torch.meshgrid(
        torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij"
    )
    grid = (torch.stack([x, y], -1).view(-1, 1, 2) + offsets).view(-1, 2).to(focal.device)
    flat = grid / focal[:, None, None]
    return torch.cat([flat, torch.ones_like(flat[..., :1])], -1) @ world.axes


def _look(world: World, ray: Tensor) -> _Surface:
    """The surface that each ray (N,R,3) from the eye meets."""
    origin, shapes = world.eye[:, None], world.parts.shapes
    hits = tracer.nearest(origin, ray, shapes, world.room)
    point = origin + hits.distance[..., None] * ray

    low, high = point.abs().unbind(-1), (world.room[:, None] - point).abs().unbind(-1)
    side = torch.stack([low[1], high[1], low[0], high[0], low[2], high[2]], -1).argmin(-1)
    inwards = torch.tensor(
        [[0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]], device=ray.device
    )
    part = hits.part.clamp(min=0)
    rows = torch.arange(len(ray), device=ray.device)[:, None]
    local = tracer.to_local(point, shapes, part)
    own = tracer.local_normal(local, shapes.half[rows, part], part, shapes)
    in_room = hits.part < 0
    normal = torch.where(
        in_room[..., None], inwards[side].float(), tracer.to_world(own, shapes.yaw[rows, part])
    )
    return _Surface(
        point, normal, hits.distance, hits.part, torch.where(in_room, side, 6 + own.abs().argmax(-1))
    )


def _lit(world: World, surface: _Surface, height: int, width: int) -> Tensor:
    """How much of the lamp and of the window each point sees, (N,R,2) in [0,1].

    Each pixel looks at one point of one light; those of a 4x4 block look at different ones, and each takes the mean
    over its neighbours on the same surface: soft shadows for one ray a pixel.
    """
    device = surface.point.device
    index = torch.arange(height * width, device=device)
    y, x = index // width, index % width
    place = 4 * (y % 4) + x % 4
    u = ((place * 0.7548776662) % 1.0 - 0.5)[:, None]  # the R2 sequence: spread evenly in two dimensions
    v = ((place * 0.5698402910) % 1.0 - 0.5)[:, None]
    upwards = torch.tensor([0.0, 1.0, 0.0], device=device)
    on_lamp = world.lamp_at[:, None] + 0.36 * torch.cat([u, torch.zeros_like(u), v], -1)
    across = torch.stack([world.window_way[:, 2], world.zero, -world.window_way[:, 0]], -1)[:, None]
    on_window = world.window_at[:, None] + 1.1 * u * across + 0.9 * v * upwards  # (N,R,3)
    to_window = world.has_window[:, None] & (((x + y) % 2 == 1) | ~world.lamp_on[:, None])  # (N,R)
    spot = torch.where(to_window[..., None], on_window, on_lamp)
    origin = surface.point + 2e-3 * surface.normal
    see_through = (world.parts.semantic == LAMP) | (world.parts.semantic == WINDOW)
    free = ~tracer.blocked(origin, spot - origin, world.parts.shapes, see_through)

    key = _key(surface).unflatten(1, (height, width))
    seen = torch.stack([free & ~to_window, ~to_window, free & to_window, to_window], -1).float()
    seen = seen.unflatten(1, (height, width))  # (N,H,W,4)
    total = torch.zeros_like(seen)
    for dy in range(-2, 2):
        for dx in range(-2, 2):
            # Rolling over the border meets the far side of the image, which is rarely the same surface.
            alike = key.roll((dy, dx), (1, 2)) == key
            total += alike[..., None] * seen.roll((dy, dx), (1, 2))
    total = total.flatten(1, 2)
    return total[..., 0::2] / total[..., 1::2].clamp(min=1)


def _key(surface: _Surface) -> Tensor:
    """One number for each smooth piece of surface, (N,R)."""
    return 16 * surface.part + surface.side


def _refined(
    world: World, surface: _Surface, light: Tensor, focal: Tensor, height: int, width: int
) -> tuple[_Surface, Tensor]:
    """Surface and light at four points of each pixel, (N,R*4).

    Within a surface they lie on its tangent plane; only at edges, where a pixel's neighbour is on another surface, are
    rays traced, and their light is that of a neighbour on the same surface.
    """
    offsets = torch.tensor([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])
    ray = _rays(world, focal, height, width, offsets).unflatten(1, (-1, 4))  # (N,R,4,3)
    normal = surface.normal[:, :, None]
    facing = (ray * normal).sum(-1)
    towards = ((surface.point - world.eye[:, None])[:, :, None] * normal).sum(-1)
    distance = towards / torch.where(facing.abs() < 1e-3, torch.full_like(facing, torch.inf), facing)
    centre = surface.depth[:, :, None]
    distance = torch.where((distance > 0.8 * centre) & (distance < 1.25 * centre), distance, centre)
    point = world.eye[:, None, None] + distance[..., None] * ray

    key = _key(surface)  # (N,R)
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    maps = key.unflatten(1, (height, width))
    keys = torch.stack([maps.roll(move, (1, 2)).flatten(1) for move in around], -1)  # (N,R,9)
    lights = torch.stack(
        [light.unflatten(1, (height, width)).roll(m, (1, 2)).flatten(1, 2) for m in around], 2
    )
    edge = (keys != key[..., None]).any(-1)
    most = int(edge.sum(1).amax())  # a batch's images share a shape; what is not an edge is thrown away below
    chosen = edge.float().sort(dim=1, descending=True, stable=True).indices[:, :most]  # (N,K)
    rows = torch.arange(len(edge), device=edge.device)[:, None]
    traced = _look(world, ray[rows, chosen].flatten(1, 2))  # (N,K*4)
    alike = _key(traced).unflatten(1, (-1, 4))[..., None] == keys[rows, chosen][:, :, None]  # (N,K,4,9)
    weight = alike.float() / alike.sum(-1, keepdim=True).clamp(min=1)
    weight[..., 4] += (~alike.any(-1)).float()  # nobody around is on that surface: the pixel's own light
    traced_light = weight @ lights[rows, chosen]  # (N,K,4,9) @ (N,K,9,2)

    keep = edge[rows, chosen][:, :, None].expand(-1, -1, 4)  # (N,K,4)

    def merged(smooth: Tensor, sharp: Tensor) -> Tensor:
        """Values (N,R,4,...) with those at the edges replaced."""
        mask = keep.view(*keep.shape, *[1] * (smooth.ndim - 3))
        smooth = smooth.clone()
        smooth[rows, chosen] = torch.where(mask, sharp.unflatten(1, (-1, 4)), smooth[rows, chosen])
        return smooth.flatten(1, 2)

    def four(values: Tensor) -> Tensor:
        return values[:, :, None].expand(-1, -1, 4, *values.shape[2:])

    fine = _Surface(
        merged(point, traced.point), merged(four(surface.normal), traced.normal), merged(distance, traced.depth),
        merged(four(surface.part), traced.part), merged(four(surface.side), traced.side),
    )  # fmt: skip
    return fine, merged(four(light), traced_light.flatten(1, 2))


def _shaded(world: World, surface: _Surface, light: Tensor) -> Tensor:
    """Linear RGB (N,R,3) that leaves each point towards the camera."""
    albedo, gloss, glow = _material(world, surface)
    point, normal = surface.point, surface.normal
    to_eye = torch.nn.functional.normalize(world.eye[:, None] - point, dim=-1)

    gap = torch.stack([point[..., 1], world.height[:, None] - point[..., 1], point[..., 0],
                       world.width[:, None] - point[..., 0], world.depth[:, None] - point[..., 2]], -1)  # fmt: skip
    near = torch.where(gap < 1e-3, torch.zeros_like(gap), torch.exp(-gap.clamp(min=0) / 0.22))
    closed = (1 - 0.38 * near).prod(-1)  # corners get less light from all around
    sky_side = 0.75 + 0.25 * normal[..., 1]
    total = albedo * world.ambient[:, None] * (closed * sky_side)[..., None]

    for number, (at, power) in enumerate(
        ((world.lamp_at, world.lamp_light), (world.window_at, world.window_light))
    ):
        way = at[:, None] - point
        distance = way.norm(dim=-1).clamp(min=0.05)
        way = way / distance[..., None]
        facing = (normal * way).sum(-1).clamp(min=0)
        strength = light[..., number] / (0.6 + distance**2)
        if number == 1:
            strength = strength * (-(way * world.window_way[:, None]).sum(-1)).clamp(min=0)
        half = torch.nn.functional.normalize(way + to_eye, dim=-1)
        shine = gloss * (normal * half).sum(-1).clamp(min=0) ** 40
        total = total + power[:, None] * (albedo * facing[..., None] + shine[..., None]) * strength[..., None]
    return torch.where(glow[..., None] > 0, albedo * glow[..., None], total)


def _material(world: World, surface: _Surface) -> tuple[Tensor, Tensor, Tensor]:
    """Albedo (N,R,3), gloss and glow (N,R) of each point."""
    parts, part = world.parts, surface.part.clamp(min=0)
    rows = torch.arange(len(part), device=part.device)[:, None]
    in_room = surface.part < 0
    local = torch.where(
        in_room[..., None],
        surface.point - world.room[:, None] / 2,
        tracer.to_local(surface.point, parts.shapes, part),
    )
    half = torch.where(in_room[..., None], world.room[:, None] / 2, parts.shapes.half[rows, part])
    axis = torch.where(
        in_room, torch.tensor([1, 1, 0, 0, 2, 2, 0, 0, 0], device=part.device)[surface.side], surface.side - 6
    )
    across = torch.where(axis == 0, 2, 0)[..., None]  # the part's z on its x sides, else its x
    along = torch.where(axis == 1, 2, 1)[..., None]  # its z on top and below, else its height
    u, v = local.gather(-1, across)[..., 0], local.gather(-1, along)[..., 0]
    reach = torch.cat([half.gather(-1, across), half.gather(-1, along)], -1)

    is_floor, is_ceiling = in_room & (surface.side == 0), in_room & (surface.side == 1)

    def of(name: str) -> Tensor:
        room, floor = getattr(world.wall_stuff, name), getattr(world.floor_stuff, name)
        own = getattr(parts, name)[rows, part]
        pick = (lambda mask: mask[..., None]) if own.ndim == 3 else (lambda mask: mask)
        value = torch.where(pick(in_room), room[:, None].to(own), own)
        return torch.where(pick(is_floor), floor[:, None].to(own), value)

    kind = torch.where(is_ceiling, torch.zeros_like(u), of("texture"))
    first = torch.where(is_ceiling[..., None], world.trim[:, None], of("first"))
    instance = torch.where(in_room, surface.side + 1, parts.instance[rows, part].long()).float()
    seed = instance + (1000 * world.exposure[:, None]).floor()  # other scenes have other patterns
    colour = textures.shade(kind, u, v, first, of("second"), of("scale"), seed, reach)
    skirting = in_room & (surface.side >= 2) & (surface.point[..., 1] < 0.09)
    colour = torch.where(skirting[..., None], world.trim[:, None], colour)

    s, t = u / reach[..., 0], v / reach[..., 1]
    frame = (s.abs() > 0.93) | (t.abs() > 0.93) | (s.abs() < 0.03)
    glass = (kind == SKY) & ~frame & (axis == 2)
    colour = torch.where(glass[..., None], textures.sky(s, t, first, seed), colour)
    colour = torch.where(((kind == SKY) & ~glass)[..., None], torch.full_like(colour, 0.75), colour)
    shade = ~in_room & (parts.semantic[rows, part] == LAMP) & (first.amin(-1) > 0.15) & world.lamp_on[:, None]
    glow = torch.where(glass, 1.0, torch.where(shade, 1.3, 0.0))
    return colour, torch.where(is_ceiling, torch.zeros_like(u), of("gloss")), glow


def _srgb(linear: Tensor) -> Tensor:
    return torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055
    )


# --- looking at it --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """A contact sheet of the built-in scenes."""

    out: Path = Path("scenes.png")
    """The picture to write."""
    count: int = 24
    """How many scenes."""
    columns: int = 6
    size: int = 128
    """Side of each, px."""
    seed: int = 0
    maps: bool = False
    """Beside each scene its depth, normals, instances and classes."""


def sheet(config: Config) -> Tensor:
    """The contact sheet, (3,H,W) in [0,1]."""
    scenes = render(config.seed, torch.arange(config.count), config.size)
    pictures = [scenes["image"]]
    if config.maps:
        hues = torch.rand(256, 3, generator=generator(7))
        pictures += [
            (1 - scenes["depth"] / scenes["depth"].amax()).expand(-1, 3, -1, -1), scenes["normal"] / 2 + 0.5,
            hues[scenes["instance"].long() % 256].permute(0, 3, 1, 2),
            hues[scenes["semantic"].long()].permute(0, 3, 1, 2),
        ]  # fmt: skip
    rows = torch.stack(pictures, 1).flatten(0, 1)
    return make_grid(rows, nrow=len(pictures) if config.maps else config.columns, padding=2, pad_value=1.0)


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        config = parse_command(Config, argv)
        Image.fromarray((255 * sheet(config)).byte().permute(1, 2, 0).numpy()).save(config.out)
        print(f"wrote {config.out}")


if __name__ == "__main__":
    main()
