"""Adversarial losses, pure functions of a discriminator's logits, its step, and what keeps its training clean.

Logits have any shape; above 0 means "real". ``Kind``:
- ``bce``: Goodfellow et al. 2014 (arXiv:1406.2661), with the non-saturating generator loss -log D(fake);
- ``hinge``: Lim and Ye 2017 (arXiv:1705.02894), as in SNGAN and SAGAN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from core.train import optim
from core.train.dist import World

Kind = Literal["bce", "hinge"]


def real_loss(logits: Tensor, kind: Kind = "bce") -> Tensor:
    """The discriminator's loss on real images, mean over all logits, ().

    bce: -log sigmoid(x) = softplus(-x); hinge: max(0, 1 - x).
    """
    return softplus(-logits).mean() if kind == "bce" else (1 - logits).relu().mean()


def fake_loss(logits: Tensor, kind: Kind = "bce") -> Tensor:
    """The discriminator's loss on generated images, mean over all logits, ().

    bce: -log(1 - sigmoid(x)) = softplus(x); hinge: max(0, 1 + x).
    """
    return softplus(logits).mean() if kind == "bce" else (1 + logits).relu().mean()


def generator_loss(logits: Tensor, kind: Kind = "bce") -> Tensor:
    """The generator's loss, from the discriminator's logits on what it made; mean over all logits, ().

    bce: -log sigmoid(x) = softplus(-x); hinge: -x.
    """
    return softplus(-logits).mean() if kind == "bce" else -logits.mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """R1 gradient penalty on real images (Mescheder 2018, arXiv:1801.04406, eq. 9, without its gamma), ().

    1/2 * E ||d logit / d image||^2, for images (N,3,H,W) and a discriminator that judges each by itself. With
    batch normalisation it does not: there the gradient also counts what an image does to the others' logits.
    Of a compiled network pass ``network.forward``, as torch.compile cannot differentiate twice.
    """
    images = images.detach().requires_grad_()
    logits = discriminator(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()


@contextmanager
def untracked(network: nn.Module) -> Iterator[None]:
    """Within it, batch norms in training mode use each batch's statistics but don't update their averages.

    So a discriminator's averages describe real images alone, not a mixture that no batch looks like.
    """
    norms = [
        m
        for m in network.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within it, gradients pass through the network but not into its weights, and it is ``untracked``."""
    weights = [p for p in network.parameters() if p.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with untracked(network):
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def update_discriminator(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    fake: Tensor,
    world: World,
    *,
    kind: Kind = "bce",
    r1: float = 0.0,
    step: int = 0,
) -> dict[str, Tensor]:
    """One step of a discriminator on images (N,3,H,W), ``fake`` detached; returns scalars to log.

    Real and fake pass one after the other, each with its own backward: two batches never share statistics. With
    ``r1``, the weight of ``r1_penalty``, that is taken every 16 steps at 16 times the weight (lazy regularisation,
    Karras 2020, arXiv:1912.04958).
    """
    with world.autocast():
        on_real = discriminator(real)
    loss_real = real_loss(on_real.float(), kind)
    loss_real.backward()
    with untracked(discriminator), world.autocast():
        on_fake = discriminator(fake)
    loss_fake = fake_loss(on_fake.float(), kind)
    loss_fake.backward()
    scalars = {
        "discriminator/real": on_real.detach().float().sigmoid().mean(),
        "discriminator/fake": on_fake.detach().float().sigmoid().mean(),
        "loss/discriminator": (loss_real + loss_fake).detach(),
    }
    if r1 and step % 16 == 0:
        penalty = r1_penalty(discriminator.forward, real)
        (16 * r1 * penalty).backward()
        scalars["loss/r1"] = penalty.detach()
    scalars["grad_norm/discriminator"] = optim.step(optimizer, world)
    return scalars


def collapse_warning(
    scalars: Mapping[str, float], advice: str = "--discriminator-norm spectral, or a lower --lr-discriminator"
) -> list[str]:
    """What to say where a discriminator's logged loss has gone to nothing; for ``Method.warnings``.

    ``advice``: which of the method's options to try.
    """
    if scalars.get("loss/discriminator", 1.0) < 1e-4:
        return ["the discriminator's loss is 0.0000: it has won, and the generator learns nothing from it; "
                f"try {advice}"]  # fmt: skip
    return []
