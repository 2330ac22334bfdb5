"""Benchmarks of super-resolution: whole images of a folder, made four times smaller and enlarged again.

``python -m kintsugi.eval.upscaling_quality --ckpt runs/superresolution/latest --data Set5/HR`` prints PSNR and SSIM on
luma, 4 px shaved, beside bicubic enlargement; with ``--content-weights`` also the distance in VGG19's features, which
falls where pictures look sharper though their PSNR does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kintsugi import table
from kintsugi.apps.upscale import upscale
from kintsugi.augment.bicubic import enlarge, shrink
from kintsugi.data import photos
from kintsugi.losses.perceptual import ContentLayer, open_content
from kintsugi.metrics.reconstruction import luma_figures
from kintsugi.nets.srresnet import SCALE
from kintsugi.recon.superresolution import load_upscaler
from kintsugi.train import checkpoint
from kintsugi.train.config import parse_command, user_errors
from kintsugi.train.dist import pick_device


@dataclass(frozen=True)
class Config:
    """The quality of checkpoints' enlargements of a folder's images, by the protocol of SRGAN's tables."""

    data: Path
    """A folder of images, the larger the better; each is cut to multiples of 4 px."""
    ckpt: tuple[Path, ...] = (Path("runs/superresolution/latest"),)
    """Runs' folders or checkpoints of super-resolution; several are set side by side."""
    small: Path | None = None
    """A folder of the same names with images four times smaller; default: made here, as MATLAB's imresize does."""
    content_layer: ContentLayer = "relu3_4"
    """VGG19's layer for the distance of features."""
    content_weights: str = "auto"
    """VGG19: auto (where it is at hand), download, off, or a FILE of torchvision's weights."""
    out: Path | None = None
    """Folder for upscale.md and upscale.json; default: the first checkpoint's."""


@torch.no_grad()
def run(config: Config) -> table.Rows:
    if not config.data.is_dir():
        raise ValueError(f"--data {config.data}: no such folder")
    files = photos.images_in(config.data)
    if not files:
        raise ValueError(f"--data {config.data}: the folder holds no images")
    device = pick_device("auto")
    ckpts = [checkpoint.find(path) for path in config.ckpt]
    ways: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": lambda small: enlarge(small[None], SCALE)[0].clamp(0, 1)}
    for path, file in zip(config.ckpt, ckpts, strict=True):
        net = load_upscaler(file, device)
        ways[str(path)] = lambda small, net=net: upscale(small, net)  # type: ignore[misc]
    content, said = open_content(config.content_layer, config.content_weights)

    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for file in files:
        truth = _pixels(file)
        height, width = (side // SCALE * SCALE for side in truth.shape[-2:])
        truth = truth[:, :height, :width]
        if min(height, width) < 8 * SCALE:
            print(f"skipped {file}: smaller than {8 * SCALE} px", file=sys.stderr)
            continue
        if config.small is None:
            small = (255 * shrink(truth[None], SCALE)[0].clamp(0, 1)).round() / 255
        else:
            small = _pixels(config.small / file.name)
            if small.shape[1:] != (height // SCALE, width // SCALE):
                raise ValueError(f"{config.small / file.name} is not a quarter of {file} in height and width")
        for name, way in ways.items():
            image = (255 * way(small)).round() / 255
            row = {key: value.item() for key, value in luma_figures(image[None], truth[None], SCALE).items()}
            if content is not None:
                row[f"VGG19 {config.content_layer}"] = content.distance(image[None], truth[None]).item()
            found[name].append(row)
    if not found["bicubic"]:
        raise ValueError(f"--data {config.data}: no image is large enough")
    rows = {name: {key: float(np.mean([r[key] for r in each])) for key in each[0]} for name, each in found.items()}
    corner = f"{config.data.parent.name}/{config.data.name}, {len(found['bicubic'])} images"
    print(table.markdown(rows, corner))
    if content is None:
        print(f"no distance of features: {said}")
    table.write(rows, config.out or ckpts[0].parent, "upscale", corner)
    return rows


def _pixels(file: Path) -> Tensor:
    return photos.to_tensor(photos.read_photo(file)[0])


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
