"""What rotation, jigsaw and context prediction share: of each image a question is made whose answer is one of a few.

A method says how a question is made and how its network answers. Here are the settings, the step that learns from the
answers by cross-entropy, and how a person and a number judge them.
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
from kintsugi.nets.backbones import Backbone, Encoder
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.config import TrainConfig, within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch, Method

_CROPS, _QUESTIONS, _HELDOUT, _SHOWN = 1, 2, 3, 4  # what random numbers are for, the last part of their key


@dataclass(frozen=True, kw_only=True)
class PuzzleConfig(TrainConfig):
    """Settings of every method that answers questions."""

    encoder: Literal["resnet18", "resnet50", "alexnet"] = "resnet18"
    norm: Literal["batch", "group"] = "batch"
    """batch: of all that the encoder sees at once; group: nothing of the batch at all."""
    stem: Literal["large", "small"] = "large"
    """small, of the ResNets: for inputs of about 32 px, a 3x3 convolution without stride and pooling, which costs 16
    times as much."""
    smallest_crop: float = 0.35
    """A crop, always a square, shows at least this part of its image's area, if the image is a square itself."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, its decay decoupled; sgd, with Nesterov's momentum of .9."""
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 50
    """Steps over which the learning rate rises; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, smallest_crop=cropping.SMALLEST_CROP, lr=0, weight_decay=0, warmup=0)
        if self.encoder == "alexnet" and self.stem == "small":
            raise ValueError("--stem small is for ResNets only, not for alexnet")

    @property
    def backbone(self) -> Backbone:
        return Backbone(name=self.encoder, norm=self.norm, stem=self.stem)


P = TypeVar("P", bound=PuzzleConfig)


class PuzzleMethod(Method[P]):
    """Questions of images, each with one of ``answers`` answers. A subclass adds its networks and calls
    ``optimize``."""

    score = "accuracy"
    answers: int

    def __init__(self, config: P, world: World) -> None:
        super().__init__(config, world)
        self.encoder = config.backbone.build()
        self.width = self.encoder.channels[max(self.encoder.channels)]

    @abstractmethod
    def question(self, image: Tensor, random: torch.Generator, count: int, mine: slice) -> tuple[Tensor, Tensor]:
        """What the network is shown, (m,...), and the true answers (m,) int64, of squares (n,3,S,S) in [0,1].

        Drawn for ``count`` images, those of all ranks, of which this rank has ``mine``.
        """

    @abstractmethod
    def logits(self, shown: Tensor) -> Tensor:
        """(m,...) -> (m,answers), under the caller's autocast and in its mode."""

    def optimize(self) -> None:
        """One optimizer for all networks."""
        config = self.config
        optimizer = optim.make_optimizer(config.optimizer, self, config.lr, config.weight_decay, nesterov=True)
        self.optimizers = {"all": optimizer}

    def falling(self, step: int) -> float:
        """A factor on the learning rate."""
        return optim.warmup_cosine(step, self.config.steps, self.config.warmup)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, count = self.config, len(batch["image"]) * self.world.size
        mine = self.world.part(count)
        image = square_crops(
            batch, config.size, count, mine, generator(config.seed, step, _CROPS), config.smallest_crop
        )
        shown, truth = self.question(image, generator(config.seed, step, _QUESTIONS), count, mine)
        self.train()
        with self.world.autocast():
            logits = self.logits(shown).float()  # (m,answers)
        loss = cross_entropy(logits, truth)
        loss.backward()
        optimizer = self.optimizers["all"]
        optim.set_lr(optimizer, config.lr * self.falling(step))
        return {
            "loss/cross_entropy": loss.detach(),
            "accuracy/training": 100 * (logits.argmax(1) == truth).float().mean(),
            "grad_norm/all": optim.take_step(optimizer, self.world),
        }

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    # --- looking and measuring --------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, shown: Tensor) -> Tensor:
        """Logits (m,answers), float, of networks that do not learn."""
        self.eval()
        with self.world.autocast():
            return self.logits(shown).float()

    def heldout(self, batch: Batch, *key: int) -> tuple[Tensor, torch.Generator]:
        """Central squares (n,3,S,S) of a batch's images, and what to draw their questions from."""
        return cropping.center_crops(batch, self.config.size), generator(self.config.seed, *key)

    def shown_images(self, batch: Batch) -> tuple[Tensor, torch.Generator]:
        """``heldout`` for the pictures: the same at every call."""
        return self.heldout(batch, _SHOWN)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy, per cent, and mean cross-entropy, nats, on questions that are the same at every call."""
        logits, answers = [], []
        for number, batch in enumerate(batches):
            image, random = self.heldout(batch, number, _HELDOUT)
            shown, truth = self.question(image, random, len(image), slice(None))
            logits.append(self.answer(shown))
            answers.append(truth)
        said, truth = torch.cat(logits), torch.cat(answers)
        return {
            "accuracy": 100 * (said.argmax(1) == truth).float().mean().item(),
            "loss": cross_entropy(said, truth).item(),
        }

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        return {"chance": {"accuracy": 100 / self.answers, "loss": math.log(self.answers)}}

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = cropping.center_crops(batch, self.config.size)
        with self.world.autocast():
            return self.encoder.eval().vectors(image).float(), image


class Fusion(nn.Module):
    """Late fusion: a layer for each part's code by itself, then the parts of an image side by side, then what they say
    together; codes (n*parts,width), those of an image in a row -> logits (n,answers)."""

    def __init__(self, width: int, parts: int, dim: int, hidden: int, answers: int) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(width, dim), nn.ReLU())
        self.together = nn.Sequential(nn.Linear(parts * dim, hidden), nn.ReLU(), nn.Linear(hidden, answers))
        self.parts = parts

    def forward(self, codes: Tensor) -> Tensor:
        return self.together(self.part(codes).unflatten(0, (-1, self.parts)).flatten(1))


def square_crops(batch: Batch, size: int, count: int, mine: slice, random: torch.Generator, smallest: float) -> Tensor:
    """As ``cropping.random_crops``, but of squares: both axes are resampled alike, so that nothing tells them apart."""
    draws, flip = cropping.crop_draws(count, random), cropping.random_flips(count, random)
    boxes = cropping.random_boxes(batch["extent"], draws[mine], scale=(smallest, 1.0), ratio=(1.0, 1.0))
    return cropping.crop_resize(batch["image"], boxes, size, flip=flip[mine])


def captioned(image: Tensor, captions: Sequence[str], height: int = 16) -> Tensor:
    """Images (n,3,H,W) in [0,1], each above its caption, black on white: (n,3,H+height,W)."""
    font = ImageFont.load_default(size=0.75 * height)
    strips = []
    for caption in captions:
        strip = Image.new("L", (image.shape[3], height), 255)
        ImageDraw.Draw(strip).text((image.shape[3] / 2, height / 2), caption, 0, font, anchor="mm")
        strips.append(pil_to_tensor(strip).to(image) / 255)
    return torch.cat([image, torch.stack(strips).expand(-1, 3, -1, -1)], 2)


def enlarged(image: Tensor, zoom: int) -> Tensor:
    """Images (n,3,H,W), each pixel ``zoom`` by ``zoom`` times."""
    return interpolate(image, scale_factor=zoom, mode="nearest")
