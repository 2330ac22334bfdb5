"""A contact sheet of the built-in scenes: ``python -m kintsugi.apps.scenes --out scenes.png``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from kintsugi import pictures
from kintsugi.rng import generator
from kintsugi.scenes import render
from kintsugi.train.config import parse_command, user_errors


@dataclass(frozen=True)
class ScenesConfig:
    """A contact sheet of the built-in scenes."""

    out: Path = Path("scenes.png")
    """The picture to write."""
    count: int = 24
    """Number of scenes."""
    columns: int = 6
    """Number of scenes in a row, without --maps."""
    size: int = 128
    """Side of each picture, px."""
    seed: int = 0
    """Seed of the scenes."""
    maps: bool = False
    """Show one scene per row: its image, depth, normals, instances and classes."""


def contact_sheet(config: ScenesConfig) -> Tensor:
    """The contact sheet, sRGB (3,H,W) in [0,1]."""
    scenes = render(config.seed, torch.arange(config.count), config.size)
    if not config.maps:
        return make_grid(scenes["image"], nrow=config.columns, padding=2, pad_value=1.0)
    hues = torch.rand(256, 3, generator=generator(7))
    columns = (
        scenes["image"],
        (1 - scenes["depth"] / scenes["depth"].amax()).expand(-1, 3, -1, -1),
        scenes["normal"] / 2 + 0.5,
        hues[scenes["instance"].long() % 256].permute(0, 3, 1, 2),
        hues[scenes["semantic"].long()].permute(0, 3, 1, 2),
    )
    return pictures.sheet(columns)


def run(config: ScenesConfig) -> None:
    """Renders the scenes and writes the picture."""
    Image.fromarray((255 * contact_sheet(config)).byte().permute(1, 2, 0).numpy()).save(config.out)
    print(f"wrote {config.out}")


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(ScenesConfig, argv))


if __name__ == "__main__":
    main()
