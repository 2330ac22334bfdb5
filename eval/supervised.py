"""Supervised training from scratch, the baseline for methods without labels: an encoder and a linear classifier.

``python -m kintsugi.eval.supervised --data caltech101 --preset small``

Random resized crops and flips, cross entropy, and SGD with momentum (He et al. 2016, arXiv:1512.03385), with warm-up
and a learning rate in proportion to the batch (Goyal et al. 2017, arXiv:1706.02677), or AdamW. The classifier is not
used afterwards: the checkpoint's encoder is transferred to the tasks as that of every other method.

The test images of a data set are never used, neither for training nor for choosing a checkpoint. The held-out images
are a fraction of the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.utils import make_grid

from kintsugi.augment import color_jitter, cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.data.image_set import Images, Split, held_out
from kintsugi.data.images import open_images, open_labeled
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import right_wrong_colors
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import StemConfig, start_encoder
from kintsugi.train.method import Batch, Data, Method
from kintsugi.train.opening import store_of


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(StemConfig):
    data: str = ""
    """A folder with train/ and test/ (or val/) of class folders, one of class folders, cifar10, stl10 or
    imagenet:PATH."""
    norm: Literal["batch", "group", "split"] = "batch"
    """split: batch normalization, separately for each quarter of the batch; group: group normalization, which uses no
    batch statistics."""
    smallest_crop: float = 0.08
    """Smallest fraction of an image's area that a crop shows."""
    strength: float = 0.0
    """Strength of color jitter; 1 = as in SimCLR, 0 = none."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum .9, for long runs; adamw: for short runs."""
    lr: float = 0.1
    """Learning rate. sgd: per 256 images of the batch; adamw: used as it is."""
    weight_decay: float = 1e-4
    """Weight decay of the optimizer."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly; then it falls along a cosine."""
    smoothing: float = 0.0
    """Label smoothing: the fraction of a label's weight that is spread evenly over all classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, smallest_crop=cropping.SMALLEST_CROP, strength=0)
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"--smoothing must be in [0, 1), not {self.smoothing}")


def demo() -> SupervisedConfig:
    """Minutes on two CPU cores."""
    return SupervisedConfig(
        preset="demo",
        short_side=80,
        steps=600,
        batch=64,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        warmup=30,
        smallest_crop=0.2,
        show_every=150,
        eval_every=100,
        save_every=100,
    )


def small() -> SupervisedConfig:
    """One GPU, tens of minutes."""
    return SupervisedConfig(
        preset="small",
        size=64,
        batch=256,
        steps=20_000,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        warmup=500,
        smallest_crop=0.2,
        strength=0.5,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> SupervisedConfig:
    """ResNet-50 on ImageNet: 90 epochs of SGD in batches of 1024, with five epochs of warm-up."""
    return SupervisedConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="resnet50",
        size=224,
        short_side=256,
        batch=1024,
        steps=112_500,
        warmup=6_250,
        cache_gb=400,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
        eval_images=1024,
    )


def open_training(config: SupervisedConfig, quiet: bool = False) -> Split:
    """Opens the labeled images of ``config.data``: training images, and others held out from the same set.

    quiet: print nothing. Raises ValueError with one line if there are no labels or the data cannot be used.
    """
    spec = config.data
    if spec in ("", "scenes", "voc2012"):
        reason = f" {spec}: its images have no class;" if spec else ":"
        raise ValueError(
            f"--data{reason} name a folder with train/ and test/ of class folders, one of class folders, cifar10, "
            "stl10 or imagenet:PATH"
        )
    store = store_of(config, quiet)
    root = Path(spec).expanduser()
    if root.is_dir() and not (root / "train").is_dir():
        split = open_images(spec, config.size, store, scenes=config.scenes)
    else:
        split = held_out(open_labeled(spec, config.size, store).train)
    if split.train.labels is None:
        raise ValueError(
            f"--data {spec}: its images are not in class folders; make a folder for each class, or train/ and test/ "
            "of such folders"
        )
    return split


class Supervised(Method[SupervisedConfig]):
    """An encoder and a linear classifier, trained with labels. images: the training images; they define the classes."""

    name = "supervised"
    score = "accuracy"
    next_program = "eval classification"
    shardable = True

    def __init__(self, config: SupervisedConfig, world: World, images: Images) -> None:
        assert images.labels is not None
        super().__init__(config, world)
        self.classes = images.classes
        self.counts = images.labels.bincount(minlength=len(images.classes))
        self.encoder: Encoder = start_encoder(config, config.backbone.build(), world)
        self.classifier = nn.Linear(self.encoder.vector_length, len(self.classes))
        both = [*self.encoder.parameters(), *self.classifier.parameters()]
        self.rate = config.lr * (config.batch / 256 if config.optimizer == "sgd" else 1)
        self.optimizers = {
            "both": torch.optim.SGD(both, self.rate, momentum=0.9, weight_decay=config.weight_decay, fused=True)
            if config.optimizer == "sgd"
            else torch.optim.AdamW(both, self.rate, weight_decay=config.weight_decay, fused=True)
        }

    @classmethod
    def open_data(cls, config: SupervisedConfig, quiet: bool = False) -> Split:
        return open_training(config, quiet)

    @classmethod
    def build(cls, config: SupervisedConfig, world: World, data: Data) -> Supervised:
        assert isinstance(data.train, Images)
        return cls(config, world, data.train)

    def inputs(self, batch: Batch, step: int) -> Batch:
        return {"image": self.view(batch, step), "label": batch["label"]}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config, label = self.config, inputs["label"]
        self.encoder.train()
        with self.world.autocast():
            logits = self.classifier(self.encoder.vectors(inputs["image"])).float()  # (n,K)
        loss = cross_entropy(logits, label, label_smoothing=config.smoothing)
        optimizer = self.optimizers["both"]
        self.world.backward(loss, optimizer)
        optim.set_lr(optimizer, self.rate * optim.warmup_cosine(step, config.steps, config.warmup))
        return {
            "loss/cross_entropy": loss.detach(),
            "accuracy/training": 100 * (logits.argmax(1) == label).float().mean(),
            **self.take_step("both", step),
        }

    def view(self, batch: Batch, step: int) -> Tensor:
        """This rank's random crops (n,3,S,S) in [0,1], drawn for the global batch."""
        config, count = self.config, len(batch["image"]) * self.world.size
        recipe = ColorAugmentation(gray=0, blur=0).with_strength(config.strength) if config.strength else None
        mine, key = self.world.part(count), (config.seed, step)
        return color_jitter.random_views(batch, recipe, config.size, config.smallest_crop, count, mine, key)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def get_extra_state(self) -> list[str]:
        """The names of the classes, so that a run cannot be resumed with other classes."""
        return self.classes

    def set_extra_state(self, classes: list[str]) -> None:
        if classes != self.classes:
            raise ValueError(f"--data {self.config.data} has other classes than when this run began: start a new run")

    # --- pictures and figures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = cropping.center_crops(batch, self.config.size)
        self.encoder.eval()
        with self.world.autocast():
            return self.encoder.vectors(image), image

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Logits for the central squares of a batch's images, float (n,K)."""
        features, _ = self.embed(batch)
        with self.world.autocast():
            return self.classifier(features).float()

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Images with confidence bars below them: first those classified right, then the others, each by confidence."""
        confidence, predicted = self.logits(batch).softmax(1).max(1)
        right = predicted == batch["label"]
        order = (right + confidence).argsort(descending=True)
        image = cropping.center_crops(batch, self.config.size)[order]
        return {"right (green), wrong (red), how sure": marked(image, right[order], confidence[order])}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        return figures(batches, self.logits)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of predicting the classes' frequencies in training, the same for every image."""
        frequency = (self.counts + 1) / (self.counts + 1).sum()  # none is 0: the loss is finite

        def constant(batch: Batch) -> Tensor:
            return frequency.log().to(batch["label"].device).expand(len(batch["label"]), -1)

        return {"the commonest class": figures(batches, constant)}


def figures(batches: Iterable[Batch], logits: Callable[[Batch], Tensor]) -> dict[str, float]:
    """Accuracy in per cent and mean cross entropy in nats. ``logits``: batch with labels -> logits, float (n,K)."""
    pairs = [(logits(batch), batch["label"]) for batch in batches]
    predicted, truth = (torch.cat(each) for each in zip(*pairs, strict=True))
    return {
        "accuracy": 100 * (predicted.argmax(1) == truth).float().mean().item(),
        "loss": cross_entropy(predicted, truth).item(),
    }


def marked(image: Tensor, right: Tensor, confidence: Tensor) -> Tensor:
    """A picture (3,h,w) of images (n,3,S,S) in [0,1], each with a bar below it.

    The bar's length is ``confidence``, (n,) in [0,1], as a fraction of the width. It is green where ``right``, bool
    (n,), else red.
    """
    n, _, height, width = image.shape
    filled = torch.arange(width, device=image.device) + 0.5 < confidence[:, None] * width  # (n,W)
    bar = (right_wrong_colors(right)[:, :, None] * filled[:, None])[:, :, None].expand(
        n, 3, max(2, height // 16), width
    )
    tiles = interpolate(torch.cat([image, bar], 2), scale_factor=2, mode="nearest")
    return make_grid(tiles, nrow=4, padding=2, pad_value=1.0)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Supervised, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
