"""Predicts depth, surface normals and contours of photos with a network trained on synthetic rooms.

``python -m kintsugi.apps.surfaces --in photo.jpg --out surfaces.png`` writes photo | depth | normals | contours side by
side. Depth goes from white at one meter to black at eight; x, y, z of a normal are red, green and blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.apps import jobs
from kintsugi.data import photos
from kintsugi.nets.surface_net import SurfaceNet
from kintsugi.pictures import sheet
from kintsugi.recon.synthetic import Synthetic, load_net
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command, within


@torch.no_grad()
def surfaces(image: Tensor, net: SurfaceNet, side: int, channels: Literal["one", "all"] = "one") -> list[Tensor]:
    """Pictures of predicted depth, normals and contours of an image (3,H,W) in [0,1], each (3,H,W) in [0,1].

    side: the short side of the image that the network sees, px. channels: one = it sees only the green channel, as in
    its evaluation; all = it sees all channels.
    """
    height, width = image.shape[-2:]
    size = photos.whole_strides((height, width), side)
    small = interpolate(image[None], size, mode="bilinear", antialias=True)
    if channels == "one":
        small = small[:, 1:2].expand(-1, 3, -1, -1)
    _, predicted = net(small)
    return [interpolate(x, (height, width), mode="bilinear")[0] for x in predicted.pictures()]


@dataclass(frozen=True, kw_only=True)
class SurfacesConfig(jobs.PhotosConfig):
    """Predicts depth, surface normals and contours of a photo, or a folder of photos, and writes PNG."""

    side: int = 0
    """Short side of the image that the network sees, px; default: that of its training images."""
    largest: int = 480
    """Maximum short side of each picture, px."""


def run(config: SurfacesConfig) -> int:
    """Writes all pictures and returns how many photos failed. For a single photo a failure raises."""
    todo = jobs.find_jobs(config.source, config.out)
    if config.side < 0:
        raise ValueError(f"--side must be at least 1, not {config.side}")
    within(config, largest=1)
    device = pick_device(config.device)
    net, trained = load_net(checkpoint.chosen(config.ckpt, Synthetic.name), device)
    side = config.side or trained.short_side or round(1.5 * trained.size)

    def predict_one(job: jobs.PhotoJob) -> str:
        photo, _ = photos.read_photo(job.photo)
        photo = photo.convert("RGB")
        scale = min(1.0, config.largest / min(photo.size))
        photo = photo.resize((max(1, round(scale * photo.width)), max(1, round(scale * photo.height))))
        image = photos.to_tensor(photo).to(device)
        pictures = [image, *surfaces(image, net, side, trained.channels)]
        photos.write_png(photos.to_image(sheet([picture[None] for picture in pictures])), job.out)
        return ""

    return jobs.run_jobs(todo, predict_one, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    run_command(SurfacesConfig, run, argv)


if __name__ == "__main__":
    main()
