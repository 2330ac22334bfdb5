from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from torchvision.models import alexnet

from kintsugi.augment.bicubic import shrink
from kintsugi.data.photos import images_in, read_pixels
from kintsugi.eval import upscaling_quality
from kintsugi.losses import perceptual
from kintsugi.nets.srresnet import SelfEnsemble
from kintsugi.recon.superresolution import load_upscaler


def test_the_benchmark_prints_bicubic_and_the_network(
    upscaler: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    upscaling_quality.main(
        [
            "--data",
            str(photos),
            "--ckpt",
            str(upscaler),
            "--content-weights",
            "off",
            "--lpips",
            "off",
            "--out",
            str(tmp_path / "new"),
        ]
    )
    printed = capsys.readouterr().out
    assert "| bicubic " in printed
    assert "LPIPS is off" in printed
    rows = json.loads((tmp_path / "new/upscale.json").read_text())
    assert list(rows) == ["bicubic", str(upscaler)]
    assert rows["bicubic"]["psnr"] > 30  # the photos are smooth
    assert 20 < rows[str(upscaler)]["psnr"] != rows["bicubic"]["psnr"]


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # lpips calls torchvision by its old names
def test_the_benchmark_with_lpips_and_the_ensemble(upscaler: Path, photos: Path, tmp_path: Path):
    torch.manual_seed(0)
    trunk = alexnet(weights=None).state_dict()
    torch.save(trunk, tmp_path / "alexnet.pth")
    options = ["--content-weights", "off", "--lpips", str(tmp_path / "alexnet.pth"), "--ensemble"]
    upscaling_quality.main(["--data", str(photos), "--ckpt", str(upscaler), *options, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "upscale.json").read_text())
    assert list(rows) == ["bicubic", str(upscaler), f"{upscaler}, ensemble"]

    net = SelfEnsemble(load_upscaler(upscaler, torch.device("cpu")))
    lpips, expected, grain = perceptual.Lpips(trunk), [], []
    for file in images_in(photos):
        truth = upscaling_quality._cropped(read_pixels(file))[None]
        small = (255 * shrink(truth, 4).clamp(0, 1)).round() / 255
        with torch.no_grad():
            image = (255 * net(small).clamp(0, 1)).round() / 255
        expected.append(lpips(image, truth).mean().item())
        error = 255 * (image - truth)[0].numpy()
        pattern = [[error[c, y::4, x::4].mean() for y in range(4) for x in range(4)] for c in range(3)]
        grain.append(np.var(pattern, 1).mean() ** 0.5)
    assert rows[f"{upscaler}, ensemble"]["lpips"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert rows[f"{upscaler}, ensemble"]["grain"] == pytest.approx(np.mean(grain), rel=1e-3)
    assert rows[f"{upscaler}, ensemble"]["psnr"] != rows[str(upscaler)]["psnr"]


def test_bad_input_is_one_line(refused: Refused, upscaler: Path):
    assert "no such folder" in refused(upscaling_quality.main, ["--data", "none"])
    refusal = refused(upscaling_quality.main, ["--data", upscaler.parent, "--ckpt", upscaler])
    assert "the folder holds no images" in refusal
