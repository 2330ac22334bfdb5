"""LeJEPA: predict one crop's projection from the others, and keep all projections normally distributed (Balestriero and
LeCun 2025, arXiv:2511.08544).

The crops of an image predict the mean projection of its global crops. Alone, that has a trivial solution: all
projections equal. SIGReg prevents it: along random directions, the projections of a batch must pass the test of Epps
and Pulley (1983) for a standard normal distribution. There is no teacher, no queue, and no stopped gradient.

Deviations, each with its reason:
- The encoder's vector is the one that eval transfers: the mean of the coarsest map's positions, or of a vision
  transformer's patch tokens. The authors train the class token.
- The learning rate falls to 0, as in all methods here, instead of a thousandth of its start.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.contrastive.crops import CropsConfig, CropsMethod, encode_crops
from kintsugi.contrastive.views import mlp
from kintsugi.metrics.spread import spread
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch
from kintsugi.upload import constant, upload

_DIRECTIONS = 5  # last number of a random generator's key: what it draws


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LeJEPAConfig(CropsConfig):
    global_crops: int = 2
    """Number of global crops of each image."""
    local_crops: int = 6
    sigreg: float = 0.05
    """Weight of SIGReg (lambda), in [0, 1]; that of the prediction is 1 minus it."""
    directions: int = 1024
    """Number of random directions of SIGReg, drawn anew at each step."""
    hidden: int = 2048
    """Width of the projector's two hidden layers."""
    dim: int = 64
    """Width of the projection."""
    smallest_crop: float = 0.3
    optimizer: optim.Rule = "adam"
    lr: float = 5e-4
    weight_decay: float = 5e-4
    """Weight decay of the optimizer. The authors take 5e-4 for ResNets and 5e-2 for vision transformers."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, global_crops=1, sigreg=(0, 1), directions=1, hidden=1, dim=1, warmup=0)
        if self.global_crops + self.local_crops < 2:
            raise ValueError("--global-crops 1 needs at least one of --local-crops: a crop predicts the others")


def demo() -> LeJEPAConfig:
    """Minutes on two CPU cores, on the built-in scenes."""
    return LeJEPAConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=400,
        batch=64,
        local_crops=4,
        directions=256,
        hidden=512,
        dim=32,
        lr=1e-3,
        warmup=30,
        show_every=150,
        eval_every=100,
        save_every=100,
    )


def small() -> LeJEPAConfig:
    """One GPU, tens of minutes."""
    return LeJEPAConfig(
        preset="small",
        size=64,
        batch=256,
        steps=20_000,
        lr=1e-3,
        warmup=500,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> LeJEPAConfig:
    """The authors' ViT-L on ImageNet: batch 512, 100 epochs. Its patches have 16 px here instead of 14."""
    return LeJEPAConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="timm:vit_large_patch16_224",
        size=224,
        short_side=256,
        local_size=96,
        batch=512,
        steps=250_000,
        warmup=2_500,
        weight_decay=5e-2,
        cache_gb=400,
        show_every=1_000,
        eval_every=2_000,
        save_every=1_000,
    )


# --- losses ---------------------------------------------------------------------------------------------------


def prediction_loss(projections: Tensor, global_crops: int) -> Tensor:
    """The mean squared difference between each projection and its image's mean over the global crops, 0-d.

    projections: (V,N,D), of V crops of N images; the first ``global_crops`` are the global ones.
    """
    return (projections[:global_crops].mean(0) - projections).square().mean()


def random_directions(dim: int, count: int, random: torch.Generator) -> Tensor:
    """Directions (dim,count), unit vectors, uniform over the sphere."""
    return normalize(torch.randn(dim, count, generator=random), dim=0)


@functools.cache
def quadrature(knots: int = 17, reach: float = 3.0) -> tuple[Tensor, Tensor]:
    """Knots t in [0,reach] and their weights, (T,) each, for integrals over [-reach,reach] of even functions times
    exp(-t^2/2), by the trapezoidal rule."""
    t = torch.linspace(0, reach, knots)
    step = reach / (knots - 1)
    weights = torch.full((knots,), 2 * step)
    weights[[0, -1]] = step
    return t, weights * torch.exp(-t.square() / 2)


def characteristic(projections: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """Real and imaginary part of the empirical characteristic functions along each direction: (2,V,K,T).

    projections: (V,N,D), of V crops of N images. directions: (D,K). t: (T,), where the functions are computed.
    """
    angles = (projections @ directions)[..., None] * t  # (V,N,K,T)
    return torch.stack([angles.cos().mean(1), angles.sin().mean(1)])


def epps_pulley(found: Tensor, count: int, t: Tensor, weights: Tensor) -> Tensor:
    """The statistic of Epps and Pulley for each crop and direction, (V,K): N times the weighted squared distance
    between the empirical characteristic function and exp(-t^2/2), that of the standard normal distribution.

    found: from ``characteristic``, (2,V,K,T). count: N, the number of samples. t, weights: from ``quadrature``. The
    original statistic is this one over sqrt(2 pi), with an integral over all t.
    """
    real, imaginary = found
    return count * (((real - torch.exp(-t.square() / 2)).square() + imaginary.square()) @ weights)


def sigreg(projections: Tensor, directions: Tensor, world: World) -> Tensor:
    """SIGReg: the mean over crops and directions of ``epps_pulley``, 0-d.

    projections: this rank's, (V,n,D). The characteristic functions are averaged over the ranks, with gradients, so
    every rank computes the loss of the global batch. Each crop is tested on its own: crops of one image are not
    independent.
    """
    t, weights = (constant(values, projections.device) for values in quadrature())
    (directions,) = upload(projections.device, directions)
    found = world.gather(characteristic(projections, directions, t)[None]).mean(0)
    return epps_pulley(found, projections.shape[1] * world.size, t, weights).mean()


# --- the method -----------------------------------------------------------------------------------------------


class LeJEPA(CropsMethod[LeJEPAConfig]):
    """An encoder and a projector, trained to predict and to stay normally distributed."""

    name = "lejepa"

    def __init__(self, config: LeJEPAConfig, world: World) -> None:
        super().__init__(config, world)
        self.projector = mlp((self.width, config.hidden, config.hidden, config.dim), norm=config.norm != "group")
        self.add_optimizer("both", nn.ModuleList([self.encoder, self.projector]))

    def recipes(self) -> tuple[ColorAugmentation, ColorAugmentation]:
        """All crops have the same color changes."""
        config = self.config
        recipe = ColorAugmentation(0.4, 0.4, 0.2, 0.1, blur=config.blur, solarize=0.2).with_strength(config.strength)
        return recipe, recipe

    def global_recipes(self) -> tuple[ColorAugmentation, ...]:
        return self.recipes()[:1] * self.config.global_crops

    def local_recipe(self) -> ColorAugmentation:
        return self.recipes()[0]

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        crops = list(inputs.values())
        self.encoder.train()
        self.projector.train()
        with self.world.autocast():
            flat = self.projector(encode_crops(self.encoder, crops)).float()  # (V*n,D), all crops of a rank
        projections = flat.unflatten(0, (-1, crops[0].shape[1]))  # (V,n,D)
        directions = random_directions(config.dim, config.directions, generator(config.seed, step, _DIRECTIONS))
        predicted = prediction_loss(projections, config.global_crops)
        regularized = sigreg(projections, directions, self.world)
        loss = (1 - config.sigreg) * predicted + config.sigreg * regularized
        optimizer = self.optimizers["both"]
        self.world.backward(loss, optimizer)
        optim.set_lr(optimizer, self.rate * optim.warmup_cosine(step, config.steps, config.warmup))
        scalars = {"loss/lejepa": loss, "loss/prediction": predicted, "loss/sigreg": regularized}
        scalars = {name: value.detach() for name, value in scalars.items()}
        scalars |= self.take_step("both", step)
        return scalars | (spread(projections[0]) if config.logs(step) else {})


def main(argv: Sequence[str] | None = None) -> None:
    run_method(LeJEPA, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
