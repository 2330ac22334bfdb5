"""The methods that learn from clips at their smallest, and clips for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kintsugi.pretext import frame_order, odd_one_out
from kintsugi.rng import generator
from kintsugi.train.dist import World

COUNT = 8
WORLD = World(torch.device("cpu"))
METHODS = {
    "frame-order": (frame_order.FrameOrder, frame_order.demo),
    "odd-one-out": (odd_one_out.OddOneOut, odd_one_out.demo),
}
# Group norm, because torch synchronizes batch statistics of several processes on GPUs only.
TINY_NETS: dict[str, Any] = {"encoder": "alexnet", "norm": "group", "size": 32, "batch": COUNT, "dim": 16}


def noise(frames: int) -> dict[str, Tensor]:
    image = torch.randint(0, 256, (COUNT, frames, 3, 36, 40), generator=generator(0), dtype=torch.uint8)
    return {"image": image, "extent": torch.tensor([[36, 40]]).repeat(COUNT, 1), "index": torch.arange(COUNT)}


BATCHES = {"frame-order": noise(5), "odd-one-out": noise(6 * odd_one_out.demo().length)}


def still(frames: int, brightness: list[float]) -> dict[str, Tensor]:
    """Clips in which nothing moves, but the brightness drifts."""
    picture = torch.randint(20, 200, (5, 1, 3, 40, 44), generator=generator(0))
    image = (picture * torch.tensor(brightness).view(1, frames, 1, 1, 1)).round().byte()
    return {"image": image, "extent": torch.tensor([[40, 44]]).repeat(5, 1), "index": torch.arange(5)}


def build(name: str, world: World = WORLD, **settings: Any) -> Any:
    torch.manual_seed(0)
    method, demo = METHODS[name]
    return method(replace(demo(), **{**TINY_NETS, **settings}), world)
