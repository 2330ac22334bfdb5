"""Every program that measures or uses trained networks, run on a pretended GPU: it must not mix devices."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pretended_gpu import pretended_gpu
from helpers.untrained_runs import untrained
from PIL import Image

from kintsugi.apps.studio_features import nearest, pca_colors
from kintsugi.apps.studio_models import Models

DENSE = "--seeds 1 --steps-frozen 2 --steps-finetune 1 --batch-dense 2"
FEW = "--seeds 1 --steps-linear 4 --steps-tuned 2 --batch-tuned 4 --labels 0.5 --size 32"
DETECTION = (
    "--seeds 1 --data scenes --detection-scenes 4 --detection-steps 1 --detection-size 64 --detection-width 32 "
    "--detection-batch 1"
)


def pictures(folder: Path, count: int, side: int = 64) -> Path:
    """A folder of images of noise."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (side, side + 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def hole(file: Path) -> Path:
    """A mask with one hole, for a photo of the fixture ``photos``."""
    mask = np.zeros((72, 96), np.uint8)
    mask[20:40, 30:60] = 255
    Image.fromarray(mask).save(file)
    return file


def camvid(folder: Path) -> Path:
    """Images and masks of two classes."""
    for part in ("train", "val"):
        pictures(folder / part / "images", 2)
        (folder / part / "masks").mkdir()
        for number in range(2):
            mask = np.random.default_rng(number).integers(0, 2, (64, 80)).astype(np.uint8)
            Image.fromarray(mask).save(folder / part / "masks" / f"{number}.png")
    return folder


def clips(folder: Path) -> Path:
    """Clips with masks of a foreground."""
    for clip in range(6):
        pictures(folder / "frames" / f"clip{clip}", 2)
        (folder / "masks" / f"clip{clip}").mkdir(parents=True)
        for number in range(2):
            mask = np.zeros((64, 80), np.uint8)
            mask[10 + clip : 30 + clip, 20:50] = 255
            Image.fromarray(mask).save(folder / "masks" / f"clip{clip}" / f"{number}.png")
    return folder


Case = Callable[[Path, dict[str, Path], Path], str]
"""(a checkpoint of the inpainter, folders of data, an empty folder) -> the program's options."""

PROGRAMS: dict[str, Case] = {
    "eval.classification": lambda ckpt, data, tmp: f"--ckpt {ckpt} --data {data['labeled']} --out {tmp} {FEW}",
    "eval.segmentation": lambda ckpt, data, tmp: (
        f"--ckpt {ckpt} --data {camvid(tmp / 'camvid')} --crop 64 --out {tmp} {DENSE}"
    ),
    "eval.segmentation, figure and ground": lambda ckpt, data, tmp: (
        f"--ckpt {ckpt} --data {clips(tmp / 'film')} --crop 64 --out {tmp} {DENSE}"
    ),
    "eval.geometry": lambda ckpt, data, tmp: f"--ckpt {ckpt} --data scenes --train-scenes 4 --out {tmp} {DENSE}",
    "eval.hole_quality": lambda ckpt, data, tmp: (
        f"--ckpt {ckpt} --data {pictures(tmp / 'photos', 2)} --out {tmp} "
        "--count 1 --split all --kinds mixed --lpips off"
    ),
    "eval.color_quality": lambda ckpt, data, tmp: (
        f"--ckpt {untrained('colorization', tmp)} --data {pictures(tmp / 'photos', 2)} --lpips off --out {tmp}"
    ),
    "eval.upscaling_quality": lambda ckpt, data, tmp: (
        f"--ckpt {untrained('superresolution', tmp)} --data {pictures(tmp / 'photos', 2)} "
        f"--content-weights off --lpips off --ensemble --out {tmp}"
    ),
    "apps.mend": lambda ckpt, data, tmp: (
        f"--ckpt {ckpt} --in {data['photos'] / 'photo00.jpg'} --mask {hole(tmp / 'mask.png')} --out {tmp / 'out.png'}"
    ),
    "apps.mend, as shipped": lambda ckpt, data, tmp: (
        f"--ckpt weights/mender.safetensors --in {data['photos'] / 'photo00.jpg'} --mask {hole(tmp / 'mask.png')} "
        f"--out {tmp / 'out.png'}"
    ),
    "apps.colorize": lambda ckpt, data, tmp: (
        f"--ckpt weights/colorizer.safetensors --in {data['photos'] / 'photo00.jpg'} --out {tmp / 'out.png'}"
    ),
    "apps.upscale": lambda ckpt, data, tmp: (
        f"--ckpt weights/srresnet.safetensors --in {data['photos'] / 'photo00.jpg'} --out {tmp / 'out.png'}"
    ),
    "apps.surfaces": lambda ckpt, data, tmp: (
        f"--ckpt {untrained('synthetic', tmp)} --in {data['photos'] / 'photo00.jpg'} --side 64 --out {tmp / 'out.png'}"
    ),
    "eval.transfer": lambda ckpt, data, tmp: (
        f"--ckpts {ckpt} --classification {data['labeled']} --segmentation {camvid(tmp / 'camvid')} --geometry "
        f"--crop 64 --out {tmp} {DENSE} {FEW.removeprefix('--seeds 1 ')}"
    ),
    "eval.domains": lambda ckpt, data, tmp: (
        f"--real {data['photos']} --size 64 --short-side 72 --scenes 24 --batch 4 --steps 2 --eval-every 2 "
        f"--save-every 2 --show-every 2 --eval-images 4 --pool 6 --seeds 1 --ways alternate reversal --out {tmp}"
    ),
    "contrastive.distill, with a cache": lambda ckpt, data, tmp: (
        f"--data {data['photos']} --size 32 --short-side 48 --teacher weights/splitbrain.safetensors --views fixed "
        f"--batch 4 --steps 14 --save-every 14 --eval-every 14 --show-every 14 --eval-images 4 --out {tmp}"
    ),
    "eval.detection": lambda ckpt, data, tmp: f"--ckpt {ckpt} --out {tmp} {DETECTION}",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_on_a_gpu(program: str, trained: Path, folders: dict[str, Path], tmp_path: Path):
    options = PROGRAMS[program](trained, folders, tmp_path).split()
    main = import_module(f"kintsugi.{program.partition(',')[0]}").main
    ends = contextlib.suppress(SystemExit) if program.startswith("apps") else contextlib.nullcontext()
    with pretended_gpu() as seen, ends:
        main(options)  # --device auto takes the GPU
    assert seen.kernels.total() > 50  # it did compute there
    # Scenes are rendered before the training, and kept.
    assert not {place for _, place in seen.float64 if "/metrics/" not in place and "/scenes/" not in place}
    reports = [*tmp_path.glob("report.json"), *tmp_path.glob("*.json"), *tmp_path.glob("out.png")]
    assert reports
    for report in tmp_path.glob("report.json"):
        assert not [result["error"] for result in json.loads(report.read_text())["results"] if result["error"]]


def test_the_studio_on_a_gpu(folders: dict[str, Path], tmp_path: Path):
    def quiet(fraction: float, what: str) -> None:
        assert 0 <= fraction <= 1

    with pretended_gpu() as seen:
        models = Models.of(tmp_path, torch.device("cuda"), None)
        image, hole = torch.rand(3, 70, 90), torch.zeros(1, 70, 90)
        hole[:, 20:40, 30:60] = 1
        mend = models.mender("weights/mender.safetensors", "auto", quiet)
        pictures = [mend(image, hole, 0), models.upscale(image, "weights/srresnet.safetensors", quiet)]
        for known in (torch.zeros_like(hole), hole):  # without and with hints
            pictures.append(models.colorize(image, image, known, "weights/colorizer.safetensors"))
        pictures += models.surfaces(image, str(untrained("synthetic", tmp_path)))
        encoder = models.encoder("weights/splitbrain.safetensors")
        pictures.append(pca_colors(encoder, image))
        assert nearest(encoder, image, folders["photos"], quiet)[0]
        assert seen.kernels.total() > 500  # it did compute there
        assert all(picture.device.type == "cpu" for picture in pictures)
