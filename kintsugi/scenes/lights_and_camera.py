"""The lights and the camera of each built-in scene, in world axes (x right, y up, z forward, meters)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kintsugi.scenes.draws import Draws


@dataclass(frozen=True)
class Lights:
    """The lights of N scenes: a lamp that hangs from the ceiling, at most one window, and ambient light."""

    lamp_at: Tensor  # (N,3)
    lamp_light: Tensor  # (N,3) linear RGB; 0 where the lamp is off
    lamp_on: Tensor  # (N,) bool
    window_at: Tensor  # (N,3)
    window_normal: Tensor  # (N,3) unit, into the room
    window_light: Tensor  # (N,3) linear RGB; 0 without a window
    has_window: Tensor  # (N,) bool
    ambient: Tensor  # (N,3) linear RGB


@dataclass(frozen=True)
class Viewpoint:
    """The position, axes and field of view of the cameras of N scenes."""

    eye: Tensor  # (N,3)
    axes: Tensor  # (N,3,3), rows: right, down, ahead
    field: Tensor  # (N,) field of view along the longer side, radians


def draw_lights(draws: Draws, lamp_at: Tensor, window_at: Tensor, window_normal: Tensor, has_window: Tensor) -> Lights:
    """Draws which lights are on and how bright they are. The lamp is always on where there is no window."""
    warm, cool = torch.tensor([1.0, 0.86, 0.68]), torch.tensor([0.92, 0.97, 1.0])
    device = lamp_at.device
    lamp_on = torch.where(has_window, draws.chance(0.45), True)
    lamp_light = (lamp_on * draws.between(1.6, 2.8))[:, None] * warm.to(device)
    window_light = (has_window * draws.between(6.0, 11.0))[:, None] * cool.to(device)
    ambient = draws.between(0.22, 0.38)[:, None] * torch.lerp(warm, cool, 0.5).to(device)
    return Lights(lamp_at, lamp_light, lamp_on, window_at, window_normal, window_light, has_window, ambient)


def draw_viewpoint(draws: Draws, size: Tensor, moment: Tensor) -> Viewpoint:
    """Draws cameras near z = 0 that face into the rooms, and how they walk during a clip.

    size: (N,3), the rooms' width, height and depth, meters. moment: (N,), 0 at a clip's start, 1 at its end.
    """
    width, _, depth = size.unbind(-1)
    x, z = width * draws.between(0.22, 0.78), depth * draws.between(0.03, 0.1)  # at the start
    target = [width * draws.between(0.3, 0.7), draws.between(0.5, 1.0), depth * draws.between(0.75, 1.0)]
    eye_x = x + draws.between(-0.35, 0.35) * moment
    eye_y = draws.between(1.15, 1.75) + 0.05 * moment
    eye = torch.stack([eye_x, eye_y, z + draws.between(0.1, 0.4) * moment], -1)
    forward = torch.stack(target, -1) - eye
    yaw = torch.atan2(forward[:, 0], forward[:, 2]) + draws.between(-0.1, 0.1) + draws.between(-0.12, 0.12) * moment
    pitch = torch.atan2(forward[:, 1], forward[:, [0, 2]].norm(dim=-1))
    axes = _axes(yaw, pitch, roll=draws.between(-0.04, 0.04))
    return Viewpoint(eye, axes, draws.between(math.radians(58), math.radians(78)))


def _axes(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """A camera's axes in the world, unit (N,3,3), with the rows right, down, ahead. Angles are (N,), radians."""
    right = torch.stack([yaw.cos(), torch.zeros_like(yaw), -yaw.sin()], -1)
    ahead = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], -1)
    down = torch.stack([yaw.sin() * pitch.sin(), -pitch.cos(), yaw.cos() * pitch.sin()], -1)
    cos, sin = roll.cos()[:, None], roll.sin()[:, None]
    return torch.stack([cos * right + sin * down, cos * down - sin * right, ahead], 1)
