"""The quality of colorized photos: whole photos of a folder are colorized from their lightness.

``python -m kintsugi.eval.color_quality --ckpt runs/colorization/latest --data photos`` prints the area under the
cumulative histogram of ab errors, raw and with equal weight for all colors (Zhang 2016, arXiv:1603.08511, section 3.1),
PSNR of RGB, LPIPS, and mean chroma compared with the truth's. Two rows need no learning: gray, and the mean ab of these
photos. A network that takes hints has a second row, with a few patches of true colors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kintsugi import table
from kintsugi.augment.hints import spread_hints
from kintsugi.color import lab_to_rgb, rgb_to_lab
from kintsugi.data import photos
from kintsugi.losses.perceptual import Lpips, open_lpips
from kintsugi.metrics.chroma import AbErrors, mean_chroma
from kintsugi.nets.colorizer import Colorizer, colorize
from kintsugi.recon.colorization import load_colorizer
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import parse_command, user_errors, within

Colorize = Callable[[Tensor, int], Tensor]
"""A photo (3,H,W) in [0,1] and its number -> the photo in the predicted colors, with the same lightness."""

HEADS = {"auc": "accuracy of ab, %", "auc_rebalanced": "balanced, %", "psnr": "PSNR dB", "lpips": "LPIPS"}
"""Figure -> the head of its column. Chroma has the truth's in its head."""


@dataclass(frozen=True)
class ColorQualityConfig:
    """The quality of colorized photos, compared with gray and with the mean color."""

    data: tuple[Path, ...]
    """Folders of photos, measured together; photos in folders of classes are found too."""
    ckpt: tuple[Path, ...] = (Path("runs/colorization/latest"),)
    """Runs' folders, checkpoints or files of weights of colorization; one row each, and one with hints."""
    hints: int = 5
    """Patches of true colors in the rows with hints, at random places."""
    side: int = 0
    """Short side of the image that the network sees, px; default: as in kintsugi colorize."""
    lpips: str = "auto"
    """auto (if its AlexNet has been downloaded), download, off, or a FILE of torchvision's AlexNet."""
    every: int = 1
    """Measure every n-th photo by sorted name."""
    out: Path | None = None
    """Folder for color.md and color.json; default: the first checkpoint's."""

    def __post_init__(self) -> None:
        within(self, hints=0, side=0, every=1)


@torch.no_grad()
def run(config: ColorQualityConfig) -> dict[str, dict[str, float]]:
    """Prints the table and writes it; returns its rows: way to color -> figure -> value.

    ``auc`` and ``auc_rebalanced`` are over all pixels; the others are means over photos, and NAME_deviation is their
    standard deviation over photos.
    """
    files = [file for folder in config.data for file in _photos(folder)][:: config.every]
    ckpts = [checkpoint.find(path) for path in config.ckpt]
    device = pick_device("auto")
    means = [rgb_to_lab(photos.read_pixels(file)[None])[0, 1:].mean((1, 2)) for file in files]
    mean = torch.stack(means).mean(0)  # (2,)
    ways: dict[str, Colorize] = {"gray": partial(_constant, ab=torch.zeros(2)), "mean ab": partial(_constant, ab=mean)}
    for path, file in zip(config.ckpt, ckpts, strict=True):
        net = load_colorizer(file, device)
        ways[str(path)] = partial(_learned, net=net, side=config.side, hints=0)
        if net.spec.hints and config.hints:
            ways[f"{path}, {config.hints} hints"] = partial(_learned, net=net, side=config.side, hints=config.hints)
    lpips, note = open_lpips(config.lpips)
    rows = {name: _figures(way, files, lpips) for name, way in ways.items()}
    corner = f"{len(files)} photos of {' and '.join(folder.name for folder in config.data)}"
    print(table.markdown(printed(rows), corner))
    print(note)
    folder = config.out or ckpts[0].parent
    record = {"photos": len(files), "data": [folder.name for folder in config.data], "rows": rows}
    table.write(printed(rows), folder, "color", corner, record=record)
    return rows


def printed(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, str]]:
    """The cells of the table: figures, with the standard deviation over photos where there is one."""

    def cell(row: dict[str, float], figure: str, digits: int) -> str:
        spread = f" ± {row[f'{figure}_deviation']:.{digits}f}" if f"{figure}_deviation" in row else ""
        return f"{row[figure]:.{digits}f}{spread}"

    cells = {}
    for name, row in rows.items():
        cells[name] = {HEADS[key]: cell(row, key, 3 if key == "lpips" else 1) for key in HEADS if key in row}
        cells[name][f"chroma (truth {row['chroma_truth']:.1f})"] = cell(row, "chroma", 1)
    return cells


def _figures(way: Colorize, files: Sequence[Path], lpips: Lpips | None) -> dict[str, float]:
    """The figures of one way to color; colors are measured after rounding to 8 bits, as in files."""
    errors, found = AbErrors(), []
    for number, file in enumerate(files):
        truth = photos.read_pixels(file)[None]  # (1,3,H,W)
        image = (255 * way(truth[0], number)[None]).round() / 255
        ab, wanted = rgb_to_lab(image)[:, 1:], rgb_to_lab(truth)[:, 1:]
        errors.add(ab, wanted)
        row = {"psnr": -10 * (image - truth).square().mean().clamp(min=1e-10).log10().item()}
        if lpips is not None:
            row["lpips"] = lpips(image, truth).mean().item()
        found.append(row | {"chroma": mean_chroma(ab).item(), "chroma_truth": mean_chroma(wanted).item()})
    means = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
    spread = {f"{key}_deviation": float(np.std([row[key] for row in found])) for key in found[0]}
    return errors.means() | means | spread


def _constant(image: Tensor, number: int, ab: Tensor) -> Tensor:
    """The photo (3,H,W) with the same ab (2,) everywhere."""
    lightness = rgb_to_lab(image[None])[:, :1]
    return lab_to_rgb(torch.cat([lightness, ab.view(1, 2, 1, 1).expand(-1, -1, *image.shape[-2:])], 1))[0]


def _learned(image: Tensor, number: int, net: Colorizer, side: int, hints: int) -> Tensor:
    """The photo (3,H,W) colorized by a network; with hints at places that depend on the photo's ``number`` alone."""
    known = spread_hints((image.shape[1], image.shape[2]), hints, number) if hints else None
    device = net.bins.device
    return colorize(image.to(device), net, side, known=None if known is None else known.to(device)).cpu()


def _photos(folder: Path) -> list[Path]:
    """The photos of a folder and of its folders, sorted. Raises ValueError with one line if there are none."""
    if not folder.is_dir():
        raise ValueError(f"--data {folder}: no such folder")
    found = photos.images_in(folder) + [file for each in _folders(folder) for file in photos.images_in(each)]
    if not found:
        raise ValueError(f"--data {folder}: the folder holds no images")
    return found


def _folders(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(ColorQualityConfig, argv))


if __name__ == "__main__":
    main()
