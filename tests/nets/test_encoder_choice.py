"""Any convolutional network and vision transformer of timm and torchvision is an encoder under the one contract."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import pictures

from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder_choice import chosen
from kintsugi.nets.planes import Joined, Planes, Rgbd
from kintsugi.nets.published import Published
from kintsugi.nets.specs import build_spec
from kintsugi.nets.vit import ViT

NETWORKS = [
    "timm:test_vit",
    "timm:test_convnext",
    "timm:test_efficientnet",
    "mobilenet_v3_small",
    "timm:mobilenetv3_small_050",
    "timm:convnext_atto",
    "timm:regnety_002",
    "timm:resnet26d",
    "timm:efficientnet_b0",
    "timm:vgg11_bn",
    "timm:densenet121",
    "timm:vit_tiny_patch16_224",
    "timm:deit_tiny_patch16_224",
]
QUICK = NETWORKS[:4]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETWORKS])
def test_a_network_keeps_the_contract_and_learns(name: str):
    torch.manual_seed(0)
    encoder = build_spec(chosen(name).plain())
    image = pictures(2, 3, 64, 96)
    vectors = encoder.train().vectors(image)
    assert vectors.shape == (2, encoder.vector_length)
    vectors.square().sum().backward()
    assert sum(p.grad is not None for p in encoder.parameters()) > 5
    with torch.no_grad():
        maps = encoder.eval()(image)
    assert {stride: x.shape[1] for stride, x in maps.items()} == encoder.channels
    assert list(maps) == sorted(maps)
    for stride, x in maps.items():
        assert abs(x.shape[2] - 64 / stride) <= 1
        assert abs(x.shape[3] - 96 / stride) <= 1


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_convnext"])
@torch.no_grad()
def test_planes_and_joined_encoders_take_any_network(name: str):
    network = chosen(name)
    image = pictures(1, 6, 64, 64)
    for spec in (Planes("L", network), Joined((Planes("L", network), Planes("ab", network))), Rgbd(network, network)):
        encoder = build_spec(spec.plain()).eval()
        maps = encoder(image[:, : encoder.planes])
        assert {stride: x.shape[1] for stride, x in maps.items()} == encoder.channels
        assert encoder.spec == spec


def test_names_mean_networks():
    assert chosen("resnet18", "group", "small") == Backbone("resnet18", "group", stem="small")
    assert chosen("squeezenet1_0") == Published("squeezenet1_0")
    assert chosen("timm:resnet18") == Published("timm:resnet18")
    assert chosen("timm:vit_tiny_patch16_224", size=64, patch=8) == ViT("vit_tiny_patch16_224", 64, 8)
    assert chosen("vit_tiny_patch16_224") == ViT("vit_tiny_patch16_224")
    assert chosen("timm:vit_tiny_patch16_224.augreg_in21k") == ViT("vit_tiny_patch16_224.augreg_in21k")


def test_checkpoints_of_version_0_1_are_read():
    """They spell timm's networks ``timm/NAME``."""
    assert build_spec({"kind": "published", "name": "timm/test_convnext"}).channels[32] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "timm:resnet26d", "norm": "group"}, "--norm group is for resnet18, resnet50, alexnet only"),
        ({"name": "timm:resnet26d", "stem": "small"}, "--stem small is for ResNets only"),
        ({"name": "alexnet", "stem": "small"}, "--stem small is for ResNets only .* not for alexnet"),
        ({"name": "timm:resnet26d", "width": 0.5}, "--width 0.5 is for"),
        ({"name": "resnet18", "patch": 8}, "--encoder-patch is for vision transformers"),
    ],
)
def test_options_that_do_not_fit_are_one_line(arguments: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        chosen(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:convnext_ato", r"'convnext_ato' \(similar: convnext_atto"),
        ("timm:swin_tiny_patch4_window7_224", "does not take images of any size"),
        ("timm:mixer_s16_224", "mixer_s16_224"),
        ("timm:eva02_tiny_patch14_224", "does not take images of any size"),
    ],
)
def test_networks_that_cannot_be_encoders_are_one_line(name: str, message: str):
    with pytest.raises(ValueError, match=message) as error:
        chosen(name).build()
    assert "\n" not in str(error.value)
