"""The quality of mended holes, compared with fills that need no learning; each also followed by patches of the photo.

``python -m kintsugi.eval.hole_quality --ckpt runs/inpainting/latest --data photos`` prints the table for a checkpoint
of the context encoder, on images resized as in its training. With ``--native 160``, photos keep their resolution, and
checkpoints of the mender can be measured too, several side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kintsugi import table
from kintsugi.augment import cropping, masks
from kintsugi.data.images import open_images
from kintsugi.data.store import Store
from kintsugi.eval import native_holes
from kintsugi.fill.classical import CLASSICAL, Fill, biharmonic
from kintsugi.fill.patches import with_patches
from kintsugi.losses.perceptual import Lpips, open_lpips
from kintsugi.metrics.reconstruction import HoleQuality
from kintsugi.recon.inpainting import load_mender
from kintsugi.recon.painters import METHODS
from kintsugi.rng import generator
from kintsugi.train import checkpoint
from kintsugi.train.compute import Device, pick_device
from kintsugi.train.config import parse_command, user_errors

Table = dict[str, dict[str, dict[str, float]]]
"""Kind of hole -> fill -> figure -> value."""

HEADS = {"psnr": "PSNR dB", "ssim": "SSIM", "lpips": "LPIPS", "l1": "L1 %", "l2": "L2 %"}
"""Figure -> the head of its column."""
CORNER = "hole, filled by"


def compare(
    fills: Mapping[str, Fill], truth: Tensor, mask: Tensor, lpips: Lpips | None = None
) -> dict[str, dict[str, float]]:
    """Fill -> figure -> mean value over the images, for the same holes.

    truth: images (N,3,S,S) in [0,1]. mask: (N,1,S,S), 1 = hole. Figures as in ``HoleQuality``.
    """
    figures = {}
    for name, fill in fills.items():
        quality = HoleQuality(lpips)
        for image, hole in zip(truth.split(64), mask.split(64), strict=True):
            quality.add(fill(image, hole), image, hole)
        figures[name] = quality.means()
    return figures


def measure(fills: Mapping[str, Fill], truth: Tensor, kinds: Iterable[masks.Kind], lpips: Lpips | None = None) -> Table:
    """The figures of the classical baselines and of ``fills`` for each kind of hole; the same holes at every call.

    truth: images (N,3,S,S) in [0,1].
    """
    size, every = truth.shape[-1], {**CLASSICAL, **fills}
    return {
        kind: compare(every, truth, masks.draw(kind, len(truth), size, generator(0, i), truth.device), lpips)
        for i, kind in enumerate(kinds)
    }


def rows(result: Table) -> table.Rows:
    """The table's rows, one for each kind of hole and fill."""
    return {
        f"{kind}, {name}": {HEADS[figure]: _cell(row, figure) for figure in HEADS if figure in row}
        for kind, fills in result.items()
        for name, row in fills.items()
    }


def _cell(row: Mapping[str, float], figure: str) -> float | str:
    deviation = row.get(f"{figure}_deviation")
    return row[figure] if deviation is None else f"{row[figure]:#.4g} ± {deviation:#.2g}"


@dataclass(frozen=True)
class HoleQualityConfig:
    """The quality of mended holes: of a context encoder on held-out images, or with --native of any on photos."""

    ckpt: tuple[Path, ...] = ()
    """A run's folder or a checkpoint; default: the newest run, with --native also the weights that ship."""
    data: str = ""
    """As --data in training; default: the data that the checkpoint was trained on. With --native: a folder."""
    native: int = 0
    """Measure squares of this side, px, from the middle of photos at native resolution, with the holes of
    native_holes.py; 0: images as in training."""
    every: int = 1
    """With --native: take every Nth photo by its name."""
    split: Literal["heldout", "all"] = "heldout"
    """heldout: images that training never sees; all: every image, for data that was not trained on."""
    kinds: tuple[masks.Kind, ...] = ()
    """Kinds of holes; default: center for a checkpoint that was trained on that alone, else all three."""
    count: int = 256
    """Largest number of images to measure."""
    lpips: str = "auto"
    """auto (if its AlexNet has been downloaded), download, off, or a FILE of torchvision's AlexNet."""
    cache: Path | None = None
    """Folder for decoded images, as --cache in training."""
    out: Path | None = None
    """Folder for quality.md and quality.json; default: the run's."""
    device: Device = "auto"
    """auto: the GPU if there is one."""


def run(config: HoleQualityConfig) -> Table:
    """Prints the table and writes it; returns the figures."""
    if config.native:
        return _native(config)
    if len(config.ckpt) > 1:
        raise ValueError("several checkpoints are compared on photos only: add --native 160 and --data FOLDER")
    file = checkpoint.find(config.ckpt[0] if config.ckpt else Path("runs/inpainting/latest"))
    device = pick_device(config.device)
    mender = load_mender(file, device)
    trained = checkpoint.load(file)["config"]
    kinds = config.kinds or (("center",) if trained["mask"] == "center" else ("center", "blocks", "regions"))
    same = not config.data or config.data == trained["data"]
    short_side, scenes = (trained["short_side"], trained["scenes"]) if same else (0, 1024)
    store = Store(short_side, config.cache)
    split = open_images(config.data or trained["data"], mender.size, store, scenes=scenes)
    images = [split.heldout] if config.split == "heldout" else [split.heldout, split.train]
    truth = torch.cat(
        [cropping.center_crops(part.batch(torch.arange(min(config.count, len(part)))), mender.size) for part in images]
    )
    lpips, lpips_note = open_lpips(config.lpips)
    fills: dict[str, Fill] = {
        "biharmonic, patches": with_patches(biharmonic),
        "context encoder": mender.plain,
        "... seamless": mender,
        "... seamless, patches": with_patches(mender),
    }
    result = measure(fills, truth[: config.count].to(device), kinds, lpips and lpips.to(device))
    count, data = min(config.count, len(truth)), config.data or trained["data"]
    print(f"{file}, {count} images of {data}, {mender.size} px; {lpips_note}")
    print(table.markdown(rows(result), CORNER))
    table.write(rows(result), config.out or file.parent, "quality", CORNER, record=result)
    return result


def _native(config: HoleQualityConfig) -> Table:
    """``run`` for photos at native resolution."""
    device = pick_device(config.device)
    ckpts = [checkpoint.find(path) for path in config.ckpt] or [checkpoint.chosen(None, *METHODS)]
    truth = native_holes.squares(Path(config.data), config.native, config.every, config.count).to(device)
    lpips, lpips_note = open_lpips(config.lpips)
    rows_of = native_holes.fills(ckpts, device)
    result = native_holes.measure_photos(truth, rows_of, lpips and lpips.to(device))
    print(f"{len(truth)} photos of {config.data}, {config.native} px; {lpips_note}")
    print(table.markdown(rows(result), CORNER))
    table.write(rows(result), config.out or Path("runs/mender"), "quality", CORNER, record=result)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(HoleQualityConfig, argv))


if __name__ == "__main__":
    main()
