"""Decoders, which turn features into pictures and maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kintsugi.nets.layers import Norm, normal_init, normalization


class ChannelwiseLinear(nn.Module):
    """Channel-wise fully connected layer (Pathak 2016, arXiv:1604.07379, section 3.1).

    (N,C,h,w) with h*w = ``positions_in`` -> (N,C,s,s) with s*s = ``positions_out``. Each of the C maps has its own
    matrix from positions to positions; maps are not mixed. So it has C*h*w*s*s weights, while a dense layer would have
    C times as many. Raises ValueError if ``positions_out`` is not a square number.
    """

    def __init__(self, channels: int, positions_in: int, positions_out: int) -> None:
        super().__init__()
        self.side = isqrt(positions_out)
        if self.side**2 != positions_out:
            raise ValueError(f"positions_out must be a square number, not {positions_out}")
        # With this standard deviation, outputs have the same mean square as inputs.
        self.weight = nn.Parameter(torch.randn(channels, positions_out, positions_in) / positions_in**0.5)
        self.bias = nn.Parameter(torch.zeros(channels, positions_out))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("ncp,cqp->ncq", x.flatten(2), self.weight) + self.bias
        return mixed.unflatten(2, (self.side, self.side))


class Pyramid(nn.Module):
    """A feature pyramid (Lin 2017, arXiv:1612.03144): {stride: map} -> (N,out,H/s,W/s), s the finest stride.

    It goes from the coarsest stride to the finest. At each stride, a 1x1 convolution of the map is added to the result
    so far, enlarged twice; then follow a 3x3 convolution, a norm and a ReLU, with ``width`` channels. A final 1x1
    convolution gives ``out`` channels.
    """

    def __init__(self, channels: dict[int, int], out: int, width: int = 128, norm: Norm = "batch") -> None:
        super().__init__()
        self.strides = sorted(channels, reverse=True)  # coarse to fine
        self.lateral = nn.ModuleList(nn.Conv2d(channels[s], width, 1) for s in self.strides)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), normalization(norm, width), nn.ReLU())
            for _ in self.strides
        )
        self.last = nn.Conv2d(width, out, 1)

    def forward(self, features: dict[int, Tensor], added: dict[int, Tensor] | None = None) -> Tensor:
        """features: maps by stride, with the channels of the constructor.

        added: maps (N,width,H/stride,W/stride) by stride, which are added to the 1x1 convolutions of these strides.
        """
        x: Tensor | None = None
        for stride, lateral, smooth in zip(self.strides, self.lateral, self.smooth, strict=True):
            y = lateral(features[stride])
            if x is not None:
                y = y + interpolate(x, y.shape[-2:], mode="nearest")
            x = smooth(y + added[stride] if added is not None and stride in added else y)
        return self.last(x)


class Decoder(nn.Module):
    """Up-convolutions: features (N,C,h,w) -> RGB (N,3,H,W) in [0,1], where H = h * 2 ** (len(widths) + 1).

    Each layer doubles the side by repeating each position, followed by a 3x3 convolution. Transposed convolutions, as
    in the paper, have other weights for even and odd positions, which leaves a checkerboard (Odena 2016,
    doi:10.23915/distill.00003). The last layer is followed by a sigmoid, all others by a norm and a ReLU. widths: the
    channels between layers. Weights are initialized as in DCGAN (``normal_init``).
    """

    def __init__(self, channels_in: int, widths: Sequence[int], norm: Norm = "batch") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((channels_in, *widths)):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(narrow, wide, 3, padding=1, bias=False),
                normalization(norm, wide),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d((channels_in, *widths)[-1], 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        normal_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).float().sigmoid()  # in fp32, because bf16 near 1 is only as fine as 8-bit pixels
