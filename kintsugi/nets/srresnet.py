"""SRResNet, SRGAN's generator (Ledig 2017, arXiv:1609.04802, figure 4): enlarges images 4 times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from kintsugi.augment.bicubic import enlarge, shrink
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.layers import Norm, normalization

SCALE = 4


@dataclass(frozen=True)
class SRResNetSpec:
    """Settings of the generator. The paper's are 16 blocks of 64 channels with batch norm."""

    blocks: int = 16
    width: int = 64
    norm: Norm = "batch"

    def build(self) -> SRResNet:
        return SRResNet(self)

    def plain(self) -> dict[str, Any]:
        return {"kind": "srresnet", **asdict(self)}

    @property
    def reach(self) -> int:
        """How many px of the small image around a pixel can have an effect on its enlargement."""
        return 4 + 2 * self.blocks + 1 + 1 + 1 + 1 + 3  # 9x9, blocks, 3x3, two up, 9x9 at 4 times the size, bicubic


class Trunk(Encoder):
    """SRResNet's encoder: all layers before the enlargement.

    As an encoder it takes images of the size of SRResNet's output, and shrinks them 4 times, as in training. So its
    features have stride 4. Those of strides 8 and 16 are averages of them over 2x2 and 4x4 positions.
    """

    def __init__(self, spec: SRResNetSpec) -> None:
        super().__init__()
        self.spec: SRResNetSpec = spec
        self.channels = {4: spec.width, 8: spec.width, 16: spec.width}
        self.first = nn.Sequential(nn.Conv2d(3, spec.width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*[_SRBlock(spec.width, spec.norm) for _ in range(spec.blocks)])
        self.last = nn.Sequential(
            nn.Conv2d(spec.width, spec.width, 3, padding=1, bias=False), normalization(spec.norm, spec.width)
        )

    def small(self, image: Tensor) -> Tensor:
        """Features (N,C,h,w) of small images (N,3,h,w) in [0,1], including the long skip connection."""
        x = self.first(image)
        return x + self.last(self.blocks(x))

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        height, width = (side // 16 * 16 for side in image.shape[-2:])
        features = self.small(shrink(image[..., :height, :width], SCALE))
        return {4: features, 8: avg_pool2d(features, 2), 16: avg_pool2d(features, 4)}


class SRResNet(nn.Module):
    """Enlarges images 4 times: RGB (N,3,h,w) in [0,1] -> (N,3,4h,4w) in about [0,1], not clipped.

    Deviation: it predicts the difference from the bicubic enlargement (as in Kim 2016, arXiv:1511.04587), so that
    training starts at that baseline and is faster.
    """

    def __init__(self, spec: SRResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Trunk(spec)
        self.up = nn.Sequential(
            *[
                layer
                for _ in range(2)
                for layer in (nn.Conv2d(spec.width, 4 * spec.width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
            ]
        )
        self.last = nn.Conv2d(spec.width, 3, 9, padding=4)
        nn.init.zeros_(self.last.weight)  # so that the first outputs are the bicubic enlargement
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, image: Tensor) -> Tensor:
        return enlarge(image, SCALE) + self.last(self.up(self.encoder.small(image))).float()


class SelfEnsemble(nn.Module):
    """The mean of a network's results for the eight orientations of an image: quarter turns, and each mirrored.

    Each result is turned back first (Lim 2017, arXiv:1707.02921, section 3.3). Input and output as of ``SRResNet``; it
    takes eight times as long.
    """

    def __init__(self, net: SRResNet) -> None:
        super().__init__()
        self.net = net
        self.spec = net.spec

    def forward(self, image: Tensor) -> Tensor:
        results = []
        for turns in range(4):
            turned = torch.rot90(image, turns, (2, 3))
            for result in (self.net(turned), self.net(turned.flip(3)).flip(3)):
                results.append(torch.rot90(result, -turns, (2, 3)))
        return torch.stack(results).mean(0)


class _SRBlock(nn.Module):
    """A residual block: 3x3 convolution, norm, PReLU, 3x3 convolution, norm."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            normalization(norm, width),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            normalization(norm, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


# --- images of any size ---------------------------------------------------------------------------------------


def tiles(height: int, width: int, tile: int) -> int:
    """The number of tiles into which ``pieces`` cuts an image."""
    return math.ceil(height / tile) * math.ceil(width / tile)


@torch.no_grad()
def pieces(image: Tensor, net: SRResNet | SelfEnsemble, tile: int = 128) -> Iterator[tuple[int, int, Tensor]]:
    """Enlarges an image (3,h,w) in [0,1] in tiles of ``tile`` px. Yields top, left and pixels of each enlarged tile.

    top and left are px in the large image. Pixels are (3,H,W) in [0,1], on the CPU. Each tile is enlarged together with
    a margin of the network's ``reach``, so that the result is the same as for the whole image.
    """
    device = next(net.parameters()).device
    _, height, width = image.shape
    margin = net.spec.reach
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(0, top - margin), max(0, left - margin)
            seen = image[:, y : bottom + margin, x : right + margin]
            painted = net(seen[None].to(device))[0].clamp(0, 1).cpu()
            inner = painted[:, SCALE * (top - y) : SCALE * (bottom - y), SCALE * (left - x) : SCALE * (right - x)]
            yield SCALE * top, SCALE * left, inner


def upscale(image: Tensor, net: SRResNet | SelfEnsemble, tile: int = 128) -> Tensor:
    """Enlarges an image of any size 4 times, in tiles: (3,h,w) in [0,1] -> (3,4h,4w) in [0,1], on the CPU.

    tile: side of the tiles, px of the small image.
    """
    _, height, width = image.shape
    large = torch.empty(3, SCALE * height, SCALE * width)
    for top, left, piece in pieces(image, net, tile):
        large[:, top : top + piece.shape[1], left : left + piece.shape[2]] = piece
    return large
