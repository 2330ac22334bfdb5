"""Random images and weights, for tests of networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kintsugi.rng import generator


def pictures(*shape: int) -> Tensor:
    """Random images of this shape in [0,1], the same at every call."""
    return torch.rand(*shape, generator=generator(0))


def randomize_statistics(net: nn.Module) -> nn.Module:
    """The network in evaluation mode, with running averages as after some training, so that mixed-up ones show."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return net.eval()
