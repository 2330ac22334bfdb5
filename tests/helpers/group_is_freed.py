"""Run under torchrun: checks that the process group is freed after a training.

shard: of sharded weights. fail: of a training that fails.
"""

from __future__ import annotations

import contextlib
import sys
import weakref

import torch
import torch.distributed as dist
from torch import nn

from kintsugi.train import optim, sharding
from kintsugi.train.dist import World, open_world


def train(world: World, *, fail: bool) -> None:
    networks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU())])
    optimizer = torch.optim.Adam(networks.parameters(), fused=True)
    if "shard" in sys.argv:
        sharding.shard(networks, [optimizer], world)
    world.backward(networks[0](torch.ones(2, 4)).sum(), optimizer)
    if not world.sharded:
        world.mean_gradients(optimizer)
    optim.take_step(optimizer)
    if fail:
        raise ValueError("a fault")


if __name__ == "__main__":
    with contextlib.suppress(ValueError), open_world("cpu", "fp32", 2) as world:
        group = weakref.ref(dist.group.WORLD)
        train(world, fail="fail" in sys.argv)
    assert group() is None, "the process group still exists: gloo's threads may abort the process when Python ends"
