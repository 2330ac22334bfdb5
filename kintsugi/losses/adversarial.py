"""Adversarial losses as pure functions of a discriminator's logits, and contexts for a discriminator's training.

Logits have any shape; above 0 means real. ``Kind``:
- ``bce``: Goodfellow et al. 2014 (arXiv:1406.2661), with the non-saturating generator loss -log D(fake);
- ``hinge``: Lim and Ye 2017 (arXiv:1705.02894), as in SNGAN and SAGAN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

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
    """The generator's loss from the discriminator's logits on generated images, mean over all logits, ().

    bce: -log sigmoid(x) = softplus(-x); hinge: -x.

    >>> generator_loss(torch.tensor([0.5, 1.5]), "hinge").item()
    -1.0
    """
    return softplus(-logits).mean() if kind == "bce" else -logits.mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """R1 gradient penalty on real images (Mescheder 2018, arXiv:1801.04406, eq. 9, without its gamma), ().

    1/2 * E ||d logit / d image||^2, for images (N,3,H,W). The logit of an image must depend on that image alone; with
    batch normalization the gradient would also include its effect on the others' logits. For a compiled network pass
    ``network.forward``, because torch.compile cannot differentiate twice.
    """
    images = images.detach().requires_grad_()
    logits = discriminator(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()


@contextmanager
def no_statistics_update(network: nn.Module) -> Iterator[None]:
    """A context in which batch norms in training mode use the batch's statistics but do not update their averages.

    Fake images pass in this context, so that a discriminator's running averages describe real images, and not a mixture
    of real and fake ones, which no batch holds.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """A context in which gradients pass through the network, but do not reach its weights.

    Includes ``no_statistics_update``.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with no_statistics_update(network):
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
