"""DCGAN's discriminator (Radford 2016, arXiv:1511.06434), SRGAN's, and PatchGAN. Their features can be transferred."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.layers import Norm, normal_init, normalization, stage_maps

DiscriminatorNorm = Literal["batch", "group", "spectral"]


@dataclass(frozen=True)
class DiscriminatorSpec:
    """Settings of a discriminator; ``build()`` makes it, with fresh weights."""

    size: int
    """Side of the square input images, px; at least 8."""
    width: int = 64
    """Channels of the first convolution. They double with each further one, up to 8 times this number."""
    norm: DiscriminatorNorm = "batch"
    """Normalization after each convolution except the first; spectral: spectral normalization of all weights instead
    (Miyato 2018, arXiv:1802.05957)."""

    def build(self) -> Discriminator:
        """Makes the discriminator. Raises ValueError with one line if the images are too small."""
        if self.size < 8:
            raise ValueError(f"a discriminator needs images of at least 8 px, not {self.size}")
        return Discriminator(self)

    def plain(self) -> dict[str, Any]:
        return {"kind": "discriminator", **asdict(self)}


class DiscriminatorEncoder(Encoder):
    """The discriminator without its last layer: 4x4 convolutions of stride 2, until the side is 4 to 7 px."""

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.channels = {}
        self.side = spec.size  # of the coarsest map
        layers, channels_in, stride = [], 3, 1
        while self.side >= 8:
            self.side, stride = self.side // 2, stride * 2
            channels = spec.width * min(stride // 2, 8)
            layers.append(_block(channels_in, channels, spec.norm, first=stride == 2))
            channels_in = self.channels[stride] = channels
        self.layers = nn.ModuleList(layers)
        normal_init(self)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return stage_maps(2 * image - 1, self.channels, self.layers)  # [0,1] -> [-1,1]


class Discriminator(nn.Module):
    """RGB (N,3,S,S) in [0,1], S = ``spec.size`` -> logits (N,), above 0 = real. Its ``encoder`` takes any size."""

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        self.encoder = DiscriminatorEncoder(spec)
        coarsest = max(self.encoder.channels)
        self.head = nn.Conv2d(self.encoder.channels[coarsest], 1, self.encoder.side)
        normal_init(self.head)
        if spec.norm == "spectral":
            for layer in list(self.modules()):
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, image: Tensor) -> Tensor:
        features = self.encoder(image)
        logits = self.head(features[max(features)])  # (N,1,1,1)
        return logits.view(len(image))


def _block(channels_in: int, channels: int, norm: DiscriminatorNorm, first: bool) -> nn.Sequential:
    """4x4 convolution of stride 2, norm, LeakyReLU. The first block, whose input is the image, has no norm."""
    if first or norm == "spectral":
        conv = nn.Conv2d(channels_in, channels, 4, stride=2, padding=1)
        return nn.Sequential(conv, nn.LeakyReLU(0.2, inplace=True))
    conv = nn.Conv2d(channels_in, channels, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, normalization(norm, channels), nn.LeakyReLU(0.2, inplace=True))


# --- SRGAN ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SRGANDiscriminatorSpec:
    """Settings of SRGAN's discriminator (Ledig 2017, arXiv:1609.04802, figure 4)."""

    size: int
    """Side of the square input images, px; a multiple of 16."""
    width: int = 64
    """Channels of the first convolutions; later ones have up to 8 times this number."""
    norm: Literal["batch", "group"] = "batch"

    def build(self) -> SRGANDiscriminator:
        """Makes the discriminator. Raises ValueError with one line if the size is not a multiple of 16 px."""
        if self.size % 16:
            raise ValueError(f"SRGAN's discriminator needs sides of a multiple of 16 px, not {self.size}")
        return SRGANDiscriminator(self)

    def plain(self) -> dict[str, Any]:
        return {"kind": "srgan-discriminator", **asdict(self)}


class SRGANDiscriminatorEncoder(Encoder):
    """SRGAN's eight 3x3 convolutions, in four pairs.

    The pairs have 1, 2, 4 and 8 times ``width`` channels. The second convolution of each pair has stride 2.
    """

    def __init__(self, spec: SRGANDiscriminatorSpec) -> None:
        super().__init__()
        self.spec: SRGANDiscriminatorSpec = spec
        self.channels = {2 << i: spec.width << i for i in range(4)}
        layers, channels_in = [], 3
        for stride, channels in self.channels.items():
            layers.append(
                nn.Sequential(
                    *_convolution(channels_in, channels, 1, None if stride == 2 else spec.norm),
                    *_convolution(channels, channels, 2, spec.norm),
                )
            )
            channels_in = channels
        self.layers = nn.ModuleList(layers)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return stage_maps(2 * image - 1, self.channels, self.layers)  # [0,1] -> [-1,1]


class SRGANDiscriminator(nn.Module):
    """RGB (N,3,S,S) in [0,1], S = ``spec.size`` -> logits (N,), above 0 = real. Its ``encoder`` takes any size."""

    def __init__(self, spec: SRGANDiscriminatorSpec) -> None:
        super().__init__()
        self.encoder = SRGANDiscriminatorEncoder(spec)
        flat = self.encoder.channels[16] * (spec.size // 16) ** 2
        self.head = nn.Sequential(nn.Linear(flat, 1024), nn.LeakyReLU(0.2, inplace=True), nn.Linear(1024, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.encoder(image)[16].flatten(1))[:, 0]


def _convolution(channels_in: int, channels: int, stride: int, norm: Norm | None, side: int = 3) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, side, stride, 1, bias=norm is None)
    return [conv, *([] if norm is None else [normalization(norm, channels)]), nn.LeakyReLU(0.2, inplace=True)]


# --- PatchGAN -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatchGanSpec:
    """Settings of a discriminator of patches (Isola 2017, arXiv:1611.07004), as LaMa uses it."""

    width: int = 64
    """Channels of the first convolution; the next ones have 2, 4 and 8 times this number."""
    norm: Literal["group", "batch", "none"] = "group"
    """Normalization after each convolution except the first. Not batch with a gradient penalty (``r1_penalty``)."""

    def build(self) -> PatchGan:
        return PatchGan(self)

    def plain(self) -> dict[str, Any]:
        return {"kind": "patch-gan", **asdict(self)}


class PatchGanEncoder(Encoder):
    """Three 4x4 convolutions of stride 2, then a 3x3 convolution."""

    def __init__(self, spec: PatchGanSpec) -> None:
        super().__init__()
        self.spec: PatchGanSpec = spec
        width = spec.width
        self.channels = {2: width, 4: 2 * width, 8: 8 * width}
        norm = None if spec.norm == "none" else spec.norm
        self.layers = nn.ModuleList(
            [
                nn.Sequential(*_convolution(3, width, 2, None, side=4)),
                nn.Sequential(*_convolution(width, 2 * width, 2, norm, side=4)),
                nn.Sequential(
                    *_convolution(2 * width, 4 * width, 2, norm, side=4), *_convolution(4 * width, 8 * width, 1, norm)
                ),
            ]
        )

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return stage_maps(2 * image - 1, self.channels, self.layers)  # [0,1] -> [-1,1]


class PatchGan(nn.Module):
    """RGB (N,3,H,W) in [0,1] -> logits (N,1,H/8,W/8), one for each patch of 54 px, above 0 = real."""

    def __init__(self, spec: PatchGanSpec) -> None:
        super().__init__()
        self.encoder = PatchGanEncoder(spec)
        self.head = nn.Conv2d(self.encoder.channels[8], 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.judge(image)[0]

    def judge(self, image: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The logits, and the maps of the encoder by stride."""
        maps = self.encoder(image)
        return self.head(maps[8]), maps
