"""What a net trained on synthetic rooms sees in photos: their depth, surface normals and contours.

``python -m kintsugi.apps.surfaces --in photo.jpg --out seen.png`` writes photo | depth | normals | contours side by
side; near is white, from one meter to eight; x, y, z of a normal are red, green and blue.
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
from kintsugi.pictures import sheet
from kintsugi.recon.synthetic import Net, Synthetic, load_net, pictures
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command, within


@torch.no_grad()
def surfaces(image: Tensor, net: Net, side: int, channels: Literal["one", "all"] = "one") -> list[Tensor]:
    """Pictures of the depth, normals and contours of one image (3,H,W) in [0,1], each (3,H,W) in [0,1].

    side: the short side at which the net looks, px. channels: one = it sees green alone, as in its evaluation.
    """
    height, width = image.shape[-2:]
    size = photos.whole_strides((height, width), side)
    small = interpolate(image[None], size, mode="bilinear", antialias=True)
    if channels == "one":
        small = small[:, 1:2].expand(-1, 3, -1, -1)
    _, guess = net(small)
    return [interpolate(x, (height, width), mode="bilinear")[0] for x in pictures(guess)]


@dataclass(frozen=True, kw_only=True)
class Config(jobs.PhotosConfig):
    """Shows what a net trained on synthetic rooms sees in a photo, or a folder of them; writes PNG."""

    side: int = 0
    """Short side at which the network looks, px; default: that of the images it was trained on."""
    largest: int = 480
    """Short side of each picture at the most, px."""


def run(config: Config) -> int:
    """Writes all pictures and returns how many files failed; a single file that fails raises."""
    todo = jobs.find_jobs(config.source, config.out)
    if config.side < 0:
        raise ValueError(f"--side must be at least 1, not {config.side}")
    within(config, largest=1)
    device = pick_device(config.device)
    net, trained = load_net(checkpoint.chosen(config.ckpt, Synthetic.name), device)
    side = config.side or trained.short_side or round(1.5 * trained.size)

    def see(job: jobs.Job) -> str:
        photo, _ = photos.read_photo(job.photo)
        photo = photo.convert("RGB")
        scale = min(1.0, config.largest / min(photo.size))
        photo = photo.resize((max(1, round(scale * photo.width)), max(1, round(scale * photo.height))))
        image = photos.to_tensor(photo).to(device)
        seen = [image, *surfaces(image, net, side, trained.channels)]
        photos.write_png(photos.to_image(sheet([one[None] for one in seen])), job.out)
        return ""

    return jobs.run_jobs(todo, see, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    run_command(Config, run, argv)


if __name__ == "__main__":
    main()
