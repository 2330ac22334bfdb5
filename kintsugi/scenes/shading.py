"""Computes the light that surfaces send to the camera, from materials and lights, at four points of each pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from kintsugi.scenes import textures, tracer
from kintsugi.scenes.classes import LAMP
from kintsugi.scenes.hits import Stage, Surface, first_hits, per_scene
from kintsugi.scenes.scene_batch import Scenes
from kintsugi.scenes.textures import SKY
from kintsugi.scenes.tracer import Candidates, dot, norm


def shade_smooth(stage: Stage, surface: Surface, light: Tensor) -> Tensor:
    """Linear RGB at four points of each pixel, (3,N,R,4), without regard to edges.

    The four points are taken on the tangent plane at the pixel's center, and have the light of the center. light:
    (2,N,R), from ``light_visibility``.
    """
    cameras = stage.cameras
    eye = per_scene(cameras.eye, surface.scene)
    lens = per_scene(cameras.lens.flatten(1), surface.scene)[..., None]  # (9,N,1,1)
    ray = torch.stack(tracer.directions(lens, *stage.subpixels))  # (3,N,R,4)
    facing = dot(ray, surface.normal[..., None])
    towards = dot(surface.point - eye, surface.normal)[..., None]
    distance = towards / facing.masked_fill(facing.abs() < 1e-3, torch.inf)
    center = surface.depth[..., None]
    distance = torch.where((distance > 0.8 * center) & (distance < 1.25 * center), distance, center)
    point = eye[..., None] + distance * ray  # (3,N,R,4)
    return _outgoing(*_material(stage, surface, point), *_incoming(stage.scenes, surface, light))


def shade_edges(stage: Stage, surface: Surface, light: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Linear RGB at four points of each pixel that has a neighbor on another surface.

    In these pixels four rays are traced. The light of a ray is the mean over the pixel's 3x3 neighborhood, but only
    over those pixels on the surface that the ray hits. Returns the numbers of the E pixels, indices into the flattened
    (N,R), int64 (E,); and their colors (3,E,4).
    """
    height, width, count = stage.cameras.height, stage.cameras.width, len(stage.x)
    key = surface.key()
    maps = key.unflatten(1, (height, width))
    edge = torch.zeros_like(maps, dtype=torch.bool)
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for shift in around:
        edge |= maps.roll(shift, (1, 2)) != maps
    at = edge.flatten().nonzero()[:, 0]  # (E,)
    scene, pixel = at // count, at % count

    number = torch.full((key.numel(),), -1, device=at.device)  # of each pixel in the list of edge pixels
    number[at] = torch.arange(len(at), device=at.device)
    tested = candidates.at((number[candidates.pixel] >= 0).nonzero()[:, 0])
    ray = number[tested.pixel][:, None] * 4 + torch.arange(4, device=at.device)
    x, y = stage.subpixels
    traced = first_hits(stage, scene, x[pixel], y[pixel], tested, ray)

    dy, dx = torch.tensor(around, device=at.device).T
    near_y, near_x = (pixel[:, None] // width + dy) % height, (pixel[:, None] % width + dx) % width
    near = scene[:, None] * count + near_y * width + near_x  # (E,9)
    alike = traced.key()[..., None] == key.flatten()[near][:, None]  # (E,4,9)
    lights = light.flatten(1)[:, near][:, :, None]  # (2,E,1,9)
    shared = (alike * lights).sum(-1) / alike.sum(-1).clamp(min=1)
    own = light.flatten(1)[:, at, None]  # for rays whose surface is on none of these pixels
    light = torch.where(alike.any(-1), shared, own)  # (2,E,4)
    material = _material(stage, traced, traced.point[..., None])
    return at, _outgoing(*material, *_incoming(stage.scenes, traced, light))[..., 0]


def _outgoing(albedo: Tensor, gloss: Tensor, glow: Tensor, diffuse: Tensor, shine: Tensor) -> Tensor:
    """The light towards the eye from S points for each ray, linear RGB (3,A,B,S).

    The arguments are the results of ``_material`` and ``_incoming``.
    """
    reflected = albedo * diffuse[..., None] + (gloss * shine)[..., None]
    return torch.where(glow > 0, albedo * glow, reflected)


def _incoming(scenes: Scenes, surface: Surface, light: Tensor) -> tuple[Tensor, Tensor]:
    """What a white matte surface and a glossy one reflect towards the eye at each point; linear RGB (3,A,B) each.

    light: (2,A,B), the fractions of the lamp and of the window that are visible.
    """
    scene, point, normal, lights = surface.scene, surface.point, surface.normal, scenes.lights
    to_eye = _unit(per_scene(scenes.viewpoint.eye, scene) - point)
    ambient = _openness(point, per_scene(scenes.size, scene) - point)
    diffuse = per_scene(lights.ambient, scene) * (ambient * (0.75 + 0.25 * normal[1]))
    shine = torch.zeros_like(diffuse)
    sources = ((lights.lamp_at, lights.lamp_light), (lights.window_at, lights.window_light))
    for number, (at, power) in enumerate(sources):
        way = per_scene(at, scene) - point
        distance = norm(way).clamp(min=0.05)
        way = way / distance
        strength = light[number] / (0.6 + distance * distance)
        if number == 1:
            strength = strength * -dot(way, per_scene(lights.window_normal, scene)).clamp(max=0)
        half = _unit(way + to_eye)
        power = per_scene(power, scene)
        diffuse = diffuse + power * (dot(normal, way).clamp(min=0) * strength)
        shine = shine + power * ((40 * dot(normal, half).clamp(min=0).log()).exp() * strength)  # cosine to the 40th
    return diffuse, shine


def _openness(point: Tensor, beyond: Tensor) -> Tensor:
    """How much ambient light reaches points (3,A,B), in [0,1]. It is less near walls, floor and ceiling.

    beyond: (3,A,B), the distances from each point to the right wall, to the ceiling and to the back wall, meters.
    """
    openness = torch.ones_like(point[0])
    for gap in (point[1], beyond[1], point[0], beyond[0], beyond[2]):
        openness = openness * (1 - torch.where(gap < 1e-3, 0.0, 0.38 * torch.exp(gap.clamp(min=0) / -0.22)))
    return openness


def _material(stage: Stage, surface: Surface, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Albedo (3,A,B,S), gloss (A,B) and glow (A,B,S) of the surface that each ray hits, at S points (3,A,B,S) on it."""
    scenes, own, side = stage.scenes, stage.parts.at(surface.slot), surface.side
    axis = torch.tensor([1, 1, 0, 0, 2, 2, 0, 1, 2], device=side.device)[side]  # axis of the normal
    x, y, z = tracer.turned(point - own.center[..., None], own.yaw[..., None])
    # Along a surface, u is the part's z on its x sides, else its x; v is its z on top and below, else its height.
    # Textures take (A*B,...).
    facing_x, level = axis == 0, axis == 1
    u, v = torch.where(facing_x[..., None], z, x).flatten(0, 1), torch.where(level[..., None], z, y).flatten(0, 1)
    reach_u = torch.where(facing_x, own.half[2], own.half[0]).flatten()
    reach_v = torch.where(level, own.half[2], own.half[1]).flatten()
    first, kind = own.first.flatten(1), own.texture.flatten()
    instance = torch.where(side < 6, side + 1, own.instance)
    seed = instance + per_scene((1000 * scenes.exposure).floor(), surface.scene)  # patterns differ between scenes
    seed = seed.flatten()
    color = textures.shade(kind, u, v, first, own.second.flatten(1), own.scale.flatten(), seed, reach_u, reach_v)
    glow = torch.zeros_like(u)
    bright = (own.semantic == LAMP) & (own.first.amin(0) > 0.15)  # shades and bulbs, not metal
    glow[(bright & per_scene(scenes.lights.lamp_on, surface.scene)).flatten()] = 1.3

    window = (kind == SKY).nonzero()[:, 0]
    s, t = u[window] / reach_u[window, None], v[window] / reach_v[window, None]
    frame = (s.abs() > 0.93) | (t.abs() > 0.93) | (s.abs() < 0.03) | (axis.flatten()[window, None] != 2)
    outside = textures.sky(s, t, first[:, window], seed[window])
    color[:, window] = outside.masked_fill(frame, 0.75)
    glow[window] = (~frame).float()

    color, glow = color.unflatten(1, side.shape), glow.unflatten(0, side.shape)
    skirting = ((side >= 2) & (side < 6))[..., None] & (point[1] < 0.09)
    return torch.where(skirting, per_scene(scenes.trim, surface.scene)[..., None], color), own.gloss, glow


def _unit(vector: Tensor) -> Tensor:
    """Vectors (3,...) scaled to length 1."""
    return vector / norm(vector).clamp(min=1e-12)
