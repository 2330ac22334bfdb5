"""The methods of clips at their smallest, and clips for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kintsugi.pretext import frame_order, odd_one_out
from kintsugi.rng import generator
from kintsugi.train.dist import World

COUNT = 8
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


def build(name: str, world: World, **settings: Any) -> Any:
    torch.manual_seed(0)
    method, demo = METHODS[name]
    return method(replace(demo(), **{**TINY_NETS, **settings}), world)
