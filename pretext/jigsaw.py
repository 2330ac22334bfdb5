"""Jigsaw: in what order were nine tiles of an image before they were shuffled? (Noroozi and Favaro 2016,
arXiv:1603.09246).

A square of 3x3 cells; a tile from each; the nine are shuffled by one of a fixed set of permutations, and a context-free
network says which: each tile passes the same encoder by itself, and only what it says of them is put together
(section 3). Who tells which tile is the bird's head and which its tail can do it.

Shortcuts are closed as by the authors, each by an option that is on by default: a tile lies at random inside its cell,
so that no line goes on in the next tile at a known place, and off its border; each tile's mean and deviation are taken
away, because those of neighbors are alike; some images are gray and the color channels are shifted against each
other, because of lenses' chromatic aberration. Batch norm is over all tiles of all images at once, whatever their
place and order: it tells nothing.

Deviations: a margin, because even at the paper's sizes some tiles touch by chance (of noise whose neighboring pixels
are alike, a matcher of borders then finds 21 % of eight orders, at these sizes 26 %, with the margin 12.5 %: chance);
permutations are chosen by their least distance (``choose_permutations``); the encoder's last map is averaged before
the tile's own layer; the learning rate falls along a cosine, and Adam is the optimizer but in the paper's preset.
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

GRID = 3
TILES = GRID * GRID
MOST = 10_000  # permutations, which take about a minute to choose
FLAT = 0.01  # deviation below which a tile is not amplified further: what is left is the camera's noise

Farthest = Literal["least", "mean"]


@dataclass(frozen=True, kw_only=True)
class JigsawConfig(PuzzleConfig):
    size: int = 120
    """Side of the training crops, px, three cells."""
    tile: int = 32
    """Side of a tile, px; at most that of a cell."""
    permutations: int = 64
    """How many orders there are to choose from."""
    distance: Farthest = "least"
    """How these are chosen: least, so that any two differ in many tiles; mean, the paper's, on the average."""
    offset: bool = True
    """The tile lies at random inside its cell; else in the middle."""
    margin: int = 2
    """How far from its cell's border it lies at least, px, so that no two tiles touch by chance; the paper's: 0."""
    normalize: bool = True
    """Each tile's mean and deviation are taken away, channel by channel."""
    gray: float = 0.3
    """Part of the images that are gray."""
    shift: int = 1
    """By how many px at most each color channel of a tile is moved by itself, inside the cell; the paper's: 2."""
    dim: int = 256
    """Width of a tile's code."""
    hidden: int = 1024
    """Width of the layer that puts the nine codes together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % GRID:
            raise ValueError(f"--size {self.size}: use a multiple of {GRID}, the cells of a side")
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
    def gap(self) -> int:
        """What a tile leaves of its cell's side, px."""
        return self.size // GRID - self.tile


def demo() -> JigsawConfig:
    """Minutes on two CPU cores, built-in scenes."""
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
    """The paper's AlexNet, sizes, batch and steps on ImageNet; 1000 permutations, its best."""
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
    """``count`` permutations far from each other, int64 (count,tiles): row p says which tile comes to each place.

    Greedily from a random first one on (algorithm 1), by Hamming distance, the number of places that differ. mean: next
    comes the one farthest on the average from those chosen, the paper's; of equals, the one whose nearest is farthest.
    least: the other way round. 64 of 9 tiles differ in 8.12 places on the average either way, but any two in at least
    7 by ``least``, against 4 by ``mean``, and 2 where equals are taken as they come: too fine a distinction to ask for.
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
    """What is random in ``n`` puzzles."""

    order: Tensor
    """Which permutation, int64 (n,)."""
    corner: Tensor
    """Top and left of each tile's color channels inside its cell, px, int64 (n,9,3,2)."""
    gray: Tensor
    """Whether the image is gray, bool (n,)."""

    def part(self, mine: slice, device: torch.device) -> Puzzles:
        return Puzzles(*(each[mine].to(device) for each in (self.order, self.corner, self.gray)))


def draw(count: int, config: JigsawConfig, random: torch.Generator) -> Puzzles:
    order = torch.randint(config.permutations, (count,), generator=random)
    first, last = config.margin, config.gap - config.margin
    corner = torch.randint(first, last + 1, (count, TILES, 1, 2), generator=random)
    shift = torch.randint(-config.shift, config.shift + 1, (count, TILES, 3, 2), generator=random)
    gray = torch.rand(count, generator=random) < config.gray
    if not config.offset:
        corner = torch.full_like(corner, config.gap // 2)
    # Every cell alike, also at the image's border: a shift that depended on the place would tell it.
    return Puzzles(order, (corner + shift).clamp(first, last), gray)


def cut(image: Tensor, puzzles: Puzzles, side: int) -> Tensor:
    """The tiles (n,9,3,side,side) of squares (n,3,S,S) in [0,1], row by row, in their own order."""
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


def normalized(tiles: Tensor) -> Tensor:
    """Tiles (...,3,t,t) without their own mean and deviation, channel by channel.

    They get ImageNet's instead, because the encoder takes that away again from what it is given: so it sees mean 0 and
    deviation 1 here, as it does on the average where plain RGB is moved through it. Some values leave [0,1].
    """
    shape = (3, 1, 1)
    mean, std = tiles.new_tensor(IMAGENET_MEAN).view(shape), tiles.new_tensor(IMAGENET_STD).view(shape)
    centered = tiles - tiles.mean((-2, -1), keepdim=True)
    deviation = centered.square().mean((-2, -1), keepdim=True).sqrt()
    return centered / deviation.clamp(min=FLAT) * std + mean


def taken(tiles: Tensor, order: Tensor) -> Tensor:
    """Tiles (n,9,...) such that place i holds tile ``order[i]``, order (n,9)."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]


def mosaic(tiles: Tensor) -> Tensor:
    """Nine tiles (n,9,3,t,t), row by row, as one picture (n,3,3t,3t)."""
    return torch.cat([torch.cat(list(row.unbind(1)), -1) for row in tiles.split(GRID, 1)], -2)


# --- the method -----------------------------------------------------------------------------------------------


class Jigsaw(PuzzleMethod[JigsawConfig]):
    name = "jigsaw"

    def __init__(self, config: JigsawConfig, world: World) -> None:
        super().__init__(config, world)
        self.answers = config.permutations
        self.orders = choose_permutations(config.permutations, config.distance, generator(config.seed))
        self.fusion = Fusion(self.width, TILES, config.dim, config.hidden, config.permutations)
        self.optimize()

    def question(self, image: Tensor, random: torch.Generator, count: int, mine: slice) -> tuple[Tensor, Tensor]:
        """Shuffled tiles (n,9,3,t,t), and the numbers of their permutations (n,)."""
        puzzles = draw(count, self.config, random).part(mine, image.device)
        return self.shuffle(cut(image, puzzles, self.config.tile), puzzles.order)

    def shuffle(self, tiles: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """As the network sees them."""
        tiles = normalized(tiles) if self.config.normalize else tiles
        return taken(tiles, self.orders.to(order.device)[order]), order

    def logits(self, shown: Tensor) -> Tensor:
        return self.fusion(self.encoder.vectors(shown.flatten(0, 1)))  # (9n,3,t,t) -> (n,K)

    # --- looking and measuring --------------------------------------------------------------------------------

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Puzzles that are the same at every call; each tile framed by whether it came to its place.

        As the net sees them they are shifted, gray and normalized; in the other columns they are cut at green's place.
        """
        config = self.config
        image, random = self.shown_images(batch)
        puzzles = draw(len(image), config, random).part(slice(None), image.device)
        plain = Puzzles(
            puzzles.order, puzzles.corner[:, :, 1:2].expand_as(puzzles.corner), torch.zeros_like(puzzles.gray)
        )
        tiles = cut(image, plain, config.tile)
        shown, truth = self.shuffle(cut(image, puzzles, config.tile), puzzles.order)
        said = self.answer(shown).argmax(1)
        orders = self.orders.to(image.device)
        true, guessed = orders[truth], orders[said]  # (n,9), which tile each place holds, and is said to hold
        shuffled = taken(tiles, true)
        back = taken(shuffled, guessed.argsort(1))  # the tile that is said to be i comes to place i
        right = taken(true, guessed.argsort(1)) == torch.arange(TILES, device=image.device)  # (n,9)

        def pieces(tiles: Tensor) -> Tensor:
            """White between them, and more around all nine."""
            apart = mosaic(pad(tiles.clamp(0, 1), (1, 1, 1, 1), value=1.0))
            return pad(apart, (3, 3, 3, 3), value=1.0)

        marked = framed(back.flatten(0, 1), right_wrong_colors(right.flatten()), 2).unflatten(0, (-1, TILES))
        columns = [pieces(shuffled), pieces(shown), pieces(marked), pieces(tiles)]
        title = "shuffled | as the net sees it | put back by the net, green: right, red: wrong | truth"
        return {title: sheet(columns, zoom=2)}


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Jigsaw, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
