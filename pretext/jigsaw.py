"""Jigsaw: predict by which permutation nine tiles of an image were shuffled (Noroozi and Favaro 2016,
arXiv:1603.09246).

A square is divided into 3x3 cells, and a tile is cut from each. The nine tiles are shuffled by one of a fixed set of
permutations, which a context-free network predicts: the same encoder sees each tile on its own, and their features are
combined only afterwards (section 3). This takes knowledge of objects, such as which tile holds a bird's head and which
its tail.

Shortcuts are closed as by the authors, each by an option that is on by default. Each tile lies at a random place inside
its cell, away from the cell's border, so that lines do not continue into the next tile at a known place. Each tile's
mean and deviation are removed, because those of neighbors are similar. Some images are gray, and color channels are
shifted against each other, because lenses have chromatic aberration. Batch norm averages over all tiles of all images,
whatever their place, so it reveals nothing.

Deviations: a margin, because even at the paper's sizes some tiles touch by chance (on smooth noise, matching borders
finds the right one of eight permutations in 21 % of cases, at our sizes in 26 %, with the margin in 12.5 %, which is
chance); permutations are chosen by their least distance (see ``choose_permutations``); the encoder's last map is
averaged before the layer for each tile; the learning rate follows a cosine; the optimizer is AdamW, except in the
``paper`` preset.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.functional import rgb_to_grayscale

from kintsugi.nets.backbones import IMAGENET_MEAN, IMAGENET_STD
from kintsugi.pictures import framed, right_wrong_colors, sheet
from kintsugi.pretext.puzzles import Fusion, PuzzleConfig, PuzzleMethod
from kintsugi.rng import generator
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch
from kintsugi.upload import constant, upload

GRID = 3
TILES = GRID * GRID
MOST = 10_000  # permutations; choosing so many takes about a minute
FLAT = 0.01  # least deviation that a tile is normalized by, so that noise in flat tiles is not amplified

Farthest = Literal["least", "mean"]


@dataclass(frozen=True, kw_only=True)
class JigsawConfig(PuzzleConfig):
    size: int = 120
    """Side of the training crops, px: three cells."""
    tile: int = 32
    """Side of a tile, px; at most the side of a cell."""
    permutations: int = 64
    """Number of permutations, the classes to predict."""
    distance: Farthest = "least"
    """How permutations are chosen. least: any two differ in many places; mean (the paper's): two do so on average."""
    offset: bool = True
    """Cut each tile at a random place inside its cell, instead of from the middle."""
    margin: int = 2
    """Least distance of a tile from its cell's border, px, so that no two tiles touch; 0 in the paper."""
    normalize: bool = True
    """Normalize each tile's mean and standard deviation, channel by channel."""
    gray: float = 0.3
    """Fraction of images that are made gray."""
    shift: int = 1
    """Largest random shift of each color channel of a tile, px, within the cell; 2 in the paper."""
    dim: int = 256
    """Width of the layer for each tile."""
    hidden: int = 1024
    """Width of the layer that combines the nine tiles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % GRID:
            raise ValueError(f"--size {self.size}: use a multiple of {GRID}, the number of cells along a side")
        if not 2 <= self.tile <= self.size // GRID:
            raise ValueError(f"--tile must be from 2 to {self.size // GRID}, a third of --size, not {self.tile}")
        if not 0 <= 2 * self.margin <= self.gap:
            raise ValueError(
                f"--margin must be from 0 to {self.gap // 2}, half of what --tile leaves of a cell, not {self.margin}"
            )
        if not 2 <= self.permutations <= MOST:
            raise ValueError(f"--permutations must be from 2 to {MOST}, not {self.permutations}")
        within(self, gray=(0, 1), shift=0, dim=1, hidden=1)

    @property
    def encoder_side(self) -> int:
        return self.tile

    @property
    def gap(self) -> int:
        """Side of a cell minus side of a tile, px."""
        return self.size // GRID - self.tile


def demo() -> JigsawConfig:
    """Minutes on two CPU cores, on the built-in scenes."""
    return JigsawConfig(
        preset="demo", scenes=2048, short_side=128, steps=400, batch=32, show_every=100, eval_every=100, save_every=100
    )


def small() -> JigsawConfig:
    """One GPU, tens of minutes."""
    return JigsawConfig(
        preset="small",
        short_side=128,
        batch=64,
        steps=40_000,
        warmup=500,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> JigsawConfig:
    """The paper's AlexNet, sizes, batch and steps on ImageNet, with its best number of permutations, 1000."""
    return JigsawConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="alexnet",
        size=225,
        short_side=256,
        tile=64,
        margin=0,
        shift=2,
        permutations=1000,
        batch=256,
        steps=350_000,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        dim=512,
        hidden=4096,
        cache_gb=400,
        show_every=5_000,
        eval_every=5_000,
        save_every=5_000,
    )


# --- puzzles --------------------------------------------------------------------------------------------------


def choose_permutations(count: int, distance: Farthest, random: torch.Generator, tiles: int = TILES) -> Tensor:
    """``count`` permutations far from each other, int64 (count,tiles): row p holds the tile at each place.

    A greedy search from a random first permutation (algorithm 1), by Hamming distance, the number of places that
    differ. mean (the paper's): next comes the permutation with the largest mean distance to those chosen; ties are
    broken by the least distance. least: the least distance first, ties broken by the mean.

    64 permutations of 9 tiles differ in 8.12 places on average either way. The least distance is 7 with ``least``, 4
    with ``mean``, and 2 with ``mean`` and arbitrary ties, which is too fine a distinction to be learned.
    """
    flat = itertools.chain.from_iterable(itertools.permutations(range(tiles)))
    every = np.fromiter(flat, np.int8).reshape(-1, tiles)
    total, least = np.zeros(len(every), np.int64), np.full(len(every), tiles, np.int64)
    chosen = [int(torch.randint(len(every), (1,), generator=random))]
    while len(chosen) < count:
        apart = (every != every[chosen[-1]]).sum(1)
        total += apart
        least = np.minimum(least, apart)  # 0 for those chosen
        merit = least * (tiles * count) + total if distance == "least" else total * (tiles + 1) + least
        chosen.append(int(np.where(least > 0, merit, -1).argmax()))
    return torch.from_numpy(every[chosen].astype(np.int64))


@dataclass(frozen=True)
class Puzzles:
    """The random choices for ``n`` puzzles."""

    order: Tensor
    """Number of the permutation, int64 (n,)."""
    corner: Tensor
    """Top and left of each tile's color channels inside its cell, px, int64 (n,9,3,2)."""
    gray: Tensor
    """Whether the image is gray, bool (n,)."""

    def select(self, mine: slice, device: torch.device) -> Puzzles:
        """The puzzles of one rank, on its device."""
        return Puzzles(*upload(device, self.order[mine], self.corner[mine], self.gray[mine]))


def draw(count: int, config: JigsawConfig, random: torch.Generator) -> Puzzles:
    """The random choices for ``count`` puzzles, on the CPU."""
    order = torch.randint(config.permutations, (count,), generator=random)
    first, last = config.margin, config.gap - config.margin
    corner = torch.randint(first, last + 1, (count, TILES, 1, 2), generator=random)
    shift = torch.randint(-config.shift, config.shift + 1, (count, TILES, 3, 2), generator=random)
    gray = torch.rand(count, generator=random) < config.gray
    if not config.offset:
        corner = torch.full_like(corner, config.gap // 2)
    # The same in every cell, also at the image's border, so that a shift does not reveal the place.
    return Puzzles(order, (corner + shift).clamp(first, last), gray)


def cut(image: Tensor, puzzles: Puzzles, side: int) -> Tensor:
    """The tiles (n,9,3,side,side) of squares (n,3,S,S) in [0,1], row by row, not yet shuffled."""
    image = torch.where(puzzles.gray[:, None, None, None], rgb_to_grayscale(image, 3), image)
    cell = image.shape[-1] // GRID
    place = torch.arange(TILES, device=image.device)
    origin = cell * torch.stack([place // GRID, place % GRID], 1)  # (9,2)
    corner = puzzles.corner + origin[:, None]  # (n,9,3,2)
    line = torch.arange(side, device=image.device)
    rows, columns = corner[..., :1] + line, corner[..., 1:] + line  # (n,9,3,side)
    n = torch.arange(len(image), device=image.device)[:, None, None, None, None]
    channel = torch.arange(3, device=image.device)[:, None, None]
    return image[n, channel, rows[..., :, None], columns[..., None, :]]


_MEAN, _STD = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))


def normalized(tiles: Tensor) -> Tensor:
    """Tiles (...,3,t,t) with ImageNet's mean and deviation instead of their own, channel by channel.

    The encoder subtracts and divides by ImageNet's again, so that it sees mean 0 and deviation 1, as it does on average
    for plain RGB when it is transferred. Some values leave [0,1].
    """
    mean, std = constant(_MEAN, tiles.device), constant(_STD, tiles.device)
    centered = tiles - tiles.mean((-2, -1), keepdim=True)
    deviation = centered.square().mean((-2, -1), keepdim=True).sqrt()
    return centered / deviation.clamp(min=FLAT) * std + mean


def permuted(tiles: Tensor, order: Tensor) -> Tensor:
    """Tiles (n,9,...) reordered so that place i holds tile ``order[:, i]``; order int64 (n,9)."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]


def mosaic(tiles: Tensor) -> Tensor:
    """Nine tiles (n,9,3,t,t), row by row, joined to one picture (n,3,3t,3t)."""
    return torch.cat([torch.cat(list(row.unbind(1)), -1) for row in tiles.split(GRID, 1)], -2)


# --- the method -----------------------------------------------------------------------------------------------


class Jigsaw(PuzzleMethod[JigsawConfig]):
    """An encoder of tiles, and a classifier of the nine tiles' permutation."""

    name = "jigsaw"

    def __init__(self, config: JigsawConfig, world: World) -> None:
        super().__init__(config, world)
        self.classes = config.permutations
        self.orders = choose_permutations(config.permutations, config.distance, generator(config.seed))
        self.fusion = Fusion(self.width, TILES, config.dim, config.hidden, config.permutations)
        self.add_optimizer()

    def puzzle(self, image: Tensor, random: torch.Generator, count: int, mine: slice) -> tuple[Tensor, Tensor]:
        """Shuffled tiles (n,9,3,t,t) and the numbers of their permutations (n,)."""
        puzzles = draw(count, self.config, random).select(mine, image.device)
        return self.shuffle(cut(image, puzzles, self.config.tile), puzzles.order)

    def shuffle(self, tiles: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (n,9,3,t,t) as the network sees them, shuffled by the permutations ``order`` (n,); and ``order``."""
        tiles = normalized(tiles) if self.config.normalize else tiles
        return permuted(tiles, constant(self.orders, order.device)[order]), order

    def logits(self, inputs: Tensor) -> Tensor:
        return self.fusion(self.encoder.vectors(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]))  # (n,K)

    # --- pictures and held-out figures ------------------------------------------------------------------------

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """The same puzzles at every call. Columns: shuffled | network's input | reordered as predicted | truth.

        The network's input is shifted, gray and normalized. In the other columns, tiles are plain and cut where the
        network's green channel is. In the third, frames show which tiles are in the right place.
        """
        config = self.config
        image, random = self.shown_images(batch)
        puzzles = draw(len(image), config, random).select(slice(None), image.device)
        plain = Puzzles(
            puzzles.order, puzzles.corner[:, :, 1:2].expand_as(puzzles.corner), torch.zeros_like(puzzles.gray)
        )
        tiles = cut(image, plain, config.tile)
        inputs, truth = self.shuffle(cut(image, puzzles, config.tile), puzzles.order)
        orders = constant(self.orders, image.device)
        true = orders[truth]  # (n,9), the tile at each place
        predicted = orders[self.predict(inputs).argmax(1)]  # (n,9), the tile that the network predicts there
        shuffled = permuted(tiles, true)
        back = permuted(shuffled, predicted.argsort(1))  # the tile predicted to be i comes to place i
        right = permuted(true, predicted.argsort(1)) == torch.arange(TILES, device=image.device)  # (n,9)

        def pieces(tiles: Tensor) -> Tensor:
            """Tiles joined, with thin white lines between them and wider ones around all nine."""
            apart = mosaic(pad(tiles.clamp(0, 1), (1, 1, 1, 1), value=1.0))
            return pad(apart, (3, 3, 3, 3), value=1.0)

        marked = framed(back.flatten(0, 1), right_wrong_colors(right.flatten()), 2).unflatten(0, (-1, TILES))
        columns = [pieces(shuffled), pieces(inputs), pieces(marked), pieces(tiles)]
        title = "shuffled | network's input | reordered as predicted (green: right, red: wrong) | truth"
        return {title: sheet(columns, zoom=2)}


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Jigsaw, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
