"""Code that GAN methods share: settings, their part of the ``Method`` contract, the discriminator's training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kintsugi.losses import adversarial
from kintsugi.nets.encoder import Encoder
from kintsugi.train.config import TrainConfig
from kintsugi.train.dist import World
from kintsugi.train.ema import RunningAverage
from kintsugi.train.method import Method


@dataclass(frozen=True, kw_only=True)
class GanConfig(TrainConfig):
    """Settings of methods with a generator and a discriminator."""

    adversarial_start: int = 0
    """Steps without the discriminator at the beginning. The weights after them are saved as before-adversary.pt."""

    @property
    def has_adversary(self) -> bool:
        """Whether the run has a discriminator."""
        raise NotImplementedError


G = TypeVar("G", bound=GanConfig)


class Gan(Method[G]):
    """A generator with an adversarial discriminator. A subclass sets both attributes below."""

    average: RunningAverage
    """Running average of the generator, which must have an ``encoder``.

    This average, not the generator itself, is shown, evaluated and transferred.
    """
    discriminator: nn.Module
    """Must have an ``encoder``. Needed only if the config has an adversary."""

    def milestones(self) -> dict[int, str]:
        start = self.config.adversarial_start
        return {start: "before-adversary"} if self.config.has_adversary and start else {}

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        return collapse_warning(scalars)

    def encoders(self) -> dict[str, Encoder]:
        nets = {"generator": self.average.module}
        if self.config.has_adversary:
            nets["discriminator"] = self.discriminator
        return {role: net.get_submodule("encoder") for role, net in nets.items()}  # type: ignore[misc]


def update_discriminator(
    method: Method[Any],
    discriminator: nn.Module,
    real: Tensor,
    fake: Tensor,
    step: int,
    *,
    kind: adversarial.Kind = "bce",
    r1: float = 0.0,
) -> dict[str, Tensor]:
    """One training step of a method's discriminator. Returns scalars to log.

    real, fake: images (N,3,H,W) in [0,1], or other inputs of the discriminator; ``fake`` must be detached. Real and
    fake ones pass separately, each with a backward pass of its own, so that batch norms never mix them. The method's
    optimizer ``discriminator`` then takes a step. r1: the weight of ``r1_penalty``, which is computed only every 16
    steps, with 16 times the weight (lazy regularization, Karras 2020, arXiv:1912.04958).
    """
    with method.world.autocast():
        on_real = discriminator(real)
    loss_real = adversarial.real_loss(on_real.float(), kind)
    loss_real.backward()
    with adversarial.no_statistics_update(discriminator), method.world.autocast():
        on_fake = discriminator(fake)
    loss_fake = adversarial.fake_loss(on_fake.float(), kind)
    loss_fake.backward()
    scalars = {
        "discriminator/real": on_real.detach().float().sigmoid().mean(),
        "discriminator/fake": on_fake.detach().float().sigmoid().mean(),
        "loss/discriminator": (loss_real + loss_fake).detach(),
    }
    if r1 and step % 16 == 0:
        penalty = adversarial.r1_penalty(discriminator.forward, real)
        (16 * r1 * penalty).backward()
        scalars["loss/r1"] = penalty.detach()
    method.world.mean_gradients(method.optimizers["discriminator"])
    return scalars | method.take_step("discriminator", step)


def adversarial_loss(
    discriminator: nn.Module, fake: Tensor, world: World, weight: float, kind: adversarial.Kind = "bce"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The generator's adversarial loss on its images (N,3,H,W), times ``weight``, 0-d; and scalars to log.

    Gradients reach ``fake``, but not the discriminator's weights.
    """
    with adversarial.frozen(discriminator), world.autocast():
        logits = discriminator(fake)
    loss = adversarial.generator_loss(logits.float(), kind)
    weighted = weight * loss
    return weighted, {"loss/adversarial": loss.detach(), "loss/adversarial_weighted": weighted.detach()}


def gradient_ratio(loss: Tensor, other: Tensor, weight: Tensor, world: World) -> Tensor:
    """How many times larger the gradient of one loss at ``weight`` is than that of another, 0-d (Esser 2021, eq. 7)."""
    norms = [
        world.mean(torch.autograd.grad(each, weight, retain_graph=True)[0].float()).norm() for each in (loss, other)
    ]
    return norms[0] / norms[1].clamp(min=1e-6)


def collapse_warning(
    scalars: Mapping[str, float], advice: str = "--discriminator-norm spectral, or a lower --lr-discriminator"
) -> list[str]:
    """Warns if the discriminator's logged loss is almost 0: a list of one line, or empty. For ``Method.warnings``.

    advice: the method's options to try.
    """
    if scalars.get("loss/discriminator", 1.0) < 1e-4:
        return [
            f"the discriminator's loss is 0.0000: it has won, and the generator learns nothing from it; try {advice}"
        ]
    return []
