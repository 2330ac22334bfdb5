"""Teachers of distillation: published weights and downloads."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from helpers.command_line import Refused
from helpers.view_cases import WORLD
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models import alexnet

from kintsugi.contrastive import distill, teachers
from kintsugi.contrastive.teachers import load_teacher
from kintsugi.nets import weight_files
from kintsugi.rng import generator


def test_a_published_teacher_gives_torchvisions_features(tmp_path: Path):
    torch.manual_seed(0)
    net = alexnet().eval()
    save_file({n: v.clone() for n, v in net.state_dict().items()}, tmp_path / "net.safetensors")
    name, encoder = load_teacher(f"alexnet={tmp_path / 'net.safetensors'}")
    assert name == "alexnet"
    image = torch.rand(2, 3, 64, 64, generator=generator(0))
    found = teachers.Teacher(name, encoder, 16, 96, WORLD)(image)
    with torch.no_grad():
        large = interpolate(image, (96, 96), mode="bilinear", antialias=True)
        normalized = (large - encoder.mean) / encoder.std
        conv5, pool5 = net.features[:12](normalized), net.features(normalized)
    assert torch.allclose(found.map, conv5, atol=1e-5)
    assert torch.allclose(found.vector, pool5.mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "asked", "found"),
    [
        ("torchvision:alexnet", ("torchvision", "alexnet"), "alexnet"),
        ("torchvision:alexnet.IMAGENET1K_V1", ("torchvision", "alexnet.IMAGENET1K_V1"), "alexnet.IMAGENET1K_V1"),
        ("timm:resnet10t", ("timm", "resnet10t"), "resnet10t"),
        ("timm:test_vit.r160_in1k", ("timm", "test_vit.r160_in1k"), "test_vit.r160_in1k"),
        ("timm:resnet10t=hf:owner/repo", ("hf", "owner/repo"), "timm:resnet10t"),
    ],
)
def test_a_downloaded_teacher(teacher: str, asked: tuple[str, str], found: str, monkeypatch: pytest.MonkeyPatch):
    """It has the name and the weights that the hub has under the name."""
    architecture = next(name for name in ("alexnet", "resnet10t", "test_vit") if name in teacher)
    net = alexnet() if architecture == "alexnet" else timm.create_model(architecture)
    monkeypatch.setattr(weight_files, "_downloaded", lambda *given: net.state_dict() if given == asked else {})
    name, encoder = load_teacher(teacher)
    assert name == found
    weight = next(value for value in encoder.state_dict().values() if value.ndim == 4)
    assert torch.equal(weight, next(p for p in net.parameters() if p.ndim == 4))


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, refused: Refused):
    def unreachable(name: str) -> dict[str, Tensor]:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(weight_files, "_from_timm", unreachable)
    line = refused(distill.main, ["--teacher", "timm:resnet18"])
    assert "timm:resnet18 could not be loaded (OSError: no route to host more)" in line
    assert "or give a file of its weights" in line
