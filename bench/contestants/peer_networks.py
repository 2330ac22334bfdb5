"""The networks of the other libraries in the race, which are those that Kintsugi builds."""

from __future__ import annotations

import timm
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bench.contestants.laps import RaceSettings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VIT_MEAN = VIT_STD = (0.5, 0.5, 0.5)
HEAD = 32
"""Channels of each attention head of MAE's decoder."""


def resnet18(stem: str) -> nn.Module:
    """torchvision's ResNet-18 without its classifier, with fresh weights: normalized images (N,3,H,W) -> (N,512).

    stem: as in ``RaceSettings``.
    """
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    if stem == "small":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


def vit_tiny(settings: RaceSettings) -> VisionTransformer:
    """timm's ViT-Tiny without its classifier, with fresh weights, for the settings' crops and patches."""
    name = "vit_tiny_patch16_224"
    network = timm.create_model(name, img_size=settings.size, patch_size=settings.patch, num_classes=0)
    assert isinstance(network, VisionTransformer)
    return network
