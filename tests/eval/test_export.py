"""Exported encoders give the same features in other libraries as here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.command_line import Refused
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18

from kintsugi.eval.export import main, metadata
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.discriminators import DiscriminatorSpec
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.planes import Joined, Planes, Rgbd
from kintsugi.nets.srresnet import SRResNetSpec
from kintsugi.rng import generator
from kintsugi.train import checkpoint

onnxruntime = pytest.importorskip("onnxruntime")


SIZES = ((2, 64, 64), (1, 101, 75))  # images, height, width


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator(0))


def saved(folder: Path, **encoders: Encoder) -> Path:
    """A checkpoint, with running averages as after some training."""
    for encoder in encoders.values():
        for name, value in encoder.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1, generator=generator(1))
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator(2))
    content = {
        "method": "toy",
        "step": 100,
        "config": {"batch": 64},
        "state": {},
        "encoders": {r: {"spec": e.spec.plain(), "state": e.state_dict()} for r, e in encoders.items()},
    }
    checkpoint.save(folder / "step-00000100.pt", content)
    return folder


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def normalized(image: Tensor, description: str) -> Tensor:
    """RGB in [0,1], normalized as the metadata describe."""
    mean, std = (
        torch.tensor([float(x) for x in numbers.split(",")]).view(1, 3, 1, 1)
        for numbers in re.findall(r"(?:mean|std)=\(([^)]*)\)", description)
    )
    return (image - mean) / std


def layers(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of layer1 to layer4 of torchvision's or timm's ResNet."""
    found: list[Tensor] = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        net.get_submodule(name).register_forward_hook(lambda _module, _input, output: found.append(output))
    net(x)
    return found


@pytest.mark.parametrize("norm", ["batch", "split"])
@pytest.mark.parametrize("make", [resnet18, lambda: timm.create_model("resnet18")])
@torch.no_grad()
def test_torchvision_and_timm_load_a_resnet_and_agree(make: Callable[[], nn.Module], norm: str, tmp_path: Path):
    encoder = Backbone("resnet18", norm).build().eval()
    main(["--ckpt", str(saved(tmp_path, encoder=encoder)), "--out", str(tmp_path / "net.safetensors")])
    net = make().eval()
    missing, unexpected = net.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=False)
    assert (set(missing), unexpected) == ({"fc.weight", "fc.bias"}, [])
    image = pictures(2, 3, 64, 96)
    theirs = layers(net, normalized(image, metadata_of(tmp_path / "net.safetensors")["input"]))
    for ours, x in zip(encoder(image).values(), theirs, strict=True):
        assert torch.allclose(ours, x, atol=1e-5)


def test_metadata_describe_the_origin_of_the_weights(tmp_path: Path):
    encoder = Backbone("resnet18").build()
    main(["--ckpt", str(saved(tmp_path, encoder=encoder)), "--out", str(tmp_path / "net.safetensors")])
    found = metadata_of(tmp_path / "net.safetensors")
    assert found["input"] == (
        "RGB, [0,1], then (x - mean) / std, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)"
    )
    assert json.loads(found["channels"]) == {"4": 64, "8": 128, "16": 256, "32": 512}
    assert json.loads(found["spec"]) == encoder.spec.plain()
    assert (found["method"], found["role"], found["images_seen"]) == ("toy", "encoder", "6400")
    assert "torchvision.models.resnet18" in found["loads"]
    assert not list(tmp_path.glob(".*.part"))


NETS: dict[str, Callable[[], Encoder]] = {
    "resnet": lambda: Backbone("resnet18").build(),
    "chroma": lambda: Planes("ab", Backbone("dcgan", width=0.25)).build(),
    "srresnet": lambda: SRResNetSpec(2, 16).build().encoder,
    "discriminator": lambda: DiscriminatorSpec(32, 8, "spectral").build().encoder,
}


SLOW = ("srresnet", "discriminator")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NETS])
@torch.no_grad()
def test_onnx_gives_the_same_features_from_plain_rgb_at_any_size(name: str, tmp_path: Path):
    torch.manual_seed(0)
    encoder = NETS[name]().eval()
    main(["--ckpt", str(saved(tmp_path, generator=encoder)), "--out", str(tmp_path / "net")])
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == [f"stride_{stride}" for stride in encoder.channels]
    for count, height, width in SIZES:
        image = pictures(count, 3, height, width)
        for ours, theirs in zip(encoder(image).values(), session.run(None, {"image": image.numpy()}), strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4)
    found = metadata_of(tmp_path / "net.safetensors")
    assert found.items() >= session.get_modelmeta().custom_metadata_map.items()
    assert load_file(tmp_path / "net.safetensors").keys() == encoder.state_dict().keys()  # under their own names
    assert ("loads" in found) == (name == "resnet")


@pytest.mark.parametrize(
    ("encoder", "description"),
    [
        (Planes("L", Backbone("dcgan")).build(), "three planes of L / 100"),
        (Joined((Planes("L", Backbone("dcgan")), Planes("ab", Backbone("dcgan")))).build(), "part 1: RGB, .* a / 220"),
        (Rgbd(Backbone("dcgan"), Backbone("dcgan")).build(), "six planes"),
        (SRResNetSpec(1, 8).build().encoder, "shrunk 4 times"),
        (DiscriminatorSpec(32, 8).build().encoder, "2 x - 1"),
        (Backbone("resnet18", "group").build(), "RGB"),
        (Backbone("resnet18", stem="small").build(), "RGB"),
    ],
)
def test_metadata_describe_the_input_of_other_networks_and_do_not_call_them_resnets(encoder: Encoder, description: str):
    found = metadata({"method": "toy", "step": 1, "config": {}}, "generator", encoder)
    assert re.search(description, found["input"])
    assert "loads" not in found
    assert all(isinstance(value, str) for value in found.values())


def test_the_first_role_is_exported_unless_another_is_named(tmp_path: Path):
    run = saved(
        tmp_path,
        generator=Backbone("dcgan", width=0.25).build(),
        discriminator=DiscriminatorSpec(32, 8).build().encoder,
    )
    for options, role in (([], "generator"), (["--role", "discriminator"], "discriminator")):
        main(["--ckpt", str(run), "--out", str(tmp_path / "net.safetensors"), *options])
        assert metadata_of(tmp_path / "net.safetensors")["role"] == role


def test_without_onnx_the_weights_are_still_written(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch):
    run = saved(tmp_path, encoder=Backbone("dcgan", width=0.25).build())
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refused(main, ["--ckpt", run, "--out", tmp_path / "net"])
    assert re.search(r"net.onnx is not written, because onnxscript is missing: pip install onnx onnxscript", line)
    assert (tmp_path / "net.safetensors").is_file()
    assert not (tmp_path / "net.onnx").exists()


def test_bad_input_is_one_line(tmp_path: Path, refused: Refused):
    run = saved(tmp_path / "run", encoder=Backbone("dcgan", width=0.25).build())
    (tmp_path / "file").write_text("")
    net = tmp_path / "net.safetensors"
    for args, message in (
        (["--ckpt", tmp_path / "none", "--out", net], "no checkpoint at"),
        (["--ckpt", run, "--out", net, "--role", "discriminator"], "has no discriminator: it has encoder"),
        (["--ckpt", run, "--out", tmp_path / "net.bin"], "--out must end in .safetensors or .onnx"),
        (["--ckpt", run, "--out", tmp_path], "is a folder: name a file in it"),
        (["--ckpt", run, "--out", tmp_path / "file" / "net.safetensors"], "could not write"),
        (["--ckpt", run], "--out"),
    ):
        assert message in refused(main, args)
    assert not net.exists()
