"""Fills of the holes of photos at native resolution, side by side, for the documentation's table.

Run ``python -m bench.photo_holes --data FOLDER --lpips FILE --ckpt weights/mender.safetensors``. The same as ``make
eval-inpainting ARGS="--native 160"``; the result names the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common import RESULTS, write
from kintsugi.eval import native_holes
from kintsugi.losses.perceptual import open_lpips
from kintsugi.train.config import parse_command, user_errors


@dataclass(frozen=True, kw_only=True)
class PhotoHolesConfig:
    """Compares fills of the holes of photos."""

    data: Path
    """A folder of photos."""
    ckpt: tuple[Path, ...] = ()
    """Checkpoints of the mender or the context encoder."""
    every: int = 7
    """Takes every Nth photo by its name; others may have been used to choose settings."""
    count: int = 40
    """Largest number of photos."""
    size: int = 160
    """Side of the central squares, px."""
    lpips: str = "auto"
    """auto, download, off, or a FILE of torchvision's AlexNet."""
    name: str = "photo-holes"
    """Name of the file of results."""
    out: Path = RESULTS
    """Folder for it."""


def run(config: PhotoHolesConfig) -> None:
    truth = native_holes.squares(config.data, config.size, config.every, config.count)
    lpips, _ = open_lpips(config.lpips)
    fills = native_holes.fills(config.ckpt, torch.device("cpu"))
    result = native_holes.measure_photos(truth, fills, lpips, lambda line: print(line, flush=True))
    about = {"photos": len(truth), "size": config.size, "every": config.every}
    lpips_of = {kind: {name: row.get("lpips", row["l1"]) for name, row in of.items()} for kind, of in result.items()}
    write({"holes": result, **about}, lpips_of, config.out, config.name)


def main() -> None:
    with user_errors():
        run(parse_command(PhotoHolesConfig, None))


if __name__ == "__main__":
    main()
