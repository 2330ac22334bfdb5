"""Adversarial losses, pure functions of a discriminator's logits, and what keeps its training clean.

Logits have any shape; above 0 means "real". ``Kind``:
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
    """The generator's loss, from the discriminator's logits on what it made; mean over all logits, ().

    bce: -log sigmoid(x) = softplus(-x); hinge: -x.

    >>> generator_loss(torch.tensor([0.5, 1.5]), "hinge").item()
    -1.0
    """
    return softplus(-logits).mean() if kind == "bce" else -logits.mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """R1 gradient penalty on real images (Mescheder 2018, arXiv:1801.04406, eq. 9, without its gamma), ().

    1/2 * E ||d logit / d image||^2, for images (N,3,H,W) and a discriminator that judges each by itself. With
    batch normalization it does not: there the gradient also counts what an image does to the others' logits.
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
