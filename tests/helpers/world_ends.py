"""Under torchrun: a world in which an optimizer was built, and what is left of its process group after it."""

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
        parameter.grad = torch.ones(1)
        world.mean_gradients([parameter])
        optimizer.step()
    assert group() is None, "gloo's threads go on: as Python ends, they may abort the process"
