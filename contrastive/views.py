"""What the methods with two views of each image share: settings, views, heads, pictures and held-out figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from kintsugi.augment import color_jitter, cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.metrics import neighbors
from kintsugi.metrics.spread import COLLAPSED, COLLAPSED_RANK, spread
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import sheet
from kintsugi.train import inference, optim
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import StemConfig, start_encoder
from kintsugi.train.method import Batch, Method


@dataclass(frozen=True, kw_only=True)
class ViewsConfig(StemConfig):
    """Settings of every method with two views."""

    norm: Literal["batch", "group", "split"] = "batch"
    """split: batch normalization, separately for each quarter of the batch; group: group normalization, which uses no
    batch statistics."""
    smallest_crop: float = 0.08
    """Smallest fraction of an image's area that a view shows."""
    strength: float = 1.0
    """Strength of the color jitter, as a factor on the method's own. At 32 px use .5 for SimCLR; leave it at 1 for MoCo
    and BYOL, whose own jitter is about half as strong as SimCLR's. (On the built-in scenes BYOL needs .5.)"""
    blur: float = 0.5
    """Probability that a view is blurred; 0 in the papers for views of 32 px. BYOL doubles it for the first view and
    divides it by five for the second."""

    optimizer: optim.Rule = "lars"
    """lars: for large batches; sgd: common at 32 px; adam: for small batches and short runs."""
    lr: float
    """Learning rate. lars and sgd: per 256 images of the batch; adam: used as it is."""
    weight_decay: float
    """Weight decay of the optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, size=2, smallest_crop=cropping.SMALLEST_CROP, strength=0, blur=(0, 1), lr=0, weight_decay=0)
        if self.batch < 2:
            raise ValueError("--batch must be at least 2: a single image has no others to be compared with")


PAIRS = 4  # pairs of views per held-out image, for ``same_image``


V = TypeVar("V", bound=ViewsConfig)


class ViewsMethod(Method[V]):
    """Base class of the methods that see two random views of each image."""

    score = "knn"
    shardable = True

    def __init__(self, config: V, world: World) -> None:
        super().__init__(config, world)
        self.encoder: Encoder = start_encoder(config, config.backbone.build(), world)
        self.width = self.encoder.vector_length
        """Length of a feature vector."""

    def add_optimizer(self, name: str, networks: nn.Module) -> None:
        """Adds an optimizer of ``networks`` and sets ``self.rate``, its highest learning rate."""
        config = self.config
        self.rate = optim.scaled_lr(config.optimizer, config.lr, config.batch)
        self.optimizers[name] = optim.make_optimizer(config.optimizer, networks, self.rate, config.weight_decay)

    def recipes(self) -> tuple[ColorAugmentation, ColorAugmentation]:
        """The color changes of the first and of the second view."""
        recipe = ColorAugmentation(blur=self.config.blur).with_strength(self.config.strength)
        return recipe, recipe

    def view(self, batch: Batch, which: int, *key: int) -> Tensor:
        """This rank's random views (n,3,S,S) in [0,1] of a batch; ``which``: 0 or 1, the first or the second view.

        Drawn for the global batch; a function of the seed, ``key`` and ``which``.
        """
        config, count = self.config, len(batch["image"]) * self.world.size
        key = (config.seed, *key, which)
        recipe, mine = self.recipes()[which], self.world.part(count)
        return color_jitter.random_views(batch, recipe, config.size, config.smallest_crop, count, mine, key)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        return collapse_warning(scalars)

    # --- pictures and held-out figures --------------------------------------------------------------------

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: image, first view, second view. The same views at every call."""
        image = cropping.center_crops(batch, self.config.size)
        columns = [image, self.view(batch, 0, 0), self.view(batch, 1, 0)]
        return {"image | view 1 | view 2": sheet(columns, zoom=2)}

    def features(self, image: Tensor) -> Tensor:
        """The features that eval transfers: the encoder's coarsest map, averaged; (N,3,S,S) -> (N,D)."""
        return inference.features(self.encoder, image, self.world)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = cropping.center_crops(batch, self.config.size)
        return self.features(image), image

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        return self._figures(batches, self.features)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        kept = list(batches)
        centers = (cropping.center_crops(batch, self.config.size) for batch in kept)
        untrained = inference.untrained_features(self.encoder, self.config.seed, centers, self.world)
        return {name: self._figures(kept, extract) for name, extract in untrained.items()}

    def _figures(self, batches: Iterable[Batch], extract: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Figures of the features that ``extract``, (n,3,S,S) -> (n,D), gives of held-out images.

        deviation, rank: ``metrics.spread.spread``. same_image: how often, per cent, a first view's nearest second view
        shows the same image, and vice versa, over ``PAIRS`` pairs of views per image. knn: accuracy of leave-one-out
        nearest neighbors, per cent; where the data has no labels it equals same_image.
        """
        features, labels, pairs = [], [], []
        for number, batch in enumerate(batches):
            features.append(extract(cropping.center_crops(batch, self.config.size)))
            seeds = range(PAIRS * number, PAIRS * (number + 1))
            pairs.append([[extract(self.view(batch, kind, seed)) for seed in seeds] for kind in (0, 1)])
            labels += [batch["label"]] if "label" in batch else []
        figures = spread_and_knn(torch.cat(features), labels)
        # All batches' first views and all their second views, (PAIRS,N,D) each.
        first, second = (torch.cat([torch.stack(views) for views in kind], dim=1) for kind in zip(*pairs, strict=True))
        figures["same_image"] = 100 * neighbors.same_image(first, second)
        figures.setdefault("knn", figures["same_image"])
        return figures


def collapse_warning(scalars: Mapping[str, float]) -> list[str]:
    """A warning if the embeddings of all images have collapsed to one point or to one line."""
    deviation, rank = scalars.get("spread/deviation", 1.0), scalars.get("spread/rank", math.inf)
    if deviation < COLLAPSED:
        where = f"are nearly one point (spread/deviation {deviation:.1g})"
    elif rank < COLLAPSED_RANK:
        where = f"lie nearly on one line (spread/rank {rank:.2f})"
    else:
        return []
    return [f"the embeddings of all images {where}: try a lower --lr or a larger --batch"]


def spread_and_knn(features: Tensor, labels: list[Tensor]) -> dict[str, float]:
    """Figures of held-out features (N,D): ``metrics.spread.spread``; and knn, the accuracy of leave-one-out nearest
    neighbors, per cent. labels: one tensor (n,) per batch; without labels there is no knn."""
    figures = {name.partition("/")[2]: value.item() for name, value in spread(features).items()}
    return figures | ({"knn": 100 * neighbors.leave_one_out(features, torch.cat(labels))} if labels else {})


def mlp(
    widths: tuple[int, ...], *, norm: bool, last_norm: bool = False, last_affine: bool = True, bias: bool = True
) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them, (N,widths[0]) -> (N,widths[-1]).

    norm: batch normalization before each ReLU. last_norm: batch normalization after the last layer; last_affine: with a
    trained scale and shift.
    """
    layers: list[nn.Module] = []
    pairs = list(itertools.pairwise(widths))
    for number, (narrow, wide) in enumerate(pairs):
        last = number == len(pairs) - 1
        layers.append(nn.Linear(narrow, wide, bias=bias))
        if last_norm if last else norm:
            layers.append(nn.BatchNorm1d(wide, affine=last_affine or not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
