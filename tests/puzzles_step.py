"""One step of each method of questions: in the test's process, and, under torchrun, in each of several ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from core.rng import generator
from core.train.dist import World, open_world
from pretext import context, jigsaw, rotation
from pretext.puzzles import PuzzleMethod

COUNT = 4
PHOTOS = torch.randint(0, 256, (COUNT, 3, 48, 52), generator=generator(0), dtype=torch.uint8)


def one_step(world: World) -> dict[str, dict[str, Tensor]]:
    """Of each method what a step on the same global batch leaves: loss and gradients."""
    # Group norm, because torch has batch statistics over several processes for GPUs only.
    same = {"size": 48, "batch": COUNT, "norm": "group", "precision": "fp32"}
    few = {"dim": 8, "hidden": 16}
    methods: list[PuzzleMethod] = []
    torch.manual_seed(0)
    methods.append(rotation.Rotation(replace(rotation.demo(), **same), world))
    methods.append(jigsaw.Jigsaw(replace(jigsaw.demo(), **same, **few, tile=12, permutations=4), world))
    methods.append(context.Context(replace(context.demo(), **same, **few, patch=12, gap=5, jitter=1), world))
    left = {}
    for method in methods:
        world.place(method.networks.values(), channels_last=False, compile=False)
        batch = {
            "image": world.slice(PHOTOS),
            "extent": torch.tensor([[48, 52]]).repeat(COUNT // world.size, 1),
        }
        scalars = method.update(batch, 0)
        moments = [inner["exp_avg"].flatten() for inner in method.optimizers["all"].state.values()]
        left[method.name] = {
            "loss": world.mean(scalars["loss/cross_entropy"]),
            "gradients": torch.cat(moments),
        }
        if world.is_main:  # alone: waiting here for the others would be for ever
            method.show(batch)
            method.evaluate([batch])
    return left


if __name__ == "__main__":
    with open_world("cpu", "fp32", COUNT) as world:
        left = one_step(world)
        if world.is_main:
            torch.save(left, Path(sys.argv[1]))
