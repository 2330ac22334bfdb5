"""Encoders, all with one contract: RGB in [0,1] -> {stride: feature map} (``kintsugi.nets.encoder``)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.layers import Norm, normal_init, normalization, stage_maps

__all__ = ["Backbone", "Encoder"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """Settings of an encoder; ``build()`` makes it, with fresh weights."""

    name: Literal["resnet18", "resnet50", "alexnet", "dcgan"] = "resnet18"
    norm: Norm = "batch"
    width: float = 1.0
    """Multiplies all numbers of channels: 1, or 0.5 for each half of a split-brain network."""
    stem: Literal["large", "medium", "small"] = "large"
    """For ResNets only. small: a 3x3 convolution of stride 1 and no pooling, for images of about 32 px; the strides are
    then 1, 2, 4, 8. medium: a 3x3 convolution of stride 2 and no pooling, for about 64 px; strides 2, 4, 8, 16."""

    def build(self) -> Encoder:
        """Makes the encoder. Raises ValueError with one line for settings that do not fit."""
        if self.stem != "large" and not self.name.startswith("resnet"):
            raise ValueError(f"{self.name} has no {self.stem} stem: use a ResNet")
        kinds = {"resnet18": ResNet, "resnet50": ResNet, "alexnet": AlexNet, "dcgan": DCGAN}
        if self.name in kinds:
            encoder = kinds[self.name](self)
            return encoder if self.width == 1 else _thinned(encoder, self.width)
        raise ValueError(f"unknown backbone {self.name!r}: use resnet18, resnet50, alexnet or dcgan")

    def plain(self) -> dict[str, Any]:
        """As ``Spec.plain``."""
        return {"kind": "backbone", **asdict(self)}


def _thinned(encoder: Encoder, width: float) -> Encoder:
    """The same network with ``width`` times the channels everywhere except in its input, and with fresh weights."""
    for parent in list(encoder.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d):
                channels_in = layer.in_channels if layer.in_channels == 3 else int(width * layer.in_channels)
                thin = nn.Conv2d(
                    channels_in,
                    int(width * layer.out_channels),
                    layer.kernel_size[0],
                    layer.stride[0],
                    int(layer.padding[0]),
                    bias=layer.bias is not None,
                )
                if layer.bias is None:
                    nn.init.kaiming_normal_(thin.weight, mode="fan_out", nonlinearity="relu")
                setattr(parent, name, thin)
            elif isinstance(layer, nn.BatchNorm2d):
                setattr(parent, name, nn.BatchNorm2d(int(width * layer.num_features)))
            elif isinstance(layer, nn.GroupNorm):
                setattr(parent, name, normalization("group", int(width * layer.num_channels)))
    encoder.channels = {stride: int(width * channels) for stride, channels in encoder.channels.items()}
    return encoder


class _ImageNetNormalized(Encoder):
    """An encoder that normalizes its input by ImageNet's mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Backbone) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def normalized(self, image: Tensor) -> Tensor:
        """Images (N,3,H,W) in [0,1], normalized by ImageNet's mean and standard deviation."""
        return (image - self.mean) / self.std


class ResNet(_ImageNetNormalized):
    """torchvision's ResNet without its classifier (He 2016, arXiv:1512.03385). The weights keep torchvision's names."""

    def __init__(self, spec: Backbone) -> None:
        from torchvision.models import resnet18, resnet50  # imported here: slow, and --help does not need it

        super().__init__(spec)
        make = resnet18 if spec.name == "resnet18" else resnet50
        net = make(norm_layer=partial(normalization, spec.norm))
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        finest = {"large": 4, "medium": 2, "small": 1}[spec.stem]
        if spec.stem != "large":  # small: as for CIFAR in SimCLR (Chen 2020, arXiv:2002.05709, appendix B.9)
            self.conv1 = nn.Conv2d(3, 64, 3, stride=finest, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        coarsest = net.fc.in_features
        self.channels = {finest << i: coarsest >> (3 - i) for i in range(4)}

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        x = self.normalized(image)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N,64,H/4,W/4), or (N,64,H,W)
        return stage_maps(x, self.channels, (self.layer1, self.layer2, self.layer3, self.layer4))


class AlexNet(_ImageNetNormalized):
    """torchvision's AlexNet up to pool5 (Krizhevsky 2014, arXiv:1404.5997): conv1, conv2, conv5, pool5.

    The convolutions' weights have torchvision's names and shapes. Two deviations: a normalization after each
    convolution replaces local response normalization, as in later self-supervised work; and the pools are padded by 1,
    so that the maps have sides H/8, H/16, H/32 as in the other encoders, and images of 32 px are large enough.
    """

    channels = {4: 64, 8: 192, 16: 256, 32: 256}  # noqa: RUF012  (the contract's attribute, the same for all instances)

    def __init__(self, spec: Backbone) -> None:
        from torchvision.models import alexnet  # imported here: slow, and --help does not need it

        super().__init__(spec)
        self.features = alexnet().features
        for i, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):  # the norm joins the ReLU, so that no index changes
                norm = normalization(spec.norm, layer.out_channels)
                self.features[i + 1] = nn.Sequential(norm, nn.ReLU(inplace=True))
            elif isinstance(layer, nn.MaxPool2d):
                layer.padding = 1

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        conv1 = self.features[0:2](self.normalized(image))  # (N,64,H/4,W/4)
        conv2 = self.features[2:5](conv1)  # (N,192,H/8,W/8)
        conv5 = self.features[5:12](conv2)  # (N,256,H/16,W/16)
        pool5 = self.features[12](conv5)  # (N,256,H/32,W/32)
        return {4: conv1, 8: conv2, 16: conv5, 32: pool5}


class DCGAN(_ImageNetNormalized):
    """The encoder of the context encoder's released 128-px network, without its bottleneck (Pathak 2016)."""

    channels = {2: 64, 4: 64, 8: 128, 16: 256, 32: 512}  # noqa: RUF012

    def __init__(self, spec: Backbone) -> None:
        super().__init__(spec)
        layers, channels_in = [], 3
        for stride, channels in self.channels.items():
            first = stride == 2
            layers.append(
                nn.Sequential(
                    nn.Conv2d(channels_in, channels, 4, stride=2, padding=1, bias=first),
                    nn.Identity() if first else normalization(spec.norm, channels),
                    nn.LeakyReLU(0.2, inplace=True),
                )
            )
            channels_in = channels
        self.layers = nn.ModuleList(layers)
        normal_init(self)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return stage_maps(self.normalized(image), self.channels, self.layers)
