"""One step of each method of clips: in the test's process, and, under torchrun, in each of several ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.rng import generator
from core.train.dist import World, open_world
from pretext import frame_order, odd_one_out

COUNT = 4
METHODS = {
    "frame-order": (frame_order.FrameOrder, frame_order.demo),
    "odd-one-out": (odd_one_out.OddOneOut, odd_one_out.demo),
}
# Group norm, because torch has batch statistics over several processes for GPUs only.
TINY_NETS: dict[str, Any] = {"encoder": "alexnet", "norm": "group", "size": 32, "batch": COUNT, "dim": 16}


def drawn(frames: int) -> dict[str, Tensor]:
    image = torch.randint(0, 256, (COUNT, frames, 3, 36, 40), generator=generator(0), dtype=torch.uint8)
    return {"image": image, "extent": torch.tensor([[36, 40]]).repeat(COUNT, 1), "index": torch.arange(COUNT)}


BATCHES = {"frame-order": drawn(5), "odd-one-out": drawn(6 * odd_one_out.demo().length)}


def one_step(world: World) -> dict[str, dict[str, Tensor]]:
    """Of each method what a step on the same global batch leaves: loss and gradients."""
    left = {}
    for name, (build, demo) in METHODS.items():
        torch.manual_seed(0)
        method = build(replace(demo(), **TINY_NETS), world)  # type: ignore[arg-type,type-var]
        world.place(method.networks.values(), channels_last=False, compile=False)
        batch = {key: world.slice(value) for key, value in BATCHES[name].items()}
        scalars = method.update(batch, 0)
        moments = [inner["exp_avg"] for inner in method.optimizers["both"].state.values()]
        gradients = torch.cat([m.flatten() for m in moments])
        left[name] = {"loss": world.mean(scalars["loss/cross_entropy"]), "gradients": gradients}
        if world.is_main:  # alone: waiting here for the others would be for ever
            method.show(batch)
            method.evaluate([batch])
    return left


if __name__ == "__main__":
    with open_world("cpu", "fp32", COUNT) as world:
        left = one_step(world)
        if world.is_main:
            torch.save(left, Path(sys.argv[1]))
