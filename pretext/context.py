"""Context prediction: predict on which of eight sides of a patch its neighbor lies (Doersch et al. 2015,
arXiv:1505.05192).

Each image gives a grid of 3x3 patches. All pass the same encoder. The features of two neighbors, along a side or at a
corner, are combined, and the place of the second as seen from the first is predicted (section 3). As in the paper, each
patch takes part in up to eight pairs: nine patches give 40 pairs, counting both directions.

Shortcuts are closed (section 3.1), each by an option that is on by default: a gap of about half a patch and a random
jitter of each patch, because lines and textures continue from one patch to the next; projected colors or dropped
channels, because chromatic aberration grows from the image's center outwards and so reveals a patch's absolute place.

Deviations: each image gives one grid at a time and is cropped and resized as in the other methods, which already makes
patches of varying sharpness (the authors resample some patches instead); the encoder's last map is averaged before the
layer for each patch; all presets use AdamW and a cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import draw_bounding_boxes

from kintsugi.nets.backbones import IMAGENET_MEAN
from kintsugi.pictures import GREEN, RED, sheet
from kintsugi.pretext.puzzles import Fusion, PuzzleConfig, PuzzleMethod
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch
from kintsugi.upload import constant, upload

PLACES = torch.tensor([(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)])
"""Places of the patches, as (down, right) from the middle one, row by row, (9,2)."""
MIDDLE = 4  # its number in ``PLACES``
SIDES = torch.cat([PLACES[:MIDDLE], PLACES[MIDDLE + 1 :]])
"""Places of a patch's neighbors, as (down, right) from it, row by row, (8,2)."""
_APART = PLACES - PLACES[:, None]  # (9,9,2), from the first patch to the second
PAIRS = (_APART.abs().amax(2) == 1).nonzero()
"""Numbers of the two patches of each pair, in ``PLACES``, (40,2)."""
TRUTH = (_APART[PAIRS[:, 0], PAIRS[:, 1], None] == SIDES).all(2).int().argmax(1)
"""The side of the first patch on which the second lies, as its number in ``SIDES``, for each pair, (40,)."""
NOISE = 0.01  # deviation of dropped channels, as a fraction of the kept channel's (section 3.1)
GREEN_MAGENTA = torch.tensor([-1.0, 2.0, -1.0])  # a of section 3.1


@dataclass(frozen=True, kw_only=True)
class ContextConfig(PuzzleConfig):
    size: int = 128
    """Side of the training crops, px; must hold three patches, two gaps and the jitter."""
    patch: int = 32
    """Side of a patch, px."""
    gap: int = 14
    """Distance between patches before jitter, px; about half a patch."""
    jitter: int = 2
    """Largest random displacement of each patch along each axis, px."""
    color: Literal["drop", "project", "keep"] = "project"
    """drop: replace two of each patch's three channels with noise; project: remove the difference between green and
    magenta; keep: leave the colors as they are."""
    smallest_crop: float = 0.7
    """Smallest fraction of a square image's area that a crop shows."""
    dim: int = 256
    """Width of the layer for each patch."""
    hidden: int = 512
    """Width of the layer that combines both patches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, patch=2, gap=0, jitter=0, dim=1, hidden=1)
        needed = 3 * self.patch + 2 * (self.gap + self.jitter)
        if self.size < needed:
            raise ValueError(
                f"--size {self.size} is too small for three patches, two gaps and the jitter: use at least {needed}"
            )

    @property
    def encoder_side(self) -> int:
        return self.patch


def demo() -> ContextConfig:
    """Minutes on two CPU cores, on the built-in scenes."""
    return ContextConfig(
        preset="demo", scenes=2048, short_side=128, steps=500, batch=16, show_every=100, eval_every=100, save_every=100
    )


def small() -> ContextConfig:
    """One GPU, tens of minutes."""
    return ContextConfig(
        preset="small",
        short_side=128,
        batch=64,
        steps=20_000,
        warmup=500,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> ContextConfig:
    """The paper's patches of 96 px with gaps of 48 px on ImageNet; an AlexNet, which the paper's networks resemble."""
    return ContextConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="alexnet",
        size=400,
        short_side=400,
        patch=96,
        gap=48,
        jitter=7,
        color="drop",
        smallest_crop=0.6,
        batch=64,
        steps=1_000_000,
        dim=4096,
        hidden=4096,
        lr=1e-4,
        warmup=1_000,
        cache_gb=900,
        show_every=5_000,
        eval_every=10_000,
        save_every=10_000,
    )


# --- puzzles --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatchGrids:
    """The random choices for the patches of ``n`` images."""

    corner: Tensor
    """Top and left of each patch within the crop, px, int64 (n,9,2)."""
    kept: Tensor
    """The channel that each patch keeps, int64 (n,9)."""
    noise: Tensor
    """Normal noise for the dropped channels, (n,9,3,p,p); (n,9,3,0,0) if none is dropped."""

    def select(self, mine: slice, device: torch.device) -> PatchGrids:
        """The grids of one rank, on its device."""
        return PatchGrids(*upload(device, *(each[mine] for each in (self.corner, self.kept, self.noise))))


def places(config: ContextConfig) -> Tensor:
    """Top and left of the nine patches before jitter, px, int64 (9,2)."""
    return (config.size - config.patch) // 2 + (config.patch + config.gap) * PLACES


def draw(count: int, config: ContextConfig, random: torch.Generator) -> PatchGrids:
    """The random choices for ``count`` images, on the CPU."""
    shift = torch.randint(-config.jitter, config.jitter + 1, (count, len(PLACES), 2), generator=random)
    kept = torch.randint(3, (count, len(PLACES)), generator=random)
    extent = config.patch if config.color == "drop" else 0
    noise = torch.randn(count, len(PLACES), 3, extent, extent, generator=random)
    return PatchGrids(places(config) + shift, kept, noise)


def cut(image: Tensor, corner: Tensor, side: int) -> Tensor:
    """Patches (n,m,3,side,side) of images (n,3,S,S), at the tops and lefts ``corner`` (n,m,2)."""
    line = torch.arange(side, device=image.device)
    rows, columns = corner[..., :1] + line, corner[..., 1:] + line  # (n,m,side)
    n = torch.arange(len(image), device=image.device)[:, None, None, None]
    # Indexing the first, third and fourth dimension gives (n,m,side,side,3).
    return image[n, :, rows[..., :, None], columns[..., None, :]].movedim(-1, 2)


_MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]


def dropped(patches: Tensor, kept: Tensor, noise: Tensor) -> Tensor:
    """Patches (n,m,3,p,p) with only the channel ``kept`` (n,m); the others become noise.

    The noise is ``noise`` (n,m,3,p,p), scaled to a hundredth of the kept channel's deviation, around ImageNet's mean,
    which the encoder normalizes to 0.
    """
    index = kept[..., None, None, None].expand(-1, -1, 1, *patches.shape[-2:])
    deviation = patches.gather(2, index).std((-2, -1), keepdim=True, correction=0)  # (n,m,1,1,1)
    instead = constant(_MEAN, patches.device) + NOISE * deviation * noise
    channel = torch.arange(3, device=patches.device)
    return torch.where((channel == kept[..., None])[..., None, None], patches, instead)


_PROJECTION = torch.eye(3) - torch.outer(GREEN_MAGENTA, GREEN_MAGENTA) / (GREEN_MAGENTA @ GREEN_MAGENTA)


def projected(patches: Tensor) -> Tensor:
    """Patches (...,3,p,p) without the difference between green and magenta: each pixel times I - a^T a / (a a^T)
    (section 3.1)."""
    return torch.einsum("dc,...chw->...dhw", constant(_PROJECTION, patches.device), patches)


# --- the method -----------------------------------------------------------------------------------------------


class Context(PuzzleMethod[ContextConfig]):
    """An encoder of patches, and a classifier of pairs of patches."""

    name = "context"
    classes = len(SIDES)

    def __init__(self, config: ContextConfig, world: World) -> None:
        super().__init__(config, world)
        self.fusion = Fusion(self.width, 2, config.dim, config.hidden, len(SIDES))
        self.add_optimizer()

    def puzzle(self, image: Tensor, random: torch.Generator, count: int, mine: slice) -> tuple[Tensor, Tensor]:
        """The patches (n,9,3,p,p), and ``TRUTH`` for each image (n,40)."""
        grids = draw(count, self.config, random).select(mine, image.device)
        return self.patches(image, grids), constant(TRUTH, image.device).expand(len(image), -1)

    def patches(self, image: Tensor, grids: PatchGrids) -> Tensor:
        """The grids cut from squares (n,3,S,S) in [0,1]: patches (n,9,3,p,p) as the network sees them."""
        patches = cut(image, grids.corner, self.config.patch)
        if self.config.color == "drop":
            return dropped(patches, grids.kept, grids.noise)
        return projected(patches) if self.config.color == "project" else patches

    def logits(self, inputs: Tensor) -> Tensor:
        vectors = self.encoder.vectors(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])  # (n,9,D)
        return self.fusion(vectors, constant(PAIRS, inputs.device))  # (n,40,8)

    # --- pictures and held-out figures ------------------------------------------------------------------------

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of knowing only how often each side is the right one: few neighbors lie at a corner."""
        shares = torch.bincount(TRUTH) / len(TRUTH)
        return {"chance": {"accuracy": 100 * shares.amax().item(), "loss": -(shares * shares.log()).sum().item()}}

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """A pair of each image, the same at every call, whose first patch is the middle one.

        Columns: middle patch | neighbor, as the network sees them | their places.
        """
        config = self.config
        image, random = self.shown_images(batch)
        grids = draw(len(image), config, random).select(slice(None), image.device)
        inputs = self.patches(image, grids)
        around = (PAIRS[:, 0] == MIDDLE).nonzero()[:, 0]  # the pairs of the middle patch, in the order of SIDES
        side = torch.arange(len(image)) % len(SIDES)
        n, other = torch.arange(len(image)), PAIRS[around[side], 1]
        predicted = self.predict(inputs).argmax(2).cpu()[n, around[side]]
        hits = predicted == side
        corner = grids.corner.cpu()
        corners = places(config)[PAIRS[around[predicted], 1]]  # (n,2)
        maps = []
        for picture, center, true, wrong, right in zip(
            image, corner[:, MIDDLE], corner[n, other], corners, hits, strict=True
        ):
            boxed = torch.stack([center, true, true if right else wrong]).flip(1)  # left, top
            boxes = torch.cat([boxed, boxed + config.patch - 1], 1)
            colors = [(255, 255, 255), (40, 90, 255), _bytes(GREEN if right else RED)]
            drawn = draw_bounding_boxes((255 * picture.clamp(0, 1)).byte(), boxes, colors=colors, width=2)
            maps.append(drawn.float() / 255)
        shown = inputs[:, MIDDLE], inputs[n, other]
        columns = [interpolate(patches.clamp(0, 1), image.shape[-2:], mode="nearest") for patches in shown]
        title = "middle patch | neighbor | white: middle, blue: truth, prediction green: right, red: wrong"
        return {title: sheet([*columns, torch.stack(maps).to(image)], zoom=2)}


def _bytes(color: tuple[float, float, float]) -> tuple[int, int, int]:
    """A color in [0,1] as bytes."""
    red, green, blue = (round(255 * value) for value in color)
    return red, green, blue


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Context, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
