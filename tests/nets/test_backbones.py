from __future__ import annotations

import io

import pytest
import torch
from helpers.networks import pictures, randomize_statistics
from torch import nn
from torchvision.models import alexnet, resnet18, resnet50
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2.functional import normalize

from kintsugi.nets.backbones import Backbone
from kintsugi.nets.discriminators import DiscriminatorSpec
from kintsugi.nets.specs import build_spec

NAMES = ["resnet18", "resnet50", "alexnet", "dcgan"]


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", NAMES)
def test_channels_and_strides_are_what_is_promised(name, norm) -> None:
    encoder = Backbone(name, norm).build().eval()
    assert list(encoder.channels) == sorted(encoder.channels)
    for height, width in ((32, 32), (64, 96), (101, 75)):
        with torch.no_grad():
            features = encoder(pictures(1, 3, height, width))
        assert {stride: f.shape[1] for stride, f in features.items()} == encoder.channels
        for stride, f in features.items():
            assert abs(f.shape[2] - height / stride) < 1.5
            assert abs(f.shape[3] - width / stride) < 1.5


def test_sides_of_the_coarsest_map_are_exact_for_multiples_of_32() -> None:
    for name in NAMES:
        with torch.no_grad():
            coarsest = Backbone(name).build().eval()(pictures(1, 3, 64, 96))[32]  # type: ignore[arg-type]
        assert coarsest.shape[2:] == (2, 3)


@pytest.mark.parametrize(("name", "make"), [("resnet18", resnet18), ("resnet50", resnet50)])
def test_resnets_equal_torchvision_with_its_weights(name, make) -> None:
    torch.manual_seed(0)
    reference = randomize_statistics(make())
    encoder = Backbone(name).build().eval()
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    encoder.load_state_dict(state)  # strict: the names are the same

    image = pictures(2, 3, 64, 80)
    nodes = {"layer1": "4", "layer2": "8", "layer3": "16", "layer4": "32"}
    with torch.no_grad():
        expected = create_feature_extractor(reference, nodes)(
            normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        )
        features = encoder(image)
    for stride, feature in features.items():
        torch.testing.assert_close(feature, expected[str(stride)])


def test_alexnet_equals_torchvision_with_its_weights_and_padded_pools() -> None:
    """In evaluation mode fresh norms are the identity, except for their eps."""
    torch.manual_seed(0)
    reference = alexnet().features.eval()
    encoder = Backbone("alexnet").build().eval()
    missing, unexpected = encoder.load_state_dict(
        {f"features.{key}": value for key, value in reference.state_dict().items()}, strict=False
    )
    assert not unexpected
    assert all(int(key.split(".")[1]) in (1, 4, 7, 9, 11) for key in missing)  # the norms, next to the ReLUs

    image = pictures(2, 3, 96, 96)
    for layer in reference:
        if isinstance(layer, nn.MaxPool2d):
            layer.padding = 1
    with torch.no_grad():
        x = normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        expected = {4: reference[:2](x), 8: reference[:5](x), 16: reference[:12](x), 32: reference(x)}
        features = encoder(image)
    for stride, feature in features.items():
        torch.testing.assert_close(feature, expected[stride], rtol=1e-3, atol=1e-4)


def test_batch_norms_have_the_default_momentum_and_eps() -> None:
    """BatchNorm2d's second positional argument is eps: a momentum passed there would go unnoticed."""
    for name in NAMES:
        net = Backbone(name).build()  # type: ignore[arg-type]
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_group_norm_does_not_see_the_batch() -> None:
    encoder = Backbone("resnet18", "group").build().train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    image = pictures(3, 3, 32, 32)
    with torch.no_grad():
        together, alone = encoder(image)[32][:1], encoder(image[:1])[32]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "spec",
    [Backbone("alexnet", "group"), Backbone("dcgan"), DiscriminatorSpec(32, width=8, norm="spectral")],
    ids=lambda spec: spec.plain()["kind"],
)
def test_an_encoder_comes_back_from_a_checkpoint(spec: Backbone | DiscriminatorSpec) -> None:
    torch.manual_seed(1)
    built = spec.build()
    encoder = built if isinstance(spec, Backbone) else built.encoder
    encoder(pictures(4, 3, 64, 64))  # moves batch norms' averages and spectral norms' vectors
    file = io.BytesIO()
    torch.save({"spec": encoder.spec.plain(), "state": encoder.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    again = build_spec(content["spec"])
    again.load_state_dict(content["state"])
    assert again.spec == encoder.spec
    assert again.channels == encoder.channels
    image = pictures(1, 3, 48, 64)
    with torch.no_grad():
        before, after = encoder.eval()(image), again.eval()(image)
    assert all(torch.equal(before[stride], after[stride]) for stride in encoder.channels)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"kind": "transformer", "name": "vit"},
        {"kind": "backbone", "name": "resnet19", "norm": "batch"},
        {"kind": "backbone", "name": "resnet18", "norm": "none"},
        {"kind": "backbone", "depth": 18},
        {"kind": "discriminator"},
    ],
    ids=str,
)
def test_unknown_specs_give_one_line(spec) -> None:
    with pytest.raises(ValueError, match="use ") as error:
        build_spec(spec)
    assert "\n" not in str(error.value)
