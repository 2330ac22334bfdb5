"""What rotation, jigsaw and context prediction share: each image becomes a puzzle whose answer is one of a few classes.

A method defines how a puzzle is made of an image and how its network classifies it. Here are the settings, the training
step with cross-entropy, the held-out figures, and helpers for pictures.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.transforms.functional import pil_to_tensor

from kintsugi.augment import cropping
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import Stem
from kintsugi.rng import generator
from kintsugi.train import inference, optim
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import StemConfig, start_encoder
from kintsugi.train.method import Batch, Method

_CROPS, _PUZZLES, _HELDOUT, _SHOWN = 1, 2, 3, 4  # last element of the random generators' keys


@dataclass(frozen=True, kw_only=True)
class PuzzleConfig(StemConfig):
    """Settings of every puzzle method."""

    norm: Literal["batch", "group"] = "batch"
    """batch: batch normalization over all inputs of the encoder; group: group normalization, which uses no batch
    statistics."""
    stem: Stem = "large"
    """small, for ResNets: a 3x3 convolution without stride and pooling, for inputs of about 32 px. It costs 16 times as
    much computation."""
    smallest_crop: float = 0.35
    """Smallest fraction of a square image's area that a crop shows. Crops are squares and may show less of other
    images."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam: with decoupled weight decay (AdamW); sgd: with Nesterov momentum .9."""
    lr: float = 1e-3
    weight_decay: float = 1e-4
    """Weight decay of the optimizer."""
    warmup: int = 50
    """Steps over which the learning rate rises linearly; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, smallest_crop=cropping.SMALLEST_CROP, lr=0, weight_decay=0, warmup=0)


P = TypeVar("P", bound=PuzzleConfig)


class PuzzleMethod(Method[P]):
    """Base class of the puzzle methods. A subclass sets ``classes``, adds its networks and calls ``add_optimizer``."""

    score = "accuracy"
    shardable = True
    classes: int
    """Number of possible answers."""

    def __init__(self, config: P, world: World) -> None:
        super().__init__(config, world)
        self.encoder: Encoder = start_encoder(config, config.backbone.build(), world)
        self.width = self.encoder.vector_length
        """Length of a feature vector."""

    @abstractmethod
    def puzzle(self, image: Tensor, random: torch.Generator, count: int, mine: slice) -> tuple[Tensor, Tensor]:
        """Makes puzzles of this rank's squares (n,3,S,S) in [0,1]: inputs (m,...) and their classes, int64 (m,), or
        (m,k) if an input holds k puzzles.

        Random numbers are drawn for the ``count`` images of all ranks, of which ``mine`` are this rank's.
        """

    @abstractmethod
    def logits(self, inputs: Tensor) -> Tensor:
        """Inputs of ``puzzle`` (m,...) -> logits (m,classes) or (m,k,classes).

        The caller sets autocast and the training mode.
        """

    def add_optimizer(self) -> None:
        """Creates one optimizer for all networks."""
        config = self.config
        optimizer = optim.make_optimizer(config.optimizer, self, config.lr, config.weight_decay, nesterov=True)
        self.optimizers = {"all": optimizer}

    def lr_factor(self, step: int) -> float:
        """The factor on the learning rate at a step."""
        return optim.warmup_cosine(step, self.config.steps, self.config.warmup)

    def inputs(self, batch: Batch, step: int) -> Batch:
        """The puzzles of this rank's random crops, and their classes, as of ``puzzle``."""
        config, count = self.config, len(batch["image"]) * self.world.size
        mine = self.world.part(count)
        image = square_crops(
            batch, config.size, count, mine, generator(config.seed, step, _CROPS), config.smallest_crop
        )
        puzzles, truth = self.puzzle(image, generator(config.seed, step, _PUZZLES), count, mine)
        return {"puzzles": puzzles, "truth": truth}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config, truth = self.config, inputs["truth"]
        self.train()
        with self.world.autocast():
            logits = self.logits(inputs["puzzles"]).float()
        loss = cross_entropy(logits.flatten(0, -2), truth.flatten())
        optimizer = self.optimizers["all"]
        self.world.backward(loss, optimizer)
        optim.set_lr(optimizer, config.lr * self.lr_factor(step))
        return {
            "loss/cross_entropy": loss.detach(),
            "accuracy/training": 100 * (logits.argmax(-1) == truth).float().mean(),
            **self.take_step("all", step),
        }

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    # --- pictures and held-out figures ------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """The ``logits`` of inputs (m,...), float, in evaluation mode."""
        self.eval()
        with self.world.autocast():
            return self.logits(inputs).float()

    def heldout(self, batch: Batch, *key: int) -> tuple[Tensor, torch.Generator]:
        """Central squares (n,3,S,S) of a batch's images, and the random generator for their puzzles."""
        return cropping.center_crops(batch, self.config.size), generator(self.config.seed, *key)

    def shown_images(self, batch: Batch) -> tuple[Tensor, torch.Generator]:
        """``heldout`` for the pictures, the same at every call."""
        return self.heldout(batch, _SHOWN)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy, per cent, and mean cross-entropy, nats, on puzzles that are the same at every call."""
        predicted, true = [], []
        for number, batch in enumerate(batches):
            image, random = self.heldout(batch, number, _HELDOUT)
            inputs, truth = self.puzzle(image, random, len(image), slice(None))
            predicted.append(self.predict(inputs))
            true.append(truth)
        logits, truth = torch.cat(predicted), torch.cat(true)
        return {
            "accuracy": 100 * (logits.argmax(-1) == truth).float().mean().item(),
            "loss": cross_entropy(logits.flatten(0, -2), truth.flatten()).item(),
        }

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of guessing at random."""
        return {"chance": {"accuracy": 100 / self.classes, "loss": math.log(self.classes)}}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = cropping.center_crops(batch, self.config.size)
        return inference.features(self.encoder, image, self.world), image


class Fusion(nn.Module):
    """Late fusion of an image's patches: a shared layer for each patch, then a classifier of some patches together."""

    def __init__(self, width: int, patches: int, dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.single = nn.Sequential(nn.Linear(width, dim), nn.ReLU())
        self.together = nn.Sequential(nn.Linear(patches * dim, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, features: Tensor, groups: Tensor | None = None) -> Tensor:
        """Feature vectors of each image's patches, (n,p,width) -> logits (n,classes) of all together.

        groups: which patches are classified together, int64 (k,patches); then the logits are (n,k,classes).
        """
        codes = self.single(features)  # (n,p,dim)
        if groups is not None:
            codes = codes[:, groups]  # (n,k,patches,dim)
        return self.together(codes.flatten(-2))


def square_crops(batch: Batch, size: int, count: int, mine: slice, random: torch.Generator, smallest: float) -> Tensor:
    """Random crops (n,3,S,S) as of ``cropping.random_crops``, but of squares, so that both axes are resampled alike."""
    draws, flip = cropping.crop_draws(count, random), cropping.random_flips(count, random)
    boxes = cropping.random_boxes(batch["extent"], draws[mine], scale=(smallest, 1.0), ratio=(1.0, 1.0))
    return cropping.crop_resize(batch["image"], boxes, size, flip=flip[mine])


def captioned(image: Tensor, captions: Sequence[str], height: int = 16) -> Tensor:
    """Images (n,3,H,W) in [0,1], each with its caption below, black on white: (n,3,H+height,W)."""
    font = ImageFont.load_default(size=0.75 * height)
    strips = []
    for caption in captions:
        strip = Image.new("L", (image.shape[3], height), 255)
        ImageDraw.Draw(strip).text((image.shape[3] / 2, height / 2), caption, 0, font, anchor="mm")
        strips.append(pil_to_tensor(strip).to(image) / 255)
    return torch.cat([image, torch.stack(strips).expand(-1, 3, -1, -1)], 2)


def enlarged(image: Tensor, zoom: int) -> Tensor:
    """Images (n,3,H,W) with each pixel repeated ``zoom`` x ``zoom`` times."""
    return interpolate(image, scale_factor=zoom, mode="nearest")
