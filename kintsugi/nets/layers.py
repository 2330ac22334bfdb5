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

    ``batches``: of how many batches of one size, one behind the other, the input consists in training. Each is split as
    it would be alone. The running statistics forget as much as with one after the other, but weigh all alike.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, splits: int = 4, momentum: float = 0.1) -> None:
        super().__init__()
        self.splits, self.momentum, self.batches = splits, momentum, 1
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        count, channels = len(x) // self.batches, x.shape[1]
        # The largest number of parts up to self.splits that divides a batch, with at least two images in each.
        splits = next(s for s in range(self.splits, 0, -1) if s == 1 or (count % s == 0 and count >= 2 * s))
        splits *= self.batches
        # The parts become channels: (N,C,H,W) -> (N/S,S*C,H,W), in memory too where channels come last there.
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        place = 3 if last else 1
        parts = (x.movedim(1, -1) if last else x).unflatten(0, (splits, -1)).movedim(0, place).flatten(place, place + 1)
        parts = parts.movedim(-1, 1) if last else parts
        # Few operations, because on a GPU those of so little data cost as much as those of much.
        scale = torch.stack([self.weight, self.bias]).repeat(1, splits)  # (2,S*C)
        state = torch.stack([self.running_mean, self.running_var]).repeat(1, splits)
        (mean, var), (weight, bias) = state.unbind(), scale.unbind()
        parts = batch_norm(parts, mean, var, weight, bias, True, 1 - (1 - self.momentum) ** self.batches)
        means = state.view(2, splits, channels).mean(1)
        torch._foreach_copy_([self.running_mean, self.running_var], list(means))
        maps = (parts.movedim(1, -1) if last else parts).unflatten(place, (splits, channels))
        maps = maps.movedim(place, 0).flatten(0, 1)
        return maps.movedim(-1, 1) if last else maps
