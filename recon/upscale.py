"""Enlarges photos of any size four times with a trained SRResNet or SRGAN.

``python -m recon.upscale --in small.png --out large.png``: in tiles, each with as much around it as the network's
convolutions reach, so that the tiles' pixels are those of the whole image and memory does not grow with it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from core.data import photos
from core.nets.srresnet import SCALE, SRResNet
from core.resample import enlarge
from core.train import checkpoint
from core.train.config import parse_command, user_errors
from recon.superresolution import load_upscaler


@torch.no_grad()
def upscale(image: Tensor, net: SRResNet, tile: int = 128) -> Tensor:
    """(3,h,w) in [0,1], on the CPU, of any size -> (3,4h,4w) in [0,1]; ``tile`` px of the small image at a time."""
    device = next(net.parameters()).device
    _, height, width = image.shape
    around = net.spec.reach
    large = torch.empty(3, SCALE * height, SCALE * width)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(0, top - around), max(0, left - around)
            seen = image[:, y : bottom + around, x : right + around]
            painted = net(seen[None].to(device))[0].clamp(0, 1).cpu()
            inner = painted[
                :, SCALE * (top - y) : SCALE * (bottom - y), SCALE * (left - x) : SCALE * (right - x)
            ]
            large[:, SCALE * top : SCALE * bottom, SCALE * left : SCALE * right] = inner
    return large


@dataclass(frozen=True)
class Config:
    """Enlarges a photo, or a folder of them, four times; writes PNG."""

    source: Annotated[Path, tyro.conf.arg(name="in")]
    """A photo, or a folder of photos."""
    out: Path
    """A .png, or a folder."""
    ckpt: Path | None = None
    """A run's folder or a checkpoint of super-resolution; default: the newest run, runs/superresolution/latest."""
    tile: int = 128
    """Side of the pieces that are enlarged at a time, px of the photo; less needs less memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def run(config: Config) -> int:
    """Enlarges everything and returns how many files failed; a single file that fails raises."""
    todo = photos.find_jobs(config.source, config.out)
    if config.tile < 1:
        raise ValueError(f"--tile must be at least 1, not {config.tile}")
    file = checkpoint.find(config.ckpt or Path("runs/superresolution/latest"))
    if config.ckpt is None:
        print(f"using {file.resolve()}", file=sys.stderr)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    net = load_upscaler(file, device)

    def upscale_one(job: photos.Job) -> str:
        image, said = photos.read_photo(job.photo)
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
        result = Image.fromarray(_bytes(upscale(pixels, net, config.tile)))
        if image.mode == "RGBA":
            alpha = torch.from_numpy(np.array(image.getchannel("A")))[None, None] / 255
            result.putalpha(Image.fromarray(_bytes(enlarge(alpha, SCALE)[0])[..., 0]))
        photos.write_png(result, job.out, image.info["icc_profile"])
        return said

    return photos.run_jobs(todo, upscale_one, stop=not config.source.is_dir())


def _bytes(image: Tensor) -> np.ndarray:
    """(C,H,W) in [0,1] -> (H,W,C) uint8."""
    return (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        failed = run(parse_command(Config, argv))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
