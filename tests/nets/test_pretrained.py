"""Weights that other programs saved, read into encoders by the code that real files would take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import timm
import torch
from helpers.networks import pictures, randomize_statistics
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, alexnet, resnet18

from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder_choice import chosen
from kintsugi.nets.planes import Planes
from kintsugi.nets.pretrained import Match, load_into
from kintsugi.nets.vit import ViT, ViTEncoder
from kintsugi.nets.weight_files import read_weights
from kintsugi.train import checkpoint


def vit() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("test_vit", num_classes=5, img_size=64, patch_size=8)


def prefixed(prefix: str, net: nn.Module, change: float = 0.0) -> dict[str, Tensor]:
    return {prefix + name: value + change for name, value in net.state_dict().items()}


def equal(encoder: nn.Module, net: nn.Module) -> bool:
    """Whether all weights of the encoder are those of the same names in ``net``."""
    theirs = net.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in encoder.state_dict().items())


def started(tmp_path: Path, content: object, spec: ViT | Backbone) -> tuple[nn.Module, Match]:
    torch.save(content, tmp_path / "file.pth")
    encoder = spec.build()
    match = load_into(encoder, read_weights(tmp_path / "file.pth"), "file.pth")
    return (encoder.net if isinstance(encoder, ViTEncoder) else encoder), match


def test_moco_lightly_and_plain_files_of_a_resnet(tmp_path: Path):
    net = randomize_statistics(resnet18())
    for content in (
        net.state_dict(),
        {"state_dict": prefixed("module.encoder_q.", net) | prefixed("module.encoder_k.", net, 1)},
        {"state_dict": prefixed("backbone_momentum.", net, 1) | prefixed("backbone.", net)},
        {"epoch": 3, "model": prefixed("module.", net), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        {"online_network_state_dict": prefixed("encoder.", net)},
    ):
        encoder, match = started(tmp_path, content, Backbone("resnet18"))
        assert equal(encoder, net)
        assert match.fraction == 1
        assert not match.missing


def test_dino_files_give_the_teacher(tmp_path: Path):
    """Saved with the options of the training, a class that holds values only."""
    net = vit()
    student, teacher = prefixed("module.backbone.", net, 1), prefixed("backbone.", net)
    content = {"student": student, "teacher": teacher, "args": argparse.Namespace(lr=1), "epoch": 3}
    encoder, match = started(tmp_path, content, ViT("test_vit", 64, 8))
    assert equal(encoder, net)
    assert match.fraction == 1


def test_mae_files_have_a_decoder_and_positions_are_resized(tmp_path: Path):
    net = vit()
    state = {name: value for name, value in net.state_dict().items() if not name.startswith("head")}
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_blocks.0.attn.qkv.weight": torch.ones(3, 3)}
    content = {"model": state | decoder}
    encoder, match = started(tmp_path, content, ViT("test_vit", 64, 8))
    assert equal(encoder, net)
    assert "decoder_blocks.0.attn.qkv.weight" in match.unused
    encoder, match = started(tmp_path, content, ViT("test_vit", 32, 4))  # the same grid: positions are the same
    assert match.fraction == 1
    assert torch.allclose(encoder.pos_embed, net.pos_embed, atol=1e-4)  # type: ignore[arg-type]
    assert encoder.patch_embed.proj.weight.shape[-1] == 4  # type: ignore[union-attr]
    larger, match = started(tmp_path, content, ViT("test_vit", 96, 8))
    assert larger.pos_embed.shape[1] == 12**2 + 1  # type: ignore[union-attr,index]
    assert match.fraction == 1


def test_a_deeper_network_and_another_width_are_refused(tmp_path: Path):
    shallow = {name: value for name, value in vit().state_dict().items() if not name.startswith("blocks.5")}
    deep = vit().state_dict() | {"blocks.6.norm1.weight": torch.ones(64)}
    with pytest.raises(ValueError, match=r"has blocks.6.norm1.weight, which test_vit does not have"):
        started(tmp_path, deep, ViT("test_vit", 64, 8))
    with pytest.raises(ValueError, match=r"has no blocks.5.norm1.weight: .* It has \d+ % of the weights; 90 % are"):
        started(tmp_path, shallow, ViT("test_vit", 64, 8))
    with pytest.raises(ValueError, match=r"file.pth has no conv1.weight: does it belong to a network other than"):
        started(tmp_path, vit().state_dict(), Backbone("resnet18"))


def test_alexnets_batch_norms_stay_fresh(tmp_path: Path):
    net = alexnet()
    encoder, match = started(tmp_path, net.state_dict(), Backbone("alexnet"))
    assert torch.equal(encoder.features[3].weight, net.features[3].weight)  # type: ignore[index,union-attr]
    assert match.missing[0] == "features.1.0.weight"
    line = match.line("file.pth")
    assert line.startswith("file.pth: 99.8")
    assert "fresh: features.1.0.weight, " in line
    assert "not used: classifier.1.weight" in line
    assert "\n" not in line


def test_the_first_layer_stays_fresh_where_the_input_is_not_rgb(tmp_path: Path):
    net = resnet18()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    for planes, rgb in (("L", True), ("ab", False)):
        encoder = Planes(planes, Backbone("resnet18")).build()  # type: ignore[arg-type]
        match = load_into(encoder, read_weights(tmp_path / "net.pth"), "net.pth", rgb=rgb)
        inner = encoder.backbone
        assert torch.equal(inner.conv1.weight, net.conv1.weight) == rgb  # type: ignore[union-attr,arg-type]
        assert torch.equal(inner.layer1[0].conv1.weight, net.layer1[0].conv1.weight)  # type: ignore[index,union-attr]
        assert ("conv1.weight" in match.missing) != rgb


def test_encoders_of_this_projects_checkpoints(tmp_path: Path):
    torch.manual_seed(0)
    saved = {"generator": Planes("L", Backbone("resnet18")).build(), "discriminator": Backbone("dcgan").build()}
    encoders = {role: {"spec": e.spec.plain(), "state": e.state_dict()} for role, e in saved.items()}
    content = {"method": "toy", "step": 1, "config": {}, "state": {}, "encoders": encoders}
    checkpoint.save(tmp_path / "step-00000001.pt", content)
    encoder = Backbone("resnet18").build()
    load_into(encoder, read_weights(tmp_path / "step-00000001.pt"), "ours")
    assert equal(encoder, saved["generator"].backbone)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_timm_network_computes_as_timm_does(tmp_path: Path):
    torch.manual_seed(0)
    net = randomize_statistics(timm.create_model("test_efficientnet", num_classes=7))
    save_file(prefixed("model.", net), tmp_path / "net.safetensors")
    encoder = chosen("timm:test_efficientnet").build().eval()
    load_into(encoder, read_weights(tmp_path / "net.safetensors"), "net")
    image = pictures(1, 3, 64, 96)
    settings = net.pretrained_cfg
    mean, std = (torch.tensor(settings[name]).view(1, 3, 1, 1) for name in ("mean", "std"))  # type: ignore[index]
    *_, last = net.forward_intermediates((image - mean) / std, intermediates_only=True)
    assert torch.allclose(encoder(image)[32], last, atol=1e-5)


# --- hubs: files where the libraries keep what they have downloaded ---------------------------------------------


def hub_cache(root: Path, repo: str, file: str, state: dict[str, Tensor]) -> None:
    folder = root / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    place = folder / "snapshots" / ("0" * 40) / file
    if file.endswith(".safetensors"):
        save_file(state, place)
    else:
        torch.save(state, place)


def test_torchvisions_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net = resnet18()
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name)
    for source in ("torchvision:resnet18", "torchvision:resnet18.IMAGENET1K_V1"):
        encoder = Backbone("resnet18").build()
        load_into(encoder, read_weights(source), source)
        assert equal(encoder, net)


@pytest.mark.parametrize(
    ("source", "repo", "file"),
    [
        ("timm:test_vit.r160_in1k", "timm/test_vit.r160_in1k", "model.safetensors"),
        ("hf:someone/test", "someone/test", "model.safetensors"),
        ("hf:someone/test", "someone/test", "pytorch_model.bin"),
        ("hf:someone/test/vit.pth", "someone/test", "vit.pth"),
    ],
)
def test_hugging_faces_weights(source: str, repo: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(3)
    net = timm.create_model("test_vit")
    hub_cache(tmp_path, repo, file, net.state_dict())
    encoder = ViT("test_vit").build()
    load_into(encoder, read_weights(source), source)
    assert equal(encoder.net, net)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:test_vit.r160_in1k", "timm:test_vit.r160_in1k could not be loaded .* give a file of its weights"),
        ("timm:test_vitt", "timm:test_vitt could not be loaded .*timm has no network of this name"),
        ("torchvision:resnet19", "torchvision:resnet19 could not be loaded .*check the name"),
        ("torchvision:resnet18.V9", "torchvision:resnet18.V9 could not be loaded .*check the name"),
        ("hf:someone/none", "hf:someone/none could not be loaded .*check the name and the network"),
        ("nowhere.pth", "no weights at nowhere.pth: name a file"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message) as error:
        read_weights(source)
    assert "\n" not in str(error.value)


@pytest.mark.realdata
@pytest.mark.skipif("KINTSUGI_DATA" not in os.environ, reason="needs the published weights next to the data")
def test_alexnets_published_features():
    file = Path(os.environ["KINTSUGI_DATA"]).parent / "weights/alexnet_features_imagenet.safetensors"
    match = load_into(Backbone("alexnet").build(), read_weights(file), "file")
    assert match.fraction > 0.99


@torch.no_grad()
def test_patches_of_14_px_become_patches_of_16():
    """DINOv2's weights give equal tokens for images of equal patches: exactly where each patch has one color."""
    torch.manual_seed(2)
    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0, depth=2, dynamic_img_size=True).eval()
    whole = {**timm.create_model("vit_small_patch14_dinov2").state_dict(), **theirs.state_dict()}
    encoder = ViT("vit_small_patch14_dinov2").build().eval()
    load_into(encoder, whole, "file.pth")
    encoder.net.blocks = encoder.net.blocks[:2]
    colors = pictures(1, 3, 6, 6)
    found = encoder.tokens(colors.repeat_interleave(16, 2).repeat_interleave(16, 3))
    image = encoder.normalized(colors.repeat_interleave(14, 2).repeat_interleave(14, 3))
    assert encoder.patch == 16
    assert torch.allclose(found, theirs.forward_features(image), atol=1e-4)
