"""Layers and initialization that several networks share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

Norm = Literal["batch", "group", "split"]


def normalization(norm: Norm, channels: int) -> nn.Module:
    """A normalization layer for maps of ``channels``.

    batch: batch normalization. split: ``SplitBatchNorm``. group: group normalization with 32 groups, or fewer if 32
    does not divide the channels. Raises ValueError for another name.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "split":
        return SplitBatchNorm(channels)
    if norm == "group":
        return nn.GroupNorm(num_groups=math.gcd(32, channels), num_channels=channels)
    raise ValueError(f"unknown normalization {norm!r}: use batch, split or group")


def normal_init(module: nn.Module) -> None:
    """DCGAN's initialization (Radford 2016), in place: weights N(0, .02), norms N(1, .02), biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def stage_maps(x: Tensor, strides: Iterable[int], stages: Iterable[nn.Module]) -> dict[int, Tensor]:
    """Passes ``x`` through the stages, one after the other. Returns the output of each stage: stride -> map."""
    maps = {}
    for stride, stage in zip(strides, stages, strict=True):
        x = maps[stride] = stage(x)
    return maps


class SplitBatchNorm(nn.Module):
    """Batch normalization that is computed separately for each of ``splits`` equal parts of the batch, as in MoCo.

    It is not a subclass of torch's batch norm, so that it is never synchronized over devices. Its running statistics
    are the means over the parts. If the batch cannot be divided into ``splits`` parts of at least two images, it uses
    fewer.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, splits: int = 4, momentum: float = 0.1) -> None:
        super().__init__()
        self.splits, self.momentum = splits, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        count, channels = x.shape[:2]
        # The largest number of parts up to self.splits that divides the batch, with at least two images in each.
        splits = next(s for s in range(self.splits, 0, -1) if s == 1 or (count % s == 0 and count >= 2 * s))
        # The parts become channels: (N,C,H,W) -> (N/S,S*C,H,W)
        parts = x.view(splits, count // splits, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        mean, var = self.running_mean.repeat(splits), self.running_var.repeat(splits)
        parts = batch_norm(parts, mean, var, self.weight.repeat(splits), self.bias.repeat(splits), True, self.momentum)
        with torch.no_grad():
            self.running_mean.copy_(mean.view(splits, channels).mean(0))
            self.running_var.copy_(var.view(splits, channels).mean(0))
        return parts.unflatten(1, (splits, channels)).transpose(0, 1).reshape_as(x)
