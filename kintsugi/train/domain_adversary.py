"""Adversarial training of features that look the same for real and synthetic ("fake") images.

Features are (N,C,s,s). A discriminator predicts from them whether an image is real. The encoder and the discriminator
are updated in turns (``kintsugi.train.gan.update_discriminator``, then ``alternate_loss``), or together, by gradient
reversal (``reversal_loss``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kintsugi.losses import adversarial
from kintsugi.losses.domain_adversarial import domain_accuracy, reverse_gradient
from kintsugi.train.dist import World
from kintsugi.upload import upload


def alternate_loss(
    discriminator: nn.Module, fake: Tensor, real: Tensor, world: World, weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The encoder's adversarial loss on fake images, times ``weight``, 0-d; and scalars to log.

    fake, real: features. ``real`` is only for the logged accuracy. No gradients reach the discriminator's weights.
    """
    with adversarial.frozen(discriminator), world.autocast():
        on_fake, on_real = discriminator(fake).float(), discriminator(real.detach()).float()
    loss = adversarial.generator_loss(on_fake)
    weighted = weight * loss
    return weighted, {
        "loss/adversarial": loss.detach(),
        "loss/adversarial_weighted": weighted.detach(),
        "domain/accuracy": domain_accuracy(on_real, on_fake),
    }


def reversal_loss(
    discriminator: nn.Module, fake: Tensor, real: Tensor, world: World, weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's loss, 0-d, whose gradients reach the features multiplied by -``weight``; and scalars to log.

    fake, real: features. One backward pass gives the gradients of both discriminator and encoder (Ganin 2015,
    arXiv:1409.7495).
    """
    with world.autocast():
        on_real = discriminator(reverse_gradient(real, weight)).float()
    with adversarial.no_statistics_update(discriminator), world.autocast():
        on_fake = discriminator(reverse_gradient(fake, weight)).float()
    loss = adversarial.real_loss(on_real) + adversarial.fake_loss(on_fake)
    return loss, {
        "discriminator/real": on_real.detach().sigmoid().mean(),
        "discriminator/fake": on_fake.detach().sigmoid().mean(),
        "loss/discriminator": loss.detach(),
        "domain/accuracy": domain_accuracy(on_real, on_fake),
    }


class FeaturePool:
    """Keeps features of ``size`` earlier images, so that a discriminator does not forget them.

    As in Shrivastava 2017 (arXiv:1612.07828, section 2.3). The pool starts with copies of the first batch, and is the
    same on every rank.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: Tensor | None = None  # (size,C,s,s)

    def exchange(self, features: Tensor, random: torch.Generator) -> Tensor:
        """Swaps up to half of a batch (N,C,s,s) for features in the pool, and returns the mixed batch (N,C,s,s).

        random: draws which ones. With a pool of size 0 the batch is returned as it is.
        """
        if self.size == 0:
            return features
        if self.kept is None:
            self.kept = features[torch.arange(self.size) % len(features)].clone()
        count = min(len(features) // 2, self.size)
        out, into = (torch.randperm(number, generator=random)[:count] for number in (len(features), self.size))
        out, into = upload(features.device, out, into)
        mixed = features.clone()
        mixed[out] = self.kept[into]
        self.kept[into] = features[out]
        return mixed
