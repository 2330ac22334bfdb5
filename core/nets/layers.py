"""Layers and initialisation that several networks share."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

Norm = Literal["batch", "group"]


def normalization(norm: Norm, channels: int) -> nn.Module:
    """Batch normalisation, or group normalisation in 32 groups (fewer if 32 does not divide them)."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(num_groups=math.gcd(32, channels), num_channels=channels)
    raise ValueError(f"unknown normalisation {norm!r}: use batch or group")


def normal_init(module: nn.Module) -> None:
    """DCGAN's initialisation (Radford 2016), in place: weights N(0, .02), norms N(1, .02), biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
