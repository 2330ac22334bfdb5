"""What the methods with two views share: settings, views, heads, and how a person and a number judge them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kintsugi.augment import color_jitter, cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.metrics import neighbors
from kintsugi.metrics.spread import COLLAPSED, COLLAPSED_RANK, spread
from kintsugi.nets.backbones import Backbone, Encoder
from kintsugi.nets.pixels import Pixels
from kintsugi.nets.specs import fresh
from kintsugi.pictures import sheet
from kintsugi.train.config import TrainConfig, within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch, Method


@dataclass(frozen=True, kw_only=True)
class ViewsConfig(TrainConfig):
    """Settings of every method with two views."""

    encoder: Literal["resnet18", "resnet50"] = "resnet18"
    norm: Literal["batch", "group", "split"] = "batch"
    """split: batch normalization of each part of the batch by itself; group: nothing of the batch at all."""
    stem: Literal["large", "small"] = "large"
    """small: for views of about 32 px, a 3x3 convolution without stride and pooling."""
    smallest_crop: float = 0.08
    """A view shows at least this part of its image's area."""
    strength: float = 1.0
    """How strongly colors vary, as a factor on the method's own. At 32 px SimCLR's is .5; MoCo's and BYOL's own, which
    are about half of SimCLR's, stay."""
    blur: float = 0.5
    """Probability that a view is blurred; the papers do not blur views of 32 px. With BYOL it is twice as high for the
    first view, and a fifth for the second."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, size=2, smallest_crop=cropping.SMALLEST_CROP, strength=0, blur=(0, 1))
        if self.batch < 2:
            raise ValueError("--batch must be at least 2: one image has nothing to differ from")

    @property
    def backbone(self) -> Backbone:
        return Backbone(name=self.encoder, norm=self.norm, stem=self.stem)


PAIRS = 4  # pairs of views of each held-out image that ``same_image`` is measured on


V = TypeVar("V", bound=ViewsConfig)


class ViewsMethod(Method[V]):
    """Two random views of each image; the rest is the method's."""

    score = "knn"

    def __init__(self, config: V, world: World) -> None:
        super().__init__(config, world)
        self.encoder = config.backbone.build()

    def recipes(self) -> tuple[ColorAugmentation, ColorAugmentation]:
        """How the colors of the first and of the second view vary."""
        recipe = ColorAugmentation(blur=self.config.blur).with_strength(self.config.strength)
        return recipe, recipe

    def view(self, batch: Batch, which: int, *key: int) -> Tensor:
        """This rank's views (n,3,S,S) in [0,1] of a batch, drawn for ``key`` and for the global batch."""
        config, count = self.config, len(batch["image"]) * self.world.size
        key = (config.seed, *key, which)
        recipe, mine = self.recipes()[which], self.world.part(count)
        return color_jitter.random_views(batch, recipe, config.size, config.smallest_crop, count, mine, key)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        return collapse_warning(scalars)

    # --- looking and measuring ----------------------------------------------------------------------------

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: image | first view | second view. The same at every call."""
        image = cropping.center_crops(batch, self.config.size)
        columns = [image, self.view(batch, 0, 0), self.view(batch, 1, 0)]
        return {"image | view 1 | view 2": sheet(columns, zoom=2)}

    @torch.no_grad()
    def represent(self, image: Tensor) -> Tensor:
        """What eval moves: the encoder's coarsest map, averaged; (N,3,S,S) -> (N,D)."""
        training = self.encoder.training
        with self.world.autocast():
            features = self.encoder.eval().vectors(image).float()
        self.encoder.train(training)
        return features

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = cropping.center_crops(batch, self.config.size)
        return self.represent(image), image

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        return self._figures(batches, self.represent)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        every = list(batches)
        ways = untrained(self.encoder, self.config.seed)
        return {name: self._figures(every, way) for name, way in ways.items()}

    def _figures(self, batches: Iterable[Batch], represent: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """On held-out images: spread of the features, and how often an image's neighbors have its label.

        same_image is the part of views whose nearest one, among those of the other kind, is of their own image, over
        several pairs of views of each, per cent. knn is leave-one-out among the held-out images; where the data has no
        labels it is same_image.
        """
        features, labels, pairs = [], [], []
        for number, batch in enumerate(batches):
            features.append(represent(cropping.center_crops(batch, self.config.size)))
            seeds = range(PAIRS * number, PAIRS * (number + 1))
            pairs.append([[represent(self.view(batch, kind, seed)) for seed in seeds] for kind in (0, 1)])
            labels += [batch["label"]] if "label" in batch else []
        figures = spread_and_knn(torch.cat(features), labels)
        # Of each kind, the batches' views one after the other, (PAIRS,N,D).
        first, second = (
            normalize(torch.cat([torch.stack(views) for views in kind], dim=1), dim=2)
            for kind in zip(*pairs, strict=True)
        )
        alike = first @ second.mT  # (PAIRS,N,N)
        own = torch.arange(alike.shape[1], device=alike.device)
        found = torch.stack([alike.argmax(1) == own, alike.argmax(2) == own])
        figures["same_image"] = 100 * found.float().mean().item()
        figures.setdefault("knn", figures["same_image"])
        return figures


def collapse_warning(scalars: Mapping[str, float]) -> list[str]:
    """What to say where the embeddings of all images have become one point, or lie on one line."""
    deviation, rank = scalars.get("spread/deviation", 1.0), scalars.get("spread/rank", math.inf)
    if deviation < COLLAPSED:
        where = f"are nearly one point (spread/deviation {deviation:.1g})"
    elif rank < COLLAPSED_RANK:
        where = f"lie nearly on one line (spread/rank {rank:.2f})"
    else:
        return []
    return [f"the embeddings of all images {where}: try a lower --lr or a larger --batch"]


def logged_spread(embeddings: Tensor, config: TrainConfig, step: int) -> dict[str, Tensor]:
    """``metrics.spread.spread`` at the steps that are logged, else nothing: its singular values make a GPU wait."""
    return spread(embeddings) if (step + 1) % config.log_every == 0 else {}


def spread_and_knn(features: Tensor, labels: list[Tensor]) -> dict[str, float]:
    """Figures of held-out features (N,D): ``metrics.spread.spread``; with labels, of batches, knn, leave-one-out, per
    cent."""
    figures = {name.partition("/")[2]: value.item() for name, value in spread(features).items()}
    return figures | ({"knn": 100 * neighbors.leave_one_out(features, torch.cat(labels))} if labels else {})


def untrained(encoder: Encoder, seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What needs no training: an image's pixels, and a network like ``encoder`` with random weights; images (N,3,S,S)
    -> (N,D)."""
    nets = {"pixels": Pixels().build(), "random init": fresh(encoder, seed)}
    return {name: torch.no_grad()(lambda image, net=net: net.vectors(image).float()) for name, net in nets.items()}


def mlp(widths: tuple[int, ...], *, norm: bool, last_norm: bool = False, bias: bool = True) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them and, with ``norm``, batch normalization before it."""
    layers: list[nn.Module] = []
    pairs = list(itertools.pairwise(widths))
    for number, (narrow, wide) in enumerate(pairs):
        last = number == len(pairs) - 1
        layers.append(nn.Linear(narrow, wide, bias=bias))
        if last_norm if last else norm:
            layers.append(nn.BatchNorm1d(wide))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
