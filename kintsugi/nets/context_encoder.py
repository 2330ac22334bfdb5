"""The generator of a context encoder: encoder, bottleneck, decoder (Pathak 2016, arXiv:1604.07379, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kintsugi.nets.decoders import ChannelwiseLinear, Decoder
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import Network
from kintsugi.nets.layers import Norm, normalization

MEAN_COLOR = (123 / 255, 117 / 255, 104 / 255)  # RGB with which the authors fill the hole


class ContextEncoder(nn.Module):
    """Paints holes: RGB (N,3,S,S) in [0,1] and holes (N,1,S,S), 1 = hole -> the whole image (N,3,S,S) in [0,1].

    S is ``size``. The encoder gets ``MEAN_COLOR`` in the holes. The backbone ``dcgan`` comes with the bottleneck of the
    authors' released network, all others with the paper's.
    """

    mean_color: Tensor

    def __init__(self, backbone: Network, norm: Norm, size: int) -> None:
        """norm: of bottleneck and decoder."""
        super().__init__()
        self.encoder: Encoder = backbone.build()
        stride, channels = max(self.encoder.channels.items())
        bottleneck = _dense_bottleneck if backbone.name == "dcgan" else _channelwise_bottleneck
        self.bottleneck = bottleneck(channels, size // stride, norm)
        widths = (256, 128, 64, 64)[5 - (stride.bit_length() - 1) :] if stride < 32 else (256, 128, 64, 64)
        self.decoder = Decoder(channels, widths, norm=norm)  # doubles the side log2(stride) times
        self.register_buffer("mean_color", torch.tensor(MEAN_COLOR).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        visible = image * (1 - mask) + self.mean_color * mask
        features = self.encoder(visible)
        coarsest = features[max(features)]  # (N,C,s,s)
        return self.decoder(self.bottleneck(coarsest))  # (N,C,s,s) -> (N,3,S,S); s is S/32 in most encoders


def _channelwise_bottleneck(channels: int, side: int, norm: Norm) -> nn.Module:
    """The paper's bottleneck: mixes each map over its own positions, then all maps by a 1x1 convolution."""
    return nn.Sequential(
        ChannelwiseLinear(channels, side**2, side**2),  # (N,C,side,side)
        nn.Conv2d(channels, channels, 1, bias=False),
        normalization(norm, channels),
        nn.ReLU(inplace=True),
    )


def _dense_bottleneck(channels: int, side: int, norm: Norm) -> nn.Module:
    """The bottleneck of the released 128-px network: everything passes through 4000 units."""
    return nn.Sequential(
        nn.Conv2d(channels, 4000, side, bias=False),  # (N,C,side,side) -> (N,4000,1,1)
        normalization(norm, 4000),
        nn.LeakyReLU(0.2, inplace=True),
        nn.ConvTranspose2d(4000, channels, side, bias=False),  # -> (N,C,side,side)
        normalization(norm, channels),
        nn.ReLU(inplace=True),
    )
