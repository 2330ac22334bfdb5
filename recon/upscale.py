"""Enlarges photos of any size four times with a trained SRResNet or SRGAN.

``python -m recon.upscale --in small.png --out large.png``: in tiles, each with as much around it as the network's
convolutions reach, so that the tiles' pixels are those of the whole image and memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.data import photos
from core.nets.srresnet import SCALE, SRResNet
from core.resample import enlarge
from core.train import checkpoint
from core.train.config import run_command
from core.train.dist import pick_device
from recon.superresolution import SuperResolution, load_upscaler


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


@dataclass(frozen=True, kw_only=True)
class Config(photos.PhotosConfig):
    """Enlarges a photo, or a folder of them, four times; writes PNG."""

    tile: int = 128
    """Side of the pieces that are enlarged at a time, px of the photo; less needs less memory."""


def run(config: Config) -> int:
    """Enlarges everything and returns how many files failed; a single file that fails raises."""
    todo = photos.find_jobs(config.source, config.out)
    if config.tile < 1:
        raise ValueError(f"--tile must be at least 1, not {config.tile}")
    net = load_upscaler(checkpoint.chosen(config.ckpt, SuperResolution.name), pick_device(config.device))

    def upscale_one(job: photos.Job) -> str:
        image, said = photos.read_photo(job.photo)
        result = photos.to_image(upscale(photos.to_tensor(image), net, config.tile))
        if image.mode == "RGBA":
            alpha = torch.from_numpy(np.array(image.getchannel("A")))[None, None] / 255
            result.putalpha(photos.to_image(enlarge(alpha, SCALE)[0].expand(3, -1, -1)).convert("L"))
        photos.write_png(result, job.out, image.info["icc_profile"])
        return said

    return photos.run_jobs(todo, upscale_one, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    run_command(Config, run, argv)


if __name__ == "__main__":
    main()
