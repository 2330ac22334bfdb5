from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from helpers.networks import pictures, randomize_statistics
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model, resnet18, resnet34, squeezenet1_0
from torchvision.transforms.v2.functional import normalize

from kintsugi.nets.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.pretrained import load_published
from kintsugi.nets.published import Published
from kintsugi.nets.specs import build_spec


def imagenet(image: Tensor) -> Tensor:
    return normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD))


def loaded(name: str, file: Path) -> Encoder:
    return load_published(name, file)[0].eval()


# Each network's output at its coarsest stride by its own code, before the pooling and the classifier.
TRUNKS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "squeezenet1_0": lambda net, x: net.features(x),
    "mobilenet_v3_small": lambda net, x: net.features(x),
    "densenet121": lambda net, x: net.features(x).relu(),
    "regnet_y_400mf": lambda net, x: net.trunk_output(net.stem(x)),
    "convnext_tiny": lambda net, x: net.features(x),
}


SLOW = ("densenet121", "convnext_tiny")


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TRUNKS]
)
def test_the_coarsest_map_is_that_of_torchvisions_own_code(name: str, tmp_path: Path):
    torch.manual_seed(0)
    net = randomize_statistics(get_model(name, weights=None))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    encoder = loaded(name, tmp_path / "net.pth")
    image = pictures(1, 3, 101, 75)
    maps = encoder(image)
    assert torch.allclose(maps[max(maps)], TRUNKS[name](net, imagenet(image)), atol=1e-5)
    assert list(maps) == sorted(maps)
    assert {stride: x.shape[1] for stride, x in maps.items()} == encoder.channels
    for height, width in ((32, 32), (64, 96)):
        for stride, x in encoder(pictures(1, 3, height, width)).items():
            assert abs(x.shape[2] - height / stride) < 3.5  # squeezenet does not pad
            assert abs(x.shape[3] - width / stride) < 3.5


def test_maps_are_outputs_of_blocks_never_of_a_branch_within_one():
    """The first convolution of a later resnet50 layer has the size of the layer before it, with half its channels."""
    assert Published("resnet50").build().channels == {2: 64, 4: 256, 8: 512, 16: 1024, 32: 2048}


def test_the_same_seed_gives_the_same_weights():
    twice = []
    for _ in range(2):
        torch.manual_seed(3)
        twice.append(build_spec(Published("squeezenet1_0").plain()).state_dict())
    assert all(torch.equal(twice[0][name], twice[1][name]) for name in twice[0])


@torch.no_grad()
def test_an_image_too_small_for_the_network_is_refused():
    encoder = Published("alexnet").build()
    assert encoder(pictures(1, 3, 63, 80))[32].shape == (1, 256, 1, 1)
    with pytest.raises(ValueError, match="alexnet needs images of at least 63 px, not 32x80"):
        encoder(pictures(1, 3, 32, 80))


@pytest.mark.realdata
@pytest.mark.skipif("KINTSUGI_DATA" not in os.environ, reason="needs the published weights next to the data")
@torch.no_grad()
def test_published_weights_give_torchvisions_features():
    file = Path(os.environ["KINTSUGI_DATA"]).parent / "weights/squeezenet1_0_imagenet.safetensors"
    net = squeezenet1_0()
    net.load_state_dict(load_file(file))
    net.eval()
    encoder = loaded("squeezenet1_0", file)
    for size in ((32, 32), (101, 75), (224, 224)):
        image = pictures(2, 3, *size)
        assert torch.allclose(encoder(image)[16], net.features(imagenet(image)), atol=1e-5)


# --- weights --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("prefix", "within"), [("", ""), ("module.encoder_q.", "state_dict"), ("", "model")])
def test_a_resnet_becomes_the_projects_own_with_any_prefix_and_wrapper(prefix: str, within: str, tmp_path: Path):
    torch.manual_seed(0)
    net = randomize_statistics(resnet18())
    state = {prefix + name: value for name, value in net.state_dict().items()}
    state |= {f"module.encoder_k.{name}": value + 1 for name, value in net.state_dict().items()}
    torch.save({within: state, "epoch": 3} if within else state, tmp_path / "net.pth")
    encoder = loaded("resnet18", tmp_path / "net.pth")
    assert encoder.spec == Backbone("resnet18")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, net.state_dict()[name])


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm/convnext_atto", "ghostnet_050", "timm/resnet18", "mobilenetv3_small_050"])
def test_timms_networks_and_weights(name: str, tmp_path: Path):
    """ghostnet's last block is one of its blocks, but not one of its features."""
    torch.manual_seed(0)
    net = randomize_statistics(timm.create_model(name.removeprefix("timm/"), num_classes=7))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    encoder = loaded(name, tmp_path / "net.safetensors")
    image = pictures(1, 3, 64, 96)
    maps = encoder(image)
    assert {stride: x.shape[1] for stride, x in maps.items()} == encoder.channels
    mean, std = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    *_, coarsest = net.forward_intermediates(normalize(image, list(mean), list(std)), intermediates_only=True)
    assert torch.allclose(maps[32], coarsest, atol=1e-5)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    deep, shallow, none = (tmp_path / f"{name}.safetensors" for name in ("resnet34", "resnet18", "none"))
    save_file(resnet34().state_dict(), deep)
    save_file(resnet18().state_dict(), shallow)
    save_file({"w": torch.zeros(1)}, none)
    with pytest.raises(
        ValueError, match=r"resnet34.safetensors has layer1.2.\S+, which resnet18 does not have: does it belong"
    ):
        load_published("resnet18", deep)
    with pytest.raises(
        ValueError, match=r"resnet18.safetensors has no layer1.2.conv1.weight: does it belong to .* resnet34"
    ):
        load_published("resnet34", shallow)
    with pytest.raises(
        ValueError, match=r"layer1.0.conv1.weight is \(64, 64, 3, 3\), but \(64, 64, 1, 1\) in resnet50"
    ):
        load_published("resnet50", shallow)
    with pytest.raises(ValueError, match=r"none.safetensors has no features.0.weight"):
        load_published("squeezenet1_0", none)


def test_files_without_weights_are_refused(tmp_path: Path):
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    torch.save({"state_dict": resnet18()}, tmp_path / "module.pth")
    for name, message in {
        "none.pth": "no weights at",
        "text.safetensors": "is not a file of tensors only",
        "empty.pth": "holds no state dict",
        "module.pth": "is not a file of tensors only",  # and is never unpickled
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            load_published("resnet18", tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "neither torchvision nor timm .* 'resnet19' .*similar: resnet18"),
        ("vit_b_16", "neither torchvision nor timm has a convolutional network"),
        ("vit_tiny_patch16_224", "does not take images of any size: name a convolutional network"),
        ("resnet18.none", "timm cannot make resnet18.none"),
    ],
)
def test_names_that_are_no_convolutional_network_are_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        Published(name).build()
