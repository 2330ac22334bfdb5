from __future__ import annotations

from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import alexnet, vgg19

from kintsugi.losses.perceptual import ContentFeatures, ContentLayer, open_content, open_lpips
from kintsugi.rng import generator

# The lpips package calls torchvision by its old names.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchvision")


@pytest.fixture(scope="module")
def trunk() -> dict[str, torch.Tensor]:
    """A random AlexNet; its classifier, which LPIPS does not use, is left out."""
    torch.manual_seed(0)
    state = alexnet(weights=None).state_dict()
    return {name: value for name, value in state.items() if name.startswith("features.")}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_is_the_lpips_package_with_the_trunk_of_the_file(suffix: str, trunk, tmp_path: Path):
    file = tmp_path / f"alexnet{suffix}"
    torch.save(trunk, file) if suffix == ".pth" else save_file(trunk, file)
    ours, message = open_lpips(str(file))
    assert str(file) in message

    reference = lpips.LPIPS(net="alex", spatial=True, pnet_rand=True, verbose=False).eval()
    layers = [layer for i in range(1, 6) for layer in getattr(reference.net, f"slice{i}")]  # AlexNet's features
    for index, layer in enumerate(layers):
        if isinstance(layer, torch.nn.Conv2d):
            layer.load_state_dict({kind: trunk[f"features.{index}.{kind}"] for kind in ("weight", "bias")})
    image, other = torch.rand(2, 2, 3, 64, 64).unbind(0)
    with torch.no_grad():
        expected = reference(2 * image - 1, 2 * other - 1)  # (2,1,64,64); the package's own range is [-1,1]
    torch.testing.assert_close(ours(image, other), expected)
    assert expected.min() > 0
    assert ours(image, image).abs().max() == 0
    assert not any(p.requires_grad for p in ours.parameters())


def test_auto_explains_why_there_is_no_lpips_and_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def network(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", network)
    monkeypatch.setattr("socket.socket.connect", network)
    measure, message = open_lpips("auto")
    assert measure is None
    assert "--lpips download" in message
    assert "\n" not in message
    assert open_lpips("off") == (None, "LPIPS is off")


def test_auto_uses_the_cache_of_torch_hub(trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(trunk, tmp_path / "checkpoints/alexnet-owt-7be5be79.pth")
    measure, message = open_lpips("auto")
    assert measure is not None
    assert "alexnet-owt-7be5be79.pth" in message


def test_missing_foreign_and_broken_files_give_one_line(trunk, tmp_path: Path):
    torch.save({"other": torch.zeros(3)}, tmp_path / "foreign.pth")
    torch.save({n: v[..., :1] for n, v in trunk.items()}, tmp_path / "shapes.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for name in ("foreign.pth", "shapes.pth", "broken.pth", "broken.safetensors", "none.pth"):
        with pytest.raises(ValueError, match=f"{name}.*--lpips|--lpips .*{name}") as refused:
            open_lpips(str(tmp_path / name))
        assert "\n" not in str(refused.value)


# --- VGG19 ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layers() -> torch.nn.Sequential:
    """torchvision's VGG19 up to relu3_4, with random weights that keep the signal's scale."""
    with torch.device("meta"):
        layers = vgg19().features[:18]
    layers.to_empty(device="cpu")
    for weight in layers.parameters():
        torch.nn.init.normal_(weight, 0, (2 / weight[0].numel()) ** 0.5, generator=generator(0))
    return layers.requires_grad_(False)


def content(layer: ContentLayer, layers: torch.nn.Sequential) -> ContentFeatures:
    return ContentFeatures(layer, {f"features.{name}": weight for name, weight in layers.state_dict().items()})


@pytest.mark.parametrize(
    ("layer", "ends", "norm"), [("relu2_2", [9], 2), ("relu3_4", [18], 2), ("conv1_2-conv3_4", [3, 8, 17], 1)]
)
def test_the_distance_of_layers_by_their_numbers(
    layer: ContentLayer, ends: list[int], norm: int, layers: torch.nn.Sequential
):
    """Squared after a ReLU, absolute before one, relative to the truth; the mean over the layers."""
    image, truth = torch.rand(2, 2, 3, 32, 32, generator=generator(1)).unbind(0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = []
    for end in ends:
        found, target = ((layers[:end]((x - mean) / std)).double() for x in (image, truth))
        if norm == 2:
            expected.append(((found - target) ** 2).sum() / (target**2).sum())
        else:
            expected += [(found[n] - target[n]).abs().sum() / target[n].abs().sum() for n in range(2)]
    ours = content(layer, layers)
    assert ours.distance(image, truth).item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert ours.distance(truth, truth) == 0


def test_maps_before_a_relu_have_negative_values(layers: torch.nn.Sequential):
    maps = content("conv1_2-conv3_4", layers).maps(torch.rand(1, 3, 32, 32, generator=generator(2)))
    assert [tuple(each.shape[1:]) for each in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
    assert all(each.min() < 0 for each in maps)


def test_a_range_of_layers_that_the_file_does_not_reach_is_one_line(layers: torch.nn.Sequential, tmp_path: Path):
    torch.save({f"features.{name}": weight for name, weight in layers.state_dict().items()}, tmp_path / "v.pth")
    assert open_content("conv1_2-conv3_4", str(tmp_path / "v.pth"))[0] is not None
    with pytest.raises(ValueError, match="does not reach VGG19's conv1_2-conv5_4: choose a lower --content-layer"):
        open_content("conv1_2-conv5_4", str(tmp_path / "v.pth"))
