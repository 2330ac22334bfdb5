"""Encoders of some planes of an image, such as its lightness, and encoders of RGB and HHA.

The input of all of them is RGB, or RGB and HHA. So ``eval`` can transfer features of methods that train on planes in
the same way as all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kintsugi.color import rgb_to_lab
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import Network


@dataclass(frozen=True)
class Planes:
    """The settings of ``PlaneEncoder``: a backbone that gets only some planes of the image.

    These are lightness (L), chroma (ab), or the gradients of lightness (sobel).
    """

    planes: Literal["L", "ab", "sobel"]
    backbone: Network

    def build(self) -> PlaneEncoder:
        return PlaneEncoder(self)

    def plain(self) -> dict[str, Any]:
        return {"kind": "planes", "planes": self.planes, "backbone": self.backbone.plain()}


@dataclass(frozen=True)
class Joined:
    """The settings of ``JoinedEncoder``: several encoders whose maps are concatenated.

    As in Zhang 2017 (arXiv:1611.09842, section 3.2).
    """

    parts: tuple[Planes, ...]

    def build(self) -> JoinedEncoder:
        return JoinedEncoder([part.build() for part in self.parts])

    def plain(self) -> dict[str, Any]:
        return {"kind": "joined", "parts": [part.plain() for part in self.parts]}


@dataclass(frozen=True)
class Rgbd:
    """The settings of ``RgbdEncoder``: a backbone for RGB and one for HHA (``kintsugi.data.hha``)."""

    rgb: Network
    hha: Network

    def build(self) -> RgbdEncoder:
        return RgbdEncoder(self.rgb.build(), self.hha.build())

    def plain(self) -> dict[str, Any]:
        return {"kind": "rgbd", "rgb": self.rgb.plain(), "hha": self.hha.plain()}


class PlaneEncoder(Encoder):
    """RGB (N,3,H,W) in [0,1] -> the maps of a backbone that gets only some planes of the image.

    Converts RGB to Lab inside.
    """

    def __init__(self, spec: Planes) -> None:
        super().__init__()
        self.spec: Planes = spec
        self.backbone: Encoder = spec.backbone.build()
        self.channels = self.backbone.channels

    @property
    def vector_length(self) -> int:
        return self.backbone.vector_length

    def vector(self, maps: dict[int, Tensor]) -> Tensor:
        return self.backbone.vector(maps)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return self.backbone(self.backbone_input(rgb_to_lab(image)))

    def backbone_input(self, lab: Tensor) -> Tensor:
        """Lab (N,3,H,W) -> the backbone's input, three planes (N,3,H,W) in about [0,1]."""
        if self.spec.planes == "L":
            return (lab[:, :1] / 100).expand(-1, 3, -1, -1)
        if self.spec.planes == "sobel":
            from kornia.filters import spatial_gradient  # imported here: slow, and --help does not need it

            gradient = spatial_gradient(lab[:, :1] / 100, "sobel", 1)[:, 0]  # (N,2,H,W): along x, along y
            return torch.cat([torch.full_like(lab[:, :1], 0.5), gradient + 0.5], 1)
        ab = lab[:, 1:] / 220 + 0.5
        return torch.cat([torch.full_like(ab[:, :1], 0.5), ab], 1)


class JoinedEncoder(Encoder):
    """RGB (N,3,H,W) in [0,1] -> the maps of several encoders, concatenated at each stride.

    parts: encoders with ``Planes`` as settings, trained or fresh.
    """

    def __init__(self, parts: Sequence[Encoder]) -> None:
        super().__init__()
        specs = [part.spec for part in parts]
        self.spec: Joined = Joined(tuple(spec for spec in specs if isinstance(spec, Planes)))
        assert len(self.spec.parts) == len(parts)
        self.parts = nn.ModuleList(parts)
        self.channels = {stride: sum(part.channels[stride] for part in parts) for stride in parts[0].channels}

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        maps = [part(image) for part in self.parts]
        return {stride: torch.cat([found[stride] for found in maps], 1) for stride in self.channels}


class RgbdEncoder(Encoder):
    """RGB and HHA (N,6,H,W) in [0,1] -> the maps of an encoder for each, concatenated at each stride."""

    planes = 6

    def __init__(self, rgb: Encoder, hha: Encoder) -> None:
        """rgb, hha: encoders built from a ``Network``."""
        super().__init__()
        assert isinstance(rgb.spec, Network)
        assert isinstance(hha.spec, Network)
        self.spec: Rgbd = Rgbd(rgb.spec, hha.spec)
        self.rgb, self.hha = rgb, hha
        self.channels = {s: self.rgb.channels[s] + self.hha.channels[s] for s in self.rgb.channels}

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        rgb, hha = self.rgb(image[:, :3]), self.hha(image[:, 3:])
        return {stride: torch.cat([rgb[stride], hha[stride]], 1) for stride in self.channels}
