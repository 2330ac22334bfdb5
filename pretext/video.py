"""What the tasks of clips share: settings, how frames are cut and colored, and how a verdict is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.utils import make_grid

from kintsugi.augment import color_jitter, cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.data.frame_tuples import Draw, TupleSplit, equalize_exposure, open_tuples
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import framed
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.config import TrainConfig, within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch
from kintsugi.train.opening import store_of

_CROPS, _COLORS = 1, 2  # what random numbers are for, the last part of their key


@dataclass(frozen=True, kw_only=True)
class VideoConfig(TrainConfig):
    """Settings of every method that learns from clips."""

    data: str = "scenes"
    """scenes, or a folder with a subfolder of frames, or a video file, for each clip (or with such in frames/)."""
    scenes: int = 4096
    """How many of the built-in scenes' clips to render (once; they are cached)."""
    batch: int = 64
    """Tuples of frames per step, over all ranks together."""
    eval_images: int = 256
    """Held-out tuples measured at each --eval-every."""
    encoder: Literal["resnet18", "resnet50", "alexnet"] = "resnet18"
    norm: Literal["batch", "group"] = "batch"
    frames: int = 16
    """Frames of each of the built-in scenes' clips."""
    every: int = 1
    """Take every so-many-th frame of a clip that is read."""
    tuples: int = 900_000
    """How many different tuples are drawn; the order repeats after them. Shuffle and Learn's number."""
    smallest_crop: float = 0.5
    """The crop, the same for all frames of a tuple, has at least this part of their area."""
    jitter: float = 0.4
    """How much brightness, contrast and saturation vary, alike in all frames of a tuple."""
    even: bool = True
    """Give all frames of a tuple the same mean and deviation in each color channel, and all sub-clips' images one
    contrast: a camera's drifting exposure would tell the order, and weak differences the odd one."""
    dim: int = 256
    """Width of what the shared tower says of a frame, or of a sub-clip."""
    optimizer: optim.Rule = "adam"
    lr: float = 5e-4
    weight_decay: float = 1e-4
    warmup: int = 0
    """Steps over which the rate rises; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(
            self,
            smallest_crop=cropping.SMALLEST_CROP,
            jitter=(0, 1),
            frames=2,
            every=1,
            tuples=1,
            dim=1,
            lr=0,
            weight_decay=0,
            warmup=0,
        )
        if self.size < 32:
            raise ValueError(f"--size {self.size} is too small for the encoder: use at least 32")


def opened(config: VideoConfig, quiet: bool, span: int, draw: Draw, shorter: str) -> TupleSplit:
    """The clips that a configuration names, as tuples; for ``kintsugi.train.loop.train``."""
    return open_tuples(
        config.data,
        config.size,
        span,
        draw,
        store_of(config, quiet),
        shorter=shorter,
        count=config.tuples,
        seed=config.seed,
        frames=config.frames,
        every=config.every,
        scenes=config.scenes,
    )


def view(batch: Batch, config: VideoConfig, world: World, *key: int) -> Tensor:
    """This rank's tuples of frames as the task sees them, drawn for ``key`` and the global batch: image (n,K,3,H,W) ->
    (n,K,3,S,S) in [0,1]. All frames of a tuple have the same box, mirroring and change of colors."""
    count = len(batch["image"]) * world.size
    part = world.part(count)
    random = generator(config.seed, *key, _CROPS)
    draws, flip = cropping.crop_draws(count, random)[part], cropping.random_flips(count, random)[part]
    boxes = cropping.random_boxes(batch["extent"], draws, scale=(config.smallest_crop, 1.0))
    frames = _cut(batch["image"], boxes, config.size, flip)
    recipe = ColorAugmentation(config.jitter, config.jitter, config.jitter, hue=0, gray=0.2, blur=0)
    changes = color_jitter.draw_changes(recipe, count, generator(config.seed, *key, _COLORS))[part]
    frames = _alike(frames, changes)
    return equalize_exposure(frames) if config.even else frames


def centered(batch: Batch, config: VideoConfig) -> Tensor:
    """The frames' middles, for looking and measuring: (n,K,3,H,W) -> (n,K,3,S,S) in [0,1]."""
    frames = _cut(batch["image"], cropping.center_boxes(batch["extent"]), config.size)
    return equalize_exposure(frames) if config.even else frames


def _cut(image: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    count = image.shape[1]
    repeated = None if flip is None else flip.repeat_interleave(count)
    cut = cropping.crop_resize(image.flatten(0, 1), boxes.repeat_interleave(count, 0), size, flip=repeated)
    return cut.unflatten(0, (-1, count))


def _alike(frames: Tensor, changes: color_jitter.ColorChanges) -> Tensor:
    """Each tuple's frames side by side as one picture: so even what goes by a picture's mean is the same for all."""
    count, size = frames.shape[1], frames.shape[4]
    wide = color_jitter.recolor(frames.permute(0, 2, 3, 1, 4).flatten(3), changes)  # (n,3,S,K*S)
    return wide.unflatten(3, (count, size)).permute(0, 3, 1, 2, 4)


class Tower(nn.Module):
    """The encoder and one layer on its coarsest map, its positions kept (fc6 of the papers' nets): where things are is
    what order shows in. (N,3,S,S) in [0,1] -> (N,dim)."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.encoder: Encoder = Backbone(name=config.encoder, norm=config.norm).build()
        with torch.no_grad():
            maps = self.encoder.eval()(torch.zeros(1, 3, config.size, config.size))
        numbers = maps[max(maps)].numel()
        norm = nn.BatchNorm1d(config.dim) if config.norm == "batch" else nn.LayerNorm(config.dim)
        self.last = nn.Sequential(nn.Linear(numbers, config.dim, bias=False), norm, nn.ReLU(inplace=True))

    def forward(self, image: Tensor) -> Tensor:
        maps = self.encoder(image)
        return self.last(maps[max(maps)].flatten(1))


def rows(columns: Sequence[Tensor], zoom: int = 2) -> Tensor:
    """One row for each clip: columns (n,3,H,w), w of each its own, side by side and ``zoom`` times as large."""
    wide = interpolate(torch.cat([column.float() for column in columns], 3), scale_factor=zoom, mode="nearest")
    return make_grid(wide, nrow=1, padding=4, pad_value=1.0)


def bordered(images: Tensor, color: Tensor, width: int = 3) -> Tensor:
    """Images (n,3,H,W) with a border around them, of each its ``color`` (n,3): (n,3,H+2w,W+2w)."""
    return framed(pad(images, (width,) * 4), color, width)
