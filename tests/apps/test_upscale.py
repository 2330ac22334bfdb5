from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from PIL import Image

from kintsugi.apps import upscale
from kintsugi.augment.bicubic import enlarge
from kintsugi.nets import srresnet
from kintsugi.nets.srresnet import SelfEnsemble


@pytest.mark.parametrize("ensemble", [False, True])
def test_upscaling_files(upscaler: Path, tmp_path: Path, ensemble: bool):
    pixels = (255 * np.random.default_rng(0).random((9, 13, 4))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    with pytest.raises(SystemExit) as stop:
        upscale.main(
            [
                "--in",
                str(tmp_path / "p.png"),
                "--out",
                str(tmp_path / "o.png"),
                "--ckpt",
                str(upscaler),
                "--tile",
                "5",
                "--device",
                "cpu",
                *(["--ensemble"] if ensemble else []),
            ]
        )
    assert stop.value.code == 0
    with Image.open(tmp_path / "o.png") as image:
        assert (image.size, image.mode) == ((52, 36), "RGBA")
        found = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    small = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    net = upscale.load_upscaler(upscaler, torch.device("cpu"))
    expected = srresnet.upscale(small[:3], SelfEnsemble(net) if ensemble else net)
    assert (found[:3] - expected).abs().max() < 0.6 / 255
    alpha = enlarge(small[None, 3:], 4)[0].clamp(0, 1)
    # Pillow rounds and clips between the two directions.
    assert (found[3:] - alpha)[..., 8:-8, 8:-8].abs().max() < 5 / 255


def test_bad_input_is_one_line(refused: Refused, trained: Path, tmp_path: Path):
    Image.fromarray(np.full((40, 50, 3), 120, np.uint8)).save(tmp_path / "p.png")
    paths = ["--in", "p.png", "--out", "o.png"]
    assert "superresolution" in refused(upscale.main, [*paths, "--ckpt", trained])
    assert "no such file" in refused(upscale.main, ["--in", "q.png", "--out", "o.png"])
