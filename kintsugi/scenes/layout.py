"""The layout of the built-in scenes: the room, what stands where, and what moves during a clip.

World axes: x right, y up, z forward, meters. A room is [0,width] x [0,height] x [0,depth]. The camera stands near z = 0
and faces into the room. All draws are (N,), one for each scene of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kintsugi.scenes import furniture, materials
from kintsugi.scenes.classes import CEILING, FLOOR, WALL
from kintsugi.scenes.draws import Draws
from kintsugi.scenes.lights_and_camera import draw_lights, draw_viewpoint
from kintsugi.scenes.pieces import PartTable, Piece, Pose
from kintsugi.scenes.scene_batch import Scenes
from kintsugi.scenes.textures import PLAIN, SKY

Options = Sequence[tuple[Callable[[Draws], Piece], int]]
"""Alternatives for one place in a room: functions that make a piece, and the weight of each.

Each scene draws one of the equally likely numbers 0, 1, 2, ... An option of weight w is chosen by w of these numbers;
the numbers that are left choose none.
"""

BACK_WALL: Options = ((furniture.sofa, 2), (furniture.bed, 2), (furniture.screen_unit, 1))  # of 8; else: two others
BACK_WALL_SIDES: Options = ((furniture.shelf, 2), (furniture.cupboard, 1), (furniture.desk, 1))  # of 4
SIDE_WALLS: Options = (  # of 6; else: nothing
    (furniture.shelf, 1),
    (furniture.cupboard, 1),
    (furniture.desk, 1),
    (furniture.armchair, 1),
)
CORNERS: Options = ((furniture.floor_lamp, 1), (furniture.plant, 2))  # of 4; else: nothing


def draw_scenes(draws: Draws, moment: Tensor) -> Scenes:
    """Lays out N scenes from their draws.

    moment (N,): the time within each scene's clip, 0 at its start, 1 at its end.
    """
    room = Room(draws, moment)
    room.furnish()
    window_at, window_normal, has_window = room.hang_on_walls()
    lamp_at = room.hang_lamp()
    lights = draw_lights(draws, lamp_at, window_at, window_normal, has_window)
    exposure = draws.between(0.34, 0.5)
    viewpoint = draw_viewpoint(draws, room.size, moment)
    return Scenes(room.size, room.trim, exposure, lights, viewpoint, room.table())


class Room:
    """The rooms of N scenes, while they are furnished.

    draws: for the N scenes. moment (N,): the time within each scene's clip, in [0,1].
    """

    def __init__(self, draws: Draws, moment: Tensor) -> None:
        self.draws, self.moment, self.zero = draws, moment, torch.zeros_like(moment)
        self.width, self.depth = draws.between(3.4, 5.6), draws.between(4.2, 6.5)
        self.height = draws.between(2.4, 2.9)
        self.size = torch.stack([self.width, self.height, self.depth], -1)  # (N,3)
        self.floor, self.wall = materials.flooring(draws), materials.wallpaper(draws)
        self.trim = draws.color(materials.WALLS[:1], 0.02)  # (N,3)
        self.parts = PartTable(self.zero)

    def table(self) -> Tensor:
        """The table of everything placed and of the room itself, (N,P+3,19), as ``PartTable.with_room`` returns it."""
        texture = torch.full_like(self.wall.texture, PLAIN)
        ceiling = replace(self.wall, texture=texture, first=self.trim, gloss=self.zero)
        return self.parts.with_room(((WALL, self.wall), (FLOOR, self.floor), (CEILING, ceiling)), self.size)

    def furnish(self) -> None:
        """Places what stands on the floor."""
        draws, zero = self.draws, self.zero
        back = draws.integer(8)
        self._one_of(BACK_WALL, back, self._at_back_wall(draws.between(0.42, 0.58)))
        two = back >= 5  # two narrower pieces instead of one
        for side in (0.24, 0.76):
            self._one_of(BACK_WALL_SIDES, draws.integer(4), self._at_back_wall(side), two)
        for sign, x in ((1, zero + 0.03), (-1, self.width - 0.03)):
            drawn = draws.integer(6)
            pose = Pose(x, zero, self.depth * draws.between(0.45, 0.6), zero + sign * math.pi / 2)
            self._one_of(SIDE_WALLS, drawn, pose)
        self._middle()
        for x in (zero + 0.35, self.width - 0.35):
            self._one_of(CORNERS, draws.integer(4), Pose(x, zero, self.depth - 0.38, zero), ~two)
        self._balls()
        self._cartons()

    def _at_back_wall(self, x: Tensor | float) -> Pose:
        """The pose of a piece with its back to the back wall. x: its place as a fraction of the wall's width."""
        return Pose(self.width * x, self.zero, self.depth - 0.03, self.zero + math.pi)

    def _one_of(self, options: Options, drawn: Tensor, pose: Pose, present: Tensor | None = None) -> None:
        """Places the option that each scene drew, if any, at the pose.

        All options are made, whether placed or not, so that the number of draws is fixed. drawn: the number that each
        scene drew, int64 (N,). present: bool (N,), which scenes get a piece at all; None = all.
        """
        first = 0
        for make, count in options:
            chosen = (drawn >= first) & (drawn < first + count)
            self.parts.place(make(self.draws), pose, chosen if present is None else chosen & present)
            first += count

    def _middle(self) -> None:
        """The middle of the room: a dining table, a low table on a rug, a rug, or nothing."""
        draws, kind = self.draws, self.draws.integer(4)
        x, z = self.width * draws.between(0.38, 0.62), self.depth * draws.between(0.4, 0.47)
        pose = Pose(x, self.zero, z, draws.between(-0.25, 0.25))
        self.parts.place(furniture.rug(draws), pose, (kind == 1) | (kind == 2))
        self.parts.place(furniture.dining_table(draws), pose, kind == 0)
        self.parts.place(furniture.low_table(draws), pose, kind == 1)

    def _balls(self) -> None:
        """Up to three balls on the floor.

        During a clip all of them roll away from the camera, the outer ones also towards the middle.
        """
        draws = self.draws
        for i in range(3):
            r, present = draws.between(0.09, 0.2), draws.chance(0.55)
            way = draws.between(0.3, 0.9) * self.moment  # meters
            x = self.width * (0.2 + 0.3 * i) + self.width * draws.between(-0.08, 0.08) + way * (0.5 - 0.5 * i)
            z = self.depth * draws.between(0.24, 0.36) + 0.4 * way
            pose = Pose(x, self.zero, z, draws.between(0, 3) + way / 0.2)
            self.parts.place(furniture.ball(draws, r), pose, present)

    def _cartons(self) -> None:
        """Up to two boxes on the floor. During a clip they slide away from the camera."""
        draws = self.draws
        for i in range(2):
            half = draws.between(0.12, 0.25), draws.between(0.12, 0.25), draws.between(0.12, 0.25)
            x = self.width * draws.between(0.18 + 0.5 * i, 0.3 + 0.5 * i)
            z = self.depth * draws.between(0.36, 0.42) + 0.2 * self.moment
            pose = Pose(x, self.zero, z, draws.between(-0.7, 0.7))
            present = draws.chance(0.45)
            self.parts.place(furniture.carton(draws, half), pose, present)

    def hang_on_walls(self) -> tuple[Tensor, Tensor, Tensor]:
        """Places windows, doors and pictures on the three walls in view. A room has at most one window.

        Returns the position of the window's middle (N,3), meters; its unit normal, which points into the room, (N,3);
        and whether the room has a window, bool (N,).
        """
        draws, zero = self.draws, self.zero
        poses = (
            Pose(self.width * draws.between(0.3, 0.7), zero, self.depth, zero + math.pi),
            Pose(zero, zero, self.depth * draws.between(0.62, 0.78), zero + math.pi / 2),
            Pose(self.width, zero, self.depth * draws.between(0.62, 0.78), zero - math.pi / 2),
        )
        window_at, window_normal, has_window = torch.zeros_like(self.size), torch.zeros_like(self.size), zero > 0
        glass = materials.material(draws, (SKY,), materials.SKIES)
        for number, pose in enumerate(poses):
            on_side, kind = number > 0, draws.integer(5)
            new = (kind <= int(on_side)) & ~has_window  # bool (N,)
            w, h, y = draws.between(0.45, 0.8), draws.between(0.45, 0.6), draws.between(1.45, 1.6)
            self.parts.place(furniture.window(draws, w, h, y, glass), pose, new)
            normal = torch.stack([pose.yaw.sin(), zero, pose.yaw.cos()], -1)
            at = torch.stack([pose.x, y, pose.z], -1) + 0.04 * normal
            window_at = torch.where(new[:, None], at, window_at)
            window_normal = torch.where(new[:, None], normal, window_normal)
            has_window = has_window | new
            self.parts.place(furniture.door(draws), pose, (kind == 2) & on_side)
            for x in (-0.35, 0.35):
                self.parts.place(furniture.picture(draws, x), pose, kind >= 2 + int(on_side))
        return window_at, window_normal, has_window

    def hang_lamp(self) -> Tensor:
        """Places a lamp that hangs from the ceiling, in all scenes. Returns where its light is, (N,3), meters."""
        y = self.height - self.draws.between(0.35, 0.6)
        x, z = self.width / 2, self.depth * self.draws.between(0.5, 0.65)
        self.parts.place(furniture.pendant(self.draws, y, self.height), Pose(x, self.zero, z, self.zero))
        return torch.stack([x, y, z], -1)
