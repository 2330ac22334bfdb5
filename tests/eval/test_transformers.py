"""Vision transformers and networks of timm on every task of transfer, in export and in torch.hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from helpers.command_line import ROOT
from helpers.networks import pictures
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_pil_image

from kintsugi.eval import export, transfer
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.published import Published
from kintsugi.nets.vit import ViT
from kintsugi.train import checkpoint

onnxruntime = pytest.importorskip("onnxruntime")

TINY = (
    "--seeds 1 --device cpu --size 32 --pooled-features 200 --labels 0.2 --steps-linear 4 --steps-tuned 1 "
    "--batch-tuned 4 --labeled-scenes 6 --steps-frozen 2 --steps-finetune 1 --batch-dense 2 --crop 64 --train-scenes 4 "
    "--detection scenes --detection-steps 1 --detection-scenes 4 --detection-size 64 --detection-width 32 "
    "--detection-protocols frozen finetune --no-pixels"
).split()


def saved(folder: Path, encoder: Encoder) -> Path:
    encoders = {"encoder": {"spec": encoder.spec.plain(), "state": encoder.state_dict()}}
    content = {"method": "toy", "step": 1, "config": {"size": 64}, "state": {}, "encoders": encoders}
    checkpoint.save(folder / "step-00000001.pt", content)
    return folder


def test_a_vision_transformer_is_transferred_to_every_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    run = saved(tmp_path / "run", ViT("test_vit", 64, 8).build())
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    published = f"timm:test_vit={tmp_path / 'vit.safetensors'}"
    for number in range(6):
        for part in ("train", "test"):
            place = tmp_path / f"classes/{part}/{number % 2}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(pictures(3, 48, 48)).save(place)
    classes = [str(tmp_path / "classes"), "scenes"]
    argv = ["--ckpts", str(run), "--published", published, "--classification", *classes, *TINY]
    transfer.main([*argv, "--out", str(tmp_path / "report")])
    record = json.loads((tmp_path / "report/report.json").read_text())
    assert not [result["error"] for result in record["results"] if result["error"]]
    names = list(dict.fromkeys(result["weights"] for result in record["results"]))
    assert names == [
        "toy",
        "random init (test_vit, patches of 8 px)",
        "timm:test_vit, vit.safetensors",
        "random init (test_vit)",
    ]
    tasks = {result["task"] for result in record["results"]}
    assert tasks == {"classes", "what is in scenes", "segmentation scenes", "geometry scenes", "boxes in scenes"}
    line = "100 % of the weights of test_vit; not used: head.bias, head.weight"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    "make", [ViT("test_vit", 64, 8).build, pytest.param(Published("timm:test_convnext").build, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_export_and_torch_hub(make, tmp_path: Path):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    encoder = make().eval()
    run = saved(tmp_path / "run", encoder)
    export.main(["--ckpt", str(run), "--out", str(tmp_path / "net")])
    state = load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    hub = torch.hub.load(str(ROOT), "encoder", str(run), source="local")
    for count, height, width in ((1, 64, 64), (2, 64, 96), (3, 72, 100)):
        image = pictures(count, 3, height, width)
        theirs = session.run(None, {"image": image.numpy()})
        for ours, onnx, hubs in zip(encoder(image).values(), theirs, hub(image).values(), strict=True):
            assert torch.allclose(torch.from_numpy(onnx), ours, atol=1e-4)
            assert torch.equal(ours, hubs)
