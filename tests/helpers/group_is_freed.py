"""Run under torchrun: checks that a process group is freed after a training that built an optimizer."""

from __future__ import annotations

import weakref

import torch
import torch.distributed as dist
from torch import nn

from kintsugi.train.dist import open_world

if __name__ == "__main__":
    with open_world("cpu", "fp32", 2) as world:
        group = weakref.ref(dist.group.WORLD)
        parameter = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.Adam([parameter])
        world.backward(parameter.sum(), optimizer)
        world.mean_gradients(optimizer)
        optimizer.step()
    assert group() is None, "the process group still exists: gloo's threads may abort the process when Python ends"
