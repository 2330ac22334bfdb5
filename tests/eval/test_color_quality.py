from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from PIL import Image
from skimage.color import rgb2lab

from kintsugi.augment.hints import spread_hints
from kintsugi.eval import color_quality
from kintsugi.recon import colorization

TINY = (
    "--encoder alexnet --size 64 --batch 4 --steps 2 --log-every 1 --show-every 2 --eval-every 2 --save-every 2 "
    "--eval-images 2 --device cpu --hints"
).split()


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one photo, and a folder of a class with two."""
    folder = tmp_path_factory.mktemp("colored")
    (folder / "class").mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "class/b.png", "class/c.png"):
        blocks = random.integers(0, 256, (5, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(blocks).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("colorization") / "run"
    colorization.main([*TINY, "--data", str(photos), "--out", str(folder)])
    return folder


def test_the_table_has_both_baselines_and_the_network_with_and_without_hints(
    run_folder: Path, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--data", str(colored), "--ckpt", str(run_folder), "--lpips", "off", "--out", str(tmp_path)]
    color_quality.main(options)
    printed = capsys.readouterr().out
    assert "3 photos of colored" in printed
    assert "LPIPS is off" in printed
    record = json.loads((tmp_path / "color.json").read_text())
    assert record["photos"] == 3
    rows = record["rows"]
    assert list(rows) == ["gray", "mean ab", str(run_folder), f"{run_folder}, 5 hints"]
    assert (tmp_path / "color.md").read_text().count("±") == 8  # PSNR and chroma
    assert rows[str(run_folder)]["auc"] != rows[f"{run_folder}, 5 hints"]["auc"]

    areas, psnr, chroma = [], [], []
    for name in ("a.png", "class/b.png", "class/c.png"):
        truth = np.asarray(Image.open(colored / name)) / 255
        lab = rgb2lab(truth)
        length = np.hypot(lab[..., 1], lab[..., 2])
        areas.append(np.clip(1 - length / 150, 0, None).mean())
        chroma.append(length.mean())
        level = (lab[..., 0] + 16) / 116  # of gray: CIE 1976, then sRGB
        linear = np.where(level > 6 / 29, level**3, 3 * (6 / 29) ** 2 * (level - 4 / 29))
        gray = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
        psnr.append(-10 * np.log10(((gray[..., None] - truth) ** 2).mean()))
    assert rows["gray"]["auc"] == pytest.approx(100 * np.mean(areas), abs=0.3)
    assert rows["gray"]["psnr"] == pytest.approx(np.mean(psnr), abs=0.05)
    assert rows["gray"]["psnr_deviation"] == pytest.approx(np.std(psnr), abs=0.05)
    assert rows["gray"]["chroma_truth"] == pytest.approx(np.mean(chroma), abs=0.3)
    assert rows["gray"]["chroma"] < 1

    color_quality.main([*options, "--every", "2", "--hints", "0"])
    assert list(json.loads((tmp_path / "color.json").read_text())["rows"]) == ["gray", "mean ab", str(run_folder)]


def test_hints_are_squares_inside_the_photo_that_depend_on_the_key_alone():
    where = spread_hints((200, 300), 5, 3)
    assert where.shape == (1, 200, 300)
    assert 100 < where.sum() <= 5 * 10 * 10
    assert torch.equal(where, spread_hints((200, 300), 5, 3))
    assert not torch.equal(where, spread_hints((200, 300), 5, 4))
    assert spread_hints((7, 9), 1, 0).sum() == 1


def test_bad_input_is_one_line(refused: Refused, run_folder: Path):
    assert "no such folder" in refused(color_quality.main, ["--data", "none"])
    refusal = refused(color_quality.main, ["--data", run_folder, "--ckpt", run_folder])
    assert "the folder holds no images" in refusal
    assert "--every must be" in refused(color_quality.main, ["--data", run_folder, "--every", "0"])
