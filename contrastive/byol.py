"""BYOL: from one view predict a slowly moving target network's projection of the other (Grill et al. 2020,
arXiv:2006.07733).

There are no negatives. The online network (encoder, projector, predictor) regresses the target's normalized projection
of the other view (eq. 2), in both directions. The target (encoder, projector) is a moving average whose momentum rises
to 1. The two views pass through the networks as separate batches: with batch statistics over both, it would be another
method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.contrastive.views import ViewsConfig, ViewsMethod, mlp
from kintsugi.metrics.spread import spread
from kintsugi.nets.encoder import Encoder
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.ema import cosine_momentum, ema_copy, ema_update
from kintsugi.train.method import Batch


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(ViewsConfig):
    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    dim: int = 256
    """Width of the projection."""
    output_norm: bool = False
    """Add a batch norm at the projector's end, without scale and shift as in SimSiam (Chen and He 2021,
    arXiv:2011.10566)."""
    predictor_lr: float = 1.0
    """Factor on the predictor's learning rate. With 10 the projections of a short run stay further apart."""
    momentum: float = 0.996
    """Momentum of the target's moving average at the first step."""
    lr: float = 0.2
    weight_decay: float = 1.5e-6
    warmup: int = 0
    """Steps over which the learning rate rises linearly; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, hidden=1, dim=1, predictor_lr=0, warmup=0, momentum=(0, 1))


def demo() -> BYOLConfig:
    """Minutes on two CPU cores, on the built-in scenes.

    The views are milder than the paper's, because with those the projections of rooms keep only three directions. The
    momentum is lower, because there are few steps.
    """
    return BYOLConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=600,
        batch=64,
        hidden=512,
        dim=128,
        output_norm=True,
        optimizer="adam",
        lr=5e-4,
        predictor_lr=10,
        warmup=30,
        momentum=0.99,
        smallest_crop=0.4,
        strength=0.5,
        blur=0,
        show_every=350,
        eval_every=100,
        save_every=100,
    )


def small() -> BYOLConfig:
    """One GPU, tens of minutes."""
    return BYOLConfig(
        preset="small",
        size=64,
        batch=256,
        steps=20_000,
        hidden=2048,
        output_norm=True,
        optimizer="adam",
        lr=5e-4,
        predictor_lr=10,
        warmup=500,
        smallest_crop=0.2,
        momentum=0.99,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> BYOLConfig:
    """The paper's ResNet-50 on ImageNet: batch 4096, 100 epochs."""
    return BYOLConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="resnet50",
        size=224,
        short_side=256,
        batch=4096,
        steps=31_300,
        warmup=3_130,
        cache_gb=400,
        show_every=1_000,
        eval_every=2_000,
        save_every=1_000,
    )


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance between the normalized vectors (N,D): 2 - 2 cos of their angle (eq. 2); 0-d."""
    return (2 - 2 * (normalize(prediction, dim=1) * normalize(target, dim=1)).sum(1)).mean()


class BYOL(ViewsMethod[BYOLConfig]):
    """An online network, trained by gradients, and its moving average, the target."""

    name = "byol"

    def __init__(self, config: BYOLConfig, world: World) -> None:
        super().__init__(config, world)
        norm = config.norm != "group"
        last_norm = norm and config.output_norm
        widths = self.width, config.hidden, config.dim
        self.projector = mlp(widths, norm=norm, last_norm=last_norm, last_affine=False)
        self.predictor = mlp((config.dim, config.hidden, config.dim), norm=norm)
        self.target = ema_copy(self.source)
        self.add_optimizer("source", self.source)
        self.add_optimizer("predictor", self.predictor)

    @property
    def source(self) -> nn.ModuleList:
        """Encoder and projector, whose moving average is ``target``."""
        return nn.ModuleList([self.encoder, self.projector])

    @property
    def online(self) -> nn.ModuleList:
        """Encoder, projector and predictor: the networks that gradients train."""
        return nn.ModuleList([self.encoder, self.projector, self.predictor])

    def recipes(self) -> tuple[ColorAugmentation, ColorAugmentation]:
        """View 1 is always blurred; view 2 is rarely blurred and sometimes solarized (table 6)."""
        config = self.config
        first = ColorAugmentation(0.4, 0.4, 0.2, 0.1, blur=2 * config.blur).with_strength(config.strength)
        return first, replace(first, blur=config.blur / 5, solarize=0.2)

    def inputs(self, batch: Batch, step: int) -> Batch:
        """Both views of a step, (n,3,S,S) each."""
        return {"first": self.view(batch, 0, step), "second": self.view(batch, 1, step)}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        views = list(inputs.values())
        self.online.train()
        self.target.train()
        encoder, projector = self.target
        assert isinstance(encoder, Encoder)
        with self.world.autocast():
            projections = [self.projector(self.encoder.vectors(view)) for view in views]
            predictions = [self.predictor(projection).float() for projection in projections]
            with torch.no_grad():
                targets = [projector(encoder.vectors(view)).float() for view in views]
        loss = regression_loss(predictions[0], targets[1]) + regression_loss(predictions[1], targets[0])
        self.world.backward(loss, *self.optimizers.values())
        rate = self.rate * optim.warmup_cosine(step, config.steps, config.warmup)
        scalars = {"loss/byol": loss.detach()}
        for name, factor in (("source", 1.0), ("predictor", config.predictor_lr)):
            optim.set_lr(self.optimizers[name], factor * rate)
            scalars |= self.take_step(name, step)
        momentum = cosine_momentum(config.momentum, step, config.steps)
        ema_update(self.target, self.source, momentum)
        if config.logs(step):
            scalars |= {"momentum": torch.full((), momentum, device=loss.device), **spread(projections[0])}
        return scalars


def main(argv: Sequence[str] | None = None) -> None:
    run_method(BYOL, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
