"""Mended holes beside the truth, and beside what needs no learning: the mean color and a classical method.

``python -m kintsugi.eval.hole_quality --ckpt runs/inpainting/latest --data photos`` prints the table for any
checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kintsugi.augment import cropping, masks
from kintsugi.data.images import open_images
from kintsugi.fill.classical import CLASSICAL, Fill
from kintsugi.losses.perceptual import Lpips, open_lpips
from kintsugi.metrics.reconstruction import HoleQuality
from kintsugi.recon.inpainting import load_mender
from kintsugi.rng import generator
from kintsugi.train import checkpoint
from kintsugi.train.config import parse_command, user_errors
from kintsugi.train.dist import pick_device

Table = dict[str, dict[str, dict[str, float]]]
"""Kind of hole -> row -> figure -> value."""


def compare(
    fills: Mapping[str, Fill], truth: Tensor, mask: Tensor, lpips: Lpips | None = None
) -> dict[str, dict[str, float]]:
    """Mean figures of each way to fill the same holes; row -> figure -> value."""
    rows = {}
    for name, fill in fills.items():
        quality = HoleQuality(lpips)
        for image, hole in zip(truth.split(64), mask.split(64), strict=True):
            quality.add(fill(image, hole), image, hole)
        rows[name] = quality.means()
    return rows


def table(fills: Mapping[str, Fill], truth: Tensor, kinds: Iterable[masks.Kind], lpips: Lpips | None = None) -> Table:
    """Every way to fill every kind of hole, the floors first; holes are drawn alike at every call."""
    size, ways = truth.shape[-1], {**CLASSICAL, **fills}
    return {
        kind: compare(ways, truth, masks.draw(kind, len(truth), size, generator(0, i), truth.device), lpips)
        for i, kind in enumerate(kinds)
    }


def markdown(result: Table) -> str:
    """One line for each kind of hole and way to fill it, aligned so that it reads well on a terminal too."""
    heads = {"psnr": "PSNR dB", "ssim": "SSIM", "lpips": "LPIPS", "l1": "L1 %", "l2": "L2 %"}
    shown = [name for name in heads if any(name in row for rows in result.values() for row in rows.values())]
    lines = [f"| {'hole':8} | {'filled by':15} | " + " | ".join(f"{heads[name]:>7}" for name in shown) + " |"]
    lines.append("|---|---|" + "---:|" * len(shown))
    for kind, rows in result.items():
        for name, row in rows.items():
            figures = " | ".join(f"{row[figure]:7.{3 if figure in ('ssim', 'lpips') else 2}f}" for figure in shown)
            lines.append(f"| {kind:8} | {name:15} | {figures} |")
    return "\n".join(lines)


def write(result: Table, folder: Path) -> None:
    """``quality.md`` and ``quality.json`` into a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.md").write_text(markdown(result) + "\n")
    (folder / "quality.json").write_text(json.dumps(result, indent=1) + "\n")


@dataclass(frozen=True)
class Config:
    """The quality of a checkpoint's mending on held-out images."""

    ckpt: Path = Path("runs/inpainting/latest")
    """A run's folder or a checkpoint of the inpainter."""
    data: str = ""
    """As for training; default: what the checkpoint was trained on."""
    split: Literal["heldout", "all"] = "heldout"
    """heldout: the images training never sees; all: every image, for a folder that was not trained on."""
    kinds: tuple[masks.Kind, ...] = ()
    """Kinds of holes; default: center for a checkpoint that knows only that, else all three."""
    count: int = 256
    """How many images at the most."""
    lpips: str = "auto"
    """auto (where its AlexNet is at hand), download, off, or a FILE of torchvision's AlexNet."""
    cache: Path | None = None
    """Where decoded images are kept, as for training."""
    out: Path | None = None
    """Folder for quality.md and quality.json; default: the run's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def run(config: Config) -> Table:
    file = checkpoint.find(config.ckpt)
    device = pick_device(config.device)
    mender = load_mender(file, device)
    trained = checkpoint.load(file)["config"]
    kinds = config.kinds or (("center",) if trained["mask"] == "center" else ("center", "blocks", "regions"))
    same = not config.data or config.data == trained["data"]
    short_side, scenes = (trained["short_side"], trained["scenes"]) if same else (0, 1024)
    split = open_images(
        config.data or trained["data"], mender.size, short_side=short_side, scenes=scenes, cache_dir=config.cache
    )
    images = [split.heldout] if config.split == "heldout" else [split.heldout, split.train]
    truth = torch.cat(
        [cropping.center_crops(part.batch(torch.arange(min(config.count, len(part)))), mender.size) for part in images]
    )
    lpips, said = open_lpips(config.lpips)
    fills: dict[str, Fill] = {"context encoder": mender.plain, "... seamless": mender}
    result = table(fills, truth[: config.count].to(device), kinds, lpips and lpips.to(device))
    print(
        f"{file}, {min(config.count, len(truth))} images of {config.data or trained['data']}, {mender.size} px; {said}"
    )
    print(markdown(result))
    write(result, config.out or file.parent)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
