"""Run under torchrun on two ranks: how batch norm sees the global batch. Argument: cpu, or cuda (one GPU is enough)."""

from __future__ import annotations

import copy
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kintsugi.rng import generator
from kintsugi.train.dist import World, open_world


def trained(net: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """The loss of a network, 0-d, whose gradients depend on the statistics of the batch."""
    return (net.train()(image) - target).square().mean()


def networks(world: World) -> tuple[nn.Sequential, nn.Sequential, Tensor, Tensor]:
    """A network on ranks, the same one alone, and the global batch with its targets."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    alone = copy.deepcopy(net).to(world.device)
    world.place([net], channels_last=False)
    image, target = (torch.randn(8, c, s, s, generator=generator(c)).to(world.device) for c, s in ((3, 8), (4, 6)))
    return net, alone, image * torch.arange(8, device=world.device).view(8, 1, 1, 1), target


def own_share(world: World) -> None:
    """On a CPU each rank normalizes its own share, because torch has synchronized batch norm for GPUs only."""
    net, alone, image, target = networks(world)
    assert type(net[1]) is nn.BatchNorm2d
    trained(net, world.slice(image), world.slice(target))
    trained(alone, world.slice(image), world.slice(target))
    assert torch.equal(net[1].running_mean, alone[1].running_mean)
    means = world.gather(net[1].running_mean[None])
    assert not torch.allclose(means[0], means[1])
    with pytest.raises(ValueError, match="GPU"):  # if torch does it one day, World.place should too
        nn.SyncBatchNorm(3).train()(image)


def whole_batch(world: World) -> None:
    """On GPUs the ranks normalize the global batch, and have the gradients and statistics of one process."""
    net, alone, image, target = networks(world)
    assert type(net[1]) is nn.SyncBatchNorm
    world.backward(trained(net, world.slice(image), world.slice(target)), torch.optim.SGD(net.parameters(), 0.1))
    trained(alone, image, target).backward()
    for (name, one), two in zip(alone.named_parameters(), net.parameters(), strict=True):
        if name != "0.bias":  # batch norm takes it out again: its gradient is 0
            assert one.grad is not None
            assert one.grad.norm() > 0, name
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6)
    for one, two in zip(alone[1].buffers(), net[1].buffers(), strict=True):
        torch.testing.assert_close(two, one)


if __name__ == "__main__":
    if sys.argv[1] == "cpu":
        with open_world("cpu", "fp32", 8) as world:
            own_share(world)
    else:
        dist.init_process_group("gloo")  # NCCL allows one rank on each GPU only
        world = World(torch.device("cuda", 0), int(os.environ["RANK"]), 2)
        whole_batch(world)
        world.close()
        dist.destroy_process_group()
