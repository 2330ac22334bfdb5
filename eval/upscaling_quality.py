"""The quality of super-resolution: whole images of a folder are made four times smaller and enlarged again.

``python -m kintsugi.eval.upscaling_quality --ckpt runs/superresolution/latest --data Set5/HR`` prints PSNR and SSIM of
luma, without a border of 4 px, compared with bicubic enlargement. Where their weights are at hand it also prints LPIPS
and the distance in VGG19's features: lower where pictures look sharper, even if their PSNR is lower too. The grain is
the root of ``grain_loss`` over the whole image, in levels of 255: dots are visible from about 2 on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kintsugi import table
from kintsugi.augment.bicubic import enlarge, shrink
from kintsugi.data import photos
from kintsugi.losses.grain import grain_loss
from kintsugi.losses.perceptual import ContentLayer, open_content, open_lpips
from kintsugi.metrics.reconstruction import luma_figures
from kintsugi.nets.srresnet import SCALE, SelfEnsemble, upscale
from kintsugi.recon.superresolution import load_upscaler
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import parse_command, user_errors

Enlarge = Callable[[Tensor], Tensor]
"""An image (3,h,w) in [0,1] -> the image four times as large."""


@dataclass(frozen=True)
class UpscalingQualityConfig:
    """The quality of enlarged images, by the protocol of SRGAN's tables."""

    data: Path
    """A folder of images; each is cropped to multiples of 4 px."""
    ckpt: tuple[Path, ...] = (Path("runs/superresolution/latest"),)
    """Runs' folders or checkpoints of super-resolution; one row each."""
    small: Path | None = None
    """A folder of the small images, with the same file names; default: made from --data as by MATLAB's imresize."""
    ensemble: bool = False
    """A second row for each checkpoint: the mean over the eight orientations of the image (see kintsugi upscale)."""
    lpips: str = "auto"
    """auto (if its AlexNet has been downloaded), download, off, or a FILE of torchvision's AlexNet."""
    content_layer: ContentLayer = "relu3_4"
    """VGG19's layer for the distance of features."""
    content_weights: str = "auto"
    """VGG19: auto (if it has been downloaded), download, off, or a FILE of torchvision's weights."""
    out: Path | None = None
    """Folder for upscale.md and upscale.json; default: the first checkpoint's."""


@torch.no_grad()
def run(config: UpscalingQualityConfig) -> table.Rows:
    """Prints the table and writes it; returns its rows: way to enlarge -> figure -> mean over the images."""
    if not config.data.is_dir():
        raise ValueError(f"--data {config.data}: no such folder")
    files = photos.images_in(config.data)
    if not files:
        raise ValueError(f"--data {config.data}: the folder holds no images")
    device = pick_device("auto")
    ckpts = [checkpoint.find(path) for path in config.ckpt]
    ways: dict[str, Enlarge] = {"bicubic": lambda small: enlarge(small[None], SCALE)[0].clamp(0, 1)}
    for path, file in zip(config.ckpt, ckpts, strict=True):
        net = load_upscaler(file, device)
        ways[str(path)] = partial(upscale, net=net)
        if config.ensemble:
            ways[f"{path}, ensemble"] = partial(upscale, net=SelfEnsemble(net))
    lpips, lpips_note = open_lpips(config.lpips)
    content, content_note = open_content(config.content_layer, config.content_weights)

    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for file in files:
        truth = _cropped(photos.read_pixels(file))
        if min(truth.shape[-2:]) < 8 * SCALE:
            print(f"skipped {file}: smaller than {8 * SCALE} px", file=sys.stderr)
            continue
        small = _small(config, file, truth)
        for name, way in ways.items():
            image = (255 * way(small)).round() / 255
            row = {key: value.item() for key, value in luma_figures(image[None], truth[None], SCALE).items()}
            row["grain"] = 255 * grain_loss(image[None], truth[None], SCALE).sqrt().item()
            if lpips is not None:
                row["lpips"] = lpips(image[None], truth[None]).mean().item()
            if content is not None:
                row[f"VGG19 {config.content_layer}"] = content.distance(image[None], truth[None]).item()
            found[name].append(row)
    if not found["bicubic"]:
        raise ValueError(f"--data {config.data}: no image is large enough")
    rows = {name: {key: float(np.mean([r[key] for r in each])) for key in each[0]} for name, each in found.items()}
    corner = f"{config.data.parent.name}/{config.data.name}, {len(found['bicubic'])} images"
    print(table.markdown(rows, corner))
    if lpips is None:
        print(lpips_note)
    if content is None:
        print(f"no distance of features: {content_note}")
    table.write(rows, config.out or ckpts[0].parent, "upscale", corner)
    return rows


def _cropped(image: Tensor) -> Tensor:
    """An image (3,H,W), cropped below and at the right to multiples of ``SCALE``."""
    height, width = (side // SCALE * SCALE for side in image.shape[-2:])
    return image[:, :height, :width]


def _small(config: UpscalingQualityConfig, file: Path, truth: Tensor) -> Tensor:
    """The image to enlarge, (3,H/4,W/4) in [0,1]: from ``--small``, or made from the truth (3,H,W)."""
    if config.small is None:
        return (255 * shrink(truth[None], SCALE)[0].clamp(0, 1)).round() / 255
    small = photos.read_pixels(config.small / file.name)
    if small.shape[1:] != (truth.shape[1] // SCALE, truth.shape[2] // SCALE):
        raise ValueError(f"{config.small / file.name} is not a quarter of {file} in height and width")
    return small


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(UpscalingQualityConfig, argv))


if __name__ == "__main__":
    main()
