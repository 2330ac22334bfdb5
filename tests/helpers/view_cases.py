"""The contrastive methods at their smallest, and images for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kintsugi.contrastive import byol, cpc, dino, lejepa, moco
from kintsugi.rng import generator
from kintsugi.train.dist import World

WORLD = World(torch.device("cpu"))
BATCH = {
    "image": torch.randint(0, 256, (8, 3, 40, 44), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[40, 44]]).repeat(8, 1),
    "index": torch.arange(8),
}


def small_moco(world: World = WORLD, **settings: Any) -> moco.MoCo:
    torch.manual_seed(0)
    few = {"batch": 8, "queue": 24, "dim": 16, "norm": "group"}
    return moco.MoCo(replace(moco.demo(), **{**few, **settings}), world)


def small_byol(**settings: Any) -> byol.BYOL:
    torch.manual_seed(0)
    few = {"size": 32, "batch": 8, "hidden": 64, "dim": 32, "steps": 40, "warmup": 5}
    return byol.BYOL(replace(byol.demo(), **{**few, **settings}), WORLD)


def small_dino(**settings: Any) -> dino.DINO:
    torch.manual_seed(0)
    few = {"size": 32, "batch": 8, "local_crops": 3, "local_size": 32, "hidden": 64, "bottleneck": 16, "outputs": 32}
    return dino.DINO(replace(dino.demo(), **{**few, "steps": 40, "warmup": 5, "frozen": 1, **settings}), WORLD)


def small_lejepa(**settings: Any) -> lejepa.LeJEPA:
    torch.manual_seed(0)
    few = {"size": 32, "batch": 8, "local_crops": 3, "local_size": 32, "hidden": 64, "dim": 8, "directions": 32}
    return lejepa.LeJEPA(replace(lejepa.demo(), **{**few, "steps": 40, "warmup": 5, **settings}), WORLD)


def small_cpc() -> cpc.CPC:
    torch.manual_seed(0)
    return cpc.CPC(replace(cpc.demo(), size=32, patch=8, dim=16, batch=8), WORLD)
