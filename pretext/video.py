"""What the methods that learn from clips share: settings, crops and colors of frames, networks, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.utils import make_grid

from kintsugi.augment import color_jitter, cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.data.frame_tuples import Draw, TupleSplit, equalize_exposure, open_tuples
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import framed
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import EncoderConfig, start_encoder
from kintsugi.train.method import Batch, Method
from kintsugi.train.opening import store_of

_CROPS, _COLORS = 1, 2  # last element of the random generators' keys


@dataclass(frozen=True, kw_only=True)
class VideoConfig(EncoderConfig):
    """Settings of every method that learns from clips."""

    data: str = "scenes"
    """scenes, or a folder that holds (itself or in frames/) a subfolder of frames or a video file for each clip."""
    scenes: int = 4096
    """Number of clips of built-in scenes to render; they are cached."""
    batch: int = 64
    """Tuples of frames per step, over all ranks together."""
    eval_images: int = 256
    """Number of held-out tuples measured at each --eval-every."""
    norm: Literal["batch", "group"] = "batch"
    """batch: batch normalization; group: group normalization, which uses no batch statistics."""
    frames: int = 16
    """Number of frames in each clip of built-in scenes."""
    every: int = 1
    """Use only every n-th frame of the clips in a folder."""
    tuples: int = 900_000
    """Number of different tuples to draw, after which they repeat; the default is Shuffle and Learn's."""
    smallest_crop: float = 0.5
    """Smallest fraction of the frames' area that a crop shows; all frames of a tuple are cropped alike."""
    jitter: float = 0.4
    """Strength of the changes of brightness, contrast and saturation, which are the same in all frames of a tuple."""
    even: bool = True
    """Equalize mean and deviation of each color channel over the frames of a tuple, and the contrast of the images of
    all sub-clips. Otherwise a drifting exposure reveals the order of frames, and weak differences the odd sub-clip."""
    dim: int = 256
    """Width of the shared tower's output, for a frame or a sub-clip."""
    optimizer: optim.Rule = "adam"
    """adam: with decoupled weight decay (AdamW); sgd: with momentum .9; lars: for large batches."""
    lr: float = 5e-4
    weight_decay: float = 1e-4
    """Weight decay of the optimizer."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly; then it falls along a cosine."""

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
    """Opens the clips that a config names, as tuples of frames.

    quiet: print nothing. span: number of frames that a clip must have. draw: chooses a tuple's frames among ``span``.
    shorter: advice in the message if clips are too short.
    """
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
    """This rank's tuples as the network sees them in training: a batch's frames (n,K,3,H,W) -> (n,K,3,S,S) in [0,1].

    All frames of a tuple have the same crop, mirroring and color changes. Drawn for the global batch; a function of the
    seed and ``key``.
    """
    count = len(batch["image"]) * world.size
    mine = world.part(count)
    random = generator(config.seed, *key, _CROPS)
    draws, flip = cropping.crop_draws(count, random)[mine], cropping.random_flips(count, random)[mine]
    boxes = cropping.random_boxes(batch["extent"], draws, scale=(config.smallest_crop, 1.0))
    frames = _cut(batch["image"], boxes, config.size, flip)
    recipe = ColorAugmentation(config.jitter, config.jitter, config.jitter, hue=0, gray=0.2, blur=0)
    changes = color_jitter.draw_changes(recipe, count, generator(config.seed, *key, _COLORS))[mine]
    frames = _alike(frames, changes)
    return equalize_exposure(frames) if config.even else frames


def centered(batch: Batch, config: VideoConfig) -> Tensor:
    """Central squares of the frames, for pictures and held-out figures: (n,K,3,H,W) -> (n,K,3,S,S) in [0,1]."""
    frames = _cut(batch["image"], cropping.center_boxes(batch["extent"]), config.size)
    return equalize_exposure(frames) if config.even else frames


def _cut(image: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Frames (n,K,3,H,W) cropped to ``boxes`` (n,4), mirrored where ``flip`` (n,), and resized: (n,K,3,size,size)."""
    count = image.shape[1]
    repeated = None if flip is None else flip.repeat_interleave(count)
    cut = cropping.crop_resize(image.flatten(0, 1), boxes.repeat_interleave(count, 0), size, flip=repeated)
    return cut.unflatten(0, (-1, count))


def _alike(frames: Tensor, changes: color_jitter.ColorChanges) -> Tensor:
    """Applies the same color changes to all frames of a tuple, (n,K,3,S,S).

    The frames are changed as one wide picture, because the change of contrast depends on a picture's mean.
    """
    count, size = frames.shape[1], frames.shape[4]
    wide = color_jitter.recolor(frames.permute(0, 2, 3, 1, 4).flatten(3), changes)  # (n,3,S,K*S)
    return wide.unflatten(3, (count, size)).permute(0, 3, 1, 2, 4)


class Tower(nn.Module):
    """The encoder and one layer on its coarsest map, (N,3,S,S) in [0,1] -> (N,dim).

    As in fc6 of the papers' networks, the map is not averaged, because the order of frames shows in positions.
    """

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.encoder: Encoder = config.backbone.build()
        with torch.no_grad():
            maps = self.encoder.eval()(torch.zeros(1, 3, config.size, config.size))
        numbers = maps[max(maps)].numel()
        norm = nn.BatchNorm1d(config.dim) if config.norm == "batch" else nn.LayerNorm(config.dim)
        self.last = nn.Sequential(nn.Linear(numbers, config.dim, bias=False), norm, nn.ReLU(inplace=True))

    def forward(self, image: Tensor) -> Tensor:
        maps = self.encoder(image)
        return self.last(maps[max(maps)].flatten(1))


V = TypeVar("V", bound=VideoConfig)


class VideoMethod(Method[V]):
    """Base class of the methods that learn from clips: a shared tower, then a head with one hidden layer."""

    score = "accuracy"

    def __init__(self, config: V, world: World, features: int, outputs: int, rgb: bool = True) -> None:
        """features: inputs of the head. rgb: whether the encoder sees frames, not differences of frames."""
        super().__init__(config, world)
        self.tower = Tower(config)
        start_encoder(config, self.tower.encoder, world, rgb=rgb)
        self.head = nn.Sequential(
            nn.Linear(features, config.dim), nn.ReLU(inplace=True), nn.Linear(config.dim, outputs)
        )
        self.optimizers = {"both": optim.make_optimizer(config.optimizer, self, config.lr, config.weight_decay)}

    def learn(self, loss: Tensor, step: int) -> dict[str, Tensor]:
        """Runs the backward pass of ``loss`` (0-d) and one optimizer step. Returns scalars to log."""
        config, optimizer = self.config, self.optimizers["both"]
        self.world.backward(loss, optimizer)
        optim.set_lr(optimizer, config.lr * optim.warmup_cosine(step, config.steps, config.warmup))
        return self.take_step("both", step)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.tower.encoder}

    def rgb_images(self, batch: Batch) -> Batch:
        """The first frame of each tuple."""
        return {**batch, "image": batch["image"][:, 0]}


def rows(columns: Sequence[Tensor], zoom: int = 2) -> Tensor:
    """One row per clip: columns (n,3,H,w) of any widths w, side by side and enlarged ``zoom`` times -> (3,h,W)."""
    wide = interpolate(torch.cat([column.float() for column in columns], 3), scale_factor=zoom, mode="nearest")
    return make_grid(wide, nrow=1, padding=4, pad_value=1.0)


def bordered(images: Tensor, color: Tensor, width: int = 3) -> Tensor:
    """Images (n,3,H,W), each with a border of its ``color`` (n,3) around it: (n,3,H+2w,W+2w)."""
    return framed(pad(images, (width,) * 4), color, width)
