"""Run under torchrun: the gradients of a third step are those of a run that begins with it, bit for bit.

From three ranks on, the order in which gradients are added matters.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kintsugi.rng import generator
from kintsugi.train.dist import World, open_world


def gradients(net: nn.Module, optimizer: torch.optim.Optimizer, step: int, world: World) -> Tensor:
    optimizer.zero_grad()
    pixels = torch.randn(2, 3, 8, 8, generator=generator(step, world.rank))
    world.backward(net(pixels).square().mean(), optimizer)
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


if __name__ == "__main__":
    with open_world("cpu", "fp32", 3) as world:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 50, 3), nn.BatchNorm2d(50), nn.ReLU(), nn.Conv2d(50, 3, 3))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        *_, third = (gradients(net, optimizer, step, world) for step in range(3))
        resumed = replace(world, _averaging={})
        first = gradients(net, optimizer, 2, resumed)
        resumed.close()
    assert third.norm() > 0
    assert torch.equal(third, first), (third - first).abs().max()
