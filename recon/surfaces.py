"""What a net trained on synthetic rooms sees in photos: their depth, surface normals and contours.

``python -m recon.surfaces --in photo.jpg --out seen.png`` writes photo | depth | normals | contours side by side; near
is white, from half a metre to ten; x, y, z of a normal are red, green and blue.
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
from torch.nn.functional import interpolate

from core.data import photos
from core.sheet import sheet
from core.train import checkpoint
from core.train.config import parse_command, user_errors
from recon.synthetic import Net, load_net, pictures


@torch.no_grad()
def surfaces(image: Tensor, net: Net, side: int, channels: Literal["one", "all"] = "one") -> list[Tensor]:
    """Pictures of the depth, normals and contours of one image (3,H,W) in [0,1], each (3,H,W) in [0,1].

    side: the short side at which the net looks, px. channels: one = it sees green alone, as in its evaluation.
    """
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    # Whole strides, so that no map of the net has to be cut.
    size = [max(32, 32 * round(scale * length / 32)) for length in (height, width)]
    small = interpolate(image[None], size, mode="bilinear", antialias=True)
    if channels == "one":
        small = small[:, 1:2].expand(-1, 3, -1, -1)
    _, guess = net(small)
    return [interpolate(x, (height, width), mode="bilinear")[0] for x in pictures(guess)]


@dataclass(frozen=True)
class Config:
    """Shows what a net trained on synthetic rooms sees in a photo, or a folder of them; writes PNG."""

    source: Annotated[Path, tyro.conf.arg(name="in")]
    """A photo, or a folder of photos."""
    out: Path
    """A .png, or a folder."""
    ckpt: Path | None = None
    """A run's folder or a checkpoint; default: the newest run, runs/synthetic/latest."""
    side: int = 0
    """Short side at which the network looks, px; default: that of the images it was trained on."""
    largest: int = 480
    """Short side of each picture at the most, px."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def run(config: Config) -> int:
    """Writes all pictures and returns how many files failed; a single file that fails raises."""
    todo = photos.find_jobs(config.source, config.out)
    file = checkpoint.find(config.ckpt or Path("runs/synthetic/latest"))
    if config.ckpt is None:
        print(f"using {file.resolve()}", file=sys.stderr)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    net, trained = load_net(file, device)
    side = config.side or trained.short_side or round(1.5 * trained.size)

    def see(job: photos.Job) -> str:
        photo, _ = photos.read_photo(job.photo)
        photo = photo.convert("RGB")
        scale = min(1.0, config.largest / min(photo.size))
        photo = photo.resize((max(1, round(scale * photo.width)), max(1, round(scale * photo.height))))
        image = torch.from_numpy(np.array(photo)).permute(2, 0, 1).to(device) / 255
        seen = [image, *surfaces(image, net, side, trained.channels)]
        picture = sheet([one[None] for one in seen])
        photos.write_png(
            Image.fromarray((255 * picture).round().byte().permute(1, 2, 0).cpu().numpy()), job.out
        )
        return ""

    return photos.run_jobs(todo, see, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        failed = run(parse_command(Config, argv))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
