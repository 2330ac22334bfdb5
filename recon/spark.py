"""SparK: paint the masked cells of an image from the visible ones, with a convolutional network (Tian et al. 2023,
arXiv:2301.03580).

Most cells of an image are masked. The encoder, a ResNet, computes the visible cells only (``kintsugi.nets.masked``).
At each of its strides, mask tokens fill the masked places, and a light U-Net decoder paints the image. The loss is the
L2 distance in masked cells, each of which is normalized by the mean and standard deviation of its own pixels. The
encoder's state is that of an ordinary ResNet. After training the decoder is discarded.

Deviations, each with its reason:
- Cells may be smaller than the encoder's coarsest stride (``--cell``), because an image of 64 px has only four cells of
  32 px. Every place of the coarser maps then contains a visible cell, so that it has something to compute from.
- The decoder enlarges by repeating places instead of by transposed convolutions, which cost more and leave a
  checkerboard.
- The demo and the small preset use AdamW, which learns faster in short runs; the paper preset uses the paper's LAMB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from kintsugi.augment import cropping
from kintsugi.fill.classical import CLASSICAL
from kintsugi.nets.backbones import Backbone, ResNet
from kintsugi.nets.layers import Norm, normal_init, normalization
from kintsugi.nets.masked import Cells, Densify, draw_visible, masked_maps
from kintsugi.nets.patch_grid import cut, holes, joined, patch_means, patch_statistics
from kintsugi.recon.masked_images import MaskedMethod
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import InitConfig, start_encoder
from kintsugi.train.method import Batch
from kintsugi.upload import upload

BETAS = (0.9, 0.95)  # of both optimizers, the authors' for ResNets
_CROPS, _MASKS = 0, 1  # keys of random numbers


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SparKConfig(InitConfig):
    encoder: Literal["resnet18", "resnet50"] = "resnet18"
    """The network that is trained; resnet50 is the paper's."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization, over visible places only; with group, results do not depend on how the batch is split over
    ranks."""
    stem: Literal["large", "medium", "small"] = "large"
    """medium: a 3x3 convolution of stride 2 without pooling; small: one without stride. The coarsest strides are 32, 16
    and 8."""
    cell: int = 16
    """Side of the cells that are masked, px: a power of two. The paper masks cells of 32 px of images of 224 px."""
    mask_ratio: float = 0.6
    """Fraction of the cells that are masked."""
    decoder_width: int = 256
    """Channels of the decoder's coarsest map, halved at each finer one. The paper has 768."""
    smallest_crop: float = 0.67
    """Smallest fraction of an image's area that a crop shows."""

    optimizer: Literal["adamw", "lamb"] = "adamw"
    """lamb: the paper's, for large batches; adamw: for small batches and short runs."""
    lr: float = 1e-3
    """Highest learning rate. lamb: per 256 images of the batch; adamw: used as it is."""
    weight_decay: float = 0.04
    """Weight decay at the start; along a cosine it becomes --last-weight-decay."""
    last_weight_decay: float = 0.2
    """Weight decay at the end."""
    warmup: int = 50
    """Steps over which the learning rate rises; after them it falls along a cosine."""
    clip: float = 5.0
    """Largest norm of the gradient; a larger one is scaled down to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, cell=4, mask_ratio=(0, 1), decoder_width=64, smallest_crop=cropping.SMALLEST_CROP)
        within(self, lr=0, weight_decay=0, last_weight_decay=0, warmup=0, clip=1e-6)
        if self.cell & (self.cell - 1):
            raise ValueError(f"--cell {self.cell}: use a power of two, such as 8, 16 or 32")
        side = max(self.cell, self.coarsest)
        if self.size % side:
            raise ValueError(f"--size {self.size}: use a multiple of {side}")
        least = (self.grid // self.block) ** 2 if self.block > 1 else 1
        if not least <= self.shown < self.grid**2:
            raise ValueError(
                f"--mask-ratio {self.mask_ratio:g} shows {self.shown} of {self.grid**2} cells: "
                f"use one that shows {least} to {self.grid**2 - 1}, or other cells with --cell"
            )

    @property
    def coarsest(self) -> int:
        """The encoder's coarsest stride."""
        return {"large": 32, "medium": 16, "small": 8}[self.stem]

    @property
    def grid(self) -> int:
        """Cells along each side of an image."""
        return self.size // self.cell

    @property
    def block(self) -> int:
        """Side of the blocks of cells of which at least one is visible: 2 if the encoder's strides exceed a cell."""
        return 2 if self.coarsest > self.cell else 1

    @property
    def shown(self) -> int:
        """Visible cells of each image."""
        return round(self.grid**2 * (1 - self.mask_ratio))

    @property
    def backbone(self) -> Backbone:
        return Backbone(name=self.encoder, norm=self.norm, stem=self.stem)


def demo() -> SparKConfig:
    """Minutes on two CPU cores, built-in scenes."""
    return SparKConfig(
        preset="demo", scenes=2048, short_side=80, steps=1000, batch=32, show_every=200, eval_every=250, save_every=250
    )


def small() -> SparKConfig:
    """One GPU, tens of minutes."""
    return SparKConfig(
        preset="small",
        size=96,
        batch=128,
        steps=20_000,
        scenes=50_000,
        warmup=500,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> SparKConfig:
    """The paper's ResNet-50 on ImageNet: batch 4096, 1600 epochs, of which 40 are the warm-up."""
    return SparKConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="resnet50",
        size=224,
        short_side=256,
        cell=32,
        decoder_width=768,
        optimizer="lamb",
        lr=2e-4,
        batch=4096,
        steps=500_000,
        warmup=12_500,
        cache_gb=400,
        show_every=5_000,
        eval_every=10_000,
        save_every=10_000,
    )


# --- networks -------------------------------------------------------------------------------------------------


class LightDecoder(nn.Module):
    """Paints images from maps of their visible cells: {stride: (N,C,h,h)} -> (N,3,S,S) float, as normalized cells.

    From the coarsest map to the full side: adds the filled map of the same stride, enlarges twice, two convolutions.
    The number of channels is ``width`` at the coarsest stride and halves at each finer one.
    """

    def __init__(self, channels: dict[int, int], width: int, norm: Norm) -> None:
        super().__init__()
        strides = sorted(channels, reverse=True)
        finest = int(math.log2(strides[0]))
        widths = [width >> level for level in range(finest + 1)]
        self.strides = [strides[0] >> level for level in range(finest + 1)]  # down to 1
        self.densify = nn.ModuleDict(
            {str(s): Densify(channels[s], widths[i], 1 if i == 0 else 3, norm) for i, s in enumerate(strides)}
        )
        self.enlarge = nn.ModuleList(_enlarge(wide, narrow, norm) for wide, narrow in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], 3, 1)
        for part in (self.enlarge, self.last):
            normal_init(part)

    def forward(self, maps: dict[int, Tensor], cells: Cells) -> Tensor:
        x: Tensor | None = None
        for level, stride in enumerate(self.strides):
            if stride in maps:
                skip = self.densify[str(stride)](maps[stride], cells)
                x = skip if x is None else x + skip
            x = self.enlarge[level](x) if stride > 1 else self.last(x)
        assert x is not None
        return x.float()


def _enlarge(wide: int, narrow: int, norm: Norm) -> nn.Sequential:
    """(N,wide,h,h) -> (N,narrow,2h,2h)."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(wide, wide, 3, padding=1, bias=False),
        normalization(norm, wide),
        nn.ReLU6(inplace=True),
        nn.Conv2d(wide, narrow, 3, padding=1, bias=False),
        normalization(norm, narrow),
    )


# --- losses ---------------------------------------------------------------------------------------------------


def cell_loss(painted: Tensor, image: Tensor, visible: Tensor) -> Tensor:
    """Mean squared error in masked cells; 0-d.

    painted: (N,3,S,S), as normalized cells. image: (N,3,S,S) in [0,1]; each of its cells is normalized by its mean and
    standard deviation, over pixels and channels, as in the authors' code. visible: bool (N,1,g,g), with equally many
    visible cells in every image.
    """
    cell = image.shape[-1] // visible.shape[-1]
    truth = cut(image, cell)
    mean, deviation = patch_statistics(truth)
    squared = (cut(painted, cell) - (truth - mean) / deviation).square().mean(2)  # (N,g*g)
    masked = ~upload(image.device, visible)[0].flatten(1)
    return (squared * masked).sum() / masked.sum()


# --- the method -----------------------------------------------------------------------------------------------


class SparK(MaskedMethod[SparKConfig]):
    """A ResNet that computes visible cells only, and a decoder that paints the masked ones."""

    name = "spark"
    title = "visible | painted | truth"
    encoder: ResNet

    def __init__(self, config: SparKConfig, world: World) -> None:
        super().__init__(config, world)
        encoder = start_encoder(config, config.backbone.build(), world)
        assert isinstance(encoder, ResNet)
        self.encoder = encoder
        self.decoder = LightDecoder(encoder.channels, config.decoder_width, config.norm)
        groups = optim.decay_groups(nn.ModuleList([self.encoder, self.decoder]), config.weight_decay)
        self.rate = config.lr * config.batch / 256 if config.optimizer == "lamb" else config.lr
        """The highest learning rate."""
        self.optimizers["both"] = (
            optim.lamb(groups, self.rate, BETAS)
            if config.optimizer == "lamb"
            else torch.optim.AdamW(groups, self.rate, BETAS, fused=True)
        )

    @classmethod
    def check(cls, config: SparKConfig) -> None:
        if config.starts_from:
            config.check_init(config.backbone)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, count = self.config, self.config.batch
        random, mine = generator(config.seed, step, _CROPS), self.world.part(count)
        image = cropping.random_crops(batch, config.size, count, mine, random, config.smallest_crop)
        visible = self.draw(count, step)[mine]
        self.train()
        loss = cell_loss(self.predict(image, visible), image, visible)
        optimizer = self.optimizers["both"]
        self.world.backward(loss, optimizer)
        optim.set_lr(optimizer, self.rate * optim.warmup_cosine(step, config.steps, config.warmup))
        optimizer.param_groups[0]["weight_decay"] = self.decay(step)
        if config.optimizer == "lamb":
            optim.set_lamb_step(optimizer, step)
        return {"loss/cells": loss.detach(), **self.take_step("both", step, config.clip)}

    def decay(self, step: int) -> float:
        """The weight decay at a step, which goes from the first to the last value along half a cosine."""
        config = self.config
        return optim.cosine(config.weight_decay, config.last_weight_decay, step, config.steps)

    def draw(self, count: int, *key: int) -> Tensor:
        """Random visible cells for ``key``, bool (count,1,g,g), on the CPU."""
        config, random = self.config, generator(self.config.seed, *key, _MASKS)
        return draw_visible(count, config.grid, config.shown, config.block, random)

    def predict(self, image: Tensor, visible: Tensor) -> Tensor:
        """What the networks predict from the visible cells, (N,3,S,S), as normalized cells."""
        cells = Cells(visible, image.device)
        with self.world.autocast():
            return self.decoder(masked_maps(self.encoder, image, cells), cells)

    # --- pictures and figures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(self, image: Tensor, visible: Tensor) -> Tensor:
        """The prediction with the true mean and standard deviation of each cell, (N,3,S,S) in [0,1]."""
        self.eval()
        cell = self.config.cell
        mean, deviation = patch_statistics(cut(image, cell))
        return joined(cut(self.predict(image, visible), cell) * deviation + mean, cell).clamp(0, 1)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of the classical fills, and of painting each masked cell in its own true mean.

        The painted cells have the truth's mean and standard deviation, so the last is the baseline to compare with.
        """
        every, config = list(batches), self.config
        paints = {name: self.with_fill(fill) for name, fill in CLASSICAL.items()}
        paints["mean of each cell"] = lambda image, visible: patch_means(image, config.cell)
        return {name: self.figures(every, paint) for name, paint in paints.items()}

    def mask(self, visible: Tensor) -> Tensor:
        """The hole of images, float (N,1,S,S), 1 = masked; visible: bool (N,1,g,g)."""
        return holes(~visible.flatten(1), self.config.size)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(SparK, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
