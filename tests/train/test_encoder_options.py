"""``--encoder`` and ``--init`` of every method."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import timm
import torch
from helpers.command_line import Refused
from helpers.tiny_runs import OPTIONS, class_of, module_of
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18

from kintsugi.contrastive import byol, cpc, moco, simclr
from kintsugi.pretext import rotation
from kintsugi.recon import inpainting, mae, spark, splitbrain, splitbrain_hha
from kintsugi.train import checkpoint
from kintsugi.train.dist import World

WORLD = World(torch.device("cpu"))
VIT = {"encoder": "timm:test_vit", "encoder_patch": 8}


@pytest.fixture
def weights(tmp_path: Path) -> tuple[str, dict[str, Tensor]]:
    """A file of a small vision transformer under the names of another program, and its weights under timm's."""
    torch.manual_seed(5)
    net = timm.create_model("test_vit", num_classes=3, img_size=64, patch_size=8).state_dict()
    file = tmp_path / "vit.safetensors"
    save_file({f"backbone.{name}": value for name, value in net.items()}, file)
    return str(file), net


def block(net: torch.nn.Module) -> Tensor:
    return net.get_submodule("net.blocks.0.attn.qkv").weight  # type: ignore[return-value]


def first(net: torch.nn.Module) -> Tensor:
    return net.get_submodule("net.patch_embed.proj").weight  # type: ignore[return-value]


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_has_the_option(method: str):
    names = {field.name for field in dataclasses.fields(module_of(method).demo())}
    assert "init" in names
    if method not in ("mender", "superresolution", "mae", "spark"):
        assert {"encoder", "encoder_patch"} <= names


def test_copies_are_made_of_the_started_encoder(weights: tuple[str, dict[str, Tensor]]):
    file, net = weights
    given = net["blocks.0.attn.qkv.weight"]
    for module, norm in ((byol, "batch"), (moco, "batch")):
        config = dataclasses.replace(module.demo(), **VIT, norm=norm, init=file)
        method = class_of(module.__name__.rpartition(".")[2])(config, WORLD)
        copy = method.target if module is byol else method.key_net
        assert torch.equal(block(method.encoder), given)  # type: ignore[arg-type]
        assert torch.equal(block(copy[0]), given)  # type: ignore[index]
    painter = inpainting.Inpainting(dataclasses.replace(inpainting.demo(), **VIT, init=file, lpips="off"), WORLD)
    assert torch.equal(block(painter.average.module.encoder), given)  # type: ignore[arg-type,union-attr]


def test_only_an_input_of_colors_or_gray_takes_the_first_layer(weights: tuple[str, dict[str, Tensor]]):
    file, net = weights
    halves = splitbrain.SplitBrain(dataclasses.replace(splitbrain.demo(), **VIT, init=file), WORLD)
    gray, ab = halves.to_ab.encoder.backbone, halves.to_lightness.encoder.backbone  # type: ignore[union-attr]
    nets = splitbrain_hha.SplitBrainHha(dataclasses.replace(splitbrain_hha.demo(), **VIT, init=file), WORLD)
    for encoder, colors in ((gray, True), (ab, False), (nets.to_hha.encoder, True), (nets.to_lab.encoder, False)):
        assert torch.equal(first(encoder), net["patch_embed.proj.weight"]) == colors  # type: ignore[arg-type]
        assert torch.equal(block(encoder), net["blocks.0.attn.qkv.weight"])  # type: ignore[arg-type]


def test_mae_starts_from_weights_with_their_positions(
    weights: tuple[str, dict[str, Tensor]], capsys: pytest.CaptureFixture[str]
):
    file, net = weights
    method = mae.MAE(dataclasses.replace(mae.demo(), encoder="timm:test_vit", patch=8, init=file), WORLD)
    assert torch.equal(method.encoder.net.pos_embed, net["pos_embed"])
    printed = capsys.readouterr().out.strip()
    assert printed == f"--init {file}: 100 % of the weights of test_vit; not used: head.bias, head.weight"


def test_spark_starts_from_torchvisions_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(6)
    net = resnet18().state_dict()
    save_file(net, tmp_path / "resnet18.safetensors")
    config = dataclasses.replace(spark.demo(), init=str(tmp_path / "resnet18.safetensors"))
    spark.SparK.check(config)
    encoder = spark.SparK(config, WORLD).encoder.state_dict()
    assert all(torch.equal(value, net[name]) for name, value in encoder.items())
    assert "100 % of the weights of resnet18; not used: fc.bias, fc.weight" in capsys.readouterr().out


def test_only_the_main_rank_prints(weights: tuple[str, dict[str, Tensor]], capsys: pytest.CaptureFixture[str]):
    config = dataclasses.replace(simclr.demo(), **VIT, init=weights[0], seed=1)
    simclr.SimCLR(config, World(torch.device("cpu"), rank=0, size=1))
    assert capsys.readouterr().out.count("\n") == 1


def test_a_run_from_another_methods_run_and_its_resumption(photos: Path, tmp_path: Path):
    tiny = (
        "--size 32 --short-side 40 --batch 4 --log-every 1 --eval-every 2 --eval-images 4 --device cpu --data".split()
    )
    words = [*tiny, str(photos), "--encoder", "timm:test_vit", "--encoder-patch", "8", "--norm", "batch"]
    simclr.main([*words, "--steps", "2", "--save-every", "2", "--out", str(tmp_path / "one")])
    begun = [*words, "--lr", "0", "--weight-decay", "0", "--save-every", "1", "--init", str(tmp_path / "one")]
    rotation.main([*begun, "--steps", "1", "--out", str(tmp_path / "two")])
    one, two = (checkpoint.load_encoder(tmp_path / run).state_dict() for run in ("one", "two"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    (tmp_path / "one/step-00000002.pt").unlink()  # a resumed run does not need them
    (tmp_path / "one/best.pt").unlink()
    rotation.main(["--resume", "--out", str(tmp_path / "two"), "--steps", "2"])
    assert (tmp_path / "two/step-00000002.pt").exists()


def test_colorization_starts_its_encoder_from_weights_of_any_origin(weights: tuple[str, dict[str, Tensor]]):
    module = module_of("colorization")
    config = dataclasses.replace(module.demo(), **VIT, init=weights[0])
    module.Colorization.check(config)
    encoder = module.Colorization(config, WORLD).colorizer.encoder.backbone
    assert torch.equal(block(encoder), weights[1]["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (rotation, "--init {file}", "vit.safetensors has no conv1.weight: does it belong to a network other than"),
        (rotation, "--init nowhere.pth", "no weights at nowhere.pth"),
        (rotation, "--encoder resnt18", r"'resnt18' \(similar: resnet18"),
        (rotation, "--encoder timm:test_vit --size 40", "images of 40 px: use a multiple of the patch, 16 px"),
        (rotation, "--encoder timm:test_vit --norm group", "--norm group is for resnet18, resnet50, alexnet only"),
        (rotation, "--encoder squeezenet1_0 --size 20", "squeezenet1_0 needs images of at least 21 px, not 20x20"),
        (rotation, "--encoder dcgan", "'dcgan'"),
        (
            cpc,
            "--encoder timm:test_efficientnet --patch 32 --size 96",
            "has batch norms, whose statistics give CPC's answer away",
        ),
        (spark, "--init {file}", "vit.safetensors has no conv1.weight"),
        (inpainting, "--encoder squeezenet1_0", "has maps without padding"),
        (splitbrain, "--init {file}", "the halves of alexnet have half its width, so no weights fit them"),
        (mae, "--encoder timm:test_vit --patch 16 --size 64 --decoder-width 32 --init {bad}", "has no cls_token"),
    ],
)
def test_what_cannot_be_trained_is_one_line_before_anything_is_written(
    module: object,
    options: str,
    message: str,
    weights: tuple[str, dict[str, Tensor]],
    refused: Refused,
    tmp_path: Path,
    photos: Path,
):
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "bad.safetensors")
    words = options.format(file=weights[0], bad=tmp_path / "bad.safetensors").split()
    line = refused(module.main, [*words, "--data", photos, "--out", tmp_path / "run"])  # type: ignore[attr-defined]
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()
