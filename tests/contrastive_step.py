"""One step of each method: in the test's process, and, under torchrun, in each of several ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from contrastive import byol, cpc, moco, simclr
from core.rng import generator
from core.train.dist import World, open_world

COUNT = 8
PHOTOS = torch.randint(0, 256, (COUNT, 3, 40, 44), generator=generator(0), dtype=torch.uint8)


def one_step(world: World) -> dict[str, dict[str, Tensor]]:
    """Of each method what a step on the same global batch leaves: loss, gradients (LARS's scaled ones), and queue."""
    # Group norm, because torch has batch statistics over several processes for GPUs only.
    same = {"size": 32, "batch": COUNT, "norm": "group", "log_every": 1}
    methods = {
        "simclr": (simclr.SimCLR, replace(simclr.demo(), **same, optimizer="lars")),
        "moco": (moco.MoCo, replace(moco.demo(), **same, queue=20, symmetric=True)),
        "byol": (byol.BYOL, replace(byol.demo(), **same, hidden=16, dim=8)),
        "cpc": (cpc.CPC, replace(cpc.demo(), size=32, batch=COUNT, patch=8, dim=16)),
    }
    left = {}
    for name, (build, config) in methods.items():
        torch.manual_seed(0)
        method = build(config, world)
        world.place(method.networks.values(), channels_last=False, compile=False)
        batch = {
            "image": world.slice(PHOTOS),
            "extent": torch.tensor([[40, 44]]).repeat(COUNT // world.size, 1),
        }
        scalars = method.update(batch, 0)
        (optimizer,) = method.optimizers.values()
        moments = [inner.get("exp_avg", inner.get("momentum_buffer")) for inner in optimizer.state.values()]
        loss = next(value for key, value in scalars.items() if key.startswith("loss/"))
        queue = method.queue.keys if isinstance(method, moco.MoCo) else torch.zeros(1)
        left[name] = {
            "loss": world.mean(loss), "gradients": torch.cat([m.flatten() for m in moments]), "queue": queue,
        }  # fmt: skip
        if world.is_main:  # alone: waiting here for the others would be for ever
            method.show(batch)
            method.evaluate([batch])
    return left


if __name__ == "__main__":
    with open_world("cpu", "fp32", COUNT) as world:
        left = one_step(world)
        if world.is_main:
            torch.save(left, Path(sys.argv[1]))
