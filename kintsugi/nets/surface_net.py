"""A network that predicts depth, surface normals and contours, and a discriminator of its features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import Network
from kintsugi.nets.layers import Norm, normalization

STRIDES = (16, 32)
"""Strides of the maps that the heads and the discriminator get. Of AlexNet it is conv5 alone, as in the paper."""
NEAR, FAR = 1.0, 8.0  # meters: the depths that are white and black in pictures of depth


@dataclass(frozen=True)
class SurfacePrediction:
    """Predicted surfaces of N images.

    log_depth: (N,1,H,W), logarithms of meters. normal: unit (N,3,H,W), camera axes. contour: logits (N,1,H,W).
    """

    log_depth: Tensor
    normal: Tensor
    contour: Tensor

    def pictures(self) -> list[Tensor]:
        """Depth, normals (x, y, z as red, green, blue) and contours, each (N,3,H,W) in [0,1]."""
        return [depth_picture(self.log_depth), self.normal / 2 + 0.5, self.contour.sigmoid().expand(-1, 3, -1, -1)]

    def expand(self, count: int) -> SurfacePrediction:
        """Repeats one prediction (N = 1) for each of ``count`` images."""
        shape = (count, -1, -1, -1)
        return SurfacePrediction(self.log_depth.expand(shape), self.normal.expand(shape), self.contour.expand(shape))


def mean_surfaces(depth: Tensor, normal: Tensor, contour: Tensor) -> SurfacePrediction:
    """The mean of N true surfaces at each pixel, as one prediction (N = 1).

    depth: (N,1,H,W) in meters, 0 = missing. normal: unit (N,3,H,W). contour: (N,1,H,W), 1 on contours, else 0.
    """
    known = depth > 0
    log_depth = torch.where(known, depth.clamp(min=1e-3).log(), 0).sum(0) / known.sum(0).clamp(min=1)
    mean_normal = normalize(normal.mean(0, keepdim=True), dim=1)
    return SurfacePrediction(log_depth[None], mean_normal, contour.mean(0, keepdim=True).clamp(1e-4, 1 - 1e-4).logit())


def depth_picture(log_depth: Tensor) -> Tensor:
    """A picture of log depth (N,1,H,W), logarithms of meters: gray (N,3,H,W) in [0,1].

    White is ``NEAR`` meters or less; black is ``FAR`` meters or more, or missing depth.
    """
    near, far = math.log(NEAR), math.log(FAR)
    gray = ((far - log_depth) / (far - near)).clamp(0, 1)
    missing = log_depth < math.log(2e-3)
    return torch.where(missing, 0, gray).expand(-1, 3, -1, -1)


class SurfaceNet(nn.Module):
    """An encoder with heads for depth, normals and contours."""

    def __init__(self, backbone: Network, norm: Norm) -> None:
        """backbone: with maps of stride 16. norm: of the heads."""
        super().__init__()
        self.encoder: Encoder = backbone.build()
        self.strides = [s for s in STRIDES if s in self.encoder.channels and (s == 16 or backbone.name != "alexnet")]
        self.channels = sum(self.encoder.channels[stride] for stride in self.strides)
        self.depth, self.normal, self.contour = (_head(self.channels, n, norm) for n in (1, 3, 1))

    def forward(self, image: Tensor, labeled: int | None = None) -> tuple[Tensor, SurfacePrediction]:
        """RGB (N,3,S,S) in [0,1] -> features (N,C,S/16,S/16), and predictions for the first ``labeled`` images."""
        maps = self.encoder(image)
        finest = maps[self.strides[0]]
        features = torch.cat(
            [finest] + [interpolate(maps[s], finest.shape[-2:], mode="nearest") for s in self.strides[1:]], 1
        )
        x = features[:labeled]
        log_depth, normal, contour = self.depth(x).float(), self.normal(x).float(), self.contour(x).float()
        return features.float(), SurfacePrediction(log_depth, normalize(normal, dim=1), contour)


def _head(channels: int, out: int, norm: Norm) -> nn.Sequential:
    """Up-convolutions to half of the image's side, then bilinear enlargement: (N,C,s,s) -> (N,out,16s,16s)."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise((channels, 64, 64, 32)):
        layers += [
            nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False),
            normalization(norm, narrow),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(32, out, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"))


class PatchDiscriminator(nn.Module):
    """Predicts for each patch of features whether the image is real: (N,C,s,s) -> logits (N,1,s/2,s/2), above 0 = real.

    At the paper's image size there are about 6x6 patches.
    """

    def __init__(self, channels: int, norm: Norm, width: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            normalization(norm, width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 1, bias=False),
            normalization(norm, width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)
